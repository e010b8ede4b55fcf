"""CUDA kernels that work row by row or number by number, on the host."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from rlx_ray.compiler.cuda.constants import Operand
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from tests.support.cuda_emulator import NUMPY, Unit
from tests.support.cuda_oracle import IDS, TYPES, check, empty, floats, values, wide

ROWS, SEQ, N = 12, 4, 40
LENGTHS = np.array([4, 0, 3], np.int32)
REAL = (np.arange(SEQ) < LENGTHS[:, None]).reshape(-1)
WIDE = DType.F32
SOFTMAX = [(6, 384), (5, 33), (3, 4100), (2, 1)]
POOLS = ["mean", "max", "cls", "last"]
FUNCTIONS = {
    "vexp(v0)": np.exp,
    "verf(v0)": np.vectorize(math.erf),
    "vtanh(v0)": np.tanh,
    "vsqrt(v0 * v0)": np.abs,
    "vrsqrt(splat(1.5f) + v0 * v0)": lambda x: 1 / np.sqrt(1.5 + x * x),
    "vrelu(v0)": lambda x: np.maximum(x, 0),
    "vmax(v0, splat(0.5f))": lambda x: np.maximum(x, 0.5),
    "vsilu(v0)": lambda x: x / (1 + np.exp(-x)),
    "vgelu(v0)": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "vgelu_tanh(v0)": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


def of_type(t: DType) -> list:
    own = (Operand(t, f"row * {N}", 1), Operand(DType.F32, "0", 1))
    views = (
        Operand(t, f"row % {SEQ} * {N}", 1),
        Operand(DType.F32, f"row / {SEQ}", 0),
        Operand(DType.F16, f"row * {2 * N} + 4", 1),
    )
    return [
        *(
            instance("softmax", f"softmax_{n}_{t}", t=t, rows=rows, n=n, warps=warps)
            for (rows, n), warps in zip(SOFTMAX, (1, 2, 4, 1), strict=True)
        ),
        instance("softmax", f"softmax_into_{t}", t=DType.F32, rows=6, n=384, out=t),
        instance(
            "reduce", f"sums_{t}", t=t, outer=7, extent=3000, inner=1, reduce=0, out=DType.F32
        ),
        instance("l2", f"l2_{t}", t=t, rows=5, n=N, out=DType.F32),
        instance("l2", f"l2_same_{t}", t=t, rows=5, n=33, warps=2),
        instance(
            "elementwise",
            f"sum_{t}",
            t=t,
            rows=ROWS,
            n=N,
            seq=SEQ,
            operands=own,
            expr="v0 + v1",
        ),
        instance(
            "elementwise",
            f"views_{t}",
            t=t,
            rows=ROWS,
            n=N,
            v=4,
            operands=views,
            expr="v0 * v1 + v2",
        ),
        instance("gated", f"gated_{t}", t=t, rows=ROWS, n=N, seq=SEQ, pitch=2 * N),
        instance("gated", f"gated_odd_{t}", t=t, rows=5, n=11, act="vgelu_tanh"),
        instance(
            "embed",
            f"embed_{t}",
            t=t,
            rows=ROWS,
            n=N,
            seq=SEQ,
            vocab=50,
            positions=9,
            types=2,
            first=2,
        ),
        instance("embed", f"embed_base_{t}", t=t, rows=5, n=33, vocab=50, base=1),
        instance("embed", f"embed_q8_{t}", t=t, rows=5, n=96, vocab=50, q8=1),
        *(
            instance("pool", f"pool_{kind}_{n}_{l2}_{t}", t=t, batch=3, seq=SEQ, n=n, pool=i, **how)
            for i, kind in enumerate(POOLS)
            for n, l2, how in (
                (40, 0, {}),
                (700, 1, {"l2": 1, "out": DType.F32}),
                (33, 0, {"groups": 3, "block": 64}),
            )
        ),
        instance(
            "strided",
            f"strided_{t}",
            t=t,
            shift=5,
            **{"n0": 2, "n1": 3, "n2": 4, "n3": 5, "s0": 100, "s1": 1, "s2": 7, "s3": 20},
        ),
        *(
            instance(
                "reduce",
                f"reduce_{inner}_{kind}_{t}",
                t=t,
                outer=7,
                extent=37,
                inner=inner,
                reduce=kind,
            )
            for inner in (1, 5)
            for kind in (0, 1)
        ),
        instance("length_mask", f"mask_{t}", t=t, batch=3, tokens=SEQ),
    ]


INSTANCES = [
    *(one for t in TYPES for one in of_type(t)),
    instance("iota", "iota", rows=300, period=7, first=2),
    *(
        instance(
            "elementwise",
            f"function_{i}",
            t=DType.F32,
            rows=1,
            n=4000,
            operands=(Operand(DType.F32, "0", 1),),
            expr=text,
        )
        for i, text in enumerate(FUNCTIONS)
    ),
]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)


@each_type
@pytest.mark.parametrize(("rows", "n"), SOFTMAX)
def test_softmax(kernels: Unit, rows: int, n: int, t: DType) -> None:
    x = values(np.random.default_rng(n), (rows, n), t) * NUMPY[t].type(4)
    x[0, : n // 2] = -np.inf
    got = kernels.run(f"softmax_{n}_{t}", x=x, y=empty((rows, n), t))["y"]
    e = np.exp(wide(x) - wide(x).max(1, keepdims=True))
    check(got, e / e.sum(1, keepdims=True), t)
    again = kernels.run(f"softmax_{n}_{t}", x=x, alias={"y": "x"})["y"]
    assert again.tobytes() == got.tobytes()


@each_type
def test_scores_of_float32_and_sums_into_float32(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(5)
    x = floats(rng, 6, 384) * 9
    x[:, 200:] -= 1e30  # as masks do it
    got = kernels.run(f"softmax_into_{t}", x=x, y=empty((6, 384), t))["y"]
    e = np.exp(wide(x) - wide(x).max(1, keepdims=True))
    check(got, e / e.sum(1, keepdims=True), t)
    x = np.abs(values(rng, (7, 3000), t)) + NUMPY[t].type(1)  # sums beyond what t counts
    got = kernels.run(f"sums_{t}", x=x, y=empty((7, 1), DType.F32))["y"]
    check(got, wide(x).sum(1, keepdims=True), DType.F32)


@each_type
def test_softmax_of_nothing_is_zero(kernels: Unit, t: DType) -> None:
    x = np.full((5, 33), -np.inf).astype(NUMPY[t])
    assert not wide(kernels.run(f"softmax_33_{t}", x=x, y=empty((5, 33), t))["y"]).any()


@each_type
def test_rows_of_unit_length(kernels: Unit, t: DType) -> None:
    for name, n, out in ((f"l2_{t}", N, DType.F32), (f"l2_same_{t}", 33, t)):
        x = values(np.random.default_rng(n), (5, n), t)
        x[2] = 0
        got = kernels.run(name, x=x, y=empty((5, n), out))["y"]
        length = np.maximum(np.linalg.norm(wide(x), axis=1, keepdims=True), 1e-12)
        check(got, wide(x) / length, out)


@each_type
def test_elementwise_regions(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(0)
    x, bias = values(rng, (ROWS, N), t), floats(rng, N)
    y = empty((ROWS, N), t)
    got = kernels.run(f"sum_{t}", x0=x, x1=bias, lengths=LENGTHS, y=y)["y"]
    check(got[REAL], (wide(x) + bias)[REAL], t)
    assert np.isnan(wide(got[~REAL])).all()
    again = kernels.run(f"sum_{t}", x0=x, x1=bias, lengths=LENGTHS, alias={"y": "x0"})["y"]
    assert again[REAL].tobytes() == got[REAL].tobytes()

    x, scale = values(rng, (SEQ, N), t), floats(rng, ROWS // SEQ)
    other = values(rng, (ROWS, 2 * N), DType.F16)
    got = kernels.run(f"views_{t}", x0=x, x1=scale, x2=other, y=y)["y"]
    want = np.tile(wide(x), (ROWS // SEQ, 1)) * scale.repeat(SEQ)[:, None] + other[:, 4 : N + 4]
    check(got, want, t)


@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions(kernels: Unit, text: str) -> None:
    x = np.linspace(-9, 9, 4000).astype(np.float32)[None]
    name = f"function_{list(FUNCTIONS).index(text)}"
    got = kernels.run(name, x0=x, y=empty(x.shape, DType.F32))["y"]
    want = FUNCTIONS[text](wide(x))
    assert (np.abs(got - want) <= 1e-6 * (np.abs(want) + np.abs(x))).all()


def test_functions_far_from_zero(kernels: Unit) -> None:
    x = np.array([[-3e38, -1000, -90, 90, 1000, 3e38] * 666 + [0] * 4], np.float32)
    for text in ("vsilu(v0)", "vgelu(v0)", "vgelu_tanh(v0)"):
        name = f"function_{list(FUNCTIONS).index(text)}"
        got = kernels.run(name, x0=x, y=empty(x.shape, DType.F32))["y"]
        np.testing.assert_allclose(got, np.maximum(x, 0), atol=1e-30, err_msg=text)


@each_type
def test_gated_activations(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(1)
    both = values(rng, (ROWS, 2 * N), t)
    up = np.ascontiguousarray(both[:, N:])
    rest = {"lengths": LENGTHS, "y": empty((ROWS, N), t)}
    wider = np.zeros_like(both)
    wider[:, :N] = up
    got = kernels.run(f"gated_{t}", gate=both, up=wider, **rest)["y"]
    g = wide(both[:, :N])
    check(got[REAL], (g / (1 + np.exp(-g)) * wide(up))[REAL], t)
    assert np.isnan(wide(got[~REAL])).all()
    gate, up = values(rng, (5, 11), t), values(rng, (5, 11), t)
    got = kernels.run(f"gated_odd_{t}", gate=gate, up=up, alias={"y": "gate"})["y"]
    check(got, FUNCTIONS["vgelu_tanh(v0)"](wide(gate)) * wide(up), t)


@each_type
def test_embeddings(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(2)
    word, position, kind = (values(rng, (n, N), t) for n in (50, 9, 2))
    ids = rng.integers(0, 50, ROWS).astype(np.int32)
    types = rng.integers(0, 2, ROWS).astype(np.int32)
    ids[0], types[0] = 2**31 - 1, -1
    tables = {"word": word, "position": position, "kind": kind}
    got = kernels.run(
        f"embed_{t}", ids=ids, types=types, **tables, lengths=LENGTHS, y=empty((ROWS, N), t)
    )["y"]
    ids[0] = types[0] = 0
    want = wide(word)[ids] + wide(position)[np.arange(ROWS) % SEQ + 2] + wide(kind)[types]
    check(got[REAL], want[REAL], t)
    assert np.isnan(wide(got[~REAL])).all()

    word, base, ids = values(rng, (50, 33), t), values(rng, (5, 33), t), ids[:5]
    got = kernels.run(f"embed_base_{t}", ids=ids, word=word, base=base, y=empty((5, 33), t))["y"]
    check(got, wide(word)[ids] + wide(base), t)

    scales, codes = (
        rng.uniform(0.1, 1, (50, 3)).astype(np.float16),
        rng.integers(-128, 128, (50, 96)),
    )
    raw = np.concatenate([scales.view(np.uint8), codes.astype(np.int8).view(np.uint8)], axis=1)
    got = kernels.run(f"embed_q8_{t}", ids=ids, word=raw, y=empty((5, 96), t))["y"]
    check(got, (wide(scales).repeat(32, axis=1) * codes)[ids], t)


@each_type
@pytest.mark.parametrize("kind", POOLS)
def test_poolings(kernels: Unit, kind: str, t: DType) -> None:
    for n, l2, out in ((40, 0, t), (700, 1, DType.F32), (33, 0, t)):
        x = values(np.random.default_rng(n), (3 * SEQ, n), t)
        x[~REAL] = np.nan
        y = empty((3, n), out)
        got = kernels.run(f"pool_{kind}_{n}_{l2}_{t}", x=x, lengths=LENGTHS, y=y)["y"]
        want = np.zeros((3, n))
        for b, length in enumerate(LENGTHS):
            part = wide(x)[b * SEQ : b * SEQ + length]
            if length:
                of_rows = {"mean": part.mean(0), "max": part.max(0), "cls": part[0]}
                want[b] = of_rows.get(kind, part[-1])
        if l2:
            want /= np.maximum(np.linalg.norm(want, axis=1, keepdims=True), 1e-12)
        check(got, want, out)


@each_type
def test_primitives(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(4)
    x = values(rng, (400,), t)
    got = kernels.run(f"strided_{t}", x=x, y=empty((2, 3, 4, 5), t))["y"]
    a, b, c, d = np.ogrid[:2, :3, :4, :5]
    assert (got == x[5 + 100 * a + b + 7 * c + 20 * d]).all()
    for inner in (1, 5):
        x = values(rng, (7, 37, inner), t)
        for kind, want in enumerate((wide(x).sum(1), wide(x).max(1))):
            y = empty((7, inner), t)
            check(kernels.run(f"reduce_{inner}_{kind}_{t}", x=x, y=y)["y"], want, t)
    got = kernels.run(f"mask_{t}", lengths=LENGTHS, y=empty((3, SEQ), t))["y"]
    assert (got.reshape(-1) == REAL).all()
    got = kernels.run("iota", y=np.zeros(300, np.int32))["y"]
    assert (got == np.arange(300) % 7 + 2).all()


def test_half_and_bfloat16_are_told_apart() -> None:
    assert NUMPY[DType.BF16] == ml_dtypes.bfloat16
    assert NUMPY[DType.F16] == np.float16
