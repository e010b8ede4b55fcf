"""Each pass keeps a program's meaning; the verifiers find what is broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.compiler.cpu.printer import lir_text
from rlx_ray.compiler.cpu.verify import verify_lir
from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.compiler.ir.mir import LOGICAL, Mir, Op, broadcast
from rlx_ray.compiler.ir.printer import hir_text, mir_text
from rlx_ray.compiler.ir.verify import verify_hir, verify_mir
from rlx_ray.compiler.passes.dispatch import dispatch
from rlx_ray.compiler.passes.fuse import fuse
from rlx_ray.compiler.passes.lower import MirBuilder, lower
from rlx_ray.compiler.passes.simplify import drop_dead, fold_constants, fold_expr, share_equal
from rlx_ray.component import CompileProfile, OpKind, Preset
from rlx_ray.errors import VerifyError
from rlx_ray.target import target
from tests.support.mir_oracle import evaluate, expression
from tests.support.programs import (
    COMMON,
    FORCED,
    NATIVE,
    bert,
    llama,
    one_common,
    random_inputs,
    random_params,
    stages,
)

V3 = target("cpu-x86_64-v3")
BINARY = ("add", "sub", "mul", "max")
UNARY = ("exp", "erf", "tanh", "gelu", "relu")


@st.composite
def programs(draw: st.DrawFn) -> tuple[Mir, dict[str, np.ndarray]]:
    """A random DAG of elementwise ops, matmuls and reductions over [4, 3] and its broadcasts."""
    b = MirBuilder()
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    tensors = {}
    nodes = []
    for i, shape in enumerate([(4, 3), (1, 3), (4, 1), (3, 3)]):
        op = Op.INPUT if i == 0 else Op.PARAM
        nodes.append(b.add(op, (), shape, name=f"t{i}"))
        tensors[f"t{i}"] = rng.normal(0, 0.5, shape)
    for _ in range(draw(st.integers(1, 10))):
        a = draw(st.sampled_from(nodes))
        kind = draw(st.sampled_from(("binary", "unary", "literal", "matmul", "reduce")))
        shape = b.shape(a)
        if kind == "binary":
            c = draw(st.sampled_from(nodes))
            try:
                out = broadcast((shape, b.shape(c)))
            except ValueError:
                continue
            name = draw(st.sampled_from(BINARY))
            nodes.append(b.elementwise(Fn(name, (In(0), In(1))), (a, c), out))
        elif kind == "unary":
            name = draw(st.sampled_from(UNARY))
            squashed = Fn("tanh", (In(0),))
            nodes.append(b.elementwise(Fn(name, (squashed,)), (a,), shape))
        elif kind == "literal":
            value = draw(st.sampled_from((0.0, 1.0, -2.5)))
            name = draw(st.sampled_from(BINARY))
            nodes.append(b.elementwise(Fn(name, (In(0), Lit(value))), (a,), shape))
        elif kind == "matmul" and shape == (4, 3):
            nodes.append(b.add(Op.MATMUL, (a, 3), (4, 3)))
        elif kind == "reduce":
            nodes.append(b.add(Op.REDUCE, (a,), (1, shape[1]), axis=0, kind="sum"))
    outputs = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
    return verify_mir(Mir(tuple(b.nodes), tuple(outputs))), tensors


@pytest.mark.parametrize("one", [fold_constants, share_equal, drop_dead, fuse])
@given(program=programs())
@settings(max_examples=120, deadline=None)
def test_a_pass_keeps_the_meaning(one, program: tuple[Mir, dict[str, np.ndarray]]) -> None:
    mir, tensors = program
    made = verify_mir(one(mir))
    for before, after in zip(evaluate(mir, tensors), evaluate(made, tensors), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)


@given(program=programs())
@settings(max_examples=60, deadline=None)
def test_passes_after_one_another_keep_the_meaning(program) -> None:
    mir, tensors = program
    made = mir
    for one in (fold_constants, share_equal, drop_dead, fuse, drop_dead):
        made = verify_mir(one(made))
    for before, after in zip(evaluate(mir, tensors), evaluate(made, tensors), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)
    assert len(made.nodes) <= len(mir.nodes)


ENCODER = ("MatMul", "LayerNorm", "Attention", "Softmax", "Activation", "Gather", "Pool")
DECODER = ("MatMul", "RmsNorm", "Rope", "Attention", "Activation", "Gather", "Pool")


def test_every_logical_kernel_is_in_one_of_the_models_below() -> None:
    assert {k.rust for k in LOGICAL.values()} == {*ENCODER, *DECODER}


@pytest.mark.parametrize("kind", ENCODER)
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_the_common_lowering_means_the_same_as_the_kernel(kind: str, pooling: str) -> None:
    hir = bert(pooling=pooling).specialise({0: 3, 1: 5})
    lowered = lower(hir, direct=True)
    supported = tuple(LOGICAL.values())
    native = verify_mir(dispatch(lowered, NATIVE, supported))
    common = verify_mir(dispatch(lowered, one_common(kind), supported))
    tensors = random_params(stages(bert(pooling=pooling), 3, 5, target=V3).program) | random_inputs(
        3, 5, lengths=[5, 1, 3]
    )
    (want,), (got,) = evaluate(native, tensors), evaluate(common, tensors)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    assert not any(LOGICAL.get(n.op) is OpKind.parse(kind) for n in common.nodes)


@pytest.mark.parametrize("kind", DECODER)
@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"window": 6, "qkv_bias": True}], ids=str)
def test_a_decoders_common_lowering_means_the_same_as_the_kernel(kind: str, changes: dict) -> None:
    hir = llama(**changes)
    lowered = lower(hir.specialise({0: 3, 1: 5, 3: 40}), direct=True)
    rng = np.random.default_rng(0)
    tensors = random_params(stages(hir, 3, 5, past=40, target=V3).program) | {
        "input_ids": rng.integers(0, 50, (3, 5)),
        "lengths": np.array([5, 0, 3]),
        "past": np.array([38, 0, 0]),
        "pages": np.array([[4, 2], [-1, -1], [0, -1]]),
    }
    cache = rng.normal(0, 1, (5, 2, 2, 2, 32, 10))
    found = []
    for config in (NATIVE, one_common(kind)):
        mir = verify_mir(dispatch(lowered, config, tuple(LOGICAL.values())))
        own = cache.copy()
        found.append((evaluate(mir, tensors | {"cache": own})[0], own))
    (want, wanted), (got, held) = found
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(held, wanted, rtol=1e-9, atol=1e-9)
    assert (held != cache).any()
    assert not any(LOGICAL.get(n.op) is OpKind.parse(kind) for n in mir.nodes)


def test_the_cache_is_read_after_it_is_written() -> None:
    nodes = stages(llama(), 2, 4, COMMON, past=30, target=V3).mir.nodes
    reads = [n for n in nodes if n.op is Op.CACHE_READ]
    writers = [nodes[n.inputs[0]] for n in reads]
    assert len(reads) == 2 * 2
    assert {w.op for w in writers} == {Op.CACHE_WRITE}
    assert [w.number("layer") for w in writers] == [n.number("layer") for n in reads]


def test_a_ragged_program_has_no_common_cache() -> None:
    with pytest.raises(VerifyError, match="cache_write"):
        stages(llama(), 4, 8, one_common("Rope"), rows=16, past=8, target=V3)


def test_force_common_leaves_no_logical_kernel() -> None:
    for hir, past in ((bert(), None), (llama(qk_norm=True), 30)):
        mir = stages(hir, 2, 4, COMMON, past=past, target=V3).mir
        assert not {n.op for n in mir.nodes} & set(LOGICAL)


def test_force_native_leaves_no_common_lowering() -> None:
    mir = stages(bert(normalize=False), 2, 4, FORCED, target=V3).mir
    assert {n.op for n in mir.nodes} <= {*LOGICAL, Op.INPUT, Op.PARAM, Op.ELEMENTWISE}


def test_bias_activation_and_residual_become_epilogues() -> None:
    mir = stages(bert(normalize=False), 2, 4, target=V3).mir
    assert not [n for n in mir.nodes if n.op is Op.ELEMENTWISE]
    epilogues = [n.expr for n in mir.nodes if n.op is Op.MATMUL]
    assert Fn("gelu", (Fn("add", (Acc(), In(0))),)) in epilogues


def test_the_fusable_and_the_direct_policy_reach_one_program() -> None:
    fusable = CompileProfile.preset(Preset.ENCODER).override({"fusion": {"policy": "fusable"}})
    a = stages(bert(), 2, 4, target=V3).mir
    b = stages(bert(), 2, 4, profile=fusable, target=V3).mir
    assert [(n.op, n.shape) for n in a.nodes] == [(n.op, n.shape) for n in b.nodes]


def test_skipping_fusion_keeps_operations_apart() -> None:
    skip = CompileProfile.preset(Preset.ENCODER).override({"fusion": {"skip": True}})
    mir = stages(bert(), 2, 4, profile=skip, target=V3).mir
    assert [n for n in mir.nodes if n.op is Op.ELEMENTWISE and "residual" in n.origin]


LEAVES = st.one_of(
    st.integers(0, 1).map(In), st.sampled_from((0.0, 1.0, 2.0, -3.5)).map(lambda v: Lit(v))
)
EXPRS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(BINARY), inner, inner).map(lambda t: Fn(t[0], t[1:])),
        st.tuples(st.sampled_from(("tanh", "erf", "relu")), inner).map(lambda t: Fn(t[0], t[1:])),
    ),
    max_leaves=8,
)


@given(expr=EXPRS, a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_folding_an_expression_keeps_its_value(expr: Expr, a: float, b: float) -> None:
    operands = [np.float64(a), np.float64(b)]
    want, got = expression(expr, operands, None), expression(fold_expr(expr), operands, None)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_verifiers_name_what_is_broken() -> None:
    made = stages(bert(), 2, 4, target=V3)
    mir = made.mir
    bad = replace(mir.nodes[-1], inputs=(len(mir.nodes),))
    with pytest.raises(VerifyError, match="not all of which come before"):
        verify_mir(replace(mir, nodes=(*mir.nodes[:-1], bad)))
    index = next(i for i, n in enumerate(mir.nodes) if n.op is Op.MATMUL)
    wrong = replace(mir.nodes[index], shape=(1, 1))
    with pytest.raises(VerifyError, match="its inputs give"):
        verify_mir(replace(mir, nodes=(*mir.nodes[:index], wrong, *mir.nodes[index + 1 :])))
    twice = replace(made.hir, nodes=(*made.hir.nodes, made.hir.nodes[0]))
    with pytest.raises(VerifyError, match="defined twice"):
        verify_hir(twice, bound=True)
    plan = made.program.scratch
    squeezed = tuple(replace(b, offset=0) for b in plan.buffers)
    with pytest.raises(VerifyError, match="overlap"):
        verify_lir(replace(made.program, scratch=replace(plan, buffers=squeezed)))


def test_texts_are_stable_and_tell_the_symbols() -> None:
    first, again = stages(bert(), 2, 4, target=V3), stages(bert(), 2, 4, target=V3)
    assert hir_text(bert()) == hir_text(bert())
    assert "word = embed(embed.word, input_ids, -)" in hir_text(bert())
    assert "-> [rows, 24]" in hir_text(bert())
    assert mir_text(first.mir) == mir_text(again.mir)
    assert lir_text(first.program) == lir_text(again.program)
    assert "liveness bound" in lir_text(first.program)
