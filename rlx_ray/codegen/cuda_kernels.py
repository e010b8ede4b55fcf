"""The kernels of kernels/cuda: their constants, arguments and launches, and units made of them.

A unit is CUDA text that includes each kernel's file once per instance, with the instance's
constants defined before. The contract that all files share is at the top of kernels/cuda/rlx.cuh;
this table is the same in a form that programs read, and the tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError, nearest
from rlx_ray.shape import PAGE

KERNELS = Path(__file__).parent.parent / "kernels" / "cuda"


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of an elementwise region.

    Attributes:
        t: element type.
        at: the element at which a row begins, an expression of `row`.
        step: 1 if it has a value for each column, 0 if one for the row.
    """

    t: DType
    at: str
    step: int


Value = int | float | str | DType | tuple[Operand, ...]
Constants = dict[str, Value]

TYPES = {DType.F32: "float", DType.F16: "__half", DType.BF16: "__nv_bfloat16"}
"""Element types of kernels as CUDA spells them."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: extents of the grid, threads of a block, bytes of shared memory.

    More than 48 KiB of shared memory must be asked for when the kernel is loaded.
    """

    grid: tuple[int, int, int]
    block: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """A kernel file.

    Attributes:
        arguments: what its pointers are, in order.
        needs: constants that an instance must give.
        defaults: constants that it may give.
        launch: adds the constants that follow from others, unless given, and says how to start it.
    """

    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    defaults: Mapping[str, Value]
    launch: Callable[[Constants], Launch]


@dataclass(frozen=True, slots=True)
class Instance:
    """A kernel of a unit.

    Attributes:
        template: the file's name without its ending.
        name: of the function.
        constants: all of them, by name.
        launch: how it is started.
    """

    template: str
    name: str
    constants: tuple[tuple[str, Value], ...]
    launch: Launch

    @property
    def arguments(self) -> tuple[str, ...]:
        """What its pointers are, in order."""
        operands = dict(self.constants).get("operands", ())
        assert isinstance(operands, tuple)
        own = tuple(f"x{k}" for k in range(len(operands)))
        names = TEMPLATES[self.template].arguments
        return (*own, *names[1:]) if names[0] == "x*" else names


def instance(template: str, name: str, **given: Value) -> Instance:
    """A kernel of a unit from its constants.

    Raises:
        CompileError: no such kernel, or constants that it does not have or lacks.
    """
    found = TEMPLATES.get(template)
    if found is None:
        raise CompileError(f"CUDA kernel {template!r} is not known.", nearest(template, TEMPLATES))
    constants: Constants = {**found.defaults, **given}
    missing = [key for key in found.needs if key not in constants]
    if missing:
        raise CompileError(f"CUDA kernel {template!r} needs the constants {', '.join(missing)}.")
    launch = found.launch(constants)
    known = {*found.needs, *found.defaults, *_DERIVED}
    for key in given:
        if key not in known:
            raise CompileError(
                f"CUDA kernel {template!r} has no constant {key!r}.", nearest(key, known)
            )
    return Instance(template, name, tuple(sorted(constants.items())), launch)


def unit(instances: Iterable[Instance]) -> str:
    """The CUDA text of some kernels, which have different names."""
    parts = []
    for one in instances:
        lines = [f"#define RLX_NAME {one.name}"]
        lines += [f"#define RLX_{_define(key, value)}" for key, value in one.constants]
        parts.append("\n".join([*lines, f'#include "{one.template}.cu"', ""]))
    return "\n".join(parts)


def sources() -> dict[str, str]:
    """Every file of kernels/cuda by its name."""
    files = sorted(f for f in KERNELS.iterdir() if f.suffix in (".cu", ".cuh"))
    return {f.name: f.read_text(encoding="utf-8") for f in files}


def _define(key: str, value: Value) -> str:
    match value:
        case DType():
            text = TYPES[value]
        case float():
            text = f"{value!r}f"
        case tuple():
            each = (f"X({k}, {TYPES[o.t]}, {o.at}, {o.step})" for k, o in enumerate(value))
            return f"{key.upper()}(X) {' '.join(each)}"
        case _:
            text = str(value)
    return f"{key.upper()} {text}"


