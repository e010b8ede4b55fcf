"""The CPU rules: every operation has one, and a template takes its fields and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from rlx_ray.compiler.cpu.c import emit
from rlx_ray.compiler.cpu.lir import Kernel
from rlx_ray.compiler.cpu.op_rule import Site
from rlx_ray.compiler.cpu.precision import lower_precision
from rlx_ray.compiler.cpu.regions import analyse, candidates
from rlx_ray.compiler.cpu.rules import RULES, lower_packed, lower_padded
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.compiler.cpu.templates import Extent, Template
from rlx_ray.compiler.cpu.zig import KERNELS
from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.dtype import DType
from rlx_ray.errors import VerifyError
from rlx_ray.identity import PACKAGE
from rlx_ray.target import target
from tests.support.programs import COMMON, NATIVE, PROFILE, bert, llama, one_common, stages

TARGET = target("cpu-x86_64-v3")
UNFUSED = replace(PROFILE, fusion=replace(PROFILE.fusion, skip=True))
GEMM = Template("gemm", "gemm($rows, $n, a, b, y)", "gemm.h")


def test_a_template_refuses_a_field_that_is_missing() -> None:
    with pytest.raises(VerifyError, match=r"template 'gemm' lacks 'n'\."):
        GEMM(rows=4)


def test_a_template_refuses_an_argument_that_is_left_over() -> None:
    with pytest.raises(VerifyError, match=r"template 'gemm' has no 'depth', 'k'\."):
        GEMM(rows=4, n=8, depth=16, k=16)


def test_a_kernel_refuses_a_field_that_is_given_twice() -> None:
    with pytest.raises(VerifyError, match=r"template 'gemm' is given twice 'n'\."):
        Kernel(GEMM, (("rows", 1), ("n", 1), ("n", 2)))


def test_a_fields_name_may_begin_another_fields_name() -> None:
    kernel = Template("t", "f($n, $n0, ${n}_$rows)", "t.h")(n=3, n0=0.5, rows=Extent.ROWS)
    assert kernel.body({}) == "f(3, 0.5f, 3_s->rows)"


def test_fields_are_those_of_the_body_and_of_the_unit() -> None:
    made = Template("t", "f($a, $micro, $epilogue, $function)", "t.h", unit="F($b)")
    assert made.fields == ("a", "b")
    assert made(a=1, b=2).unit == "F(2)"


def test_every_operation_but_those_without_a_kernel_has_a_rule() -> None:
    # The dispatch pass makes every activation an elementwise region.
    assert set(Op) - set(RULES) == {Op.INPUT, Op.PARAM, Op.RESHAPE, Op.ACTIVATION}


def test_no_operation_is_named_outside_the_rules() -> None:
    # precision.py is a pass over matmuls.
    for file in (PACKAGE / "compiler" / "cpu").glob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        ops = {
            n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "Op"
        }
        if file.name != "precision.py" and not file.name.startswith("rules"):
            assert ops <= {"INPUT", "PARAM", "RESHAPE"}, file.name


def test_an_operation_without_a_rule_is_refused() -> None:
    site = Site(Node(Op.ACTIVATION, (), (1,), DType.F32), (1,), (), 1, "whole")
    with pytest.raises(VerifyError, match="'activation' has no CPU rule"):
        lower_padded(site)


def test_an_operation_without_a_packed_form_is_refused() -> None:
    site = Site(Node(Op.SOFTMAX, (), (1,), DType.F32), (1,), (), 1, "rows")
    with pytest.raises(VerifyError, match="'softmax' has no form for packed rows"):
        lower_packed(site)


def test_templates_have_names_of_their_own() -> None:
    names = [template.name for rule in RULES.values() for template in rule.templates]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("op", RULES, ids=lambda op: op.value)
def test_a_header_has_the_function_that_a_body_calls(op: Op) -> None:
    for template in RULES[op].templates:
        text = (KERNELS / template.header).read_text()
        assert f" {template.body.partition('(')[0]}(" in text, template.name


def test_headers_have_no_number_that_units_tell_them() -> None:
    unit = emit(stages(llama(), 2, 1, past=31).program, TARGET, counters=True)
    told = re.findall(r"#define (\w+)", unit)
    assert {"CACHE_PAGE", "BLOCK", "SPAN_ROWS", "COUNTER_CALLS"} <= set(told)
    for header in KERNELS.glob("*.h"):
        assert not set(told) & set(re.findall(r"#define (\w+)", header.read_text())), header.name


def programs() -> Iterator[tuple[Mir, tuple[str, ...]]]:
    """Small programs that use every operation: encoders, decoders, each kind in its common form."""
    kinds = ("MatMul", "LayerNorm", "RmsNorm", "Rope", "Attention", "Softmax", "Gather", "Pool")
    configs = (NATIVE, COMMON, *(one_common(kind) for kind in kinds))
    for hir, past in ((bert(), None), (llama(), 60)):
        for config in configs:
            for profile in (PROFILE, UNFUSED):
                made = stages(hir, 2, 4, config, profile, TARGET, past=past)
                yield made.mir, hir.outputs
    plain = stages(bert(hidden=32, heads=1, intermediate=64), 2, 8, target=TARGET).mir
    for form in ("int8", "bf16", "fp8e4m3", "fp8e5m2", "b4m", "b2hm"):
        yield lower_precision(plain, {}, form, TARGET), ("embedding",)
    yield lower_precision(plain, {"embed.word": "q8rows"}, "f32", TARGET), ("embedding",)


@cache
def used() -> frozenset[Template]:
    """The templates that the programs' operations become, cut in every way."""
    return frozenset(
        kernel.template
        for mir, names in programs()
        for way in candidates(analyse(mir))
        for kernel in schedule(mir, TARGET, way, names).kernels
    )


@pytest.mark.parametrize("op", RULES, ids=lambda op: op.value)
def test_every_template_is_given_its_fields_by_its_rule(op: Op) -> None:
    assert {t.name for t in RULES[op].templates} <= {t.name for t in used()}


def test_only_templates_of_rules_are_used() -> None:
    assert used() <= {template for rule in RULES.values() for template in rule.templates}
