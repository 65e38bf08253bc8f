"""Exact cases are the same everywhere, agree with the oracle, and reach other languages as .npz."""

import hashlib

import numpy as np
import pytest

import fastrms
from fastrms import check, conformance
from fastrms.__main__ import main
from fastrms.conformance import measures
from fastrms.conformance.hard import Rows, exact

from .dtypes import KINDS, dtype_of

# sha256 of all arrays, in order: integer arithmetic and fractions give every platform these bits.
DIGESTS = {
    "float16": "083a1dd9bfe86052",
    "bfloat16": "8c9e1a07791502ab",
    "float32": "82998319c401a90f",
    "float64": "b265fa079e1743d6",
}


@pytest.mark.parametrize("dtype", KINDS)
def test_cases_have_the_recorded_bits(dtype):
    dtype_of(dtype)
    digest = hashlib.sha256()
    for case in conformance.cases(dtype):
        for value in case[1:]:
            array = np.asarray(value)
            plain = np.where(np.isnan(array), array.dtype.type(np.nan), array)  # of one sign
            digest.update(plain.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[dtype]


@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
def test_cases_agree_with_the_oracle_of_80_bits(weight_offset):
    for case in conformance.cases("float32", weight_offset=weight_offset):
        with np.errstate(all="ignore"):
            _, y, dx, dweight = exact(Rows(case.dy, case.x, case.weight, case.eps), weight_offset)
        finite = np.isfinite(case.x).all(axis=-1)
        assert measures.ulps(case.y[finite], y[finite]) <= 0.51
        terms = measures.dx_terms(
            *(part.astype(np.longdouble) for part in (case.dy, case.x, case.weight)),
            case.eps,
            weight_offset,
        )
        assert measures.ulps(case.dx[finite], dx[finite], terms[finite]) <= 0.51
        if finite.all() and case.x.any():
            assert np.allclose(case.dweight, dweight.astype(np.float64), 1e-13, 0)


@pytest.mark.parametrize("dtype", KINDS)
def test_fastrms_passes_its_own_cases(dtype):
    dtype_of(dtype)
    for case in conformance.cases(dtype):
        y = fastrms.rms_norm(case.x, case.weight, case.eps)
        assert measures.ulps(y, case.y) <= check.forward_ulp(case.weight, dtype=dtype) + 1e-3
        residual = case.residual.copy()
        add_y = fastrms.add_rms_norm(case.x, residual, case.weight, case.eps)
        assert np.array_equal(residual, case.total, equal_nan=True)
        assert measures.ulps(add_y, case.add_y) <= check.forward_ulp(1, dtype=dtype) + 1e-3
        dx, _ = fastrms.rms_norm_backward(case.dy, case.x, case.weight, case.eps)
        if np.isfinite(case.x).all():
            inputs = (part.astype(np.longdouble) for part in (case.dy, case.x, case.weight))
            assert check.dx_error(dx, case.dx, *inputs, case.eps) <= check.of_terms(check.DX, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export(tmp_path, capsys, dtype):
    dtype_of(dtype)
    path = tmp_path / "cases.npz"
    assert main(["check", "--export", str(path), "--dtype", dtype, "--weight-offset", "1"]) == 0
    with np.load(path) as arrays:  # plain arrays: nothing is pickled
        for case in conformance.cases(dtype, weight_offset=1.0):
            x, y = arrays[f"{case.name}/x"], arrays[f"{case.name}/y"]
            assert x.dtype == (np.uint16 if dtype == "bfloat16" else np.float32)
            assert x.tobytes() == case.x.tobytes()
            assert y.dtype == np.float64
            assert np.array_equal(y, case.y, equal_nan=True)
            assert arrays[f"{case.name}/weight_offset"] == 1
