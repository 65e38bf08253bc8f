"""Print the README's table, fastrms beside the NumPy formula: python bench/against_numpy.py

Best rounds on one thread. fastrms writes into arrays that exist, the formula makes new ones, as
both are commonly called.
"""

from fastrms.bench import measure
from fastrms.bench.cases import OPS
from fastrms.bench.options import Plan

SHAPES = {
    "decode, 1 x 4096": (1, 4096),
    "prefill, 512 x 4096": (512, 4096),
    "heads, 8192 x 128": (8192, 128),
    "training, 4096 x 1024": (4096, 1024),
}
CALLS = ("forward", "add_norm", "backward")


def microseconds(row, rival):
    value = 1e6 * row["rivals"][rival]["best_s"]
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    plan = Plan(ops=CALLS, shapes=tuple(SHAPES.values()), rounds=25)
    rows = {
        (row["rows"], row["n"], row["op"]): row
        for row in measure.rows(plan, measure.new_record(plan))
    }
    print(
        "The NumPy formula -> fastrms; float32, 1 thread; ? where the best rounds did not agree.\n"
    )
    print("|", " | ".join(["", *(OPS[op].label for op in CALLS)]), "|")
    print("|", " | ".join(["---"] * (1 + len(CALLS))), "|")
    for name, (count, n) in SHAPES.items():
        cells = []
        for op in CALLS:
            row = rows[count, n, op]
            mark = "" if row["trusted"] else " ?"
            times = f"{microseconds(row, 'numpy')} -> {microseconds(row, 'fastrms')} us"
            cells.append(f"{times}, **{row['times_numpy']:.1f}x**{mark}")
        print("|", " | ".join([name, *cells]), "|")
