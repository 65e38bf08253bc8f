"""`fastrms bench`: fastrms beside the price of a copy, the NumPy formula and other libraries.

`run` takes the parsed command line to an exit code: 0, 1 for a failed comparison or a wrong
answer, 2 for a request that cannot be met, 130 after Ctrl-C.
"""

import contextlib
import importlib
import json
import sys

from .options import add_arguments

__all__ = ["add_arguments", "run"]


def run(args):
    """Measure what the arguments ask for, print it, and write the files that they name."""
    from . import compare

    try:
        check_extras(args)
        old = compare.load(args.compare) if args.compare else None
        if args.fail_below is not None and old is None:
            raise ValueError("--fail-below needs --compare OLD.json")
        if args.inplace and "fresh" in (args.op or ()):
            raise ValueError("--inplace leaves nothing fresh: drop it, or --op fresh")
        return measure_and_report(args, old)
    except (ValueError, ImportError, OSError, MemoryError) as error:
        print(f"fastrms bench: {error or type(error).__name__}", file=sys.stderr)
        return 2


def check_extras(args):
    for module in ("rich", *(["matplotlib"] if args.plot else [])):
        try:
            importlib.import_module(module)
        except ImportError:
            wanted = 'python -m pip install "fastrms[bench]"'
            raise ValueError(f"{module} is not installed: {wanted}") from None


def measure_and_report(args, old):
    from . import measure, options, report

    plan = options.plan(args)
    screen = report.Screen()
    with measure.instruction_set(plan.isa):
        record = measure.new_record(plan)
        screen.lines(report.header(record))
        try:
            measure_rows(plan, record, screen)
        except KeyboardInterrupt:
            pass  # what was measured so far holds, and the record says that it is not all
        except measure.WrongAnswerError as error:
            print(f"fastrms bench: {error}", file=sys.stderr)
            return 1
    report.show(screen, record)
    write_files(args, record)
    if not record["complete"]:
        print("stopped by Ctrl-C: the rows above are all there are", file=sys.stderr)
        return 130
    return report_changes(screen, old, record, args.fail_below) if old else 0


def measure_rows(plan, record, screen):
    """Measure with a progress bar on a terminal's stderr, and rows as they come in a pipe."""
    from . import measure, report

    total = len(plan.threads) * len(plan.shapes) * len(plan.ops)
    with progress(total) as advance:
        if not screen.console:
            screen.plain(report.COLUMNS, report.titles(report.COLUMNS))
        for row in measure.rows(plan, record):
            if not screen.console:
                screen.plain(report.COLUMNS, report.cells(row))
            advance()


@contextlib.contextmanager
def progress(total):
    """Yield a function to call after each row."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def write_files(args, record):
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.plot and record["rows"]:
        from . import plot

        plot.draw(record, args.plot)


def report_changes(screen, old, record, fail_below):
    """Print the comparison; return 1 if a row fell below what --fail-below allows, else 0."""
    from . import compare

    found = compare.changes(old, record)
    if not found:
        raise ValueError("--compare: the two records have no row in common")
    screen.lines(["", f"against the record of {old['date']}; speed as a fraction of the floor:"])
    screen.table(compare.COLUMNS, [compare.cells(change) for change in found])
    failed = [change for change in found if fail_below and change["ratio"] < fail_below]
    if failed:
        screen.lines(
            [f"{len(failed)} of {len(found)} rows are below {fail_below} of the old speed"]
        )
    return 1 if failed else 0
