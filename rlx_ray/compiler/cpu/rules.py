"""Every operation's CPU rule, one row each. A new operation is a row here and in ir/mir.py."""

from __future__ import annotations

from rlx_ray.compiler.cpu import rules_attention as attention
from rlx_ray.compiler.cpu import rules_matmul as matmul
from rlx_ray.compiler.cpu import rules_primitives as primitives
from rlx_ray.compiler.cpu import rules_rows as rows
from rlx_ray.compiler.cpu.op_rule import Lowered, OpRule, Partition, Site
from rlx_ray.compiler.ir.mir import Op
from rlx_ray.errors import VerifyError

RULES: dict[Op, OpRule] = {
    Op.MATMUL: matmul.MATMUL,
    Op.QUANTIZE: matmul.QUANTIZE,
    Op.LAYER_NORM: rows.LAYER_NORM,
    Op.RMS_NORM: rows.RMS_NORM,
    Op.SOFTMAX: rows.SOFTMAX,
    Op.GATHER: rows.GATHER,
    Op.POOL: rows.POOL,
    Op.ATTENTION: attention.ATTENTION,
    Op.ROPE_CACHE: attention.ROPE_CACHE,
    Op.CACHED_ATTENTION: attention.CACHED_ATTENTION,
    Op.CACHE_WRITE: attention.CACHE_WRITE,
    Op.CACHE_READ: attention.CACHE_READ,
    Op.ELEMENTWISE: primitives.ELEMENTWISE,
    Op.DOT: primitives.DOT,
    Op.TAKE: primitives.TAKE,
    Op.IOTA: primitives.IOTA,
    Op.LENGTH_MASK: primitives.LENGTH_MASK,
    Op.CAUSAL_MASK: primitives.CAUSAL_MASK,
    Op.CONCAT: primitives.CONCAT,
    Op.STRIDED: primitives.STRIDED,
    Op.REDUCE: primitives.REDUCE,
}

_NOT_COMPUTED = Partition()


def rule(op: Op) -> OpRule:
    """The rule of an operation that is computed.

    Raises:
        VerifyError: it has none.
    """
    found = RULES.get(op)
    if found is None:
        raise VerifyError(f"MIR op {op.value!r} has no CPU rule.")
    return found


def partition(op: Op) -> Partition:
    """How an operation may be cut; of inputs, parameters and reshapes, that nothing is known."""
    return RULES[op].partition if op in RULES else _NOT_COMPUTED


def uses_cache(op: Op) -> bool:
    """Whether an operation reads or writes the key-value cache."""
    return op in RULES and RULES[op].cache


def lower_padded(site: Site) -> Lowered:
    """The kernel instance that computes one tile of padded sequences of a node."""
    return rule(site.node.op).padded(site)


def lower_packed(site: Site) -> Lowered:
    """The kernel instance that computes one tile of packed rows of a node.

    Raises:
        VerifyError: the operation has no form for packed rows.
    """
    form = rule(site.node.op).packed
    if form is None:
        raise VerifyError(f"MIR op {site.node.op.value!r} has no form for packed rows.")
    return form(site)
