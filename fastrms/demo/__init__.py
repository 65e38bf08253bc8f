"""`fastrms demo STUDY`: studies that show what the library is for. `depth` is the only one so far.

One module computes a study, another shows it; this one has the arguments and their errors.
"""

import importlib.util
import textwrap

from .. import _arguments, _output

__all__ = ["add_studies"]


def add_studies(parser):
    """Give the `demo` subparser a subparser for each study."""
    studies = _arguments.add_commands(parser, "STUDY")
    text = "activations and gradients through a deep stack"
    depth = _arguments.add_command(studies, "depth", text)
    add = depth.add_argument
    # A thousand layers take 0.6 GB and a minute.
    add("--layers", type=_arguments.whole(1, 1000), default=128, metavar="L", help="default: 128")
    add(
        "--gain",
        type=_arguments.several(_arguments.between(0.1, 10)),
        action="extend",
        metavar="G,G",
        help="size of the weights, 0.1 to 10, 1 = critical; repeatable (default: 1.3,0.7)",
    )
    add(
        "--relu",
        choices=("first", "last"),
        default="first",
        help="ReLU before the linear map (default) or after it",
    )
    add("--seed", type=_arguments.whole(0), default=0, metavar="N", help="default: 0")
    add("--plot", type=_arguments.picture, metavar="FILE", help="draw a picture: .png or .svg")
    _arguments.add_json(depth)
    depth.set_defaults(run=run_depth)


def run_depth(args):
    """Measure, print, draw; return the exit code."""
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError('--plot needs matplotlib: python -m pip install "fastrms[bench]"')
    from . import depth, show

    gains = tuple(dict.fromkeys(args.gain or depth.GAINS))
    study = depth.study(gains, layers=args.layers, seed=args.seed, relu=args.relu)
    results = [*_output.progress(study, len(gains) * len(depth.DESIGNS))]
    if args.plot:
        show.plot(results, args.plot)
    if args.json:
        _arguments.write_json(results, args.json)
    if args.json != _arguments.STDOUT:
        # Never break a line at a hyphen: it is a minus sign.
        sentence = textwrap.fill(show.sentence(results), 80, break_on_hyphens=False)
        print(f"{show.table(results)}\n\n{sentence}")
    return 0
