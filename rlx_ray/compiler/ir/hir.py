"""HIR: a model as blocks of logical operations over symbolic dims, built once per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from rlx_ray.dtype import DType
from rlx_ray.shape import BATCH, PAGE, ROWS, SEQ, Dim, Symbol

Attr = int | float | str | None


class HirOp(Enum):
    """The operations that graph builders speak in."""

    EMBED = "embed"  # (table, ids | -, base | -): rows of a table, added to base
    LINEAR = "linear"  # (x, weight, bias | -): x W + b
    ATTENTION = "attention"  # (qkv, lengths): multi-head attention, keys masked by length
    CACHED_ATTENTION = "cached_attention"  # (qkv, lengths, past, pages, cos_sin, gains | -)
    LAYER_NORM = "layer_norm"  # (x, gain, bias)
    RMS_NORM = "rms_norm"  # (x, gain)
    ACTIVATION = "activation"  # (x)
    ADD = "add"  # (a, b) of one shape
    MUL = "mul"  # (a, b) of one shape
    POOL = "pool"  # (x, lengths): token rows to one row a sequence
    NORMALIZE = "normalize"  # (x): rows to unit L2 length


@dataclass(frozen=True, slots=True)
class HirTensor:
    """An input or a parameter: `layout` is `plain` or `matrix` (packed by the target's panel)."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    layout: str = "plain"


@dataclass(frozen=True, slots=True)
class Cached:
    """What attention over a paged cache reads beside its rows: names of tensors.

    Attributes:
        lengths: int32 [batch], new tokens of each sequence.
        past: int32 [batch], tokens of each that the cache holds.
        pages: int32 [batch, pages], each sequence's page table.
        cos_sin: float32 [positions, dim], cosines and then sines of the rotary angles.
    """

    lengths: str
    past: str
    pages: str
    cos_sin: str


@dataclass(frozen=True, slots=True)
class HirNode:
    """One operation; its result has the node's name. Inputs are names, or None where optional."""

    name: str
    op: HirOp
    inputs: tuple[str | None, ...]
    shape: tuple[Dim, ...]
    attrs: tuple[tuple[str, Attr], ...]
    block: str

    def attr(self, name: str) -> Attr:
        """The value of an attribute.

        Raises:
            KeyError: the node has none of that name.
        """
        return dict(self.attrs)[name]


@dataclass(frozen=True, slots=True)
class Hir:
    """A whole model: tensors, nodes in an order in which every input is known, output names."""

    inputs: tuple[HirTensor, ...]
    params: tuple[HirTensor, ...]
    nodes: tuple[HirNode, ...]
    outputs: tuple[str, ...]

    def specialise(self, binding: Mapping[int, int]) -> Hir:
        """The same model with every symbol bound: each Dim is a number from here on.

        Where ROWS is bound to fewer rows than batch times seq the variant is ragged: inputs of
        shape [batch, seq] become [rows], one sequence after the other.
        """
        full = binding.get(Symbol.BATCH, 1) * binding.get(Symbol.SEQ, 1)
        ragged = binding.get(Symbol.ROWS, full) < full
        bound = binding.get(Symbol.PAST_SEQ, 0) + binding.get(Symbol.SEQ, 1)
        binding = {Symbol.ROWS: full, Symbol.PAGES: -(-bound // PAGE), **binding}
        tokens = (BATCH, SEQ)

        def bind(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
            return tuple(d.bind(binding) for d in shape)

        return Hir(
            tuple(
                replace(t, shape=bind((ROWS,) if ragged and t.shape == tokens else t.shape))
                for t in self.inputs
            ),
            tuple(replace(t, shape=bind(t.shape)) for t in self.params),
            tuple(
                replace(
                    n,
                    shape=bind(n.shape),
                    attrs=tuple((k, binding[Symbol.SEQ] if v == "seq" else v) for k, v in n.attrs),
                )
                for n in self.nodes
            ),
            self.outputs,
        )


class HirBuilder:
    """What a family's graph builder writes into; every method returns the result's name."""

    def __init__(self) -> None:
        self._inputs: list[HirTensor] = []
        self._params: dict[str, HirTensor] = {}
        self._nodes: list[HirNode] = []
        self._shapes: dict[str, tuple[Dim, ...]] = {}
        self._block = ""

    def block(self, name: str) -> None:
        """Name the block that the nodes from here on belong to."""
        self._block = name

    def input(self, name: str, dtype: DType, shape: tuple[Dim, ...]) -> str:
        """Declare an input tensor."""
        self._inputs.append(HirTensor(name, dtype, shape))
        self._shapes[name] = shape
        return name

    def param(self, name: str, shape: tuple[int, ...], layout: str = "plain") -> str:
        """Declare a float32 parameter by its name in the packed weights."""
        self._params[name] = HirTensor(name, DType.F32, tuple(Dim(n) for n in shape), layout)
        self._shapes[name] = self._params[name].shape
        return name

    def embed(
        self,
        name: str,
        table: str,
        ids: str | None,
        base: str | None,
        shape: tuple[Dim, ...],
        first: int = 0,
    ) -> str:
        """Rows of `table` [extent, n] by `ids` plus base.

        Without ids: by the position in the sequence, counted from `first`.
        """
        return self._add(name, HirOp.EMBED, (table, ids, base), shape, period="seq", first=first)

    def linear(self, name: str, x: str, weight: str, bias: str | None) -> str:
        """X [rows, k] times weight (k, n), plus bias [n] if there is one."""
        shape = (self._shapes[x][0], self._shapes[weight][1])
        return self._add(name, HirOp.LINEAR, (x, weight, bias), shape)

    def attention(self, name: str, qkv: str, lengths: str, heads: int, dim: int) -> str:
        """Qkv [rows, 3 * heads * dim] to [rows, heads * dim]; scores scaled by dim ** -0.5."""
        shape = (self._shapes[qkv][0], Dim(heads * dim))
        return self._add(
            name, HirOp.ATTENTION, (qkv, lengths), shape, heads=heads, dim=dim, keys="seq"
        )

    def cached_attention(
        self,
        name: str,
        qkv: str,
        cached: Cached,
        gains: tuple[str, str] | None,
        *,
        heads: int,
        kv_heads: int,
        dim: int,
        layers: int,
        layer: int,
        window: int,
        eps: float,
    ) -> str:
        """Qkv [rows, (heads + 2 kv_heads) * dim] to [rows, heads * dim], causal, over a cache.

        Queries and keys are turned by their positions; keys and values go to the cache first.

        Args:
            name: of the result.
            qkv: queries, keys, values of the new tokens.
            cached: the cache's tables.
            gains: of an RMS norm of each head of queries and of keys, if the model has one.
            heads: of queries.
            kv_heads: of keys and values; each serves heads / kv_heads of the queries'.
            dim: of a head.
            layers: of the model, all of which a page has room for.
            layer: which of them this is.
            window: most tokens that a query sees, itself included; 0 for all.
            eps: of that norm.
        """
        shape = (self._shapes[qkv][0], Dim(heads * dim))
        inputs = (qkv, cached.lengths, cached.past, cached.pages, cached.cos_sin, *(gains or ()))
        return self._add(
            name,
            HirOp.CACHED_ATTENTION,
            inputs,
            shape,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            layers=layers,
            layer=layer,
            window=window,
            eps=eps,
            tokens="seq",
        )

    def rms_norm(self, name: str, x: str, gain: str, eps: float) -> str:
        """RMS normalisation of each row of x."""
        return self._add(name, HirOp.RMS_NORM, (x, gain), self._shapes[x], eps=eps)

    def layer_norm(self, name: str, x: str, gain: str, bias: str, eps: float) -> str:
        """Layer normalisation of each row of x."""
        return self._add(name, HirOp.LAYER_NORM, (x, gain, bias), self._shapes[x], eps=eps)

    def activation(self, name: str, x: str, function: str) -> str:
        """An elementwise function: `gelu`, `gelu_tanh`, `relu` or `silu`."""
        return self._add(name, HirOp.ACTIVATION, (x,), self._shapes[x], function=function)

    def add(self, name: str, a: str, b: str) -> str:
        """The sum of two tensors of one shape."""
        return self._add(name, HirOp.ADD, (a, b), self._shapes[a])

    def mul(self, name: str, a: str, b: str) -> str:
        """The product of two tensors of one shape, element by element."""
        return self._add(name, HirOp.MUL, (a, b), self._shapes[a])

    def pool(self, name: str, x: str, lengths: str, kind: str) -> str:
        """Token rows [batch * seq, n] to [batch, n]: `mean`, `max`, `cls` or `last`."""
        shape = (*self._shapes[lengths], self._shapes[x][1])
        return self._add(name, HirOp.POOL, (x, lengths), shape, kind=kind, tokens="seq")

    def normalize(self, name: str, x: str) -> str:
        """Rows divided by max(their L2 length, 1e-12)."""
        return self._add(name, HirOp.NORMALIZE, (x,), self._shapes[x])

    def finish(self, *outputs: str) -> Hir:
        """The model."""
        return Hir(tuple(self._inputs), tuple(self._params.values()), tuple(self._nodes), outputs)

    def _add(
        self,
        name: str,
        op: HirOp,
        inputs: tuple[str | None, ...],
        shape: tuple[Dim, ...],
        **attrs: Attr,
    ) -> str:
        self._shapes[name] = shape
        node = HirNode(name, op, inputs, shape, tuple(sorted(attrs.items())), self._block)
        self._nodes.append(node)
        return name
