"""`fastrms bench --compare`: which changes count, which calls fail before any measurement.

The rows are made up: nothing is timed here.
"""

import copy
import json
from pathlib import Path

import pytest

from fastrms.__main__ import main
from fastrms.bench import compare, measure, options

RECORDS = sorted((Path(__file__).parent.parent / "bench" / "results").glob("*.json"))


def row(*processes, floor=1.0, trusted=True):
    ours = {"best_s": processes[0], "processes_s": list(processes), "of_floor": floor}
    return {"rivals": {"floor": {"best_s": floor}, "fastrms": ours}, "trusted": trusted}


@pytest.mark.parametrize(
    ("old", "new", "ratio", "counts"),
    [
        (row(1, 1, 1), row(2, 2, 2), 0.5, True),
        (row(2, 2, 2), row(1, 1, 1), 2, True),
        # The floor changed, the time of fastrms did not.
        (row(1, 1, 1), row(1, 1, 1, floor=0.5), 1, False),
        # The machine is slower as a whole.
        (row(1, 1, 1), row(2, 2, 2, floor=2), 1, False),
        (row(1, 1, 1), row(2, 2, 2, floor=1.92), 0.96, False),
        # One slow process of three; processes that differ less than the builds, and as much.
        (row(1, 1, 1), row(2, 1, 1), 1, False),
        (row(1, 1, 1.3), row(1.4, 1.4, 1.4), 1 / 1.4, True),
        (row(1, 1, 1.3), row(1.2, 1.4, 1.4), 1 / 1.4, False),
        # A `?` in either record.
        (row(1, 1, 1, trusted=False), row(2, 2, 2), 0.5, False),
        (row(1, 1, 1), row(2, 2, 2, trusted=False), 0.5, False),
        # An old record, of one process.
        (row(1), row(2, 2, 2), 0.5, True),
    ],
)
def test_a_change_counts_beyond_what_processes_of_one_build_show(old, new, ratio, counts):
    found = compare.change(old, new)
    assert found["ratio"] == pytest.approx(ratio)
    assert found["counts"] is counts


@pytest.fixture
def old(tmp_path):
    """Write a record of this machine, with today's protocol; return the path and the record."""
    plan = options.Plan(ops=("add",), shapes=((3, 33), (5, 64)), threads=(1, 2))
    record = measure.new_record(plan) | {"complete": True}
    sample = json.loads(RECORDS[0].read_text())["rows"][0]
    for rows, n in plan.shapes:
        for threads in plan.threads:
            new = copy.deepcopy(sample) | {"op": "add", "rows": rows, "n": n, "threads": threads}
            # Three processes that agree, even if the sample's do not.
            ours = new["rivals"]["fastrms"]
            ours["processes_s"] = 3 * [ours["best_s"]]
            record["rows"].append(new | {"trusted": True, "data": "normal"})
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))
    return path, record


@pytest.fixture
def slower(monkeypatch, old):
    """Let a new run take twice as long in the first row."""

    def rows(plan, record):
        record["rows"] += copy.deepcopy(old[1]["rows"])
        record["complete"] = True
        ours = record["rows"][0]["rivals"]["fastrms"]
        ours["best_s"] *= 2
        ours["processes_s"] = 3 * [ours["best_s"]]
        yield from record["rows"]

    monkeypatch.setattr(measure, "rows", rows)
    return old[0]


@pytest.mark.parametrize(("below", "code"), [((), 0), ((0.4,), 0), ((0.6,), 1)])
def test_it_fails_only_when_told_to(slower, capsys, below, code):
    more = [part for limit in below for part in ("--fail-below", str(limit))]
    assert main(["bench", "--compare", str(slower), *more]) == code
    out = capsys.readouterr().out
    assert out.count("SLOWER") == 1
    assert ("1 of 4 rows are below 0.6 of the old speed" in out) is (code == 1)


def test_what_the_arguments_leave_open_is_as_in_the_old_record(slower, capsys):
    assert main(["bench", "--compare", str(slower), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["byte_models"]) == ["add"]


@pytest.mark.parametrize(
    "args",
    [
        ("--shape", "3x34"),
        ("--shape", "3x33,3x34"),
        ("--op", "forward"),
        ("--threads", "3"),
        ("--data", "outlier"),
        ("--inplace",),
        ("--align", "0"),
    ],
)
def test_a_row_that_matches_none_is_refused_at_once(old, monkeypatch, capsys, args):
    monkeypatch.setattr(measure, "rows", pytest.fail)
    assert main(["bench", "--compare", str(old[0]), *args]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("fastrms bench: --compare: the old record has no ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot read "), ("{", "is not JSON"), ("{}", "of fastrms bench: record lacks schema")],
)
def test_what_is_no_record_is_refused(tmp_path, capsys, text, said):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    assert main(["bench", "--compare", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_fail_below_needs_compare(capsys):
    assert main(["bench", "--fail-below", "1"]) == 2
    assert "--fail-below needs --compare" in capsys.readouterr().err


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_records_go_on_loading(path):
    record = compare.load(path)
    assert not any(change["counts"] for change in compare.changes(record, record))
