"""The command line: `fastrms` and `python -m fastrms`. It parses, calls, and reports; no more."""

import argparse
import importlib.util
import json
import math
import sys

from . import __version__, _config, bench, check


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

    demo = commands.add_parser("demo", help="show what the norm and the skip path are for")
    studies = demo.add_subparsers(dest="study", required=True, metavar="STUDY")
    add_depth(studies.add_parser("depth", help="activations and gradients through a deep stack"))
    return parser


def add_depth(parser):
    parser.add_argument("--layers", type=int, default=128, help="default: 128")
    parser.add_argument(
        "--gain",
        type=float,
        nargs="+",
        default=[1.3, 0.7],
        help="standard deviation of the weights, 1 = critical (default: 1.3 0.7)",
    )
    parser.add_argument(
        "--relu",
        choices=("first", "last"),
        default="first",
        help="ReLU before the linear map (default) or after it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print every layer's figures as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the picture, too")
    parser.set_defaults(run=lambda args: run_depth(parser, args))


def run_info(args):
    if args.json:
        print(json.dumps(_config.show_config("dicts"), indent=2))
    else:
        _config.show_config()
    return 0


def run_depth(parser, args):
    if args.layers < 1 or args.seed < 0 or not all(0 < gain < math.inf for gain in args.gain):
        parser.error("--layers must be at least 1, --seed at least 0, --gain positive and finite")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "fastrms[bench]"')
    from .demo import depth, show

    results = depth.study(args.gain, layers=args.layers, seed=args.seed, relu=args.relu)
    if args.plot:
        try:
            show.plot(results, args.plot)
        except (
            OSError,
            ValueError,
        ) as reason:  # ValueError: an ending that matplotlib cannot write
            parser.error(f"cannot write {args.plot}: {reason}")
    print(show.as_json(results) if args.json else show.table(results))
    if not args.json:
        print(f"\n{show.sentence(results)}")
    return 0


def main(argv=None):
    args = build_parser().parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
