"""The arguments of `fastrms bench`, and the plan that they make. Nothing is measured here."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from . import cases, machine, peers, timing

DEFAULT_OPS = ("forward", "add_norm", "backward", "add")
# Decode, a batch of 16, q and k heads, SmolLM2, prefill; one beyond the cache comes on top.
DEFAULT_SHAPES = (
    (1, 4096),
    (1, 8192),
    (16, 4096),
    (512, 576),
    (16384, 128),
    (512, 4096),
    (2048, 4096),
)
WIDE = 4096


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    ops: tuple = DEFAULT_OPS
    shapes: tuple = DEFAULT_SHAPES
    threads: tuple = (1,)
    peers: tuple = ()
    isa: str | None = None
    rounds: int = 9
    inplace: bool = False
    align: int = cases.ALIGN
    block: float = timing.BLOCK_SECONDS


def add_arguments(parser):
    """Give the `bench` subparser its arguments."""
    add = parser.add_argument
    add("--op", type=names(cases.OPS), action="extend", metavar="OP", help=choices(cases.OPS))
    add(
        "--shape",
        type=shape,
        action="append",
        metavar="RxN",
        help="rows x row length, as in 512x4096; repeatable (default: shapes of real models, "
        "and one beyond the last-level cache)",
    )
    add("--threads", type=thread_counts, default=(1,), metavar="T,T", help="default: 1")
    add("--isa", help="instruction set to force: baseline, v3, v4 (default: the best)")
    add("--rounds", type=positive, default=Plan.rounds, help=f"default: {Plan.rounds}")
    others = f"rivals to time as well, if installed: all, or {', '.join(peers.PEERS)}"
    add("--peers", type=names(peers.PEERS), default=(), metavar="A,B", help=others)
    add("--inplace", action="store_true", help="let the result overwrite an input")
    add(
        "--align",
        type=int,
        choices=range(0, cases.CACHE_LINE, 4),
        default=cases.ALIGN,
        metavar="BYTES",
        help="start every array this far past a cache line (default: 16, as np.empty gives)",
    )
    add("--json", type=writable, metavar="FILE", help="write every figure")
    add("--plot", type=picture, metavar="FILE", help="draw a picture: .png or .svg")
    add("--compare", type=Path, metavar="OLD.json", help="compare with an earlier --json")
    slow = "with --compare: exit with 1 if a row falls below R times its old speed"
    add("--fail-below", type=float, metavar="R", help=slow)


def plan(args):
    """Return the plan that parsed arguments ask for."""
    return Plan(
        ops=tuple(dict.fromkeys(args.op or DEFAULT_OPS)),
        shapes=tuple(dict.fromkeys(args.shape or default_shapes(len(args.peers)))),
        threads=args.threads,
        peers=args.peers,
        isa=args.isa,
        rounds=args.rounds,
        inplace=args.inplace,
        align=args.align,
    )


def default_shapes(peer_count):
    """DEFAULT_SHAPES, and one whose x and out together outgrow the last-level cache.

    A server may report hundreds of MiB, of which a virtual machine has a share: 256 MiB an array
    is the end, and so is a sixteenth of the memory that is free, for every process.
    """
    largest = (machine.memory_bytes("MemAvailable") or 2**32) // (16 * (1 + peer_count))
    rows, row_bytes = 4096, 4 * WIDE
    while rows < 16384 and 2 * rows * row_bytes <= machine.last_level_cache():
        rows *= 2
    while rows > 2048 and rows * row_bytes > largest:
        rows //= 2
    return dict.fromkeys((*DEFAULT_SHAPES, (rows, WIDE)))


def choices(known):
    return f"all, or of {', '.join(known)}; repeatable (default: {', '.join(DEFAULT_OPS)})"


def names(known):
    """Return a type for argparse: a comma list of known names, or "all"."""

    def parse(text):
        chosen = tuple(known) if text == "all" else tuple(text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: all, {', '.join(known)}")
        return chosen

    return parse


def shape(text):
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxN, as in 512x4096")
    return int(match[1]), int(match[2])


def thread_counts(text):
    counts = tuple(dict.fromkeys(positive(part) for part in text.split(",")))
    if max(counts) > 1024:
        raise argparse.ArgumentTypeError("at most 1024 threads")
    return counts


def positive(text):
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def writable(text):
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: no such folder, or a folder")
    return path


def picture(text):
    path = writable(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .svg")
    return path
