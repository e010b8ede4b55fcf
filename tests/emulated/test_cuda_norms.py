"""Norms of rows as CUDA kernels, on the host."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from tests.support.cuda_emulator import NUMPY, ORDERS, Unit
from tests.support.cuda_oracle import IDS, TYPES, check, empty, floats, values, wide

EPS = 1e-5
SIZES = {
    # n: rows, constants
    "one_warp": (384, 6, {"warps": 1}),
    "few_rows": (2048, 2, {}),
    "odd": (33, 12, {}),
    "pairs": (30, 6, {"warps": 1, "block": 64}),
    "narrow": (1, 5, {}),
    "long": (4100, 3, {"warps": 2}),
}
SEQ = 3
KINDS = ("rms_norm", "layer_norm")


def name(kind: str, size: str, t: DType, fused: bool) -> str:
    return f"{kind}_{size}_{t}_{int(fused)}"


INSTANCES = [
    instance(
        kind,
        name(kind, size, t, fused),
        t=t,
        rows=rows,
        n=n,
        eps=EPS,
        seq=SEQ if rows % SEQ == 0 else 0,
        bias=int(fused),
        residual=int(fused),
        sum=int(fused),
        **constants,
    )
    for kind in KINDS
    for size, (n, rows, constants) in SIZES.items()
    for t in TYPES
    for fused in (False, True)
]


def norm(kind: str, s: np.ndarray, gain: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    d = s if kind == "rms_norm" else s - s.mean(-1, keepdims=True)
    y = d / np.sqrt((d * d).mean(-1, keepdims=True) + EPS) * wide(gain)
    return y if shift is None else y + wide(shift)


@pytest.mark.parametrize("t", TYPES, ids=IDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_agree_with_float64(kernels: Unit, kind: str, fused: bool, size: str, t: DType):
    n, rows, _ = SIZES[size]
    rng = np.random.default_rng(n)
    given = {"x": values(rng, (rows, n), t), "gain": floats(rng, n), "y": empty((rows, n), t)}
    if kind == "layer_norm":
        given["shift"] = floats(rng, n)
    if fused:
        given |= {"residual": values(rng, (rows, n), t), "bias": floats(rng, n)}
        given["sum"] = empty((rows, n), t)
    real = np.ones(rows, bool)
    if rows % SEQ == 0:
        given["lengths"] = rng.integers(0, SEQ + 1, rows // SEQ).astype(np.int32)
        real = (np.arange(SEQ) < given["lengths"][:, None]).reshape(-1)
        real[0] = True
        given["lengths"][0] = max(1, given["lengths"][0])
    got = kernels.run(name(kind, size, t, fused), **given)
    s = wide(given["x"])
    if fused:
        s = s + wide(given["bias"]) + wide(given["residual"])
        check(got["sum"][real], s[real], t)
        assert np.isnan(wide(got["sum"][~real])).all(), "padding stays as it is"
    check(got["y"][real], norm(kind, s, given["gain"], given.get("shift"))[real], t)
    assert np.isnan(wide(got["y"][~real])).all(), "padding stays as it is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_may_be_replaced_by_the_sum(kernels: Unit, kind: str) -> None:
    n, rows, _ = SIZES["few_rows"]
    rng = np.random.default_rng(1)
    t = DType.F16
    x, gain, bias = values(rng, (rows, n), t), floats(rng, n), floats(rng, n)
    apart = {"x": x, "gain": gain, "bias": bias, "residual": x, "y": empty((rows, n), t)}
    apart |= {"shift": gain} if kind == "layer_norm" else {}
    one = kernels.run(name(kind, "few_rows", t, True), **apart, sum=empty((rows, n), t))
    both = kernels.run(name(kind, "few_rows", t, True), **apart, alias={"sum": "residual"})
    assert both["sum"].tobytes() == one["sum"].tobytes()
    assert both["y"].tobytes() == one["y"].tobytes()


def test_a_row_has_its_bits_in_any_order_beside_any_other(kernels: Unit) -> None:
    n, rows, _ = SIZES["few_rows"]
    rng = np.random.default_rng(2)
    x = floats(rng, rows, n).astype(NUMPY[DType.BF16])
    rest = {"gain": floats(rng, n), "y": empty((rows, n), DType.BF16)}
    kernel = name("rms_norm", "few_rows", DType.BF16, False)
    found = {kernels.run(kernel, order=o, x=x, **rest)["y"].tobytes() for o in ORDERS}
    swapped = kernels.run(kernel, x=x[::-1], **rest)["y"]
    assert found == {swapped[::-1].tobytes()}
