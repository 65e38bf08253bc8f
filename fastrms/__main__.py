"""The command line, `fastrms` and `python -m fastrms`: parse arguments, call, report errors."""

import argparse
import functools
import os
import sys

from . import __version__, _arguments, _config, bench, check, demo
from .bench.peers import PEERS
from .conformance import command


def build_parser(peers):
    description = "RMSNorm for NumPy on the CPU."
    parser = argparse.ArgumentParser("fastrms", _arguments.NO_USAGE, description)
    parser.add_argument("--version", action="version", version=f"fastrms {__version__}")
    commands = _arguments.add_commands(parser, "COMMAND")
    add = functools.partial(_arguments.add_command, commands)

    info = add("info", "show versions, compiler, instruction set, threads")
    _arguments.add_json(info)
    info.set_defaults(run=run_info)

    check_ = add("check", "measure the largest error of every function, or of another's")
    _arguments.add_json(check_)
    _arguments.add_dtype(check_, "of every array (default: float32)")
    command.add_arguments(check_)
    check_.set_defaults(run=run_check)

    bench_ = add("bench", "time every function against a copy of its arrays")
    bench.add_arguments(bench_, peers)
    bench_.set_defaults(run=functools.partial(bench.run, peers=peers))

    demo_ = add("demo", "show what the norm and the skip path are for")
    demo.add_studies(demo_)
    return parser


def run_info(args):
    if args.json:
        _arguments.write_json(_config.show_config("dicts"), args.json)
    if args.json != _arguments.STDOUT:
        _config.show_config()
    return 0


def run_check(args):
    return command.run(args) if command.asked(args) else check.run(args.json, args.dtype)


def main(argv=None, peers=PEERS):
    """Run one command and return its exit code: 2 for an error, with the reason on one line.

    130 after Ctrl-C and 141 after a closed pipe are the codes that a shell gives these signals.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller: be silent, as print() is
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (stays open)
    name = "fastrms"
    try:
        try:
            args = build_parser(peers).parse_args(argv)
            name = args.name
            return args.run(args)
        finally:
            flush_stdout()
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except (ValueError, ImportError, OSError, MemoryError) as error:
        print(f"{name}: {error or type(error).__name__}", file=sys.stderr)
        return 2


def flush_stdout():
    """Flush, and raise an error only once: at exit Python would flush again, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    sys.exit(main())
