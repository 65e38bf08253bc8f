"""Draw GB/s against the working set, one panel for each op, on logarithmic axes."""

from collections import Counter

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .cases import OPS
from .report import size

OURS = "#d6303a"
INK, PALE = "#333333", "#8a8a8a"
# Tableau 10 without red, which is fastrms', and grey, which is the floor's and NumPy's.
COLOURS = ("#4e79a7", "#f28e2b", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f", "#8c8c2b")


def draw(record, path):
    """Draw a record into a .png or .svg file."""
    data = record["rows"][0].get("data")
    rows, subject = choose([row for row in record["rows"] if row.get("data") == data])
    ops = [op for op in OPS if any(row["op"] == op for row in rows)]
    names = order(rows)
    with plt.rc_context({"font.size": 10, "svg.fonttype": "none", "axes.edgecolor": PALE}):
        across = min(2, len(ops))
        down = -(-len(ops) // across)
        figure, axes = plt.subplots(
            down, across, figsize=(9, 0.9 + 3.1 * down), sharex=True, sharey=True, squeeze=False
        )
        for panel in axes.flat[len(ops) :]:
            panel.remove()
        for op, panel in zip(ops, axes.flat, strict=False):
            draw_panel(panel, op, [row for row in rows if row["op"] == op], names)
        mark_sizes(axes[0, 0], sorted({row["working_set_bytes"] for row in rows}))
        top = axes[0, 0].get_ylim()[1]  # of all panels: they share their axes
        axes[0, 0].set_ylim(top=1.6 * top)  # room for the caches' names
        for panel in axes.flat[: len(ops)]:
            mark_caches(panel, record["machine"]["caches"])
        for panel in axes[:, 0]:
            panel.set_ylabel("GB/s", color=INK)
        add_titles(figure, record, subject)
        figure.savefig(path, dpi=180, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def choose(rows):
    """Return the rows to draw, those of the commonest n, and a description of them.

    Rows of other lengths differ by more than their working set, and would make the lines zigzag.
    """
    n, count = Counter(row["n"] for row in rows).most_common(1)[0]
    lengths = {(row["rows"], row["n"]) for row in rows}
    if count > 1 and sum(shape[1] == n for shape in lengths) > 2:
        return [row for row in rows if row["n"] == n], f"rows of {n}"
    return rows, "all shapes"


def order(rows):
    """Return the names of the rivals in these rows, the most important first."""
    names = dict.fromkeys(name for row in rows for name in row["rivals"])
    first = ["fastrms", "floor", "numpy"]
    return first + [name for name in names if name not in first]


def draw_panel(panel, op, rows, names):
    """Draw one op: a line for every rival, and fastrms once more for each further thread count."""
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    for name in reversed(names):  # ours last, on top
        for threads in reversed(counts) if name == "fastrms" else counts[:1]:
            points = sorted(
                (row["working_set_bytes"], speed(row, name))
                for row in rows
                if row["threads"] == threads and name in row["rivals"]
            )
            if points:
                label = name_of(name, threads, counts)
                panel.plot(*zip(*points, strict=True), label=label, **look(name, names, threads))
                if threads != counts[0]:
                    panel.lines[-1].set(dashes=(2, 1.5), markerfacecolor="white")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_title(OPS[op].label, loc="left", fontsize=11, fontweight="bold", color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=INK, which="both", length=3)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def mark_sizes(panel, sizes):
    """Put ticks at the working sets if they are few: around one alone a log axis has no ticks."""
    few = len(sizes) < 4
    panel.xaxis.set_major_locator(FixedLocator(sizes) if few else LogLocator(base=16))


def speed(row, name):
    """Return the op's bytes over the rival's time, for the floor too, so that heights compare."""
    return row["rivals"][name]["gb_per_s"]


def name_of(name, threads, counts):
    words = {"floor": "floor (the cheapest NumPy pass)", "numpy": "NumPy formula"}
    if name == "fastrms" and len(counts) > 1:
        return f"fastrms, {threads} thread{'s' if threads > 1 else ''}"
    return words.get(name, name)


def look(name, names, threads):
    """Return a line's style: fastrms thick and red, the floor dark and dashed, the others thin."""
    if name == "fastrms":
        return {"color": OURS, "linewidth": 2.4, "marker": "o", "markersize": 4}
    if name == "floor":
        line = {"color": INK, "linewidth": 1.6, "linestyle": (0, (5, 2))}
        return line | {"marker": ".", "markersize": 6}  # visible if there is one shape only
    if name == "numpy":
        return {"color": PALE, "linewidth": 1.3, "marker": ".", "markersize": 5}
    colour = COLOURS[(names.index(name) - 3) % len(COLOURS)]
    return {"color": colour, "linewidth": 1.3, "marker": ".", "markersize": 5}


def mark_caches(panel, caches):
    """Draw a line where the working set outgrows a cache, with the cache's name at its top."""
    low, high = panel.get_xlim()
    for cache in caches:
        if low < cache["bytes"] < high:
            before = np.log(cache["bytes"] / low) > 0.1 * np.log(high / low)  # is there room?
            panel.axvline(cache["bytes"], color=PALE, linewidth=0.8, linestyle=":", zorder=0)
            panel.annotate(
                f"L{cache['level']}",
                (cache["bytes"], 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if before else 3, -1),
                textcoords="offset points",
                ha="right" if before else "left",
                va="top",
                fontsize=8,
                color=PALE,
            )


def add_titles(figure, record, subject):
    """Put the legend at the top, the meaning of the x axis and the machine at the bottom."""
    handles = {}
    for panel in figure.axes:
        lines, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    handles = dict(reversed(handles.items()))
    machine = record["machine"]
    caches = ", ".join(f"L{c['level']} {size(c['bytes'])}" for c in machine["caches"])
    counts = list(dict.fromkeys(row["threads"] for row in record["rows"]))
    threads = f"{counts[0]} thread{'s' if counts[0] > 1 else ''}"
    figure.supxlabel(
        f"working set of the op   ({subject}; {'the others on ' if counts[1:] else ''}{threads}; "
        f"{machine['cpu']}{'; ' + caches if caches else ''})",
        fontsize=9,
        color=INK,
    )
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", ncols=4, frameon=False, fontsize=9
    )
    legend_rows = -(-len(handles) // 4)
    height = figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.08 + 0.21 * legend_rows) / height), h_pad=1.2)
