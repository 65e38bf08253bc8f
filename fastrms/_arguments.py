"""What the commands' arguments share: lists, files to write, and JSON in a file or on stdout."""

import argparse
import json
import math
import sys
from pathlib import Path

STDOUT = Path("-")


def several(parse):
    """Return a type for action="extend": one value, or more of them with commas between."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def whole(least, most=None):
    """Return a type for the whole numbers of a range."""
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
    """Return a type for the numbers of a range."""

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
    """Return the path of a file that can be written; it is left as it was."""
    if not text:
        raise argparse.ArgumentTypeError("wants the name of a file, got ''")
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


def add_command(commands, name, text):
    """Add a subparser whose own --help says what the list of commands does."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def add_json(parser):
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=lambda text: STDOUT if text == "-" else writable(text),
        metavar="FILE",
        help="write every figure as JSON; without FILE, or as -, to stdout, and nothing else there",
    )


def write_json(value, path):
    """Write JSON to a file, or to STDOUT."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _finite(value):
    """Return a value with null for infinity and NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
