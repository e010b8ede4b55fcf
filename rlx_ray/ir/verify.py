"""One verifier per level. Each raises VerifyError that names the node; passes run it after each."""

from __future__ import annotations

from rlx_ray.errors import VerifyError
from rlx_ray.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.ir.hir import Hir
from rlx_ray.ir.launches import ALIGNMENT, Call, Launches
from rlx_ray.ir.lir import Lir, Plan, Space
from rlx_ray.ir.mir import OPS, SCALAR_FUNCTIONS, Mir, Node, Op, broadcast
from rlx_ray.launch_plan import GemmStep, Slot
from rlx_ray.shape import elements


def verify_hir(hir: Hir, *, bound: bool) -> Hir:
    """Names are unique and defined before use; with `bound`, every extent is a positive number.

    Raises:
        VerifyError: a rule is broken.
    """
    known = {t.name for t in (*hir.inputs, *hir.params)}
    if len(known) != len(hir.inputs) + len(hir.params):
        raise VerifyError("HIR: two tensors have one name.")
    for node in hir.nodes:
        missing = [i for i in node.inputs if i is not None and i not in known]
        if missing:
            raise VerifyError(f"HIR node {node.name!r} reads {missing[0]!r}, which is not known.")
        if node.name in known:
            raise VerifyError(f"HIR node {node.name!r} is defined twice.")
        known.add(node.name)
    for name in hir.outputs:
        if name not in known:
            raise VerifyError(f"HIR output {name!r} is not known.")
    if bound:
        shapes = {t.name: t.shape for t in (*hir.inputs, *hir.params)}
        shapes |= {n.name: n.shape for n in hir.nodes}
        for name, shape in shapes.items():
            if any(d.size < 1 for d in shape):
                raise VerifyError(f"HIR {name!r} has an empty shape.")
    return hir


def verify_mir(mir: Mir) -> Mir:
    """Order, arity, shapes by the op table, expressions within their operands.

    Raises:
        VerifyError: a rule is broken.
    """
    for index, node in enumerate(mir.nodes):
        where = f"MIR node %{index} ({node.op.value}, from {node.origin!r})"
        if any(not 0 <= i < index for i in node.inputs):
            raise VerifyError(f"{where} reads {node.inputs}, not all of which come before it.")
        low, high = OPS[node.op].arity
        if not low <= len(node.inputs) <= high:
            raise VerifyError(f"{where} has {len(node.inputs)} inputs, not {low} to {high}.")
        shapes = tuple(mir.nodes[i].shape for i in node.inputs)
        try:
            expected = OPS[node.op].infer(node, shapes)
        except (ValueError, IndexError) as error:
            raise VerifyError(f"{where}: {error}.") from error
        if expected is not None and expected != node.shape:
            raise VerifyError(f"{where} has shape {node.shape}, its inputs give {expected}.")
        _verify_attrs(mir, node, shapes, where)
    if any(not 0 <= i < len(mir.nodes) for i in mir.outputs) or not mir.outputs:
        raise VerifyError(f"MIR outputs {mir.outputs} are not nodes.")
    return mir


def _verify_attrs(mir: Mir, node: Node, shapes: tuple[tuple[int, ...], ...], where: str) -> None:
    match node.op:
        case Op.ELEMENTWISE:
            if node.expr is None:
                raise VerifyError(f"{where} has no expression.")
            _verify_expr(node.expr, len(shapes), False, where)
        case Op.MATMUL if node.expr is not None:
            _verify_expr(node.expr, len(shapes) - 2, True, where)
            for shape in shapes[2:]:
                if broadcast((shape, node.shape)) != node.shape:
                    raise VerifyError(f"{where}: operand {shape} does not fit {node.shape}.")
        case Op.RESHAPE if elements(shapes[0]) != elements(node.shape):
            raise VerifyError(f"{where} makes {node.shape} of {shapes[0]}.")
        case _:
            pass


def _verify_expr(expr: Expr, operands: int, acc: bool, where: str) -> None:
    match expr:
        case In(index) if not 0 <= index < operands:
            raise VerifyError(f"{where}: operand ${index} of {operands}.")
        case Acc() if not acc:
            raise VerifyError(f"{where}: only an epilogue has an accumulator.")
        case Fn(name, args):
            if name not in SCALAR_FUNCTIONS or SCALAR_FUNCTIONS[name].arity != len(args):
                raise VerifyError(f"{where}: no function {name!r} of {len(args)} arguments.")
            for arg in args:
                _verify_expr(arg, operands, acc, where)
        case In() | Acc() | Lit():
            pass


