"""Compare two records: which times changed by more than noise."""

import itertools
import json
from statistics import median

from .. import _output
from . import report, schema

# Added to the differences between a record's processes: two runs of one build differ by as much.
LEAST_NOISE = 0.05

TITLES = (*report.TITLES[:4], "speed", "", "old", "new", "of floor")

NOTES = (
    "speed: the new over the old, by time or by fraction of the floor, whichever changed less;",
    "  with a word if that exceeds the noise. old, new: a call's time, in the median process.",
)


def load(path):
    """Return the record in a file; raise ValueError, with the reason, if it is none."""
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


def refuse_unmatched(plan, old):
    """Raise ValueError, before anything is measured, if a row of the plan has no counterpart."""
    known = {key(row, old["protocol"]) for row in old["rows"]}
    planned = itertools.product(plan.ops, plan.shapes, plan.data, plan.threads)
    for op, (rows, n), data, threads in planned:
        row = {"op": op, "rows": rows, "n": n, "data": data, "threads": threads}
        if key(row, vars(plan)) not in known:
            raise ValueError(
                f"--compare: the old record has no {op} of {rows}x{n}, {data} data, "
                f"{_output.counted(threads, 'thread')}, inplace={plan.inplace}, "
                f"align={plan.align}, {plan.dtype}"
            )


def key(row, protocol):
    data = row.get("data") or "normal"
    shape, dtype = (row["rows"], row["n"]), protocol.get("dtype") or "float32"
    return row["op"], shape, data, row["threads"], protocol["inplace"], protocol["align"], dtype


def changes(old, new):
    """Return one dict for each row of the new record; the old record must have the same row."""
    before = {key(row, old["protocol"]): row for row in old["rows"]}
    return [change(before[key(row, new["protocol"])], row) for row in new["rows"]]


def change(old, new):
    """Return the new speed over the old one, and whether that counts.

    The change is the lesser of two: that of the time, in case only the floor changed, and that of
    the fraction of the floor, in case the whole machine was busier. It counts if it exceeds the
    differences between the processes of one build that both records show.
    """
    ours = median(processes(old)) / median(processes(new))
    floor = old["rivals"]["floor"]["best_s"] / new["rivals"]["floor"]["best_s"]
    ratio = sorted((ours, ours / floor, 1.0))[1]
    noise = LEAST_NOISE + differences(old) + differences(new)
    trusted = old["trusted"] and new["trusted"]
    counts = trusted and max(ratio, 1 / ratio) > 1 + noise
    return {"old": old, "new": new, "ratio": ratio, "trusted": trusted, "counts": counts}


def processes(row):
    """Return each process's best time of one call; older records have one process only."""
    times = row["rivals"]["fastrms"]
    return times.get("processes_s") or [times["best_s"]]


def differences(row):
    return max(processes(row)) / min(processes(row)) - 1


def cells(change):
    """Return one change as a line of the table."""
    old, new = (change[which]["rivals"]["fastrms"] for which in ("old", "new"))
    verdict = "faster" if change["ratio"] > 1 else "SLOWER"
    return (
        *report.subject(change["new"]),
        f"{change['ratio']:.2f}",
        verdict if change["counts"] else "" if change["trusted"] else report.UNTRUSTED,
        report.duration(median(processes(change["old"]))),
        report.duration(median(processes(change["new"]))),
        f"{old['of_floor']:.2f} -> {new['of_floor']:.2f}",
    )
