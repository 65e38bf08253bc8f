"""`fastrms check --against`: its arguments, and what it prints."""

import argparse
import contextlib
import sys
from pathlib import Path

from .. import _arguments, _output
from ..bench.options import names, shape
from . import exact
from .calls import FRAMEWORKS, SIGNATURES
from .examine import Examination
from .families import EVERYDAY, FAMILIES

EPILOG = """\
Another function's signature is met by a wrapper of three lines, in a file mine.py:

    import mylib
    def norm(x, weight, eps):
        return mylib.RMSNorm(x.shape[-1], eps=eps, weight=weight)(x)

    fastrms check --against mine.py:norm

x, dy, residual are (rows, n), weight is (n,). Exit code: 0; 1 for findings, an error above --ulp
among them; 2 if a function is not there, raises, or returns another shape or dtype.
"""
DETAILS = "eps", "weight_offset", "framework", "families", "shapes", "ulp", "strict"
ROLES = {"--against": "norm", "--backward": "backward", "--add": "add", "--residual": "residual"}


def add_arguments(parser):
    """Give the `check` subparser the arguments that are about another's functions."""
    group = parser.add_argument_group(
        "another implementation, by MODULE:FUNCTION or FILE.py:FUNCTION"
    )
    add = group.add_argument
    for option, role in ROLES.items():
        arguments, results = (", ".join(part) for part in SIGNATURES[role])
        text = f"f({arguments}) -> {results}"
        add(option, dest=role, metavar="WHERE:F", help=text)
    eps = _arguments.between(0, 1e30)
    add("--eps", type=eps, metavar="E", help="of every call (default: 1e-5, of tiny rows 0)")
    add("--weight-offset", type=float, choices=(0.0, 1.0), help="default: 0")
    add("--framework", choices=FRAMEWORKS, help="of the arrays (default: numpy)")
    known = (
        f"all, or any of {', '.join(EVERYDAY)}, or of the harder rows, which an unknown name lists"
    )
    add("--families", type=names(FAMILIES), action="extend", metavar="F,F", help=known)
    several = _arguments.several(shape)
    add("--shapes", type=several, action="extend", metavar="RxN,RxN", help="rows x row length")
    text = "the largest error that is no finding (default: 8 + n / 256; of halves 2)"
    add("--ulp", type=_arguments.positive, metavar="U", help=text)
    text = "range, bits that depend on batch or alignment, and two roundings are findings too"
    add("--strict", action="store_const", const=True, help=text)
    text = "write inputs with exact results, for other languages (bfloat16 as uint16)"
    add("--export", type=_npz, metavar="FILE.npz", help=text)
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter


def _npz(text):
    if Path(text).suffix != ".npz":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .npz")
    return _arguments.writable(text)


def asked(args):
    """Whether the arguments are about another's functions; raise ValueError if only details are."""
    if args.export or any(getattr(args, role) for role in SIGNATURES):
        return True
    for name in DETAILS:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} needs {', '.join(ROLES)} or --export")
    return False


def run(args):
    """Examine the functions that the arguments name, and return the exit code."""
    options = {name: getattr(args, name) for name in DETAILS if getattr(args, name) is not None}
    if args.export:
        about = {name: options[name] for name in ("eps", "weight_offset") if name in options}
        count = exact.export(args.export, args.dtype, **about)
        print(f"{args.export}: {_output.counted(count, 'array')}", file=sys.stderr)
    functions = {role: getattr(args, role) for role in SIGNATURES}
    if not any(functions.values()):
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # the functions may print
        exam = Examination(functions, dtype=args.dtype, **options)
        for step in _output.progress(exam.steps, len(exam.steps)):
            step()
    if args.json:
        _arguments.write_json(exam.report.as_dict(), args.json)
    if args.json != _arguments.STDOUT:
        print(exam.report)
    return 1 if exam.report.failures else 0
