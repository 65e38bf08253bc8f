"""The arguments of `fastrms bench`, and the plan made from them. Nothing is measured here."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from .. import _arguments, _core
from . import cases, machine, timing

DEFAULT_OPS = ("forward", "offset", "add_norm", "backward", "add")
# Decode, a batch of 16, q and k heads, SmolLM2, prefill; default_shapes adds one beyond the cache.
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
# Processes of fastrms: a second one sees a row that is slow in all rounds of the first. A record
# has three, to show by how much those of one build differ.
PROCESSES, PROCESSES_OF_A_RECORD = 2, 3


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    ops: tuple = DEFAULT_OPS
    shapes: tuple = DEFAULT_SHAPES
    data: tuple = ("normal",)
    threads: tuple = (1,)
    peers: dict = field(default_factory=dict)
    processes: int = PROCESSES
    isa: str | None = None
    rounds: int = 9
    inplace: bool = False
    align: int = cases.ALIGN
    block: float = timing.BLOCK_SECONDS
    dtype: str = "float32"


def add_arguments(parser, peers):
    """Give the `bench` subparser its arguments; `peers` are those to choose from."""
    add, whole = parser.add_argument, _arguments.whole

    def add_list(name, parse, metavar, text):
        add(name, type=parse, action="extend", metavar=metavar, help=f"{text}; repeatable")

    add_list("--op", names(cases.OPS), "OP,OP", choices(cases.OPS, DEFAULT_OPS))
    shapes = "rows x row length, as in 512x4096 (default: shapes of models, one beyond the cache)"
    add_list("--shape", _arguments.several(shape), "RxN,RxN", shapes)
    add_list("--data", names(cases.DATA), "D,D", choices(cases.DATA, Plan.data))
    add_list("--threads", _arguments.several(whole(1, _core.MOST_THREADS)), "T,T", "default: 1")
    add("--isa", help="instruction set to force: baseline, v3, v4 (default: see fastrms info)")
    _arguments.add_dtype(parser, "of every array (default: float32, or that of --compare)", None)
    add("--rounds", type=whole(1), default=Plan.rounds, metavar="N", help="default: %(default)s")
    others = f"rivals to time as well, if installed: all, or any of {', '.join(peers)}"
    add_list("--peers", names(peers), "A,B", others)
    add("--inplace", action="store_true", help="let the result overwrite an input")
    add(
        "--align",
        type=int,
        choices=range(0, cases.CACHE_LINE, 4),
        default=cases.ALIGN,
        metavar="BYTES",
        help="start every array this far past a cache line (default: 16, as np.empty does)",
    )
    _arguments.add_json(parser)
    add("--plot", type=_arguments.picture, metavar="FILE", help="draw a picture: .png or .svg")
    again = "measure the rows of an earlier --json again, and compare the times"
    add("--compare", type=Path, metavar="OLD.json", help=again)
    slow = (
        "with --compare: exit with 1 if a row's speed is less than R times the old one, and the "
        "change exceeds the noise"
    )
    add("--fail-below", type=_arguments.positive, metavar="R", help=slow)


def plan(args, peers, old=None):
    """Return the plan that the arguments ask for; an old record supplies those left out."""
    rows = old["rows"] if old else []
    dtype = args.dtype or (old or {"protocol": {}})["protocol"].get("dtype") or Plan.dtype
    itemsize = _arguments.dtype(dtype).itemsize
    if args.align % itemsize:
        raise ValueError(f"--align {args.align}: {dtype} arrays start at a multiple of {itemsize}")
    threads = unique(args.threads or (row["threads"] for row in rows)) or Plan.threads
    if max(threads) > 1 and not _core.build_info()["pool"]:
        raise ValueError("--threads: this build has no threads, every call is serial")
    processes = PROCESSES_OF_A_RECORD if args.json or old else PROCESSES
    chosen = {name: peers[name] for name in args.peers or ()}
    copies = processes + len(chosen)
    open_shapes = ((row["rows"], row["n"]) for row in rows)
    return Plan(
        ops=unique(args.op or (row["op"] for row in rows)) or DEFAULT_OPS,
        shapes=unique(args.shape or open_shapes) or default_shapes(copies, itemsize),
        data=unique(args.data or (row.get("data") or "normal" for row in rows)) or Plan.data,
        threads=threads,
        peers=chosen,
        processes=processes,
        isa=args.isa,
        rounds=args.rounds,
        inplace=args.inplace,
        align=args.align,
        dtype=dtype,
    )


def unique(values):
    return tuple(dict.fromkeys(values))


def default_shapes(processes, itemsize):
    """Return DEFAULT_SHAPES and one whose x and out together outgrow the last-level cache.

    An array takes at most 256 MiB, since a virtual machine may have only a share of a server's
    reported cache, and at most a sixteenth of each process's share of the free memory.
    """
    largest = (machine.memory_bytes("MemAvailable") or 2**32) // (16 * processes)
    rows, row_bytes = 4096, itemsize * WIDE
    while rows < 16384 and 2 * rows * row_bytes <= machine.last_level_cache():
        rows *= 2
    while rows > 2048 and rows * row_bytes > largest:
        rows //= 2
    return unique((*DEFAULT_SHAPES, (rows, WIDE)))


def choices(known, default):
    return f"all, or any of {', '.join(known)} (default: {','.join(default)})"


def names(known):
    """Return a type for action="extend": known names, separated by commas, or "all"."""

    def parse(text):
        chosen = tuple(known) if text == "all" else _arguments.several(str)(text)
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
