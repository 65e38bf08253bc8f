"""Two records side by side: how the fractions of the floor changed, and what is only noise."""

import json

from . import report, schema

LEAST_NOISE = 0.03  # two quiet runs of the same build differ by this much

COLUMNS = (
    ("op", 18, "<"),
    ("shape", 12, ">"),
    ("thr", 3, ">"),
    ("old", 9, ">"),
    ("new", 9, ">"),
    ("of floor", 15, ">"),
    ("speed", 6, ">"),
    ("", 6, "<"),
)


def load(path):
    """Return the record in a file; ValueError says why it is none."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None
    found = schema.problems(record)
    if found:
        raise ValueError(f"{path} is not a record of fastrms bench: {found[0]}")
    return record


def changes(old, new):
    """Return one dict for each row that both records have.

    `ratio` is the new speed over the old one, both as fractions of their own floor, so that a
    machine that was busier as a whole does not count. Beyond the noise means: further from 1 than
    the spreads of the four timings together.
    """
    before = {key(old, row): row for row in old["rows"]}
    found = []
    for row in new["rows"]:
        was = before.get(key(new, row))
        if was is None:
            continue
        ratio = of_floor(row) / of_floor(was)
        spreads = [r["rivals"][k]["spread"] for r in (was, row) for k in ("floor", "fastrms")]
        noise = max(LEAST_NOISE, sum(spread**2 for spread in spreads) ** 0.5)
        beyond = ratio > 1 + noise or ratio < 1 / (1 + noise)
        found.append({"old": was, "new": row, "ratio": ratio, "beyond_noise": beyond})
    return found


def key(record, row):
    return row["op"], row["rows"], row["n"], row["threads"], record["protocol"]["inplace"]


def of_floor(row):
    return row["rivals"]["fastrms"]["of_floor"]


def cells(change):
    """Return one change as a line of the table."""
    old, new = change["old"], change["new"]
    verdict = "faster" if change["ratio"] > 1 else "SLOWER"
    return (
        *report.cells(new)[:3],
        report.duration(old["rivals"]["fastrms"]["best_s"]),
        report.duration(new["rivals"]["fastrms"]["best_s"]),
        f"{of_floor(old):.2f} -> {of_floor(new):.2f}",
        f"{change['ratio']:.2f}",
        verdict if change["beyond_noise"] else "",
    )