def _up(count: int, size: int) -> int:
    return -(-count // size)


def _number(constants: Constants, name: str) -> int:
    value = constants[name]
    assert isinstance(value, int), (name, value)
    return value


def _given(constants: Constants, name: str, otherwise: int) -> int:
    """A constant that follows from others unless it is given."""
    constants.setdefault(name, otherwise)
    return _number(constants, name)


def _size(constants: Constants, name: str = "t") -> int:
    value = constants[name]
    assert isinstance(value, DType), (name, value)
    return value.size


def vector_width(n: int, size: int) -> int:
    """Elements of the widest access to rows of n elements, as in types.cuh."""
    width = 16 // size
    while n % width:
        width //= 2
    return width


# Launches ---------------------------------------------------------------------------------------

_MANY_ROWS = 1024
"""Rows that fill any device with one warp for each."""

_FEW_BLOCKS = 264
"""Blocks that do not fill a device twice."""


def _rows(c: Constants) -> Launch:
    """A warp for each row; where rows would leave the device idle, warps enough for one vector."""
    n, rows = _number(c, "n"), _number(c, "rows")
    vectors = n // vector_width(n, _size(c))
    warps = 1 if rows >= _MANY_ROWS and vectors <= 256 else min(_up(vectors, 32), 32)
    warps = _given(c, "warps", warps)
    block = _given(c, "block", 128 if warps == 1 else 32 * warps)
    return Launch((_up(rows, block // (32 * warps)), 1, 1), block)


def _flat(c: Constants, count: int) -> Launch:
    """A thread for each of `count` pieces."""
    block = _given(c, "block", 256 if count >= 256 * _MANY_ROWS else 128)
    return Launch((_up(count, block), 1, 1), block)


def _elementwise(c: Constants) -> Launch:
    n = _number(c, "n")
    v = _given(c, "v", vector_width(n, _size(c)))
    return _flat(c, _number(c, "rows") * n // v)


def _gated(c: Constants) -> Launch:
    n, size = _number(c, "n"), _size(c)
    v = min(vector_width(n, size), vector_width(_given(c, "pitch", n), size))
    return _flat(c, _number(c, "rows") * n // v)


def _embed(c: Constants) -> Launch:
    n = _number(c, "n")
    return _flat(c, _number(c, "rows") * n // vector_width(n, _size(c)))


def _rope(c: Constants) -> Launch:
    half = _number(c, "dim") // 2
    lanes = 1
    while lanes < min(32, half // vector_width(half, _size(c))):
        lanes *= 2
    units = _number(c, "heads") + 2 * _number(c, "kv_heads")
    return _flat(c, _number(c, "rows") * units * lanes)


def _pool(c: Constants) -> Launch:
    """With `l2` a block has all columns, else one warp's."""
    n, batch = _number(c, "n"), _number(c, "batch")
    c.setdefault("out", c["t"])
    wide = 32 * vector_width(n, _size(c))
    columns = _given(c, "columns", n if c["l2"] else min(n, wide))
    across = _up(columns, wide)
    rows = 1 if _number(c, "pool") >= 2 else _number(c, "seq")
    groups = _given(c, "groups", max(1, min(rows, 16 // across)))
    block = _given(c, "block", 32 * min(32, max(4, across * groups)))
    return Launch((_up(n, columns), batch, 1), block, 4 * (groups + 1) * columns)


def _l2(c: Constants) -> Launch:
    c.setdefault("out", c["t"])
    return _rows(c)


def _argmax(c: Constants) -> Launch:
    n = _number(c, "n")
    vectors = n // vector_width(n, _size(c))
    block = _given(c, "block", min(1024, 32 * _up(vectors, 32)))
    return Launch((_number(c, "rows"), 1, 1), block)


def _matvec(c: Constants) -> Launch:
    """Warps enough that a block has all its weights under way, or much of them."""
    n, k, gates = _number(c, "n"), _number(c, "k"), 1 + _number(c, "gated")
    c.setdefault("out", c["t"])
    long = _up(k, 64)
    plain = 1 if _number(c, "bits") else _size(c) // 2 or 1
    own = _given(c, "chunks", min(max(1, 4 // gates // plain), long))
    few = n // 16 <= _FEW_BLOCKS
    warps = _given(c, "warps", min(16, max(4, long if few else _up(long, own))))
    tiles = _up(_number(c, "rows"), 8)
    block = _given(c, "block", 32 * warps)
    normed = _number(c, "rows") * (long * 64 * _size(c) + 32) if c["norm"] else 0
    return Launch((_up(n, 16), 1, 1), block, 640 * warps * tiles * gates + normed)


def _dequantize(c: Constants) -> Launch:
    block = _given(c, "block", 128)
    chunks = _up(_number(c, "n"), 16) * _up(_number(c, "k"), 64)
    return Launch((_up(chunks, block // 32), 1, 1), block)


def _attention_decode(c: Constants) -> Launch:
    """Splits enough that every multiprocessor has blocks, but not with less than four pages."""
    batch, kv_heads, dim = (_number(c, name) for name in ("batch", "kv_heads", "dim"))
    rows = _number(c, "seq") * _number(c, "heads") // kv_heads
    across = kv_heads * _up(rows, 16)
    wanted = min(_up(_FEW_BLOCKS, batch * across), _up(_number(c, "table"), 4))
    splits, warps = _given(c, "splits", wanted), _given(c, "warps", 4)
    block = _given(c, "block", 32 * warps)
    return Launch((splits, across, batch), block, 4 * warps * min(16, rows) * (dim + 2))


def _attention_combine(c: Constants) -> Launch:
    block = _given(c, "block", 128)
    rows = math.prod(_number(c, name) for name in ("batch", "seq", "heads"))
    return Launch((_up(rows, block // 32), 1, 1), block)


def _prefill(c: Constants, keys: int) -> Launch:
    """Tall tiles where rows are many; no more warps than rows, nor keys at once than there are.

    Shared memory stays within the 99 KiB that the smallest of the architectures has.
    """
    batch, kv_heads, dim = (_number(c, name) for name in ("batch", "kv_heads", "dim"))
    size, rows = _size(c), _number(c, "seq") * _number(c, "heads") // kv_heads
    tall = size == 2 and dim <= 64 and _up(rows, 128) * kv_heads * batch >= _FEW_BLOCKS
    m = _given(c, "m", 2 if tall else 1)
    warps = (8 if 64 < dim <= 128 else 4) if size == 2 else 4 if dim <= 128 else 2
    warps = _given(c, "warps", min(warps, _up(rows, 16 * m)))
    most = (64 if dim <= 128 else 32) if size == 2 else 32 if dim <= 64 else 16
    keys = _given(c, "keys", min(most, _up(keys, 16) * 16))
    block = _given(c, "block", 32 * warps)
    row = (_up(dim, 16) * 16 + 16 // size) * size
    shared = 4 * keys * row + (16 * m * warps * row if size == 4 else 0)
    return Launch((_up(rows, 16 * m * warps), kv_heads, batch), block, shared)


def _sample(c: Constants) -> Launch:
    launch = _argmax(c)
    return Launch(launch.grid, launch.block, 4 * (2048 + 64))


def _strided(c: Constants) -> Launch:
    return _flat(c, math.prod(_number(c, f"n{i}") for i in range(4)))


def _reduce(c: Constants) -> Launch:
    inner = _number(c, "inner")
    return _flat(c, _number(c, "outer") * inner * (32 if inner == 1 else 1))


_NORM = {"seq": 0, "bias": 0, "residual": 0, "sum": 0}
_BLOCKS = {"halves": 0, "offsets": 0}
_DERIVED = (
    "warps",
    "block",
    "v",
    "pitch",
    "columns",
    "groups",
    "out",
    "chunks",
    "splits",
    "m",
    "keys",
)

TEMPLATES: dict[str, Template] = {
    "rms_norm": Template(
        ("x", "residual", "bias", "gain", "lengths", "sum", "y"),
        ("t", "rows", "n", "eps"),
        _NORM,
        _rows,
    ),
    "layer_norm": Template(
        ("x", "residual", "bias", "gain", "shift", "lengths", "sum", "y"),
        ("t", "rows", "n", "eps"),
        _NORM,
        _rows,
    ),
    "softmax": Template(("x", "y"), ("t", "rows", "n"), {}, _rows),
    "l2": Template(("x", "y"), ("t", "rows", "n"), {}, _l2),
    "elementwise": Template(
        ("x*", "lengths", "y"), ("t", "rows", "n", "operands", "expr"), {"seq": 0}, _elementwise
    ),
    "gated": Template(
        ("gate", "up", "lengths", "y"), ("t", "rows", "n"), {"seq": 0, "act": "vsilu"}, _gated
    ),
    "embed": Template(
        ("ids", "types", "word", "position", "kind", "base", "lengths", "y"),
        ("t", "rows", "n"),
        {"seq": 0, "vocab": 0, "positions": 0, "types": 0, "first": 0, "base": 0, "q8": 0},
        _embed,
    ),
    "rope": Template(
        (
            *("qkv", "bias", "turns", "q_gain", "k_gain"),
            *("lengths", "past", "pages", "cache", "q"),
        ),
        (
            *("t", "rows", "seq", "heads", "kv_heads", "dim"),
            *("table", "page_stride", "positions"),
        ),
        {"bias": 0, "gains": 0, "eps": 0.0},
        _rope,
    ),
    "pool": Template(("x", "lengths", "y"), ("t", "batch", "seq", "n", "pool"), {"l2": 0}, _pool),
    "argmax": Template(("x", "lengths", "y"), ("t", "rows", "n"), {}, _argmax),
    "sample": Template(
        (
            *("x", "temperature", "top_k", "top_p", "min_p"),
            *("seed", "step", "lengths", "y"),
        ),
        ("t", "rows", "n"),
        {},
        _sample,
    ),
    "matvec": Template(
        ("x", "gain", "w", "bias", "residual", "y"),
        ("t", "rows", "n", "k"),
        {
            **{"bits": 0, **_BLOCKS, "norm": 0, "eps": 0.0},
            **{"bias": 0, "residual": 0, "gated": 0, "act": "vsilu"},
        },
        _matvec,
    ),
    "dequantize": Template(("w", "y"), ("t", "n", "k", "bits"), _BLOCKS, _dequantize),
    "attention": Template(
        ("qkv", "bias", "lengths", "out"),
        ("t", "batch", "seq", "heads", "kv_heads", "dim"),
        {"bias": 0, "causal": 0, "window": 0},
        lambda c: _prefill(c, _number(c, "seq")),
    ),
    "attention_cached": Template(
        ("q", "cache", "lengths", "past", "pages", "out"),
        ("t", "batch", "seq", "heads", "kv_heads", "dim", "table", "page_stride"),
        {"window": 0},
        lambda c: _prefill(c, _number(c, "table") * PAGE),
    ),
    "attention_decode": Template(
        ("q", "cache", "lengths", "past", "pages", "partial", "stats", "out"),
        ("t", "batch", "seq", "heads", "kv_heads", "dim", "table", "page_stride"),
        {"window": 0},
        _attention_decode,
    ),
    "attention_combine": Template(
        ("partial", "stats", "lengths", "out"),
        ("t", "batch", "seq", "heads", "dim", "splits"),
        {},
        _attention_combine,
    ),
    "strided": Template(
        ("x", "y"),
        ("t", *(f"{kind}{i}" for kind in "ns" for i in range(4))),
        {"shift": 0},
        _strided,
    ),
    "reduce": Template(("x", "y"), ("t", "outer", "extent", "inner", "reduce"), {}, _reduce),
    "iota": Template(
        ("y",), ("rows", "period"), {"first": 0}, lambda c: _flat(c, _number(c, "rows"))
    ),
    "length_mask": Template(
        ("lengths", "y"),
        ("t", "batch", "tokens"),
        {},
        lambda c: _flat(c, _number(c, "batch") * _number(c, "tokens")),
    ),
}
"""The kernels by name. `x*` stands for x0, x1 and so on, one for each operand."""
