"""`fastrms bench`: time fastrms against a copy, the NumPy formula and numba.

`run` returns the exit code: 0, 1 for a failed comparison or a wrong answer, 130 after Ctrl-C. A
request that cannot be met raises ValueError or ImportError.
"""

import importlib.util
import sys

from .. import _arguments, _output
from .options import add_arguments

__all__ = ["add_arguments", "run"]


def run(args, peers):
    """Measure what the arguments ask for, print it, and write the files that they name."""
    from . import compare, options

    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError('--plot needs matplotlib: python -m pip install "fastrms[bench]"')
    if args.fail_below is not None and not args.compare:
        raise ValueError("--fail-below needs --compare OLD.json")
    if args.inplace and "fresh" in (args.op or ()):
        raise ValueError("--inplace makes no new array: drop it, or --op fresh")
    old = compare.load(args.compare) if args.compare else None
    plan = options.plan(args, peers, old)
    if old:
        compare.refuse_unmatched(plan, old)
    return measure_and_report(args, plan, old)


def measure_and_report(args, plan, old):
    from . import measure, report

    screen = report.Screen(to_stderr=args.json == _arguments.STDOUT)
    with measure.instruction_set(plan.isa):
        record = measure.new_record(plan)
        screen.lines(report.header(record))
        try:
            measure_rows(plan, record, screen)
        except KeyboardInterrupt:
            pass  # keep the rows measured so far; the record is marked as incomplete
        except measure.WrongAnswerError as error:
            print(f"fastrms bench: {error}", file=sys.stderr)
            return 1
    report.show(screen, record)
    write_files(args, record)
    if not record["complete"]:
        rows = "the rows above are all there are" if record["rows"] else "no row was finished"
        print(f"fastrms bench: stopped by Ctrl-C: {rows}", file=sys.stderr)
        return 130
    return report_changes(screen, old, record, args.fail_below) if old else 0


def measure_rows(plan, record, screen):
    """Print each row as it comes, above a progress bar where stderr is a terminal."""
    from . import measure, report

    total = len(plan.threads) * len(plan.shapes) * len(plan.data) * len(plan.ops)
    line = screen.columns(report.TITLES, report.widest(plan))
    for row in _output.progress(measure.rows(plan, record), total):
        line(report.cells(row))


def write_files(args, record):
    if args.json:
        _arguments.write_json(record, args.json)
    if args.plot and record["rows"]:
        from . import plot

        plot.draw(record, args.plot)


def report_changes(screen, old, record, fail_below):
    """Print the comparison; return 1 if a row fell below what --fail-below allows, else 0."""
    from . import compare

    found = compare.changes(old, record)
    screen.lines(["", f"against the record of {old['date']}:"])
    screen.table(compare.TITLES, [compare.cells(change) for change in found])
    screen.lines(compare.NOTES)
    failed = [c for c in found if fail_below and c["counts"] and c["ratio"] < fail_below]
    if failed:
        count = f"{len(failed)} of {len(found)}"
        screen.lines([f"{count} rows are below {fail_below} of the old speed"])
    return 1 if failed else 0
