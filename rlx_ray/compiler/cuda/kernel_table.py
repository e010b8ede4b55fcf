"""The kernels of kernels/cuda as a table: their constants, their arguments, how they are started.

The contract that all files share is at the top of kernels/cuda/rlx.cuh; this table is the same in a
form that programs read, and the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rlx_ray import record
from rlx_ray.compiler.cuda import grids
from rlx_ray.compiler.cuda.constants import Constants, Launch, Value
from rlx_ray.compiler.ir.expr import Acc, Fn, In, Lit, text
from rlx_ray.digest import json_digest
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError, nearest


@dataclass(frozen=True, slots=True)
class KernelTemplate:
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
        CompileError: no such kernel, constants that it does not have or lacks, or more elements
            than it can count.
    """
    found = TEMPLATES.get(template)
    if found is None:
        raise CompileError(f"CUDA kernel {template!r} is not known.", nearest(template, TEMPLATES))
    constants: Constants = {**found.defaults, **given}
    missing = [key for key in found.needs if key not in constants]
    if missing:
        raise CompileError(f"CUDA kernel {template!r} needs the constants {', '.join(missing)}.")
    known: Constants = {**found.defaults, **{key: given[key] for key in found.needs}}
    found.launch(known)
    for key in given:
        if key not in known:
            raise CompileError(
                f"CUDA kernel {template!r} has no constant {key!r}.", nearest(key, known)
            )
    how = found.launch(constants)
    return Instance(template, name, tuple(sorted(constants.items())), how)


def named(template: str, **given: Value) -> Instance:
    """A kernel whose name says which it is: equal constants give equal names, others do not.

    Raises:
        CompileError: no such kernel, or constants that it does not have or lacks.
    """
    made = instance(template, "", **given)
    digest = json_digest([[key, _plain(value)] for key, value in made.constants])
    return replace(made, name=f"{template}_{digest[:8]}")


def _plain(value: Value) -> object:
    """A constant as a JSON value; values of different types are different."""
    match value:
        case DType():
            return {"dtype": value.text}
        case In() | Acc() | Lit() | Fn():
            return {"expr": text(value)}
        case tuple():
            return [record.write(operand) for operand in value]
        case _:
            return value


def _template(
    arguments: str,
    needs: str,
    defaults: Mapping[str, Value],
    how: Callable[[Constants], Launch],
) -> KernelTemplate:
    return KernelTemplate(tuple(arguments.split()), tuple(needs.split()), defaults, how)


_NORM = {"seq": 0, "bias": 0, "residual": 0, "sum": 0}
_BLOCKS = {"halves": 0, "offsets": 0}
_CACHED = "t batch seq heads kv_heads dim table page_stride"

TEMPLATES: dict[str, KernelTemplate] = {
    "rms_norm": _template("x residual bias gain lengths sum y", "t rows n eps", _NORM, grids.rows),
    "layer_norm": _template(
        "x residual bias gain shift lengths sum y", "t rows n eps", _NORM, grids.rows
    ),
    "l2": _template("x y", "t rows n", {}, grids.into),
    "softmax": _template("x y", "t rows n", {}, grids.into),
    "elementwise": _template(
        "x* lengths y", "t rows n operands expr", {"seq": 0}, grids.elementwise
    ),
    "gated": _template("gate up lengths y", "t rows n", {"seq": 0, "act": "vsilu"}, grids.gated),
    "embed": _template(
        "ids types places word position kind base lengths y",
        "t rows n",
        {
            **{"seq": 0, "ragged": 0, "vocab": 0, "positions": 0, "types": 0},
            **{"first": 0, "base": 0, "q8": 0},
        },
        grids.embed,
    ),
    "starts": _template("lengths starts rows places", "batch seq rows", {}, grids.starts),
    "pool": _template("x lengths y", "t batch seq n pool", {"ragged": 0, "l2": 0}, grids.pool),
    "rope": _template(
        "qkv bias cos_sin q_gain k_gain lengths past pages cache q",
        "t rows seq heads kv_heads dim table page_stride positions",
        {"bias": 0, "gains": 0, "eps": 0.0},
        grids.rope,
    ),
    "attention": _template(
        "qkv bias lengths out",
        "t batch seq heads kv_heads dim",
        {"ragged": 0, "bias": 0, "causal": 0, "window": 0},
        grids.attention,
    ),
    "attention_cached": _template(
        "q cache lengths past pages out", _CACHED, {"window": 0}, grids.attention_cached
    ),
    "attention_decode": _template(
        "q cache lengths past pages partial stats out",
        _CACHED,
        {"window": 0},
        grids.attention_decode,
    ),
    "attention_combine": _template(
        "partial stats lengths out",
        "t batch seq heads dim splits",
        {},
        grids.attention_combine,
    ),
    "attention_step": _template(
        "qkv bias cos_sin q_gain k_gain lengths past pages cache partial stats tickets out",
        "t batch heads kv_heads dim table page_stride positions",
        {"bias": 0, "gains": 0, "eps": 0.0, "window": 0},
        grids.attention_step,
    ),
    "matvec": _template(
        "x gain shift w bias residual kept y",
        "t rows n k",
        {
            **{"bits": 0, **_BLOCKS, "norm": 0, "eps": 0.0, "keep": 0},
            **{"bias": 0, "residual": 0, "gated": 0},
        },
        grids.matvec,
    ),
    "dequantize": _template("w y", "t n k bits", _BLOCKS, grids.dequantize),
    "sample": _template(
        "x temperature top_k top_p min_p seed step change_starts changes reported lengths y"
        " logprob likely likely_logprobs",
        "t rows n",
        {},
        grids.sample,
    ),
    "strided": _template("x y", "t n0 n1 n2 n3 s0 s1 s2 s3", {"shift": 0}, grids.strided),
    "reduce": _template("x y", "t outer extent inner reduce", {}, grids.reduce),
    "iota": _template("base y", "rows period", {"first": 0, "base": 0}, grids.iota),
    "length_mask": _template("lengths y", "t batch tokens", {}, grids.length_mask),
    "causal_mask": _template("past y", "t batch tokens keys", {"window": 0}, grids.causal_mask),
    "concat": _template("a b y", "t rows m n", {}, grids.concat),
    "cache_write": _template(
        "k v lengths past pages cache",
        "t rows seq kv_heads dim table page_stride",
        {},
        grids.cache_write,
    ),
    "cache_read": _template(
        "cache lengths past pages y",
        "t batch kv_heads dim table page_stride values",
        {},
        grids.cache_read,
    ),
}
"""The kernels by name. `x*` stands for x0, x1 and so on, one for each operand."""
