"""What a record looks like: tables with rich on a terminal, aligned plain text elsewhere."""

import sys

from .cases import OPS

COLUMNS = (
    ("op", 18, "<"),
    ("shape", 12, ">"),
    ("thr", 3, ">"),
    ("best", 9, ">"),
    ("median", 9, ">"),
    ("spread", 6, ">"),
    ("GB/s", 7, ">"),
    ("of floor", 8, ">"),
    ("x NumPy", 7, ">"),
    ("", 1, "<"),
)
UNTRUSTED = "?"


def duration(seconds):
    """Return a time with its unit and three digits: 420 ns, 9.53 ms."""
    for unit, scale in (("ns", 1e9), ("us", 1e6), ("ms", 1e3), ("s", 1)):
        if seconds * scale < 999.5 or unit == "s":
            break
    value = seconds * scale
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:#.3g} {unit}"


def size(count):
    """Return bytes with their unit: 48 KiB, 1.25 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def cells(row):
    """Return one row of a record as the main table's line, in the order of COLUMNS."""
    times = row["rivals"]["fastrms"]
    return (
        OPS[row["op"]].label,
        f"{row['rows']} x {row['n']}",
        str(row["threads"]),
        duration(times["best_s"]),
        duration(times["median_s"]),
        f"{times['spread']:.0%}",
        f"{times['gb_per_s']:.1f}",
        f"{times['of_floor']:.2f}",
        f"{row['times_numpy']:.1f}",
        "" if row["trusted"] else UNTRUSTED,
    )


def titles(columns):
    return [name for name, _, _ in columns]


def show(screen, record):
    """Print the table, if it is not there yet, and what belongs below it."""
    if screen.console:
        screen.table(COLUMNS, [cells(row) for row in record["rows"]])
    screen.lines(footer(record))
    if record["peers"] and record["rows"]:
        screen.lines(["", "fractions of the floor, the fastest of each row with a star:"])
        screen.table(*peer_table(record))
        screen.lines(peer_notes(record))


def header(record):
    """Return the lines above the table: what ran, and where."""
    machine, config = record["machine"], record["config"]
    caches = ", ".join(f"L{c['level']} {size(c['bytes'])}" for c in machine["caches"])
    align = record["protocol"]["align"]
    lines = [
        f"fastrms {config['fastrms']['version']}, {config['instruction set']['in use']}, "
        f"NumPy {config['python']['numpy']}; {machine['cpu']}, {machine['cpus_usable']} CPUs"
        + (f", {caches}" if caches else ""),
        f"arrays start {align} bytes past a cache line; "
        f"{record['protocol']['rounds']} rounds, interleaved"
        + ("; in place" if record["protocol"]["inplace"] else ""),
    ]
    if record["peers"]:
        lines.append("peers: " + ", ".join(f"{k} {v}" for k, v in record["peers"].items()))
    lines += [f"left out: {name} ({why})" for name, why in record["left_out"].items()]
    return lines


def footer(record):
    """Return the lines below the table: what its columns mean."""
    limit = record["protocol"]["most_spread"]
    lines = ["GB/s counts each array once, in bytes per element, and the floor is timed beside it:"]
    for op, model in record["byte_models"].items():
        lines.append(f"  {OPS[op].label}: {model}")
    lines += [
        "spread: the median round beyond the best.",
        "of floor: the floor's best time over ours; 1 is the price of a copy.",
    ]
    if any(not row["trusted"] for row in record["rows"]):
        lines.append(
            f"{UNTRUSTED}: the spread, ours or the floor's, is above {limit:.0%}: something else "
            "was running; measure again."
        )
    return lines


def peer_table(record):
    """Return the columns and lines of the second table: everybody's fraction of the floor."""
    names = ["fastrms", "numpy", *record["peers"]]
    columns = (*COLUMNS[:3], *((name, max(7, len(name)), ">") for name in names))
    lines = []
    for row in record["rows"]:
        fractions = {k: v["of_floor"] for k, v in row["rivals"].items() if k != "floor"}
        most = max(fractions.values())
        line = list(cells(row)[:3])
        for name in names:
            mark = "*" if fractions.get(name) == most else ""
            line.append(mark + f"{fractions[name]:.2f}" if name in fractions else "-")
        lines.append(line)
    return columns, lines


def peer_notes(record):
    """Return why peers are missing from rows, each reason once."""
    reasons = {}
    for row in record["rows"]:
        for name, why in row["left_out"].items():
            reasons.setdefault((name, why), []).append(f"{row['op']} {row['rows']}x{row['n']}")
    return [f"left out: {name} in {', '.join(at)}: {why}" for (name, why), at in reasons.items()]


class Screen:
    """Where tables and lines go: rich on a terminal, plain text elsewhere."""

    def __init__(self):
        self.console = None
        if sys.stdout.isatty():
            from rich.console import Console

            self.console = Console(highlight=False)

    def lines(self, lines):
        for line in lines:
            if self.console:
                self.console.print(line, style="dim", markup=False)
            else:
                print(line, flush=True)

    def table(self, columns, rows):
        """Print a whole table."""
        if not self.console:
            for cells_ in (titles(columns), *rows):
                self.plain(columns, cells_)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", padding=(0, 1))
        for name, _, side in columns:
            table.add_column(name, justify="right" if side == ">" else "left", no_wrap=True)
        for cells_ in rows:
            table.add_row(*(Text(cell, style=style(cell)) for cell in cells_))
        self.console.print(table)

    def plain(self, columns, cells_):
        """Print one line of a table, at once: a pipe sees each row as it is measured."""
        padded = (
            f"{cell:{side}{width}}" for cell, (_, width, side) in zip(cells_, columns, strict=True)
        )
        print("  ".join(padded).rstrip(), flush=True)


def style(cell):
    """The few words and marks that stand out."""
    if cell in ("SLOWER", UNTRUSTED):
        return "red"
    return "green" if cell == "faster" or cell.startswith("*") else ""
