"""Output that the commands share: a progress bar, and counts in words."""

import sys


def counted(number, thing):
    return f"{number} {thing}{'s' * (number != 1)}"


def progress(items, total):
    """Yield the items; if stderr is a terminal, a bar there shows how many have come."""
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        wanted = 'python -m pip install "fastrms[bench]"'
        print(f"no progress bar, rich is not installed: {wanted}", file=sys.stderr)
        yield from items
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # rich sends redirected output to stderr, above its bar: leave stdout alone if it is a file.
    console, above = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as bar:
        task = bar.add_task("", total=total)
        for item in items:
            yield item
            bar.advance(task)
