"""Few rows times plain and quantised weights as CUDA kernels, on the host."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.component import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.weights.blocks import Blocks, as_blocks, quantise, unpack
from rlx_ray.weights.formats import BLOCK, FORMATS, HALF, scheme_format
from rlx_ray.weights.packing_cuda import tiled
from tests.support.cuda_emulator import NUMPY, ORDERS, Unit
from tests.support.cuda_oracle import IDS, TYPES, check, empty, floats, values, wide

EPS = 1e-5
BITS = {name: form for name, form in FORMATS.items() if form.bits}
USUAL = ("b4", "b4m", "b6h", "b8", "b8m", "b5m", "b3h", "b2hm")
SHAPES = {
    # rows, n, k, chunks, warps
    "one": (1, 21, 352, 2, 2),
    "some": (3, 16, 96, 1, 1),
    "many": (11, 40, 64, 4, 2),
}
SCHEMES = ["gguf_q8_0", "gguf_q4_0", "gguf_q4_1", "gguf_q4k", "gguf_q6k", "int8/32", "int4/64"]


def traits(name: str) -> dict[str, int]:
    form = BITS[name]
    return {"bits": form.bits, "halves": int(form.halves), "offsets": int(form.offsets)}


def matvec(name: str, t: DType, shape: str, **constants) -> object:
    rows, n, k, chunks, warps = SHAPES[shape]
    sizes = {"rows": rows, "n": n, "k": k, "chunks": chunks, "warps": warps}
    return instance("matvec", name, t=t, **sizes, **constants)


LAYER = {"norm": 2, "eps": EPS, "keep": 1, "bias": 1, "act": "vgelu"}
INSTANCES = [
    *(
        matvec(f"{form}_{shape}_{t}", t, shape, **traits(form))
        for form in USUAL
        for shape in SHAPES
        for t in TYPES
    ),
    *(matvec(f"plain_{shape}_{t}", t, shape) for shape in SHAPES for t in TYPES),
    *(
        instance("matvec", f"{kind}_{t}", t=t, rows=2, n=32, k=k, warps=3, **how)
        for t in TYPES
        for kind, k, how in (
            ("plain_odd", 77, {}),
            ("norm", 200, {"norm": 1, "eps": EPS, "bias": 1, "residual": 1, "each": 1}),
            ("layer", 200, {**LAYER, "each": 1}),
            ("layer_odd", 77, {"norm": 2, "eps": EPS, "residual": 1}),
            ("gated", 96, {"norm": 1, "eps": EPS, "gated": 1, "bits": 4, "offsets": 1}),
            ("wide_out", 128, {"bits": 8, "out": DType.F32}),
        )
    ),
    *(
        instance("dequantize", f"plain_of_{form}_{t}", t=t, n=21, k=96, **traits(form))
        for form in BITS
        for t in TYPES
    ),
    *(
        instance("dequantize", f"scheme_{form}", t=DType.F32, n=21, k=512, **traits(form))
        for form in ("b4", "b4m", "b6h", "b8")
    ),
]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)


def random_blocks(rng: np.random.Generator, form: str, n: int, k: int) -> Blocks:
    """Codes over their whole range, scales of a usual size."""
    own = BITS[form]
    low = 0 if own.offsets and own.bits < 8 else -(1 << own.bits >> 1)
    codes = rng.integers(low, low + (1 << own.bits), (n, k)).astype(np.int8)
    parts = k // (HALF if own.halves else BLOCK)
    d = (rng.uniform(0.5, 2, (n, parts)) / (1 << own.bits)).astype(np.float16)
    m = rng.normal(0, 0.5, (n, parts)).astype(np.float16) if own.offsets else None
    return Blocks(own, codes, d, m)


def exact(blocks: Blocks) -> np.ndarray:
    """The weights in float64: d * code + m."""
    per = blocks.codes.shape[1] // blocks.d.shape[1]
    w = wide(blocks.d).repeat(per, axis=1) * blocks.codes
    return w if blocks.m is None else w + wide(blocks.m).repeat(per, axis=1)


@each_type
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", USUAL)
def test_quantised_weights(kernels: Unit, form: str, shape: str, t: DType) -> None:
    rows, n, k, _, _ = SHAPES[shape]
    rng = np.random.default_rng(k)
    blocks, x = random_blocks(rng, form, n, k), values(rng, (rows, k), t)
    packed = tiled(blocks)
    assert packed.nbytes == blocks.form.tiled_bytes(k, n)
    got = kernels.run(f"{form}_{shape}_{t}", x=x, w=packed, y=empty((rows, n), t))["y"]
    check(got, wide(x) @ exact(blocks).T, t)


@each_type
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_weights(kernels: Unit, shape: str, t: DType) -> None:
    rows, n, k, _, _ = SHAPES[shape]
    rng = np.random.default_rng(k)
    w, x = values(rng, (n, k), t), values(rng, (rows, k), t)
    got = kernels.run(f"plain_{shape}_{t}", x=x, w=w, y=empty((rows, n), t))["y"]
    check(got, wide(x) @ wide(w).T, t)


@each_type
def test_plain_weights_of_an_odd_depth(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(0)
    w, x = values(rng, (32, 77), t), values(rng, (2, 77), t)
    got = kernels.run(f"plain_odd_{t}", x=x, w=w, y=empty((2, 32), t))["y"]
    check(got, wide(x) @ wide(w).T, t)


def normed(x: np.ndarray, gain: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
    """The norm, rounded to the type of x as the norm's own kernel would."""
    d = wide(x) if shift is None else wide(x) - wide(x).mean(1, keepdims=True)
    y = d / np.sqrt((d * d).mean(1, keepdims=True) + EPS) * wide(gain)
    return wide((y if shift is None else y + shift).astype(x.dtype))


