"""The real models' artifacts for CUDA targets, built without a GPU and run on the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.artifact.launch_plan import LaunchPlan
from rlx_ray.compiler.compile import compile, stages
from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.component import CompileProfile, ModelPhase, ModelVariant, Preset
from rlx_ray.job.build import BuildLimits, build
from rlx_ray.runtime.executable import NUMPY, pad_tokens
from rlx_ray.target import CUDA_TARGETS, toolchain_for
from tests.support.cuda_plans import Card, blob
from tests.support.needs import needs, needs_minilm, needs_smollm2
from tests.support.programs import COMMON

GOLDEN = Path(__file__).parent.parent / "golden"
MINILM = json.loads((GOLDEN / "minilm.json").read_text())["cases"]
SMOLLM2 = json.loads((GOLDEN / "smollm2.json").read_text())["cases"]
SHORT = min(SMOLLM2, key=lambda case: len(case["input_ids"]))


@pytest.fixture(autouse=True, scope="module")
def _compilers() -> None:
    needs(zig.installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")


def profile(preset: Preset, precision: str) -> CompileProfile:
    return CompileProfile.preset(preset).override({"precision": {"compute": precision}})


def minilm(folder: Path, batch: int, seq: int, precision: str = "f32", *rows: int) -> Card:
    needs_minilm()
    own = profile(Preset.ENCODER, precision)
    sizes = {"batch": (batch,), "seq": (seq,), "rows": rows}
    return Card(folder, "minilm.yaml", [{**sizes, "profile": own}])


def smollm2(folder: Path, precision: str, quant: str | None, seq: int = 40) -> Card:
    """A prefill of one sequence and decode steps after up to 63 tokens."""
    needs_smollm2()
    prompt, step = (profile(p, precision) for p in (Preset.LLAMA32_PREFILL, Preset.LLAMA32_DECODE))
    one = {"batch": (1,), "past_seq": ()}
    rows = [
        {**one, "phase": ModelPhase.PREFILL, "seq": (seq,), "profile": prompt},
        {**one, "phase": ModelPhase.DECODE, "seq": (1,), "past_seq": (63,), "profile": step},
    ]
    return Card(folder, "smollm2.yaml", rows, quant=quant)


@pytest.mark.parametrize(
    ("batch", "seq", "precision", "bound"),
    [
        pytest.param(1, 16, "f32", 2e-5, id="few rows"),
        pytest.param(2, 32, "f32", 2e-5, id="many rows"),
        pytest.param(2, 32, "f16", 5e-4, id="f16"),
        pytest.param(2, 32, "bf16", 4e-3, id="bf16", marks=pytest.mark.slow),
        pytest.param(1, 16, "f16", 5e-4, id="few rows f16", marks=pytest.mark.slow),
    ],
)
def test_minilm_embeddings_are_the_references(
    tmp_path: Path, batch: int, seq: int, precision: str, bound: float
) -> None:
    card = minilm(tmp_path, batch, seq, precision)
    variant = card.load(card.cells[0])
    cases = [c for c in MINILM if len(c["input_ids"]) <= seq][:batch]
    rows = variant.run(pad_tokens(ModelVariant.encoder(batch, seq), tokens(cases)))["embedding"]
    assert rows.dtype == np.float32
    check_embeddings(rows, cases, bound)


def tokens(cases: list[dict]) -> list[tuple[list[int], list[int]]]:
    return [(c["input_ids"], [0] * len(c["input_ids"])) for c in cases]


def check_embeddings(rows: np.ndarray, cases: list[dict], bound: float) -> None:
    for row, case in zip(rows, cases, strict=True):
        want = np.array(case["embedding"])
        assert np.abs(row - want).max() <= bound
        assert row @ want >= 0.9999


@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        ("f32", 2e-5),
        pytest.param("f16", 5e-4, marks=pytest.mark.slow),
        pytest.param("bf16", 4e-3, marks=pytest.mark.slow),
    ],
)
def test_minilm_embeddings_of_one_run_of_rows_are_the_references(
    tmp_path: Path, precision: str, bound: float
) -> None:
    card = minilm(tmp_path, 8, 32, precision, 64)
    ragged = card.load(card.cells[0])
    cases = sorted((c for c in MINILM if len(c["input_ids"]) <= 32), key=lambda c: c["text"])
    variant = card.cells[0].spec.component.variant
    assert variant.ragged_rows == 64
    for some in (cases[:4], cases[3:]):
        assert sum(len(c["input_ids"]) for c in some) <= 64
        rows = ragged.run(pad_tokens(variant, tokens(some)))["embedding"]
        check_embeddings(rows[: len(some)], some, bound)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("f16", 5e-4), ("bf16", 4e-3)])
def test_minilm_of_common_kernels_agrees_in_sixteen_bits(
    tmp_path: Path, precision: str, bound: float
) -> None:
    needs_minilm()
    sizes = {"batch": (2,), "seq": (16,), "profile": profile(Preset.ENCODER, precision)}
    card = Card(tmp_path, "minilm.yaml", [{**sizes, "dispatch": COMMON}])
    cases = [c for c in MINILM if len(c["input_ids"]) <= 16][:2]
    inputs = pad_tokens(ModelVariant.encoder(2, 16), tokens(cases))
    rows = card.load(card.cells[0]).run(inputs)["embedding"]
    check_embeddings(rows, cases, bound)


def generated(card: Card, ids: list[int], count: int) -> list[int]:
    """Greedy tokens that the device draws after a prompt."""
    prompt, step = (card.load(cell) for cell in card.cells)
    cache = prompt.make_cache(3)
    found: list[int] = []
    for tokens in [ids, *([None] * (count - 1))]:
        new = tokens or found[-1:]
        variant = prompt if tokens else step
        x = {b.name: np.zeros(b.shape, NUMPY[b.dtype.text]) for b in variant.binding.inputs}
        x["input_ids"][0, : len(new)] = new
        x["lengths"][0] = len(new)
        x["past"][0] = 0 if tokens else len(ids) + len(found) - 1
        x["pages"][0] = [2, 0][: x["pages"].shape[1]]
        found.append(int(variant.run(x, cache, ["tokens"])["tokens"][0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "quant"), [("f32", None), ("f16", "file")])
def test_smollm2_draws_the_references_tokens(
    tmp_path: Path, precision: str, quant: str | None
) -> None:
    card = smollm2(tmp_path, precision, quant)
    assert generated(card, SHORT["input_ids"], 16) == SHORT["greedy_ids"][:16]


def test_an_artifact_is_cubin_plan_and_text_and_reproducible(
    tmp_path: Path,
) -> None:
    spec = minilm(tmp_path, 1, 16).cells[0].spec
    here, child = compile(spec), build(spec, BuildLimits())
    assert here.blobs == child.blobs
    assert [ref.role for ref in here.manifest.blobs] == ["code", "plan", "text"]
    plan = LaunchPlan.loads(blob(here, "plan"))
    assert plan.arch == "sm_90"
    assert all(name.encode() in blob(here, "code") for name in plan.kernels)


@pytest.mark.parametrize("precision", ["f16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_smollm2_compiles_from_its_packed_file(tmp_path: Path, precision: str) -> None:
    for cell in smollm2(tmp_path, precision, "file").cells:
        assert blob(compile(cell.spec), "code").startswith(b"\x7fELF")


MODELS: dict[str, Callable[[Path], Card]] = {
    "minilm few rows": lambda folder: minilm(folder, 1, 16, "f16"),
    "minilm many rows": lambda folder: minilm(folder, 8, 128, "bf16"),
    "minilm f32": lambda folder: minilm(folder, 32, 128),
    "minilm ragged": lambda folder: minilm(folder, 64, 256, "f16", 1024),
    "smollm2 packed": lambda folder: smollm2(folder, "f16", "file", 512),
    "smollm2 f32": lambda folder: smollm2(folder, "f32", None, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", CUDA_TARGETS, ids=lambda t: t.cpu)
@pytest.mark.parametrize("model", MODELS)
def test_the_models_kernels_compile_for_every_target(tmp_path: Path, model: str, wanted) -> None:
    for cell in MODELS[model](tmp_path).cells:
        chain = toolchain_for(wanted, {})
        code = blob(compile(replace(cell.spec, target=wanted, toolchain=chain)), "code")
        assert code.startswith(b"//" if wanted.cpu == "compute_80" else b"\x7fELF")


def test_every_launch_fits_what_its_architecture_has(tmp_path: Path) -> None:
    for make in MODELS.values():
        for cell in make(tmp_path).cells:
            program = stages(cell.spec).program
            for kernel in program.kernels:
                assert kernel.launch.shared <= 99 << 10, kernel
                assert kernel.launch.block <= 1024
                assert max(kernel.launch.grid[1:]) < 1 << 16
            assert program.arena.size <= 1.1 * program.arena.bound
