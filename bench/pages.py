"""Put the recorded results into docs/benchmarks.md and the README: `python bench/pages.py`.

The page has each CPU's results in words, as tables and as a picture. The README has a line on the
CPU of RECORD. Both go between markers.
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median

from measured import line
from record import RESULTS

from fastrms.bench import compare, plot, report
from fastrms.bench.cases import OPS

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ROOT = Path(__file__).parents[1]
RECORD = RESULTS / "amd-epyc-v3.json"


def section(record, picture):
    """Return the markdown of one CPU: the machine, its results in words, tables, a picture."""
    isa = record["config"]["instruction set"]["in use"]
    counts = list(dict.fromkeys(row["threads"] for row in record["rows"]))
    return "\n\n".join(
        [
            f"### {record['machine']['cpu']}, {isa}",
            machine(record),
            "Times the speed of the best other, in the median of the shapes and at worst:",
            "\n".join(words(record)),
            *(table(record, threads) for threads in counts),
            f"![GB/s against the working set, with the caches marked]({picture})",
        ]
    )


def machine(record):
    caches = record["machine"]["caches"]
    sizes = ", ".join(f"{report.size(c['bytes'])} L{c['level']}" for c in caches)
    numpy = record["config"]["python"]["numpy"]
    versions = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return (
        f"{measured(record)}; {record['machine']['cpus_usable']} CPUs "
        f"({sizes or 'caches unknown'}), NumPy {numpy}{', ' + versions if versions else ''}."
    )


def measured(record):
    """Return the command, the CPU, its instruction set, the commit and the date of a record."""
    isa = record["config"]["instruction set"]["in use"]
    where = line(record["machine"]["cpu"], isa, record.get("commit"), record["date"][:10])
    return f"`python bench/record.py`: {where}"


def words(record):
    """Yield a line for each op and thread count: how often the fastest, how far behind at worst."""
    groups = {}
    for row in record["rows"]:
        groups.setdefault((row["threads"], row["op"]), []).append(row)
    for (threads, op), rows in groups.items():
        yield f"- {OPS[op].label}, {of_threads(threads)}: {standing(rows)}."


def ratios(rows):
    """Return {shape and the best other: how many times as fast as it fastrms is}."""
    found = {}
    for row in rows:
        ours, name, best = against_the_best(row)
        found[f"{row['rows']} x {row['n']}, {name}"] = ours / best
    return found


def standing(rows):
    """Say of some rows how fastrms stands against the best of the others."""
    found = ratios(rows)
    worst = min(found, key=found.get)
    first = sum(ratio >= 1 for ratio in found.values())
    return (
        f"{median(found.values()):.2f}, at worst {found[worst]:.2f} ({worst}); "
        f"the fastest in {first} of {len(rows)}"
    )


def summary(record):
    """Return the README's line: each op on one thread, beside the best of the others."""
    rows = [row for row in record["rows"] if row["threads"] == 1]
    found = {op: ratios(row for row in rows if row["op"] == op) for op in record["byte_models"]}
    shapes = max(map(len, found.values()))
    middle = ", ".join(f"{median(found[op].values()):.2f} {OPS[op].label}" for op in found)
    return (
        f"Times as fast as the fastest of {', '.join(['NumPy', *record['peers']])} in each of "
        f"{shapes} shapes, in the median, on one thread: {middle} ({measured(record)})."
    )


def of_threads(threads):
    return f"{threads} thread{'s' if threads > 1 else ''}"


def table(record, threads):
    """Return the markdown table of one thread count: a line a shape, a column an op."""
    rows = {}
    for row in record["rows"]:
        if row["threads"] == threads:
            rows.setdefault(f"{row['rows']} x {row['n']}", {})[row["op"]] = row
    ops = [op for op in OPS if any(op in cells for cells in rows.values())]
    lines = [[of_threads(threads), *(OPS[op].label for op in ops)], ["---:", *("---" for _ in ops)]]
    lines += [[name, *(cell(cells.get(op)) for op in ops)] for name, cells in rows.items()]
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


def put(page, text):
    """Write the text between the page's markers."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("record", nargs="?", type=Path, default=RECORD, help=f"default: {RECORD.name}")
    add("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    add("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(argv)
    others = sorted(set(args.record.parent.glob("*.json")) - {args.record})
    try:
        sections = []
        for path in (args.record, *others):
            record, picture = compare.load(path), path.with_suffix(".png")
            plot.draw(record, picture)
            picture = Path(os.path.relpath(picture, args.page.parent)).as_posix()
            sections.append(section(record, picture))
        put(args.page, "\n\n".join(sections))
        put(args.readme, summary(compare.load(args.record)))
    except (OSError, ValueError) as error:
        print(f"pages.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
