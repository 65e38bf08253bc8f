"""The command line: `fastrms` and `python -m fastrms`. It parses, calls, and reports; no more."""

import argparse
import functools
import os
import sys

from . import __version__, _arguments, _config, bench, check, demo


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(**options)
        self.set_defaults(name=self.prog)  # of the innermost command: its values are set last

    def error(self, message):
        """Refuse on one line: the reason, and where help is."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what is unknown here, in the command's own name: argparse leaves it to the top."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _print_message(self, message, file=None):
        """Let an error of stdout through, for main: argparse passes over it."""
        if message and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def build_parser():
    parser = Parser(prog="fastrms", description="RMSNorm for NumPy on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastrms {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = functools.partial(_arguments.add_command, commands)

    info = add("info", "show versions, compiler, instruction set, threads")
    _arguments.add_json(info)
    info.set_defaults(run=run_info)

    check_ = add("check", "check every function on this machine, now: its largest error")
    _arguments.add_json(check_)
    check_.set_defaults(run=lambda args: check.run(args.json))

    bench_ = add("bench", "time every function beside the price of a copy")
    bench.add_arguments(bench_)
    bench_.set_defaults(run=bench.run)

    demo_ = add("demo", "show what the norm and the skip path are for")
    demo.add_studies(demo_)
    return parser


def run_info(args):
    if args.json:
        _arguments.write_json(_config.show_config("dicts"), args.json)
    if args.json != _arguments.STDOUT:
        _config.show_config()
    return 0


def main(argv=None):
    """Run one command and return its exit code: 2 for what it refuses, with the reason on a line.

    130 after Ctrl-C and 141 where nobody reads the output are what a shell gives for the signals.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller: print() is silent then, too
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (for good)
    name = "fastrms"
    try:
        try:
            args = build_parser().parse_args(argv)
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
    """Meet an error of stdout here, and once: Python would flush again, and complain, at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    sys.exit(main())
