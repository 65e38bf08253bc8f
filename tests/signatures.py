"""The functions and their array arguments, for tests that go through all of them."""

ROWS, N = 6, 12
# For each function: its arrays, by argument, in the shape (ROWS, N) or (N,).
MATRICES = {
    "rms_norm": ("x", "out"),
    "rms_norm_backward": ("dy", "x", "dx"),
    "add_rms_norm": ("x", "residual", "out"),
    "residual_add": ("residual", "x"),
}
VECTORS = {
    "rms_norm": ("weight",),
    "rms_norm_backward": ("weight", "dweight"),
    "add_rms_norm": ("weight",),
    "residual_add": (),
}
REQUIRED = {
    "rms_norm": ("x",),
    "rms_norm_backward": ("dy", "x"),
    "add_rms_norm": ("x", "residual"),
    "residual_add": ("residual", "x"),
}
OUTPUTS = {
    "rms_norm": ("out",),
    "rms_norm_backward": ("dx", "dweight"),
    "add_rms_norm": ("residual", "out"),
    "residual_add": ("residual",),
}
NORMS = ("rms_norm", "rms_norm_backward", "add_rms_norm")
FUNCTIONS = tuple(MATRICES)
ARGUMENTS_OF = {f: MATRICES[f] + VECTORS[f] for f in MATRICES}
ARGUMENTS = [(f, name) for f in ARGUMENTS_OF for name in ARGUMENTS_OF[f]]
MATRIX_ARGUMENTS = [(f, name) for f in MATRICES for name in MATRICES[f]]
VECTOR_ARGUMENTS = [(f, name) for f in VECTORS for name in VECTORS[f]]
OUTPUT_ARGUMENTS = [(f, name) for f in OUTPUTS for name in OUTPUTS[f]]
REQUIRED_ARGUMENTS = [(f, name) for f in REQUIRED for name in REQUIRED[f]]
# With and without accumulate=True, where the function has it.
CALLS = [(f, False) for f in FUNCTIONS] + [("rms_norm", True), ("rms_norm_backward", True)]
