"""The command line: `fastrms` and `python -m fastrms`. It parses, calls, and reports; no more."""

import argparse
import json
import sys

from . import __version__, _config, bench, check, demo


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """Refuse on one line: the reason, and where help is."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser():
    parser = Parser(prog="fastrms", description="RMSNorm for NumPy on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastrms {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="show versions, compiler, instruction set, threads")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=run_info)

    check_ = commands.add_parser("check", help="check every function on this machine, now")
    check_.set_defaults(run=lambda args: check.run())

    bench_ = commands.add_parser("bench", help="time every function beside the price of a copy")
    bench.add_arguments(bench_)
    bench_.set_defaults(run=bench.run)

    demo_ = commands.add_parser("demo", help="show what the norm and the skip path are for")
    demo.add_studies(demo_)
    return parser


def run_info(args):
    if args.json:
        print(json.dumps(_config.show_config("dicts"), indent=2))
    else:
        _config.show_config()
    return 0


def main(argv=None):
    args = build_parser().parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
