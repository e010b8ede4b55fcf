"""Tiny RoBERTa and XLM-RoBERTa checkpoints against transformers (tests/golden/make_roberta.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.config.load import load
from rlx_ray.job.compile_miss import load as open_local
from tests.support.programs import Bench
from tests.support.tiny import write_tiny_roberta

GOLDEN = Path(__file__).parents[1] / "golden" / "roberta.json"
MODELS = json.loads(GOLDEN.read_text(encoding="utf-8"))["models"]
CONFIG = """
store: {{url: "file://store", cache_dir: cache}}
targets: [host]
models:
  - name: tiny
    family: roberta
    source: model
    dispatch: {{policy: {policy}}}
    matrix:
      - {{phase: encoder, batch: [1, 4], seq: 32}}
"""


@pytest.mark.parametrize("policy", ["prefer_native", "force_common"])
@pytest.mark.parametrize("golden", MODELS, ids=lambda m: m["checkpoint"]["model_type"])
def test_embeddings_are_those_of_transformers(
    bench: Bench, tmp_path: Path, golden: dict, policy: str
) -> None:
    write_tiny_roberta(tmp_path / "model", **golden["checkpoint"])
    (tmp_path / "config.yaml").write_text(CONFIG.format(policy=policy))
    cases = golden["cases"]
    texts = [case["text"] for case in cases]
    model = open_local(load(tmp_path / "config.yaml"), "tiny")
    try:
        assert [list(e.ids) for e in model.tokenizer.encode_batch(texts)] == [
            case["input_ids"] for case in cases
        ]
        done = model.embed(texts)
    finally:
        model.close()
    want = np.array([case["embedding"] for case in cases])
    assert np.abs(done.vectors - want).max() <= 2e-5
    # One text fills the position table to its last row and is cut there; both batches were used.
    assert (max(done.tokens), done.truncated) == (32, 1)
    assert len(set(done.calls)) == 2
