"""Describe this installation: versions, compiler, instruction set, threads, folder of fastrms.h."""

import os
import platform
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from . import _core, _threads
from ._version import __version__


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print, or return, how fastrms was built and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it, or return it as nested dicts.

    Returns
    -------
    dict, or None with mode "stdout".

    Raises
    ------
    ValueError
        If mode is neither.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", got {mode!r}')
    config = _gather()
    if mode == "dicts":
        return config
    for section, entries in config.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
    return None


def get_include() -> str:
    """Return the folder of ``fastrms.h``: the include path for code that uses the C interface."""
    return str(Path(__file__).parent / "include")


def _gather() -> dict[str, dict[str, Any]]:
    build = _core.build_info()
    return {
        "fastrms": {"version": __version__},
        "build": {"compiler": build["compiler"], "flags": build["flags"]},
        "instruction set": {
            **_choice(build["isa"]),
            "available": ", ".join(build["isas"]),
            "vectors": _vectors(build["vector_floats"]),
        },
        "threads": {
            "in use": _core.get_num_threads(),
            "default": f"{_threads.COUNT}, from {_threads.ORIGIN}",
            "pool": build["pool"] or "none on this system or compiler: every call is serial",
        },
        "python": {
            "version": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
        },
    }


def _choice(isa: str) -> dict[str, str]:
    forward, plus, backward = isa.partition("+")
    if isa == os.environ.get("FASTRMS_ISA"):
        why = "FASTRMS_ISA"
    else:
        why = "the faster for each on Zen 4" if plus else "the widest that this CPU has"
    return {"in use": forward, "in use for backward": backward or forward, "why": why}


def _vectors(floats: int) -> str:
    if floats == 1:
        return "none, and slow: this compiler lacks vector types, which GCC and Clang have"
    return f"of {floats} floats"
