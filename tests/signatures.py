"""The functions and their arguments, for tests that loop over all of them."""

ROWS, N = 6, 12
# The array arguments of each function: of shape (ROWS, N), (N,) and, in float64, (ROWS,).
MATRICES = {
    "rms_norm": ("x", "out"),
    "rms_norm_backward": ("dy", "x", "dx"),
    "add_rms_norm": ("x", "residual", "out"),
    "residual_add": ("x", "residual"),
    "sum_squares": ("x",),
    "sum_products": ("dy", "x"),
    "rms_scale": ("x", "out"),
    "rms_scale_backward": ("dy", "x", "dx"),
}
VECTORS = {
    "rms_norm": ("weight",),
    "rms_norm_backward": ("weight", "dweight"),
    "add_rms_norm": ("weight",),
    "residual_add": (),
    "sum_squares": (),
    "sum_products": ("weight",),
    "rms_scale": ("weight",),
    "rms_scale_backward": ("weight", "dweight"),
}
SUMS = {
    **dict.fromkeys(MATRICES, ()),
    "sum_squares": ("out",),
    "sum_products": ("out",),
    "rms_scale": ("sum_squares",),
    "rms_scale_backward": ("sum_squares", "sum_products"),
}
REQUIRED = {
    "rms_norm": ("x",),
    "rms_norm_backward": ("dy", "x"),
    "add_rms_norm": ("x", "residual"),
    "residual_add": ("x", "residual"),
    "sum_squares": ("x",),
    "sum_products": ("dy", "x"),
    "rms_scale": ("x", "sum_squares", "size"),
    "rms_scale_backward": ("dy", "x", "sum_squares", "sum_products", "size"),
}
OUTPUTS = {
    "rms_norm": ("out",),
    "rms_norm_backward": ("dx", "dweight"),
    "add_rms_norm": ("residual", "out"),
    "residual_add": ("residual",),
    "sum_squares": ("out",),
    "sum_products": ("out",),
    "rms_scale": ("out",),
    "rms_scale_backward": ("dx", "dweight"),
}
RETURNED = {**OUTPUTS, "add_rms_norm": ("out",)}
NUMBERS = {
    **dict.fromkeys(MATRICES, ("eps", "weight_offset")),
    "add_rms_norm": ("eps", "weight_offset", "scale"),
    "residual_add": ("scale",),
    "sum_squares": (),
    "sum_products": ("weight_offset",),
}
ACCUMULATE = ("rms_norm", "rms_norm_backward", "rms_scale_backward")
FUNCTIONS = tuple(MATRICES)
BACKWARD = ("rms_norm_backward", "rms_scale_backward")
# Float32 arrays; sums are float64.
ARGUMENTS_OF = {f: MATRICES[f] + VECTORS[f] for f in FUNCTIONS}
ARGUMENTS = [(f, name) for f in FUNCTIONS for name in ARGUMENTS_OF[f]]
SUM_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in SUMS[f]]
MATRIX_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in MATRICES[f]]
VECTOR_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in VECTORS[f]]
OUTPUT_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in OUTPUTS[f]]
REQUIRED_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in REQUIRED[f]]
NUMBER_ARGUMENTS = [(f, name) for f in FUNCTIONS for name in NUMBERS[f]]
# With and without accumulate=True, where the function has it.
CALLS = [(f, False) for f in FUNCTIONS] + [(f, True) for f in ACCUMULATE]


def beside(function, name, shape):
    """Return the shape that an array argument needs if x has this shape."""
    if name in SUMS[function]:
        return shape[:-1]
    return shape if name in MATRICES[function] else shape[-1:]
