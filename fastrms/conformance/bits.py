"""Bits that should be the same: of a row in two calls, of two runs, in two layouts."""

import numpy as np

from . import inputs
from .findings import ALIGNMENT, BATCH, same
from .measures import FORMATS

NEIGHBOURS = "a row's bits depend on its neighbours"
RUNS = "two runs differ"
CHANGED = "inputs are changed"
STRIDE_0 = "stride 0 rows are misread"
REVERSED = "reversed rows are misread"


def equal_bits(subject):
    """Yield what a row's results depend on, besides the row; nothing more if two runs differ."""
    found = [*runs(subject)]
    yield from found
    for prove in () if found else (neighbours, batch, alignment, layouts):
        yield from prove(subject)


def runs(subject):
    """Call three times more with the same arrays."""
    given = _moved(subject.plain(64, 256))
    first = subject.by_row(given)
    for _ in range(3):
        again = subject.by_row(given)
        if not same(first, again):
            yield subject.finding(RUNS, given, _differing(first, "again", again))
            return


def neighbours(subject):
    """Replace all rows but the first: its bits have to stay."""
    largest = FORMATS[subject.dtype.name].largest
    for value in (0.0, np.nan, np.inf, largest, -3.0):

        def first_row(given, value=value):
            """Return row 0 of the results as the inputs are, and with `value` in other rows."""
            others = _each_matrix(given, np.copy)
            for part in others.values():
                if np.ndim(part) == 2:
                    part[1:] = value
            return subject.by_row(_moved(given))[0], subject.by_row(_moved(others))[0]

        def holds(given, first_row=first_row):
            try:
                return len(given["x"]) > 1 and not same(*first_row(given))
            except ValueError:  # refused, which is no fault
                return False

        if holds(given := subject.plain()):
            small = inputs.shrink(given, holds)
            before, after = first_row(small)
            more = {"row 0": before, f"row 0 beside rows of {value:g}": after}
            yield subject.finding(NEIGHBOURS, small, more)
            return


def batch(subject):
    """Call on the first rows alone: their bits have to stay."""
    for rows, n in subject.exam.shapes:
        for few in sorted({1, 2, 3, rows // 2} & {*range(1, rows)}):

            def both(given, few=few):
                alone = _each_matrix(given, lambda part: part[:few])
                return subject.by_row(_moved(given))[:few], subject.by_row(_moved(alone))

            def holds(given, few=few, both=both):
                return len(given["x"]) > few and not same(*both(given))

            if holds(given := subject.plain(rows, n)):
                small = inputs.shrink(given, holds)
                among, alone = both(small)
                more = _differing(among, f"with {few} of the rows", alone)
                yield subject.finding(BATCH, small, more)
                return


def alignment(subject):
    """Move every array by a few elements: no bit may change."""
    for _, n in subject.exam.shapes:
        given = subject.plain(3, n)
        aligned = subject.by_row(_moved(given))
        for elements in (1, 2, 3, 5, 8):
            moved = subject.by_row(_moved(given, elements))
            if not same(moved, aligned):
                where = f"{elements * subject.dtype.itemsize} bytes further"
                yield subject.finding(ALIGNMENT, given, _differing(aligned, where, moved))
                return


def layouts(subject):
    """Give matrices with rows of stride 0, or reversed: values have to be those of a copy."""
    for name, layout in ((STRIDE_0, _stride_0), (REVERSED, _reversed)):

        def laid(given, layout=layout):
            return _each_matrix(given, layout)

        def holds(given, laid=laid):
            copies = _each_matrix(laid(given), np.copy)
            return subject.wrong(laid(given)) and not subject.wrong(copies)

        given = subject.plain(4, 16)
        try:
            misread = holds(given)
        except ValueError:  # refused, which is no fault
            continue
        if misread:
            small = laid(inputs.shrink(given, holds))
            found = subject.function(small)
            exact = subject.exact(small, found)
            result = subject.function.results[0]
            more = {result: found[result], "exact": exact[result]}
            yield subject.finding(name, small, more)


def _each_matrix(given, change):
    return {name: change(part) if np.ndim(part) == 2 else part for name, part in given.items()}


def _differing(one, how, other):
    """Return the first element in which two arrays differ, as an example."""
    row, column = np.unravel_index(np.argmax(one != other), one.shape)
    return {f"element ({row}, {column})": one[row, column], how: other[row, column]}


def _moved(given, elements=0):
    """Return copies whose data begin `elements` past a multiple of 64 bytes."""

    def move(array):
        memory = np.empty(array.nbytes + 64 + elements * array.itemsize, np.uint8)
        start = -memory.ctypes.data % 64 + elements * array.itemsize
        moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    return {name: move(part) if np.ndim(part) else part for name, part in given.items()}


def _stride_0(array):
    return np.lib.stride_tricks.as_strided(array, array.shape, (0, array.strides[1]))


def _reversed(array):
    return array[::-1]


PROVERS = (equal_bits,)
