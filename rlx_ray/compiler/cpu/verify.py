"""The verifier of LIR."""

from __future__ import annotations

from rlx_ray.compiler.cpu.lir import Lir, Space
from rlx_ray.compiler.ir.verify import verify_plan
from rlx_ray.errors import VerifyError


def verify_lir(lir: Lir) -> Lir:
    """Plans do not overlap, arguments lie in their space, tiles move within their buffers.

    Raises:
        VerifyError: a rule is broken.
    """
    verify_plan(lir.arena, "arena")
    verify_plan(lir.scratch, "scratch")
    limits = {
        Space.PARAM: len(lir.params),
        Space.ARENA: lir.arena.size,
        Space.SCRATCH: lir.scratch.size,
    }
    for region in lir.regions:
        if region.tiles < 1 or not region.calls:
            raise VerifyError(f"LIR: an empty region ({region.axis}).")
        for call in region.all_calls:
            arguments = (call.output, *call.inputs, *call.operands, call.scratch)
            for argument in arguments:
                if argument is None:
                    continue
                end = argument.offset
                if argument.space is not Space.PARAM:
                    end += argument.stride * (region.tiles - 1) + argument.shift
                if argument.offset < 0 or end >= limits[argument.space]:
                    raise VerifyError(f"LIR: {call.origin!r} leaves its {argument.space.value}.")
            if lir.packing is None and any(s and (s.row or s.sequence) for s in arguments):
                raise VerifyError(f"LIR: {call.origin!r} moves by rows that are not packed.")
            if call.output.space is Space.PARAM:
                raise VerifyError(f"LIR: {call.origin!r} writes a parameter.")
    return lir
