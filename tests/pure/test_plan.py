"""Matrix expansion, the plan, and the report's page."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlx_ray.component import KernelDispatchConfig, KernelDispatchPolicy, ModelVariant, OpKind
from rlx_ray.config.load import load
from rlx_ray.config.schema import ModelSpec
from rlx_ray.errors import ConfigError
from rlx_ray.inference.catalog import open_model
from rlx_ray.job.plan import DEFAULT_SECONDS, VariantStatus, absent, make_plan, select
from rlx_ray.job.prebuild import Report, look_up
from rlx_ray.job.report import html
from rlx_ray.job.toolchains import refusals
from rlx_ray.matrix.expand import BuildCell, expand, variants
from rlx_ray.store import Hit, Miss, open_store
from rlx_ray.target import target, toolchain_for
from tests.support.specs import make_artifact
from tests.support.tiny import write_tiny_bert


def model_of(folder: Path, matrix: str, more: str = "") -> ModelSpec:
    if not (folder / "model").exists():
        write_tiny_bert(folder / "model", positions=64)
    (folder / "config.yaml").write_text(
        f"""
store: {{url: "memory://plan"}}
targets: [cpu-x86_64-v3, cpu-aarch64]
models:
  - name: tiny
    family: bert
    source: model
    {more}
    matrix:
{matrix}
"""
    )
    return load(folder / "config.yaml").models[0]


def cells_of(folder: Path, matrix: str, more: str = "") -> tuple[BuildCell, ...]:
    model = open_model(model_of(folder, matrix, more))
    return expand(model.spec, model.family, model.info, {})


def texts(cells: tuple[BuildCell, ...]) -> list[str]:
    return [f"{c.spec.component.variant}@{c.spec.target.name}" for c in cells]


def test_rows_expand_in_order_for_each_target(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "      - {phase: encoder, batch: [1, 2], seq: [8, 16]}")
    assert texts(cells) == [
        f"encoder:b{b}:s{s}@{t}"
        for t in ("cpu-x86_64-v3", "cpu-aarch64")
        for b in (1, 2)
        for s in (8, 16)
    ]
    assert len({c.spec.digest for c in cells}) == 8


def test_exclude_include_and_overrides(tmp_path: Path) -> None:
    rows = """
      - phase: encoder
        batch: [1, 2]
        seq: [8, 16]
        exclude: [{batch: 2, seq: 16}]
        include: [{batch: 4, seq: 8}]
        targets: [cpu-znver5]
        mode: aot
        dispatch: {policy: force_common}
      - {phase: encoder, batch: 1, seq: 32, profile: {fusion: {skip: true}}}"""
    cells = cells_of(tmp_path, rows)
    assert texts(cells)[:4] == [
        f"encoder:{v}@cpu-znver5" for v in ("b1:s8", "b1:s16", "b2:s8", "b4:s8")
    ]
    component = cells[0].spec.component
    assert component.mode.spelling == "aot"
    assert component.dispatch.policy is KernelDispatchPolicy.FORCE_COMMON
    assert cells[-1].spec.profile.fusion.skip
    assert not cells[0].spec.profile.fusion.skip


def test_equal_rows_stand_once_and_equal_keys_are_refused(
    tmp_path: Path,
) -> None:
    row = "      - {phase: encoder, batch: 1, seq: 8%s}\n"
    assert len(cells_of(tmp_path, row % "" + row % "")) == 2
    model = model_of(tmp_path, row % "" + row % "")
    kind = (OpKind.parse("LayerNorm"),)
    policy = KernelDispatchPolicy.PREFER_NATIVE
    one = replace(model.matrix[0], dispatch=KernelDispatchConfig(policy, kind, ()))
    two = replace(model.matrix[1], dispatch=KernelDispatchConfig(policy, (), kind))
    opened = open_model(replace(model, matrix=(one, two)))
    with pytest.raises(ConfigError, match="has the cache key"):
        expand(opened.spec, opened.family, opened.info, {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{phase: encoder, batch: 1, seq: 65}", r"matrix\[0\]\.seq has 65, but .* 64 positions"),
        ("{phase: prefill, batch: 1, seq: 8}", r"phase is 'prefill', which family 'bert'"),
    ],
)
def test_what_the_model_cannot_do_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(tmp_path, f"      - {row}")


def test_what_this_version_cannot_build_says_why(tmp_path: Path) -> None:
    rows = """
      - {phase: encoder, batch: 4, seq: 8, rows: 16, dispatch: {policy: force_common}}
      - {phase: encoder, batch: 1, seq: 8, profile: {precision: {compute: f16}}}
      - phase: encoder
        batch: 2
        seq: 8
        profile: {precision: {compute: int8}}
        dispatch: {force_common: [MatMul]}
      - {phase: encoder, batch: 1, seq: 16, quant: gguf_q6k}
      - {phase: encoder, batch: 1, seq: 4, quant: int8/32, dispatch: {force_common: [Gather]}}"""
    plan = make_plan(cells_of(tmp_path, rows), {})
    assert [r.status for r in plan.rows] == ["unsupported"] * 10
    assert all(r.reason for r in plan.rows)
    assert not plan.todo


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("profile: {precision: {compute: f16}}", ""),
        ("profile: {precision: {compute: bf16}, backend: {tf32: true}}", ""),
        ("dispatch: {policy: force_common}", ""),
        ("quant: int8/32", ""),
        ("batch: 4, rows: 16", ""),
        (
            "batch: 4, rows: 16, dispatch: {force_common: [LayerNorm]}",
            "ragged variants (rows) need native kernels: dispatch forces common ones",
        ),
        (
            "profile: {precision: {compute: int8}}",
            "precision.compute int8 has no kernels on CUDA targets",
        ),
        ("profile: {precision: {compute: f16}}, dispatch: {policy: force_common}", ""),
        ("quant: fp8e4m3", "fp8e4m3 weights have no kernels on CUDA targets"),
        ("quant: int8/32, dispatch: {policy: force_common}", ""),
        (
            "profile: {backend: {tf32: 1}}",
            "profile.backend option 'tf32' is 1, not true or false",
        ),
        (
            "profile: {backend: {unroll: 2}}",
            "profile.backend option 'unroll' is not known to CUDA targets",
        ),
    ],
)
def test_what_cuda_targets_lack_is_unsupported_with_the_reason(
    tmp_path: Path, row: str, reason: str
) -> None:
    base = "phase: encoder, seq: 8, targets: [cuda-sm_90]"
    batch = "" if row.startswith("batch") else ", batch: 1"
    (cell,) = cells_of(tmp_path, f"      - {{{base}{batch}, {row}}}")
    assert cell.unsupported == reason


def test_an_option_of_cuda_targets_is_not_one_of_the_cpus(tmp_path: Path) -> None:
    rows = "      - {phase: encoder, batch: 1, seq: 8, profile: {backend: {tf32: true}}}"
    reason = "profile.backend option 'tf32' is not known to CPU targets"
    assert [cell.unsupported for cell in cells_of(tmp_path, rows)] == [reason] * 2


def test_the_plan_is_the_matrix_minus_the_store(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "      - {phase: encoder, batch: [1, 2], seq: [8, 16]}")[:4]
    lookups = {(c.spec.model, c.spec.digest): Miss("not there", "absent") for c in cells}
    found = make_artifact(cells[0].spec).manifest
    lookups[("tiny", cells[0].spec.digest)] = Hit(found)
    lookups[("tiny", cells[1].spec.digest)] = Miss("blob altered", "damaged")
    plan = make_plan(cells, lookups)
    assert [r.status for r in plan.rows] == ["present", "quarantined", "missing", "missing"]
    assert plan.rows[1].reason == "blob altered"
    assert [c.spec for c in plan.todo] == [c.spec for c in cells[1:]]
    assert plan.estimate == pytest.approx(3 * found.build.seconds)
    assert make_plan(cells[1:], lookups).estimate == pytest.approx(3 * DEFAULT_SECONDS)


def test_what_builders_cannot_build_is_unsupported_or_present(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "      - {phase: encoder, batch: [1, 2], seq: 8}")
    store = open_store("memory://refused")
    store.put(make_artifact(cells[0].spec))
    lookups = look_up(cells, store)
    v3, arm = target("cpu-x86_64-v3"), target("cpu-aarch64")
    assert absent(cells, lookups) == {one: toolchain_for(one, {}) for one in (v3, arm)}
    refusals = {v3.name: "no zig", "cuda-sm_90": "not asked for"}
    plan = make_plan(cells, lookups, refusals)
    assert [(r.target, r.status, r.reason) for r in plan.rows] == [
        (v3.name, "present", ""),
        (v3.name, "unsupported", "no zig"),
        (arm.name, "missing", ""),
        (arm.name, "missing", ""),
    ]
    assert plan.todo == cells[2:]
    assert plan.refused == {v3.name: "no zig"}
    assert absent(cells[:1], lookups) == {}
    assert make_plan(cells[:1], lookups, refusals).refused == {}


@pytest.mark.parametrize("name", ["cpu-aarch64", "cuda-sm_90"])
def test_a_machine_without_the_compiler_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = target(name)
    chain = toolchain_for(wanted, {})
    assert refusals([(wanted, replace(chain, version=chain.version + "9"))])[name].startswith(
        f"toolchain '{chain.name}' is"
    )
    real = importlib.util.find_spec
    hidden = {"cpu": "ziglang", "cuda": "cupy"}[wanted.kind]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == hidden else real(name, *a)
    )
    assert "Install it with: pip install 'rlx_ray[" in refusals([(wanted, chain)])[name]


def test_two_modes_of_a_variant_are_two_rows_and_one_build(tmp_path: Path) -> None:
    both = "\n".join(
        f"      - {{phase: encoder, batch: [1], seq: [8], mode: {mode}, targets: [cpu-aarch64]}}"
        for mode in ("eager", "aot")
    )
    cells = cells_of(tmp_path, both)
    plan = make_plan(cells, look_up(cells, open_store("memory://two-modes")))
    assert len({r.cache_key for r in plan.rows}) == 2
    assert len({r.digest for r in plan.rows}) == 1
    assert plan.todo == cells[:1]
    assert plan.estimate == DEFAULT_SECONDS


def test_a_digest_shared_by_two_models_hides_nothing(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "      - {phase: encoder, batch: 1, seq: 8}")[:1]
    twin = BuildCell(replace(cells[0].spec, model="twin"), "$")
    assert twin.spec.digest == cells[0].spec.digest
    store = open_store("memory://shared-digest")
    store.put(make_artifact(twin.spec))
    plan = make_plan([*cells, twin], look_up([*cells, twin], store))
    assert [r.status for r in plan.rows] == ["missing", "present"]


def test_selection(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "      - {phase: encoder, batch: [1, 2], seq: [8, 16]}")
    assert len(select(cells, target="cpu-aarch64")) == 4
    assert texts(select(cells, variant="encoder:b2:s8", limit=1)) == ["encoder:b2:s8@cpu-x86_64-v3"]
    with pytest.raises(ConfigError, match=r"--model 'tinny' .* did you mean 'tiny'"):
        select(cells, model="tinny")
    with pytest.raises(ConfigError, match="--limit is 0"):
        select(cells, limit=0)


def report(rows: tuple[VariantStatus, ...], **more: object) -> Report:
    return Report(rows, 1.5, "x86_64 Linux", **more)


ROWS = (
    VariantStatus(
        "a<b", "cpu-x86_64-v3", "encoder:b1:s8", "0" * 16, "1" * 64, "compiled", "", 0.5, 2048
    ),
    VariantStatus(
        "a<b", "cpu-x86_64-v3", "encoder:b2:s16", "2" * 16, "3" * 64, "present", "", 0.4, 100
    ),
    VariantStatus(
        "a<b",
        "cpu-x86_64-v3",
        "decode:b1:s1:p64",
        "4" * 16,
        "5" * 64,
        "failed",
        "no <script>",
        error=("CompileError", "no <script>alert(1)</script>"),
    ),
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_escapes_and_needs_nothing_from_outside() -> None:
    page = html(report(ROWS, weights=(("StoreError", "no & room"),)))
    tags = Tags()
    tags.feed(page)
    assert not {t for t, _ in tags.seen} & {"script", "link", "img", "iframe"}
    assert not any("src" in a or "href" in a for _, a in tags.seen)
    assert "a&lt;b" in page
    assert "no &amp; room" in page
    cells = [a["class"] for t, a in tags.seen if t == "td" and "cell" in a.get("class", "")]
    assert sorted(cells) == ["cell compiled", "cell present"]
    assert "decode:b1:s1:p64" in page


def test_the_record_counts() -> None:
    record = report(ROWS, interrupted=True).to_json()
    assert json.loads(json.dumps(record)) == record
    wanted = {"total": 3, "present": 1, "compiled": 1, "failed": 1, "skipped": 0}
    assert {k: record[k] for k in wanted} == wanted
    row = record["rows"][2]
    assert row["error"] == {
        "class": "CompileError",
        "message": "no <script>alert(1)</script>",
    }


def test_include_stands_behind_the_product(tmp_path: Path) -> None:
    rows = "      - {phase: encoder, batch: 1, seq: 8, include: [{batch: 3, seq: 8}]}"
    model = model_of(tmp_path, rows.replace("seq: 8,", "seq: [8],", 1))
    assert list(variants(model.matrix[0])) == [
        ModelVariant.encoder(1, 8),
        ModelVariant.encoder(3, 8),
    ]
