"""RMSNorm and the residual add for NumPy on the CPU, forward and backward.

``rms_norm(x) = x / sqrt(mean(x**2) + eps) * weight`` over the last axis of arrays of float16,
bfloat16, float32 or float64 (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019,
arXiv:1910.07467).
`fastrms.reference` defines every function in plain NumPy and float64.
"""

import sys as _sys
from pathlib import Path as _Path

try:
    # NumPy's C code imports it, and reports a Ctrl-C there as a broken install (7 of 150 tries).
    import datetime as _datetime  # noqa: F401

    from ._core import (
        add_rms_norm,
        get_num_threads,
        residual_add,
        rms_norm,
        rms_norm_backward,
        rms_scale,
        rms_scale_backward,
        set_num_threads,
        sum_products,
        sum_squares,
    )
    from ._threads import COUNT as _COUNT  # noqa: F401 (importing it sets the threads)
except (ImportError, KeyboardInterrupt) as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "fastrms._core":
        error = ImportError(
            "fastrms._core, the compiled extension, is missing: this is an unbuilt checkout or a "
            "broken install. Run `python -m pip install .` and start Python outside of the "
            "checkout, or run `python -m pip install -e .` to work inside it."
        )
    # `fastrms` and `python -m fastrms` import this module before main() can catch an exception.
    if _Path((getattr(_sys, "argv", None) or [""])[0]).stem in ("-m", "fastrms"):
        stopped = isinstance(error, KeyboardInterrupt)
        print(f"fastrms: {'stopped by Ctrl-C' if stopped else error}", file=_sys.stderr)
        raise SystemExit(130 if stopped else 2) from None
    raise error from None

from . import reference
from ._config import get_include, show_config
from ._version import __version__

__all__ = [
    "__version__",
    "add_rms_norm",
    "get_include",
    "get_num_threads",
    "reference",
    "residual_add",
    "rms_norm",
    "rms_norm_backward",
    "rms_scale",
    "rms_scale_backward",
    "set_num_threads",
    "show_config",
    "sum_products",
    "sum_squares",
]


def __dir__() -> list[str]:
    return __all__
