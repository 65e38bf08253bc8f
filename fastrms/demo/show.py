"""Show the results of a study as a table, a sentence, or a picture.

Only `plot` needs matplotlib, which the extra `[bench]` installs.
"""

import itertools

import numpy as np

from .. import _output

COLUMNS = """\
                           rms at the top  gradient at the bottom   skip  cosine
gain {:<20g}  stream   input   total by skip  branch  share  of two"""

COLOURS = {  # distinct to the colour-blind too (Okabe and Ito 2008)
    "plain": "#000000",
    "residual only": "#e69f00",
    "RMSNorm only": "#56b4e9",
    "RMSNorm + residual": "#009e73",
    "skip gradient overwritten": "#d55e00",
}
OVERWRITTEN = "skip gradient overwritten"


def table(results):
    """Return a table for each gain, a line a design: figures at the far end of the stack.

    rms: of the stream after the last layer, and of that layer's input. gradient: its norm at the
    first layer's input, over that of the upstream gradient at the top, and its two parts across
    layer 1. skip share: the skip path's part of the squared gradient, averaged over the layers.
    cosine: of two inputs' activations after the last layer.
    """
    tables = []
    for gain, group in itertools.groupby(results, lambda r: r["gain"]):
        lines = [COLUMNS.format(gain)]
        for r in group:
            lines.append(
                f"{r['design']:<25s}{r['rms'][-1]:8.2g}{r['seen'][-1]:8.2g}"
                f"{r['gradient'][0]:8.2g}{r['by_skip'][0]:8.2g}{r['by_branch'][0]:8.2g}"
                f"{np.mean(r['skip_share']):7.0%}{r['cosine'][-1]:8.3f}"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def sentence(results):
    """Return the table's message in one sentence, its figures in the order of the gains."""
    layers = len(results[0]["seen"])
    gains = " / ".join(f"{gain:g}" for gain in dict.fromkeys(r["gain"] for r in results))

    def at(design, key, layer, form=".2g"):
        return " / ".join(f"{r[key][layer]:{form}}" for r in results if r["design"] == design)

    norm, both = "RMSNorm only", "RMSNorm + residual"
    return (
        f"At gain {gains}, after {_output.counted(layers, 'layer')}, plain activations are at"
        f" {at('plain', 'rms', -1)} and with the residual alone at"
        f" {at('residual only', 'rms', -1)}; the norm alone keeps activations and gradient in size"
        f" ({at(norm, 'rms', -1)} and {at(norm, 'gradient', 0)}) while two inputs end at cosine"
        f" {at(norm, 'cosine', -1, '.3f')}; norm and residual together hold the stream at"
        f" {at(both, 'rms', -1)}, the gradient at layer 1 at {at(both, 'gradient', 0)} and the"
        f" cosine at {at(both, 'cosine', -1, '.3f')}; and the skip path's gradient overwritten"
        f" instead of accumulated leaves {at(OVERWRITTEN, 'gradient', 0)}."
    )


def plot(results, path):
    """Draw activations going up and gradients coming down, one line for each design and gain."""
    from matplotlib.figure import Figure  # not pyplot: no display, and no global state
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    forward, backward = figure.subplots(1, 2)
    layers = len(results[0]["seen"])
    gains = list(dict.fromkeys(r["gain"] for r in results))
    styles = dict(zip(gains, itertools.cycle(("-", "--", ":", "-."))))
    for r in results:
        look = {"color": COLOURS[r["design"]], "ls": styles[r["gain"]], "lw": 2.2, "clip_on": False}
        # Its forward equals that of RMSNorm + residual: draw dots on that line, and say so.
        same = r["design"] == OVERWRITTEN
        dots = {"ls": "", "marker": "o", "ms": 4.5, "markevery": 1 + layers // 12} if same else {}
        forward.plot(range(layers + 1), r["rms"], **look | dots)
        gradient = np.array(r["gradient"])
        gradient[gradient == 0] = np.nan  # a logarithmic axis has no 0
        backward.plot(range(layers + 1), gradient, **look)
    for panel, title in (
        (forward, "forward: rms of the stream after each layer"),
        (backward, "backward: norm of the gradient, 1 at the top"),
    ):
        panel.set(yscale="log", title=title, xlabel="layer", xlim=(0, layers))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    _mark_zeros(backward, results)
    handles = [Line2D([], [], color=colour, lw=3, label=name) for name, colour in COLOURS.items()]
    handles += [
        Line2D([], [], color="grey", ls=styles[g], lw=2, label=f"gain {g:g}") for g in gains
    ]
    handles.append(
        Line2D([], [], color=COLOURS[OVERWRITTEN], ls="", marker="o", label="the same forward")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def _mark_zeros(panel, results):
    """Annotate where a gradient underflows float32 to 0, since its line just ends there."""
    ends = [np.flatnonzero(r["gradient"])[0] for r in results if r["gradient"][0] == 0]
    if ends:
        lowest = min(min(filter(None, r["gradient"])) for r in results)
        panel.annotate(
            "exactly 0 from here down:\nfloat32 has nothing smaller",
            xy=(min(ends), lowest),
            xytext=(0.03, 0.2),
            textcoords="axes fraction",
            color=COLOURS[OVERWRITTEN],
            arrowprops={"arrowstyle": "->", "color": COLOURS[OVERWRITTEN]},
        )
