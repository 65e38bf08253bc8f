"""Put the recorded results into the README: `python bench/readme.py`.

For each record in bench/results it makes a table for each thread count, with the best peer beside
fastrms in every cell, and a picture beside the record; they go between the README's markers.
"""

import argparse
import sys
from pathlib import Path

from record import PICTURE, RESULTS

from fastrms.bench import compare, plot, report
from fastrms.bench.cases import OPS

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
README = Path(__file__).parent.parent / "README.md"


def section(record, picture):
    """Return the markdown of one record: the machine, its tables, its picture."""
    counts = list(dict.fromkeys(row["threads"] for row in record["rows"]))
    return "\n\n".join(
        [
            introduction(record),
            *(table(record, threads) for threads in counts),
            f"![GB/s against the working set, with the caches marked]({picture})",
        ]
    )


def introduction(record):
    machine, config = record["machine"], record["config"]
    caches = ", ".join(f"{report.size(c['bytes'])} L{c['level']}" for c in machine["caches"])
    versions = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return (
        "Fractions of the floor, the cheapest NumPy pass over the same bytes timed in the same "
        "rounds: 1 is the price of a copy, more is better. Each cell: fastrms, then the best of "
        f"the others; the faster one is bold{untrusted_note(record)}.\n\n"
        f"{machine['cpu']}, {machine['cpus_usable']} CPUs ({caches or 'caches unknown'}), "
        f"{record['date'][:10]}; {config['instruction set']['in use']}, "
        f"NumPy {config['python']['numpy']}{', ' + versions if versions else ''}."
    )


def untrusted_note(record):
    limit = record["protocol"]["most_spread"]
    if all(row["trusted"] for row in record["rows"]):
        return ""
    return f"; ? where rounds differed by more than {limit:.0%}"


def table(record, threads):
    """Return the markdown table of one thread count: a line a shape, a column an op."""
    rows = {}
    for row in record["rows"]:
        name = f"{row['rows']}x{row['n']}"
        if row["threads"] == threads and name not in PICTURE:
            rows.setdefault(name, {})[row["op"]] = row
    ops = [op for op in OPS if any(op in cells for cells in rows.values())]
    title = f"{threads} thread{'s' if threads > 1 else ''}"
    lines = [[title, *(OPS[op].label for op in ops)], ["---:", *("---" for _ in ops)]]
    for name, cells in rows.items():
        lines.append([name.replace("x", " x "), *(cell(cells.get(op)) for op in ops)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row):
    """Return ours and the best of the others, the faster in bold, whichever it is."""
    if row is None:
        return ""
    fractions = {k: v["of_floor"] for k, v in row["rivals"].items() if k != "floor"}
    ours = fractions.pop("fastrms")
    best = max(fractions, key=fractions.get)
    name = {"numpy": "NumPy"}.get(best, best)
    mark = "" if row["trusted"] else " ?"
    if ours >= fractions[best]:
        return f"**{ours:.2f}**, {name} {fractions[best]:.2f}{mark}"
    return f"{ours:.2f}, **{name} {fractions[best]:.2f}**{mark}"


def put(readme, text):
    """Return the README with the text between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="default: bench/results/*.json")
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args(argv)
    try:
        readme, sections = args.readme.read_text(), []
        for path in args.results or sorted(RESULTS.glob("*.json")):
            record, picture = compare.load(path), path.with_suffix(".png")
            plot.draw(record, picture)
            folder = args.readme.resolve().parent
            sections.append(section(record, picture.resolve().relative_to(folder).as_posix()))
        args.readme.write_text(put(readme, "\n\n".join(sections)))
    except (OSError, ValueError) as error:
        print(f"readme.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
