"""Put the recorded results into the README: `python bench/readme.py [RECORD.json]`.

The record of one CPU makes a table for each thread count, with the best peer beside fastrms in
every cell, and each other record beside it a line; all get a picture. They go between the README's
markers.
"""

import argparse
import os
import sys
from pathlib import Path

from measured import line
from record import PICTURE, RESULTS

from fastrms.bench import compare, plot, report
from fastrms.bench.cases import OPS

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
README = Path(__file__).parent.parent / "README.md"
RECORD = RESULTS / "amd-epyc-v3.json"


def section(record, picture, others):
    """Return the markdown: the machine, its tables, its picture, a line for each other machine."""
    counts = list(dict.fromkeys(row["threads"] for row in record["rows"]))
    return "\n\n".join(
        [
            introduction(record),
            *(table(record, threads) for threads in counts),
            f"![GB/s against the working set, with the caches marked]({picture})",
            *(summary(*other) for other in others),
        ]
    )


def introduction(record):
    config = record["config"]
    caches = record["machine"]["caches"]
    sizes = ", ".join(f"{report.size(c['bytes'])} L{c['level']}" for c in caches)
    versions = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return (
        "Fractions of the floor, the cheapest NumPy pass over the same arrays, timed in the same "
        "rounds: 1 is the price of a copy, more is better. Each cell: fastrms, then the best of "
        f"the others; the faster one is bold{untrusted_note(record)}.\n\n"
        f"`python bench/record.py`: {measured(record)}; {record['machine']['cpus_usable']} CPUs "
        f"({sizes or 'caches unknown'}), "
        f"NumPy {config['python']['numpy']}{', ' + versions if versions else ''}."
    )


def measured(record):
    """Return the CPU, instruction set, commit and date of a record."""
    isa = record["config"]["instruction set"]["in use"]
    return line(record["machine"]["cpu"], isa, record.get("commit"), record["date"][:10])


def summary(record, picture):
    """Return a line on a record: where fastrms is the fastest, where it is furthest behind."""
    ahead = {}
    for row in record["rows"]:
        ours, _, best = against_the_best(row)
        shape = f"{row['rows']} x {row['n']}"
        where = f"{OPS[row['op']].label} of {shape}, {in_words(row['threads'])}"
        ahead[where] = ours / best
    worst = min(ahead, key=ahead.get)
    first = sum(ratio >= 1 for ratio in ahead.values())
    return (
        f"{measured(record)} ([picture]({picture})): fastrms is the fastest in {first} of "
        f"{len(ahead)} rows; at its worst it has {ahead[worst]:.2f} of the best other's speed "
        f"({worst})."
    )


def untrusted_note(record):
    limit = record["protocol"]["most_spread"]
    if all(row["trusted"] for row in record["rows"]):
        return ""
    return f"; ? where rounds differed by more than {limit:.0%}"


def in_words(threads):
    return f"{threads} thread{'s' if threads > 1 else ''}"


def table(record, threads):
    """Return the markdown table of one thread count: a line a shape, a column an op."""
    rows = {}
    for row in record["rows"]:
        name = f"{row['rows']}x{row['n']}"
        if row["threads"] == threads and name not in PICTURE:
            rows.setdefault(name, {})[row["op"]] = row
    ops = [op for op in OPS if any(op in cells for cells in rows.values())]
    lines = [[in_words(threads), *(OPS[op].label for op in ops)], ["---:", *("---" for _ in ops)]]
    for name, cells in rows.items():
        lines.append([name.replace("x", " x "), *(cell(cells.get(op)) for op in ops)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row):
    """Return ours and the best of the others, the faster in bold, whichever it is."""
    if row is None:
        return ""
    ours, name, best = against_the_best(row)
    mark = "" if row["trusted"] else " ?"
    if ours >= best:
        return f"**{ours:.2f}**, {name} {best:.2f}{mark}"
    return f"{ours:.2f}, **{name} {best:.2f}**{mark}"


def against_the_best(row):
    """Return our fraction of the floor, and the name and the fraction of the best of the others."""
    fractions = {k: v["of_floor"] for k, v in row["rivals"].items() if k != "floor"}
    ours = fractions.pop("fastrms")
    best = max(fractions, key=fractions.get)
    return ours, {"numpy": "NumPy"}.get(best, best), fractions[best]


def put(readme, text):
    """Return the README with the text between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "record", nargs="?", type=Path, default=RECORD, help=f"default: {RECORD.name}"
    )
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args(argv)
    others = sorted(set(args.record.parent.glob("*.json")) - {args.record})
    try:
        drawn = []
        for path in (args.record, *others):
            record, picture = compare.load(path), path.with_suffix(".png")
            plot.draw(record, picture)
            drawn.append((record, Path(os.path.relpath(picture, args.readme.parent)).as_posix()))
        text = section(*drawn[0], drawn[1:])
        args.readme.write_text(put(args.readme.read_text(), text))
    except (OSError, ValueError) as error:
        print(f"readme.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
