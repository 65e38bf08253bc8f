"""Record the comparison with every peer on this machine: `python bench/record.py [NAME]`.

It is `fastrms bench` with the shapes of docs/benchmarks.md, on one thread and on two, and writes
bench/results/NAME.json. Further arguments go to `fastrms bench` as they are.
"""

import argparse
import re
import sys
from pathlib import Path

from peers import PEERS

import fastrms
from fastrms.__main__ import main
from fastrms.bench import machine

RESULTS = Path(__file__).parent / "results"
# What the peers have, too.
OPS = ("forward", "add_norm", "backward", "add")
# The call itself, rows of 4096 at every size (decode, prefill, the lines of the picture), odd
# lengths, training, heads. 65536 x 4096 is left out: each peer would hold 4 GiB of it.
SHAPES = (
    "1x16",
    "1x64",
    "1x4096",
    "4x4096",
    "16x4096",
    "64x4096",
    "256x4096",
    "512x4096",
    "1024x4096",
    "4096x4096",
    "1000x17",
    "100x100",
    "1000x64",
    "64x1024",
    "300x300",
    "512x576",
    "64x5120",
    "64x11008",
    "1000x1000",
    "4096x1024",
    "8192x128",
    "16384x128",
    "65536x128",
    "100000x64",
)


def default_name():
    """Return the CPU and its instruction set as a file name: several CPUs are called "AMD EPYC"."""
    isa = fastrms.show_config("dicts")["instruction set"]["in use"]
    name = re.sub(r"\(.*?\)", "", f"{machine.cpu_name()} {isa}")
    return re.sub(r"\W+", "-", name).strip("-").lower()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default=default_name(), help="of the results file")
    args, more = parser.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    command = ["bench", "--peers", "all", "--threads", "1,2", "--op", ",".join(OPS)]
    command += ["--shape", ",".join(SHAPES)]
    sys.exit(main([*command, "--json", str(RESULTS / f"{args.name}.json"), *more], PEERS))