@each_type
def test_a_norm_before_and_a_residual_behind(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(1)
    w, x = values(rng, (32, 200), t), values(rng, (2, 200), t)
    x[1] *= NUMPY[t].type(30)
    gain, bias, residual = floats(rng, 200), floats(rng, 32), values(rng, (2, 32), t)
    given = {"x": x, "gain": gain, "w": w, "bias": bias, "residual": residual}
    got = kernels.run(f"norm_{t}", **given, y=empty((2, 32), t))["y"]
    check(got, normed(x, gain) @ wide(w).T + bias + wide(residual), t)
    again = kernels.run(f"norm_{t}", **given, alias={"y": "residual"})["y"]
    assert again.tobytes() == got.tobytes()


@each_type
def test_a_layer_norm_before_is_kept_and_an_activation_follows(kernels: Unit, t) -> None:
    rng = np.random.default_rng(8)
    w, x = values(rng, (32, 200), t), values(rng, (2, 200), t) + NUMPY[t].type(2)
    gain, shift, bias = floats(rng, 200), floats(rng, 200), floats(rng, 32)
    given = {"x": x, "gain": gain, "shift": shift, "w": w, "bias": bias}
    kept, y = empty((2, 200), t), empty((2, 32), t)
    got = kernels.run(f"layer_{t}", **given, kept=kept, y=y)
    rows = normed(x, gain, shift)
    check(got["kept"], rows, t)
    sums = rows @ wide(w).T + bias
    check(got["y"], 0.5 * sums * (1 + np.vectorize(math.erf)(sums / math.sqrt(2))), t)

    w, x, residual = values(rng, (32, 77), t), values(rng, (2, 77), t), values(rng, (2, 32), t)
    given = {"x": x, "gain": gain, "shift": shift, "w": w, "residual": residual}
    got = kernels.run(f"layer_odd_{t}", **given, y=y)["y"]
    check(got, normed(x, gain[:77], shift[:77]) @ wide(w).T + wide(residual), t)


@each_type
def test_gates(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(2)
    blocks, x, gain = random_blocks(rng, "b4m", 64, 96), values(rng, (2, 96), t), floats(rng, 96)
    got = kernels.run(f"gated_{t}", x=x, gain=gain, w=tiled(blocks), y=empty((2, 32), t))["y"]
    gate, up = np.split(normed(x, gain) @ exact(blocks).T, 2, axis=1)
    check(got, gate / (1 + np.exp(-gate)) * up, t)


@each_type
def test_logits_may_be_float32(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(3)
    blocks, x = random_blocks(rng, "b8", 32, 128), values(rng, (2, 128), t)
    got = kernels.run(f"wide_out_{t}", x=x, w=tiled(blocks), y=empty((2, 32), DType.F32))["y"]
    want = wide(x) @ exact(blocks).T
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want), "codes and rows are exact"


@each_type
@pytest.mark.parametrize("form", BITS)
def test_dequantised_weights_are_exact_but_for_their_rounding(kernels: Unit, form, t) -> None:
    blocks = random_blocks(np.random.default_rng(4), form, 21, 96)
    got = kernels.run(f"plain_of_{form}_{t}", w=tiled(blocks), y=empty((21, 96), t))["y"]
    want = blocks.f32().astype(NUMPY[t])
    np.testing.assert_array_equal(wide(got), wide(want))


@pytest.mark.parametrize("text", SCHEMES)
def test_every_scheme_goes_from_a_file_to_the_device(kernels: Unit, text: str) -> None:
    rng = np.random.default_rng(5)
    scheme, n, k = QuantScheme.parse(text), 21, 512
    if scheme.is_gguf:
        size, each = scheme.gguf_block_size, scheme.gguf_block_bytes
        raw = rng.integers(0, 256, (n * k // size, each)).astype(np.uint8)
        for at in {"gguf_q6k": (208,), "gguf_q4k": (0, 2), "gguf_q4_1": (0, 2)}.get(text, (0,)):
            raw[:, at : at + 2] = rng.uniform(0.01, 0.1, (len(raw), 1)).astype("f2").view(np.uint8)
        blocks = as_blocks(raw.tobytes(), scheme, (n, k))
        want = wide(unpack(raw.tobytes(), scheme, (n, k)))
    else:
        plain = floats(rng, n, k)
        blocks = quantise(plain, scheme)
        want = wide(blocks.f32())
    form = scheme_format(scheme)
    assert form is not None
    y = empty((n, k), DType.F32)
    got = kernels.run(f"scheme_{form.name}", w=tiled(blocks), y=y)["y"]
    assert np.linalg.norm(got - want) <= 5e-4 * np.linalg.norm(want)


def test_any_thread_order_and_any_neighbour_give_equal_bits(kernels: Unit) -> None:
    rng = np.random.default_rng(6)
    blocks, x = random_blocks(rng, "b4m", 16, 96), values(rng, (3, 96), DType.F16)
    y = empty((3, 16), DType.F16)
    run = {
        order: kernels.run("b4m_some_f16", order=order, x=x, w=tiled(blocks), y=y)["y"].tobytes()
        for order in ORDERS
    }
    assert len(set(run.values())) == 1
    other = kernels.run("b4m_some_f16", x=x[::-1], w=tiled(blocks), y=y)["y"]
    assert other[::-1].tobytes() == run["ascending"]
