"""The yardstick of `fastrms check --against`, from Python and pytest: is this a right RMSNorm?

assert not conformance.check(my_norm).failures
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from .exact import Case, cases, export
from .examine import Examination
from .families import FAMILIES
from .findings import Finding
from .report import Report

__all__ = ["FAMILIES", "Case", "Finding", "Report", "cases", "check", "export"]


_Function: TypeAlias = Callable[..., Any] | str | None


def __dir__() -> list[str]:
    return __all__


def check(
    norm: _Function = None,
    *,
    backward: _Function = None,
    add: _Function = None,
    residual: _Function = None,
    **options: Any,
) -> Report:
    """Examine an RMSNorm and its companions, and return a Report.

    Parameters
    ----------
    norm, backward, add, residual : callable or str, optional
        ``norm(x, weight, eps)`` returns y, ``backward(dy, x, weight, eps)`` dx and dweight,
        ``add(x, residual, weight, eps)`` y and total, ``residual(x, residual)`` total. A str is
        MODULE:FUNCTION or FILE.py:FUNCTION.
    **options
        dtype, eps, weight_offset, framework, families, shapes, ulp and strict, as in
        `fastrms check --against`.

    Returns
    -------
    Report
        ``failures`` lists what is wrong, and is empty for a right function. str() is a page.

    Raises
    ------
    ValueError
        If a function is not found, raises, or returns another shape or dtype.

    Examples
    --------
    >>> from fastrms import conformance, rms_norm
    >>> conformance.check(rms_norm).failures
    []
    """
    functions = {"norm": norm, "backward": backward, "add": add, "residual": residual}
    examination = Examination(functions, **options)
    for step in examination.steps:
        step()
    return examination.report
