"""Which values of a program of 16 bits are float32.

Native kernels round what they write and nothing between. Common lowerings say the same in
primitives, so values on the way from one primitive to the next are float32, and are rounded where a
product, a native kernel or the cache reads them. Masks, scores and sums are never in 16 bits, where
a masked score would be infinite.
"""

from __future__ import annotations

from rlx_ray.compiler.ir.mir import Mir, Node, Op

_EITHER = frozenset(
    {
        *(Op.ELEMENTWISE, Op.REDUCE, Op.SOFTMAX, Op.DOT, Op.LENGTH_MASK, Op.CAUSAL_MASK),
        *(Op.STRIDED, Op.RESHAPE, Op.CONCAT, Op.CACHE_WRITE),
    }
)
"""What can write both types."""


def float32_values(mir: Mir) -> frozenset[int]:
    """The nodes of a program with common lowerings that are float32 whatever its type is."""
    wide: set[int] = set()
    users = mir.users()
    for index in range(len(mir.nodes) - 1, -1, -1):
        kept = (_keeps(mir.nodes[user], index, user in wide) for user in users[index])
        if mir.nodes[index].op in _EITHER and any(kept):
            wide.add(index)
    return frozenset(wide)


def _keeps(reader: Node, index: int, wide: bool) -> bool:
    """Whether a node reads an input of float32 as it is; `wide`: its own value is float32."""
    match reader.op:
        case Op.ELEMENTWISE | Op.REDUCE | Op.SOFTMAX:
            return True
        case Op.STRIDED | Op.RESHAPE | Op.CONCAT:
            return wide
        case Op.CACHE_WRITE:
            return wide and index == reader.inputs[0]
        case _:
            return False
