"""`fastrms demo STUDY`: studies that show what the library is for. `depth` is the only one so far.

A study computes in one module and is shown by another; here stand its arguments and its errors.
"""

import importlib.util
import math

__all__ = ["add_studies"]


def add_studies(parser):
    """Give the `demo` subparser a subparser for each study."""
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    depth = studies.add_parser("depth", help="activations and gradients through a deep stack")
    depth.add_argument("--layers", type=int, default=128, help="default: 128")
    depth.add_argument(
        "--gain",
        type=float,
        nargs="+",
        default=[1.3, 0.7],
        help="size of the weights, 1 = critical (default: 1.3 0.7)",
    )
    depth.add_argument(
        "--relu",
        choices=("first", "last"),
        default="first",
        help="ReLU before the linear map (default) or after it",
    )
    depth.add_argument("--seed", type=int, default=0)
    depth.add_argument("--json", action="store_true", help="print every layer's figures as JSON")
    depth.add_argument("--plot", metavar="FILE.png", help="draw the picture, too")
    depth.set_defaults(run=lambda args: run_depth(depth, args))


def run_depth(parser, args):
    """Measure, print, draw; return the exit code."""
    if args.layers < 1 or args.seed < 0 or not all(0 < gain < math.inf for gain in args.gain):
        parser.error("--layers must be at least 1, --seed at least 0, --gain positive and finite")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "fastrms[bench]"')
    from . import depth, show

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