def verify_plan(plan: Plan, what: str) -> None:
    """No two buffers that live at one time overlap, and all lie inside the plan.

    Raises:
        VerifyError: a rule is broken.
    """
    for i, a in enumerate(plan.buffers):
        if a.offset < 0 or a.offset + a.size > plan.size or a.offset % 64:
            raise VerifyError(f"{what}: buffer {a.name!r} lies outside or is not aligned.")
        for b in plan.buffers[i + 1 :]:
            alive = a.first <= b.last and b.first <= a.last
            if alive and a.offset < b.offset + b.size and b.offset < a.offset + a.size:
                raise VerifyError(f"{what}: buffers {a.name!r} and {b.name!r} overlap.")


def verify_lir(lir: Lir) -> Lir:
    """Plans do not overlap, slots lie in their space, tiles move within their buffers.

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
            slots = (call.output, *call.inputs, *call.operands, call.scratch)
            for slot in slots:
                if slot is None:
                    continue
                end = slot.offset
                if slot.space is not Space.PARAM:
                    end += slot.stride * (region.tiles - 1) + slot.shift
                if slot.offset < 0 or end >= limits[slot.space]:
                    raise VerifyError(f"LIR: {call.origin!r} leaves its {slot.space.value}.")
            if lir.packing is None and any(s and (s.row or s.sequence) for s in slots):
                raise VerifyError(f"LIR: {call.origin!r} moves by rows that are not packed.")
            if call.output.space is Space.PARAM:
                raise VerifyError(f"LIR: {call.origin!r} writes a parameter.")
    return lir


def verify_launches(program: Launches) -> Launches:
    """Buffers do not overlap; every slot lies in a buffer that lives, a parameter or the cache.

    Raises:
        VerifyError: a rule is broken.
    """
    verify_plan(program.arena, "arena")
    if any(b.offset % ALIGNMENT for b in program.arena.buffers):
        raise VerifyError("launches: a buffer of the arena is not aligned.")
    for at, step in enumerate(program.steps):
        where = f"launch {at} ({step.origin})"
        match step:
            case Call(kernel, arguments, _):
                if tuple(name for name, _ in arguments) != kernel.arguments:
                    raise VerifyError(f"{where}: arguments are not {kernel.arguments}.")
                for _, slot in arguments:
                    _verify_slot(program, at, slot, 1, where)
            case GemmStep():
                for slot, nbytes in _extents(step):
                    _verify_slot(program, at, slot, nbytes, where)
    for first, second, nbytes in program.adjacent:
        if second != first + 1 or nbytes % ALIGNMENT:
            raise VerifyError(f"launches: parameters {first} and {second} cannot be neighbours.")
    return program


def _verify_slot(program: Launches, at: int, slot: Slot, nbytes: int, where: str) -> None:
    """Some bytes from a slot on are there at a step."""
    match slot.space:
        case "arena":
            end = slot.offset + nbytes
            fits = any(
                b.first <= at <= b.last and b.offset <= slot.offset and end <= b.offset + b.size
                for b in program.arena.buffers
            )
        case "param":
            fits = slot.index < len(program.params)
        case "cache":
            fits = slot.offset < program.page
        case _:
            fits = nbytes == 1  # a product reads all its operands
    if not fits:
        raise VerifyError(f"{where}: {slot} is not there.")


def _extents(step: GemmStep) -> tuple[tuple[Slot, int], ...]:
    """The slots of a product, and the bytes from each of them on that it touches."""

    def nbytes(rows: int, columns: int, pitch: int, stride: int, size: int) -> int:
        return ((step.batch - 1) * stride + (rows - 1) * pitch + columns) * size

    right = (step.n, step.k) if step.transposed else (step.k, step.n)
    return (
        (step.a, nbytes(step.m, step.k, step.lda, step.stride_a, step.dtype.size)),
        (step.b, nbytes(*right, step.ldb, step.stride_b, step.dtype.size)),
        (step.c, nbytes(step.m, step.n, step.ldc, step.stride_c, step.out.size)),
    )
