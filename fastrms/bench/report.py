"""Format a record as tables of plain text, which leave out columns on a narrow terminal."""

import shutil
import sys

from .. import _arguments
from .._output import counted
from . import timing
from .cases import DATA, OPS

# In the order of their importance; 80 characters in all with the widest cell of each.
TITLES = ("op", "shape", "data", "thr", "x NumPy", "of floor", "best", "GB/s", "spread")
UNTRUSTED = "?"


def duration(seconds):
    """Return a time with its unit and three digits: 420 ns, 9.53 ms."""
    for unit, scale in (("ns", 1e9), ("us", 1e6), ("ms", 1e3), ("s", 1)):
        if seconds * scale < 999.5 or unit == "s":
            break
    return f"{three_digits(seconds * scale)} {unit}"


def three_digits(value):
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def size(count):
    """Return bytes with their unit: 48 KiB, 1.25 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def cells(row):
    """Return one row of a record as the main table's line, in the order of TITLES."""
    times = row["rivals"]["fastrms"]
    return (
        *subject(row),
        f"{row['times_numpy']:.1f} {' ' if row['trusted'] else UNTRUSTED}",
        f"{times['of_floor']:.2f}",
        duration(times["best_s"]),
        three_digits(times["gb_per_s"]),
        f"{times['spread']:.0%}",
    )


def subject(row):
    """Return the first four cells of every table: what was measured."""
    shape = f"{row['rows']}x{row['n']}"
    return OPS[row["op"]].label, shape, row.get("data") or DATA[0], str(row["threads"])


def widest(plan):
    """Yield lines with cells as wide as any that the plan will produce."""
    ends = "100.0 ?", "0.00", "0.00 us", "0.00", "100%"
    for op in plan.ops:
        for rows, n in plan.shapes:
            yield (OPS[op].label, f"{rows}x{n}", max(DATA, key=len), str(max(plan.threads)), *ends)


def show(screen, record):
    """Print the table of the peers, where there are some."""
    if record["peers"] and record["rows"]:
        screen.lines(["", "fractions of the floor, the fastest of each row with a star:"])
        screen.table(*peer_table(record))
        screen.lines(peer_notes(record))


def header(record):
    """Return the lines above the table: what ran, and where."""
    machine, config = record["machine"], record["config"]
    caches = ", ".join(f"L{c['level']} {size(c['bytes'])}" for c in machine["caches"])
    align = record["protocol"]["align"]
    cpus = counted(machine["cpus_usable"], "CPU")
    lines = [
        f"fastrms {config['fastrms']['version']}, {config['instruction set']['in use']}, "
        f"NumPy {config['python']['numpy']}",
        f"{machine['cpu']}, {cpus}" + (f", {caches}" if caches else ""),
        f"arrays start {align} bytes past a cache line; "
        f"{counted(record['protocol']['rounds'], 'round')}, interleaved"
        + f"; {record['protocol'].get('dtype') or 'float32'}"
        + ("; in place" if record["protocol"]["inplace"] else ""),
    ]
    if record["peers"]:
        lines.append("peers: " + ", ".join(f"{k} {v}" for k, v in record["peers"].items()))
    lines += [f"left out: {name} ({why})" for name, why in record["left_out"].items()]
    return [*lines, "", *legend(record["protocol"], record["byte_models"]), ""]


def legend(protocol, ops):
    """Return what the columns of the main table mean, in lines of 80 characters at most."""
    inplace, itemsize = protocol["inplace"], _arguments.dtype(protocol["dtype"]).itemsize
    floors = [
        f"            {op.label:14}{op.bytes_per_element(itemsize):2} B an element   "
        f"{op.pass_over(inplace, itemsize)}"
        for op in map(OPS.get, ops)
    ]
    return [
        "x NumPy   the time of the formula as usually written in NumPy, over ours",
        "of floor  the time of the cheapest NumPy pass over the same arrays, over ours:",
        *floors,
        "best      one call, in the best round; GB/s: those bytes in that time",
        "spread    the third best round beyond the best",
        f"{UNTRUSTED}         the spread, ours or the floor's, stayed above "
        f"{protocol['most_spread']:.0%} in {timing.MOST_ROUNDS * protocol['rounds']} rounds,",
        f"          or another process was over {protocol['most_apart']:.0%} apart: the machine "
        "was busy",
    ]


def peer_table(record):
    """Return the titles and lines of the second table: everybody's fraction of the floor."""
    names = ["fastrms", "numpy", *record["peers"]]
    lines = []
    for row in record["rows"]:
        fractions = {k: v["of_floor"] for k, v in row["rivals"].items() if k != "floor"}
        most = max(fractions.values())
        line = list(subject(row))
        for name in names:
            mark = "*" if fractions.get(name) == most else ""
            line.append(mark + f"{fractions[name]:.2f}" if name in fractions else "-")
        lines.append(line)
    return (*TITLES[:4], *names), lines


def peer_notes(record):
    """Return why peers are missing from rows, each reason once."""
    reasons = {}
    for row in record["rows"]:
        for name, why in row["left_out"].items():
            reasons.setdefault((name, why), []).append(f"{row['op']} {row['rows']}x{row['n']}")
    return [f"left out: {name} in {', '.join(at)}: {why}" for (name, why), at in reasons.items()]


class Screen:
    """Print lines and tables to stdout, or to stderr if stdout is for JSON."""

    def __init__(self, to_stderr=False):
        self.to_stderr = to_stderr
        self.width = shutil.get_terminal_size().columns if self.stream().isatty() else None

    def stream(self):
        return sys.stderr if self.to_stderr else sys.stdout

    def lines(self, lines):
        for line in lines:
            print(line, file=self.stream(), flush=True)

    def table(self, titles, rows):
        """Print a whole table."""
        line = self.columns(titles, rows)
        for row in rows:
            line(row)

    def columns(self, titles, rows):
        """Print the titles, in columns as wide as these rows need; return a function for a row.

        On a narrow terminal the last columns are left out, and a line names them.
        """
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        while self.width and len(widths) > 1 and sum(widths) + 2 * len(widths) - 2 > self.width:
            widths.pop()
        left_out = ", ".join(titles[len(widths) :])
        if left_out:
            self.lines([f"left out on this terminal of {self.width} columns: {left_out}"])

        def line(cells_):
            first, *rest = (f"{c:>{w}}" for c, w in zip(cells_, widths, strict=False))
            self.lines(["  ".join((f"{first.strip():<{widths[0]}}", *rest)).rstrip()])

        line(titles)
        return line
