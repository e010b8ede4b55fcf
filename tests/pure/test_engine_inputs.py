"""Who draws the tokens: what a step hands over and reads, whoever is beside a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from rlx_ray.component import ModelVariant
from rlx_ray.engine.generation import Request
from rlx_ray.engine.generator import Engine
from rlx_ray.engine.inputs import feed, sampling_inputs
from rlx_ray.engine.sampling import Sampler, Sampling
from rlx_ray.engine.scheduler import Step, Stream

VARIANTS = [
    ModelVariant.prefill(1, 16),
    ModelVariant.decode(1, 255),
    ModelVariant.decode(4, 255),
]
VOCAB = 7


class Drawing:
    """A decoder with `tokens`: a model whose logits are highest at the past's remainder.

    Draws are a sum of the seed and the step: nothing that a host's generator would give.
    """

    def __init__(self, *outputs: str) -> None:
        self.binding = SimpleNamespace(outputs=[SimpleNamespace(name=o) for o in outputs])
        self.read: list[set[str]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, inputs, cache=None, wanted=None):
        assert self.go_on.wait(10)
        self.read.append(set(wanted))
        best = (inputs["past"] + inputs["lengths"]) % VOCAB
        logits = np.zeros((len(best), VOCAB), np.float32)
        logits[np.arange(len(best)), best] = 9
        found = {"logits": logits}
        if "temperature" in inputs:
            drawn = (inputs["seed"][:, 0] + inputs["step"]) % VOCAB
            tokens = np.where(inputs["temperature"] > 0, drawn, best)
            found["tokens"] = tokens.astype(np.int32)
        return {name: found[name] for name in wanted}


def engine(decoder: Drawing) -> Engine:
    return Engine(VARIANTS, lambda _: decoder, lambda ids: "x" * len(ids), range(64), VOCAB)


@pytest.fixture
def device() -> Iterator[tuple[Drawing, Engine]]:
    decoder = Drawing("logits", "tokens")
    made = engine(decoder)
    yield decoder, made
    made.close()


def tokens(generation) -> list[int]:
    return [piece.chosen.token for piece in generation if piece.chosen]


def test_greedy_tokens_are_those_of_the_host(device) -> None:
    decoder, on_device = device
    on_host = engine(Drawing("logits"))
    request = Request((1, 2, 3), 6, Sampling(temperature=0))
    got = tokens(on_device.submit(request))
    assert got == tokens(on_host.submit(request)) == [3, 4, 5, 6, 0, 1]
    assert decoder.read == [{"tokens"}] * 6
    on_host.close()


def test_a_seed_draws_the_same_beside_any_other_stream(device) -> None:
    decoder, on_device = device
    request = Request((1, 2), 5, Sampling(seed=(9 << 32) + 4))
    alone = tokens(on_device.submit(request))
    assert alone == [4, 5, 6, 0, 1]
    decoder.go_on.clear()  # all three are there before the first has a token
    beside = [
        on_device.submit(Request((3,), 9, Sampling(seed=1))),
        on_device.submit(request),
        on_device.submit(Request((4,), 9, Sampling(temperature=0, logprobs=2))),
    ]
    decoder.go_on.set()
    assert tokens(beside[1]) == alone
    assert tokens(beside[2])[:2] == [1, 2]
    tokens(beside[0])
    assert {"logits", "tokens"} in decoder.read, "one step ran for both kinds of streams"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1, repetition_penalty=1.5),
        Sampling(seed=1, presence_penalty=-0.5),
        Sampling(seed=1, frequency_penalty=0.5),
        Sampling(seed=1, logit_bias={3: 1.0}),
        Sampling(seed=1, logprobs=0),
    ],
    ids=str,
)
def test_what_only_the_host_does_reads_the_logits(device, sampling: Sampling) -> None:
    decoder, on_device = device
    on_host = engine(Drawing("logits"))
    request = Request((1, 2), 5, sampling)
    assert tokens(on_device.submit(request)) == tokens(on_host.submit(request))
    assert decoder.read == [{"logits"}] * 5
    on_host.close()


def test_a_prompt_that_goes_on_is_still_waited_for(device) -> None:
    decoder, on_device = device
    tokens(on_device.submit(Request((1,) * 40, 1, Sampling(logprobs=1))))
    assert len(decoder.read) > 2
    assert decoder.read == [{"tokens"}] * (len(decoder.read) - 1) + [{"logits"}]


def test_how_to_draw_goes_over_row_by_row() -> None:
    streams = (Stream([1, 2, 5], 9, 2), Stream([1], 9), Stream([1], 9))
    streams[0].prompt = 2
    samplers = [
        Sampler(Sampling(0.5, 1 << 40, 0.9, 0.1, seed=(1 << 63) + (3 << 32) + 7), ()),
        Sampler(Sampling(2.0, 5, seed=1, logprobs=1), ()),
        Sampler(Sampling(temperature=0), ()),
    ]
    step = Step(VARIANTS[2], streams, (1, 1, 1))
    got = sampling_inputs(step, samplers)
    assert {name: (array.dtype.name, array.shape) for name, array in got.items()} == {
        "temperature": ("float32", (4,)),
        "top_k": ("int32", (4,)),
        "top_p": ("float32", (4,)),
        "min_p": ("float32", (4,)),
        "seed": ("int32", (4, 2)),
        "step": ("int32", (4,)),
    }
    assert got["temperature"].tolist() == [0.5, 0, 0, 0]
    assert got["top_k"].tolist() == [2**31 - 1, 0, 0, 0]
    np.testing.assert_allclose(got["top_p"], [0.9, 0, 1, 0])
    np.testing.assert_allclose(got["min_p"], [0.1, 0, 0, 0])
    assert got["seed"][0].view(np.uint32).tolist() == [7, (1 << 31) + 3]
    assert got["step"].tolist() == [1, 0, 0, 0]


def test_a_variant_that_does_not_draw_gets_no_such_inputs() -> None:
    step = Step(VARIANTS[1], (Stream([1], 9),), (1,))
    inputs, wanted = feed(Drawing("logits").binding, step, [Sampler(Sampling(), ())])
    assert set(inputs) == {"input_ids", "lengths", "past", "pages"}
    assert wanted == {"logits"}


def test_an_unknown_seed_is_another_one_each_time() -> None:
    assert Sampler(Sampling(), ()).seed != Sampler(Sampling(), ()).seed
    assert Sampler(Sampling(seed=0), ()).seed == 0
