"""RMSNorm and the residual add for NumPy on the CPU, forward and backward.

``rms_norm(x) = x / sqrt(mean(x**2) + eps) * weight`` over the last axis of float32 arrays.
`fastrms.reference` defines every function in plain NumPy and float64.
"""

from . import reference
from ._config import show_config
from ._core import (
    add_rms_norm,
    get_num_threads,
    residual_add,
    rms_norm,
    rms_norm_backward,
    set_num_threads,
)
from ._version import __version__

__all__ = [
    "__version__",
    "add_rms_norm",
    "get_num_threads",
    "reference",
    "residual_add",
    "rms_norm",
    "rms_norm_backward",
    "set_num_threads",
    "show_config",
]
