"""Weights for CUDA targets: rows, tables, vectors, and what they refuse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from rlx_ray.artifact.manifest import Binding
from rlx_ray.component import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.blocks import quantise
from rlx_ray.weights.packing_cuda import pack, tiled
from rlx_ray.weights.params import ParamSpec

NUMPY = {DType.F32: np.float32, DType.F16: np.float16, DType.BF16: ml_dtypes.bfloat16}
PARAMS = (
    ParamSpec("table", (5, 6), "plain", ("t",)),
    ParamSpec("gain", (6,), "plain", ("g",)),
    ParamSpec("qkv.weight", (6, 10), "matrix", ("q", "kv")),
    ParamSpec("qkv.bias", (10,), "vector", ("qb", "kvb")),
)
SHAPES = {"t": (5, 6), "g": (6,), "q": (4, 6), "kv": (6, 6), "qb": (4,), "kvb": (6,)}


def sources(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def nobody(name: str, form: str):
    raise AssertionError(name)


def stored(data: np.ndarray, one: Binding, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return data[one.offset : one.offset + count].view(dtype).reshape(shape)


@pytest.mark.parametrize("t", NUMPY, ids=str)
def test_matrices_are_rows_in_the_type_of_the_profile(t: DType) -> None:
    found = sources()
    data, bindings = pack(PARAMS, found.__getitem__, t, {}, nobody)
    table, gain, weight, bias = bindings
    rows = np.concatenate((found["q"], found["kv"]))
    assert [b.dtype for b in bindings] == [t, DType.F32, t, DType.F32]
    assert [b.layout for b in bindings] == ["plain", "plain", "rows", "plain"]
    assert weight.shape == (6, 10)
    assert (stored(data, table, NUMPY[t], (5, 6)) == found["t"].astype(NUMPY[t])).all()
    assert (stored(data, weight, NUMPY[t], (10, 6)) == rows.astype(NUMPY[t])).all()
    assert (stored(data, gain, np.float32, (6,)) == found["g"]).all()
    assert (stored(data, bias, np.float32, (10,))[4:] == found["kvb"]).all()
    assert all(b.offset % 256 == 0 for b in bindings)


def test_parameters_of_multiples_of_256_bytes_have_no_gaps() -> None:
    gate, up = (ParamSpec(n, (32, 16), "matrix", (n,)) for n in ("gate", "up"))
    values = {n: np.full((16, 32), i, np.float32) for i, n in enumerate(("gate", "up"))}
    data, (first, second) = pack((gate, up), values.__getitem__, DType.F16, {}, nobody)
    assert second.offset - first.offset == 32 * 16 * 2
    assert (stored(data, first, np.float16, (32, 32)) == np.repeat([0, 1], 16)[:, None]).all()


def test_quantised_parameters_are_tiles_and_rows_of_8_bits() -> None:
    scheme = QuantScheme.parse("gguf_q8_0")
    rng = np.random.default_rng(1)
    values = {n: rng.normal(size=(5, 64)).astype(np.float32) for n in "abt"}
    params = (
        ParamSpec("w", (64, 10), "matrix", ("a", "b")),
        ParamSpec("table", (5, 64), "plain", ("t",)),
    )
    formats = {"w": "b8", "table": "q8rows"}
    data, (w, table) = pack(
        params, values.__getitem__, DType.F16, formats, lambda n, form: quantise(values[n], scheme)
    )
    whole = quantise(np.concatenate((values["a"], values["b"])), scheme)
    assert (w.dtype, w.shape, w.layout) == (DType.U8, (64, 10), "tiles-b8")
    want = tiled(whole).reshape(-1)
    assert (data[w.offset : w.offset + want.size] == want).all()
    assert (table.dtype, table.shape, table.layout) == (DType.U8, (5, 68), "q8rows")
    rows = stored(data, table, np.uint8, (5, 68))
    scales = np.ascontiguousarray(rows[:, :4]).view(np.float16).astype(np.float32)
    codes = rows[:, 4:].view(np.int8).reshape(5, 2, 32)
    got = (codes * scales[:, :, None]).reshape(5, 64)
    assert (got == quantise(values["t"], scheme).f32()).all()


def test_numbers_past_f16_are_refused_with_the_tensors_name() -> None:
    found = sources()
    found["kv"][2, 3] = 65519.0
    pack(PARAMS, found.__getitem__, DType.F16, {}, nobody)
    found["kv"][2, 3] = -65520.0
    with pytest.raises(CheckpointError, match=r"'qkv.weight': tensor 'kv'.*beyond.*bf16 or f32"):
        pack(PARAMS, found.__getitem__, DType.F16, {}, nobody)
    pack(PARAMS, found.__getitem__, DType.BF16, {}, nobody)
    found["kv"][2, 3] = np.inf
    with pytest.raises(CheckpointError, match="'kv' holds an infinity or NaN, which bf16"):
        pack(PARAMS, found.__getitem__, DType.BF16, {}, nobody)
    pack(PARAMS, found.__getitem__, DType.F32, {}, nobody)


def test_a_source_of_another_shape_is_refused() -> None:
    found = sources()
    found["kv"] = found["kv"][:5]
    with pytest.raises(CheckpointError, match=r"'qkv\.weight'.*cannot be made of"):
        pack(PARAMS, found.__getitem__, DType.F32, {}, nobody)
