"""Argument types that the commands share, and JSON output to a file or to stdout."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

STDOUT = Path("-")
NO_USAGE = argparse.SUPPRESS  # an error is then one line
DTYPES = "float16", "bfloat16", "float32", "float64"


def several(parse):
    """Return a type for action="extend": one or more values, separated by commas."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def whole(least, most=None):
    """Return a type for whole numbers from `least` to `most`."""
    wanted = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parse(text):
        number = int(text) if text.isascii() and text.isdigit() else -1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return number

    return parse


def positive(text):
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive, finite number")
    return value


def between(least, most):
    """Return a type for numbers from `least` to `most`."""

    def parse(text):
        value = number(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
        return value

    return parse


def number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def writable(text):
    """Return the path of a writable file; checking it leaves the file as it was."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file, got ''")
    path = Path(text)
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path


def picture(text):
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .svg")
    return writable(text)


def add_commands(parser, name):
    """Return what add_command adds to; argparse would take the program's name from the usage."""
    return parser.add_subparsers(dest=name.lower(), required=True, metavar=name, prog=parser.prog)


def add_command(commands, name, text):
    """Add a subparser; `text` describes it in the list of commands and in its own --help."""
    description = f"{text[0].upper()}{text[1:]}."
    parser = commands.add_parser(name, help=text, description=description, usage=NO_USAGE)
    parser.set_defaults(name=parser.prog)  # the innermost command's, which is set last
    return parser


def add_json(parser):
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=lambda text: STDOUT if text == "-" else writable(text),
        metavar="FILE",
        help="write all figures as JSON to FILE; if it is - or left out, to stdout, alone there",
    )


def add_dtype(parser, text, default="float32"):
    names = ", ".join(DTYPES)
    parser.add_argument("--dtype", choices=DTYPES, default=default, help=f"{text}: {names}")


def dtype(name):
    """Return the NumPy dtype of this name; raise ImportError if that takes a missing ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ImportError("bfloat16 needs ml_dtypes: python -m pip install ml_dtypes") from None
    return np.dtype(bfloat16)


def write_json(value, path):
    """Write JSON to a file, or to STDOUT."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _finite(value):
    """Replace infinity and NaN, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
