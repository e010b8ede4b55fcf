"""The kernels of kernels/cuda: their constants, arguments and launches, and units made of them.

A unit is CUDA text that includes each kernel's file once per instance, with the instance's
constants defined before. The contract that all files share is at the top of kernels/cuda/rlx.cuh;
this table is the same in a form that programs read, and the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError, nearest

KERNELS = Path(__file__).parent.parent / "kernels" / "cuda"

Value = int | float | str | DType
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
        return TEMPLATES[self.template].arguments


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
        lines += [f"#define RLX_{key.upper()} {_text(value)}" for key, value in one.constants]
        parts.append("\n".join([*lines, f'#include "{one.template}.cu"', ""]))
    return "\n".join(parts)


def sources() -> dict[str, str]:
    """Every file of kernels/cuda by its name."""
    files = sorted(f for f in KERNELS.iterdir() if f.suffix in (".cu", ".cuh"))
    return {f.name: f.read_text(encoding="utf-8") for f in files}


def _text(value: Value) -> str:
    match value:
        case DType():
            return TYPES[value]
        case float():
            return f"{value!r}f"
        case _:
            return str(value)


def _up(count: int, size: int) -> int:
    return -(-count // size)


def _number(constants: Constants, name: str) -> int:
    value = constants[name]
    assert isinstance(value, int), (name, value)
    return value


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


# Rows -------------------------------------------------------------------------------------------


def _norm(c: Constants) -> Launch:
    """A warp for each row; where rows would leave the device idle, warps enough for one vector."""
    n, rows = _number(c, "n"), _number(c, "rows")
    vectors = n // vector_width(n, _size(c))
    warps = 1 if rows >= _MANY_ROWS and vectors <= 256 else min(_up(vectors, 32), 32)
    c.setdefault("warps", warps)
    warps = _number(c, "warps")
    c.setdefault("block", 128 if warps == 1 else 32 * warps)
    block = _number(c, "block")
    return Launch((_up(rows, block // (32 * warps)), 1, 1), block)


_MANY_ROWS = 1024
"""Rows that fill any device with one warp for each."""

_NORM = {"seq": 0, "bias": 0, "residual": 0, "sum": 0}
_DERIVED = ("warps", "block")

TEMPLATES: dict[str, Template] = {
    "rms_norm": Template(
        ("x", "residual", "bias", "gain", "lengths", "sum", "y"),
        ("t", "rows", "n", "eps"),
        _NORM,
        _norm,
    ),
    "layer_norm": Template(
        ("x", "residual", "bias", "gain", "shift", "lengths", "sum", "y"),
        ("t", "rows", "n", "eps"),
        _NORM,
        _norm,
    ),
}
"""The kernels by name."""
