"""Real models on a real card: golden embeddings, golden tokens, and everything given back."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.component import CompileProfile, Preset
from rlx_ray.config.load import load
from rlx_ray.engine.sampling import Sampling
from rlx_ray.inference.local import LocalModel
from rlx_ray.inference.text_model import TextModel
from rlx_ray.job.compile_miss import load as open_local
from rlx_ray.runtime.cuda_device import CudaDevice
from rlx_ray.target import Target
from tests.support.needs import needs_card, needs_minilm, needs_smollm2

needs_card()

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"


def opened(folder: Path, config: str, target: Target, rows: list[dict], **changes) -> LocalModel:
    """The first model of a config, for one target, with a store of its own."""
    found = load(ROOT / "configs" / config, store_override=f"file://{folder}/store")
    first = found.models[0]
    matrix = tuple(
        replace(row, **change)
        for change, row in ((change, first.matrix[change.pop("row", 0)]) for change in rows)
    )
    model = replace(first, targets=(target,), matrix=matrix, **changes)
    store = replace(found.store, cache_dir=str(folder / "cache"))
    return open_local(replace(found, models=(model,), store=store), first.name)


def test_minilm_gives_the_reference_embeddings(best: Target, tmp_path: Path) -> None:
    needs_minilm()
    cases = json.loads((GOLDEN / "minilm.json").read_text())["cases"]
    rows = [{"batch": (1, 8), "seq": (16, 128, 256), "exclude": ()}]
    model = opened(tmp_path, "minilm.yaml", best, rows)
    want = np.array([case["embedding"] for case in cases])
    texts = [case["text"] for case in cases]
    for _ in range(3):  # step by step, captured, replayed
        np.testing.assert_allclose(model.embed(texts).vectors, want, atol=2e-5)
    alone = np.concatenate([model.embed([text]).vectors for text in texts])
    np.testing.assert_allclose(alone, want, atol=2e-5)
    model.close()


@pytest.mark.parametrize(("precision", "bound"), [("f32", 2e-5), ("f16", 5e-4), ("bf16", 4e-3)])
def test_minilm_in_one_run_of_rows_gives_the_reference(
    best: Target, tmp_path: Path, precision: str, bound: float
) -> None:
    needs_minilm()
    cases = json.loads((GOLDEN / "minilm.json").read_text())["cases"]
    profile = CompileProfile.preset(Preset.ENCODER).override({"precision": {"compute": precision}})
    rows = [{"batch": (64,), "seq": (256,), "rows": (512,), "profile": profile, "exclude": ()}]
    model = opened(tmp_path, "minilm.yaml", best, rows)
    want = np.array([case["embedding"] for case in cases])
    texts = [case["text"] for case in cases]
    for order in (1, -1, 1):  # step by step, captured, replayed: each with its own lengths
        done = model.embed(texts[::order])
        assert len(done.calls) == 1
        np.testing.assert_allclose(done.vectors[::order], want, atol=bound)
    model.close()


@pytest.mark.parametrize("quant", [None, "file"])
def test_smollm2_gives_the_reference_tokens(
    best: Target, tmp_path: Path, quant: str | None
) -> None:
    """Quantised weights have references of their own: the CPU's, checked elsewhere."""
    needs_smollm2()
    cases = json.loads((GOLDEN / "smollm2.json").read_text())["cases"]
    rows = [{"seq": (32,)}, {"row": -1, "batch": (1, 4), "past_seq": (255,)}]
    speaker = TextModel(opened(tmp_path, "smollm2.yaml", best, rows, quant=quant))
    greedy = Sampling(temperature=0)
    for case in cases:
        ids = tuple(case["input_ids"])
        got = speaker.start(ids, 32, greedy)
        tokens = [piece.chosen.token for piece in got if piece.chosen]
        if quant is None:
            wanted = case["greedy_ids"]
            assert tokens == wanted[: len(tokens)]
            assert len(tokens) == len(wanted) or tokens[-1] in speaker.model.model.info.stop_ids
        else:
            assert tokens[0] == case["greedy_ids"][0]
    speaker.close()
    speaker.model.close()


def test_what_a_model_took_is_given_back(card: CudaDevice, best: Target, tmp_path: Path) -> None:
    needs_minilm()

    def free() -> int:
        gc.collect()
        return int(card._cuda.runtime.memGetInfo()[0])

    def once() -> None:
        rows = [{"batch": (8,), "seq": (128,), "exclude": ()}]
        model = opened(tmp_path, "minilm.yaml", best, rows)
        for _ in range(3):
            model.embed(["a text"] * 8)
        model.close()

    once()  # what CUDA and cuBLAS keep for the process
    before = free()
    for _ in range(3):
        once()
    assert before - free() <= 8 << 20
