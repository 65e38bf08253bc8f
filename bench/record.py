"""Record the comparison with every peer on this machine: `python bench/record.py [NAME]`.

It is `fastrms bench` with the shapes of the README and of its picture, on one thread and on two,
and writes bench/results/NAME.json. Further arguments go to `fastrms bench` as they are.
"""

import argparse
import re
import sys
from pathlib import Path

from fastrms.__main__ import main
from fastrms.bench import machine

RESULTS = Path(__file__).parent / "results"
# The README's table: the call itself, decode, a batch, odd lengths, heads, prefill, the large ones.
TABLE = (
    "1x64",
    "1x4096",
    "16x4096",
    "100x100",
    "512x576",
    "64x11008",
    "16384x128",
    "65536x128",
    "512x4096",
    "4096x4096",
)
# Rows of 4096 at the sizes between, for the lines of the picture.
PICTURE = ("4x4096", "64x4096", "256x4096", "1024x4096")


def default_name():
    """Return the CPU's name as a file name."""
    return re.sub(r"\W+", "-", re.sub(r"\(.*?\)", "", machine.cpu_name())).strip("-").lower()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default=default_name(), help="of the results file")
    args, more = parser.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    command = ["bench", "--peers", "all", "--threads", "1,2"]
    command += [part for shape in TABLE + PICTURE for part in ("--shape", shape)]
    sys.exit(main([*command, "--json", str(RESULTS / f"{args.name}.json"), *more]))
