from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.artifact.manifest import Binding
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.packing_cpu import pack
from rlx_ray.weights.params import ParamSpec


def oracle(param: ParamSpec, source: dict[str, np.ndarray], panel: int) -> list[float]:
    """The floats of one parameter in memory order, by plain loops."""
    if param.layout == "plain":
        return [float(v) for v in source[param.sources[0]].flat]
    if param.layout == "vector":
        return [float(v) for name in param.sources for v in source[name]]
    k, n = param.shape
    columns = [row for name in param.sources for row in source[name]]
    out = []
    for p in range(math.ceil(n / panel)):
        for i in range(k):
            for j in range(p * panel, (p + 1) * panel):
                out.append(float(columns[j][i]) if j < n else 0.0)
    return out


def floats(buffer: np.ndarray, binding: Binding, count: int) -> list[float]:
    return buffer[binding.offset :][: 4 * count].view(np.float32).tolist()


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[ParamSpec], dict[str, np.ndarray], int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    params, source = [], {}
    for p in range(draw(st.integers(1, 4))):
        layout = draw(st.sampled_from(["plain", "vector", "matrix"]))
        count = 1 if layout == "plain" else draw(st.integers(1, 3))
        k = draw(st.integers(1, 9))
        parts = [draw(st.integers(1, 20)) for _ in range(count)]
        names = tuple(f"p{p}.s{i}" for i in range(count))
        for name, n in zip(names, parts, strict=True):
            shape = (n,) if layout == "vector" else (n, k)
            source[name] = rng.standard_normal(shape).astype(np.float32)
        shape = {"plain": (parts[0], k), "vector": (sum(parts),), "matrix": (k, sum(parts))}[layout]
        params.append(ParamSpec(f"p{p}", shape, layout, names))
    return params, source, draw(st.sampled_from([1, 4, 8, 16, 32]))


@given(problems())
def test_packing_agrees_with_plain_loops(
    problem: tuple[list[ParamSpec], dict[str, np.ndarray], int],
) -> None:
    params, source, panel = problem
    buffer, bindings = pack(params, source.__getitem__, panel)
    assert [b.name for b in bindings] == [p.name for p in params]
    end = 0
    for param, binding in zip(params, bindings, strict=True):
        want = oracle(param, source, panel)
        assert binding.offset % 64 == 0
        assert end <= binding.offset < end + 64
        assert not buffer[end : binding.offset].any()
        assert floats(buffer, binding, len(want)) == want
        assert binding.shape == param.shape
        assert binding.layout == (f"panel{panel}" if param.layout == "matrix" else "plain")
        end = binding.offset + 4 * len(want)
    assert buffer.nbytes == end + 256
    assert not buffer[end:].any()


@given(problems(), st.sampled_from(["bf16", "int8"]))
def test_packing_in_low_precision_agrees_with_plain_loops(
    problem: tuple[list[ParamSpec], dict[str, np.ndarray], int], precision: str
) -> None:
    params, source, panel = problem
    buffer, bindings = pack(params, source.__getitem__, panel, precision)
    group = {"bf16": 2, "int8": 4}[precision]
    for param, binding in zip(params, bindings, strict=True):
        if param.layout != "matrix":
            want = oracle(param, source, panel)
            assert floats(buffer, binding, len(want)) == want
            assert (binding.dtype, binding.layout) == (DType.F32, "plain")
            continue
        assert (binding.dtype.text, binding.layout) == (
            {"bf16": "bf16", "int8": "i8"}[precision],
            f"panel{panel}x{group}",
        )
        data = buffer[binding.offset :].tobytes()
        for expected in low_oracle(param, source, panel, precision):
            assert data.startswith(expected)
            data = data[len(expected) :]


def low_oracle(
    param: ParamSpec, source: dict[str, np.ndarray], panel: int, precision: str
) -> Iterator[bytes]:
    """The pieces of a matrix in memory order, by plain loops."""
    k, n = param.shape
    columns = [row for name in param.sources for row in source[name]]
    columns += [np.zeros(k, np.float32)] * (-n % panel)
    for p in range(0, len(columns), panel):
        own = columns[p : p + panel]
        if precision == "bf16":
            for i in range(0, k, 2):
                for column in own:
                    for term in (i, i + 1):
                        value = float(column[term]) if term < k else 0.0
                        yield struct.pack("<H", nearest_bf16(value))
            continue
        scales = [np.abs(c).max() / np.float32(127) for c in own]
        codes = [
            [round(float(v / s)) if s else 0 for v in c] for c, s in zip(own, scales, strict=True)
        ]
        for i in range(0, k, 4):
            for code in codes:
                yield struct.pack("<4b", *(code[i : i + 4] + [0] * 3)[:4])
        for j, scale in enumerate(scales):
            yield struct.pack("<f", scale if p + j < n else 0.0)
        for code in codes:
            yield struct.pack("<i", sum(code))


def nearest_bf16(value: float) -> int:
    """The bits of the bf16 nearest to a float32, the even one of two."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    low, high = bits >> 16, (bits >> 16) + 1
    distance = bits - (low << 16), (high << 16) - bits
    if distance[0] == distance[1]:
        return low if low % 2 == 0 else high
    return low if distance[0] < distance[1] else high


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_cannot_be_quantised(bad: float) -> None:
    source = {"s": np.array([[1, bad], [2, 3]], np.float32)}
    param = ParamSpec("p", (2, 2), "matrix", ("s",))
    for precision in ("int8", "bf16"):
        with pytest.raises(CheckpointError, match=r"'p'.*'s' holds an infinity or NaN"):
            pack([param], source.__getitem__, 8, precision)


def test_the_buffer_itself_lies_on_a_cache_line() -> None:
    for size in (1, 1000, 100_000):
        array = np.ones(size, np.float32)
        buffer, _ = pack([ParamSpec("p", (size,), "plain", ("s",))], lambda _, a=array: a, 16)
        assert buffer.ctypes.data % 64 == 0
        assert buffer.flags.c_contiguous


@pytest.mark.parametrize(
    ("param", "shapes"),
    [
        (ParamSpec("p", (2, 3), "plain", ("s",)), {"s": (3, 2)}),
        (ParamSpec("p", (2, 3), "matrix", ("s",)), {"s": (2, 3)}),
        (ParamSpec("p", (2, 6), "matrix", ("s", "t")), {"s": (3, 2), "t": (2, 2)}),
        (ParamSpec("p", (4,), "vector", ("s", "t")), {"s": (2,), "t": (1,)}),
        (ParamSpec("p", (4,), "vector", ("s",)), {"s": (4, 1)}),
    ],
)
def test_sources_of_other_shapes_are_refused_by_name(
    param: ParamSpec, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        pack([param], lambda name: np.zeros(shapes[name], np.float32), 8)
    for name, shape in shapes.items():
        assert f"{name!r} {list(shape)}" in str(caught.value)
    assert "'p'" in str(caught.value)


def test_a_source_that_is_not_float32_is_refused() -> None:
    bits = np.zeros(4, np.uint16)
    with pytest.raises(CheckpointError, match="'s' is uint16, expected float32"):
        pack([ParamSpec("p", (4,), "plain", ("s",))], lambda _: bits, 8)
