"""Sliding windows: pages behind them are freed, and what is left gives the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlx_ray.component import ModelVariant
from rlx_ray.config.load import load
from rlx_ray.engine.pages import NULL_PAGE, PagePool
from rlx_ray.engine.scheduler import Scheduler, Step, Stream
from rlx_ray.inference.text_model import TextModel
from rlx_ray.job.compile_miss import load as open_local
from tests.support import llama_reference
from tests.support.gguf_file import TINY, gguf_bytes, tiny_tensors
from tests.support.programs import NATIVE, Bench, one_common
from tests.toolchain.test_llama import Model, text

WINDOW = 20
VARIANTS = [ModelVariant.prefill(1, 24).with_extra(3, 104), ModelVariant.decode(2, 127)]


def run(model: Model, scheduler: Scheduler, streams: list[Stream]) -> dict[int, list[np.ndarray]]:
    """The logits behind each text's tokens from the prompt's last on; the likeliest follows.

    Before a step every page that no stream's table names is filled with NaN.
    """
    found: dict[int, list[np.ndarray]] = {id(s): [] for s in streams}
    for one in streams:
        scheduler.add(one)
    while (step := scheduler.next_step()) is not None:
        held = {page for one in scheduler._active for page in one.pages}
        model.cache[[p for p in range(len(model.cache)) if p not in held]] = 0xFF
        logits = run_step(model, step)
        ends = [c == s.left for s, c in zip(step.streams, step.counts, strict=True)]
        chosen = [int(row.argmax()) for row in logits]
        scheduler.done(step, [c if e else None for c, e in zip(chosen, ends, strict=True)])
        for one, row, end in zip(step.streams, logits, ends, strict=True):
            if end:
                found[id(one)].append(row)
            if len(one.tokens) >= one.most:
                scheduler.remove(one)
    return found


def run_step(model: Model, step: Step) -> np.ndarray:
    variant = step.variant
    sequences = [
        (one.tokens[one.past : one.past + count], one.past, one.pages)
        for one, count in zip(step.streams, step.counts, strict=True)
    ]
    past = dict(variant.dim_binding)[3]
    return model.step(sequences, variant.seq, past, batch=variant.batch)


@pytest.mark.parametrize("config", [NATIVE, one_common("Attention")], ids=["native", "common"])
def test_freed_pages_are_never_read(bench: Bench, config) -> None:
    model = Model(bench, {"window": WINDOW}, config)

    def streams(pages: int, window: int) -> tuple[list[Stream], list[np.ndarray]]:
        made = [Stream(text(70, 1), 120), Stream(text(50, 2), 110)]
        scheduler = Scheduler(VARIANTS, PagePool(pages), lambda v: None, window)
        found = run(model, scheduler, made)
        return made, [np.stack(found[id(one)]) for one in made]

    made, got = streams(6, WINDOW)
    assert [one.gone for one in made] == [3, 2]
    whole, want = streams(8, 0)
    assert [one.gone for one in whole] == [0, 0]
    assert [a.tobytes() for a in got] == [a.tobytes() for a in want]
    for one, logits in zip(made, got, strict=True):
        expected = model.want(one.tokens[:-1])[one.prompt - 1 :]
        np.testing.assert_allclose(logits, expected, atol=5e-5)


def test_a_prompt_goes_on_from_the_pages_that_its_window_reads(bench: Bench) -> None:
    model = Model(bench, {"window": WINDOW})
    scheduler = Scheduler(VARIANTS, PagePool(8), lambda v: None, WINDOW)
    run(model, scheduler, [first := Stream(text(70, 1), 71)])
    kept = model.cache.copy()
    again = Stream([*first.tokens[:65], 1, 2, 3], 70)
    scheduler.add(again)
    step = scheduler.next_step()
    assert step is not None
    assert (again.past, again.pages[0], step.counts) == (64, NULL_PAGE, (4,))
    model.cache[:] = 0xFF
    model.cache[again.pages[1:]] = kept[again.pages[1:]]
    np.testing.assert_allclose(run_step(model, step)[0], model.want(again.tokens)[-1], atol=2e-5)


def test_an_answer_may_be_longer_than_the_cache(tmp_path: Path) -> None:
    letters = [chr(c) for c in range(33, 81)]
    metadata = TINY | {
        "llama.context_length": 128,
        "llama.attention.sliding_window": WINDOW,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<s>", "</s>", *letters],
        "tokenizer.ggml.token_type": [3, 3] + [1] * len(letters),
        "tokenizer.ggml.merges": [],
    }
    tensors = tiny_tensors(3)
    rows = [(name, 0, a.shape, a.tobytes()) for name, a in tensors.items()]
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes(metadata, rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    opened = open_local(load(tmp_path / "config.yaml"), "tiny")
    page = opened.executable(VARIANTS[1])[0].binding.page
    model = TextModel(opened, 4 * page - 1)
    prompt = text(20, 5)
    done = model.generate(prompt, 100)
    model.close()
    opened.close()
    assert len(done.token_ids) == 100
    want = llama_reference.logits(
        {
            n: llama_reference.in_halves(a, h) if (h := HEADS.get(n[6:])) else a
            for n, a in tensors.items()
        },
        {
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "dim": 8,
            "eps": 1e-5,
            "theta": 1e4,
            "window": WINDOW,
        },
        [*prompt, *done.token_ids[:-1]],
    )[19:]
    chosen = want[np.arange(100), done.token_ids]
    np.testing.assert_allclose(chosen, want.max(1), atol=1e-4)


HEADS = {"attn_q.weight": 4, "attn_k.weight": 2}
CONFIG = """
store: {url: "file://store", cache_dir: cache}
targets: [host]
models:
  - name: tiny
    family: llama
    source: tiny.gguf
    matrix:
      - {phase: prefill, batch: 1, seq: 24, past_seq: 104}
      - {phase: decode, batch: 2, seq: 1, past_seq: 127}
"""
