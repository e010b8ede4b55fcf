"""The vector functions against float64 over their whole range."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from rlx_ray.compiler.cpu.zig import compile_c
from tests.support.programs import Bench

UNIT = """
#define RLX_LANES {lanes}
#define RLX_TILE_ROWS 6
#define RLX_TILE_VECTORS 2
#include "vmath.h"
#define EACH(name) __attribute__((visibility("default"))) \\
    void name##_all(const float *x, float *y, long n) \\
    {{ for (long i = 0; i + RLX_LANES <= n; i += RLX_LANES) st(y + i, name(ld(x + i))); }}
EACH(vexp) EACH(verf) EACH(vtanh) EACH(vrsqrt) EACH(vsqrt) EACH(vgelu) EACH(vgelu_tanh)
"""


@pytest.fixture(scope="module")
def library(bench: Bench) -> ctypes.CDLL:
    source = UNIT.format(lanes=bench.target.lanes)
    return ctypes.CDLL(str(bench.file(compile_c(source, bench.toolchain), "vmath.so")))


def apply(library: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x[: len(x) // 64 * 64], np.float32)
    y = np.empty_like(x)
    function = getattr(library, f"{name}_all")
    function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(len(x)))
    assert np.isfinite(y).all(), name
    return y


def everything(low: float, high: float) -> np.ndarray:
    """Dense points of a range, and float32s of every exponent within it."""
    dense = np.linspace(low, high, 400_000)
    powers = np.concatenate(
        [s * np.float64(2.0) ** np.linspace(-126, 127, 40_000) for s in (1, -1)]
    )
    both = np.concatenate([dense, powers[(powers >= low) & (powers <= high)]])
    return both[: len(both) // 64 * 64].astype(np.float32)


def test_exp_relative_error(library: ctypes.CDLL) -> None:
    x = everything(-87.3, 88.3)
    want = np.exp(x.astype(np.float64))
    assert np.abs(apply(library, "vexp", x) / want - 1).max() <= 2.4e-7


def test_exp_saturates_instead_of_overflowing(library: ctypes.CDLL) -> None:
    y = apply(library, "vexp", np.full(64, -3e38, np.float32))
    assert (y >= 0).all()
    assert (y < 1e-37).all()
    assert (apply(library, "vexp", np.full(64, 3e38, np.float32)) > 1e38).all()


def test_erf_absolute_error(library: ctypes.CDLL) -> None:
    x = everything(-3e38, 3e38)
    near = everything(-6, 6)
    for values in (x, near):
        want = np.array([math.erf(v) for v in values.astype(np.float64)])
        assert np.abs(apply(library, "verf", values) - want).max() <= 6e-7


def test_tanh_absolute_error(library: ctypes.CDLL) -> None:
    for values in (everything(-3e38, 3e38), everything(-12, 12)):
        want = np.tanh(values.astype(np.float64))
        assert np.abs(apply(library, "vtanh", values) - want).max() <= 4e-7


def test_square_roots_relative_error(library: ctypes.CDLL) -> None:
    x = everything(1e-37, 3e38)
    root = np.sqrt(x.astype(np.float64))
    assert np.abs(apply(library, "vsqrt", x) / root - 1).max() <= 7e-8
    assert np.abs(apply(library, "vrsqrt", x) * root - 1).max() <= 1.3e-7


@pytest.mark.parametrize("name", ["vgelu", "vgelu_tanh"])
def test_gelu_error(library: ctypes.CDLL, name: str) -> None:
    x = everything(-60, 60)
    v = x.astype(np.float64)
    if name == "vgelu":
        want = 0.5 * v * (1 + np.array([math.erf(t / math.sqrt(2)) for t in v]))
    else:
        want = 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    assert (np.abs(apply(library, name, x) - want) / (1 + np.abs(v))).max() <= 1e-6
