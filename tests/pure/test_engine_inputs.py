"""Who draws the tokens: what a step hands over and reads, whoever is beside a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from rlx_ray.component import ModelVariant
from rlx_ray.engine.device_sampling import sampling_inputs
from rlx_ray.engine.generation import Request
from rlx_ray.engine.generator import Engine
from rlx_ray.engine.inputs import feed
from rlx_ray.engine.sampling import Sampler, Sampling
from rlx_ray.engine.scheduler import Step, Stream

VARIANTS = [
    ModelVariant.prefill(1, 16),
    ModelVariant.decode(1, 255),
    ModelVariant.decode(4, 255),
]
VOCAB = 7


ROOM = 4
LOGPROBS = {"tokens", "logprob", "likely", "likely_logprobs"}


class Drawing:
    """A decoder with `tokens`: a model whose logits are highest at the past's remainder.

    Draws are a sum of the seed and the step: nothing that a host's generator would give. Without a
    temperature the best token by the row's changes is drawn, and logprobs are reported, by plain
    loops. A sequence has room for ROOM changes.
    """

    def __init__(self, *outputs: str) -> None:
        self.binding = SimpleNamespace(
            outputs=[SimpleNamespace(name=o) for o in outputs],
            inputs=[
                SimpleNamespace(name="temperature", shape=(2,)),
                SimpleNamespace(name="changes", shape=(2 * ROOM, 4)),
            ],
        )
        self.read: list[set[str]] = []
        self.changed: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, inputs, cache=None, wanted=None):
        assert self.go_on.wait(10)
        self.read.append(set(wanted))
        best = (inputs["past"] + inputs["lengths"]) % VOCAB
        logits = np.linspace(0, 1, VOCAB, dtype=np.float32) * np.ones((len(best), 1), np.float32)
        logits[np.arange(len(best)), best] = 3
        found = {"logits": logits}
        if "temperature" in inputs:
            self.changed.append(len(inputs["changes"]))
            found |= self._drawn(logits, inputs)
        return {name: found[name] for name in wanted}

    def _drawn(self, logits, inputs):
        seeded = (inputs["seed"][:, 0] + inputs["step"]) % VOCAB
        batch, starts = len(logits), inputs["change_starts"]
        assert starts[-1] == len(inputs["changes"])
        tokens, logprob = np.zeros(batch, np.int32), np.full(batch, np.nan, np.float32)
        likely = np.full((batch, VOCAB), -1, np.int32)
        logs = np.full((batch, VOCAB), np.nan, np.float32)
        for row in range(batch):
            scores = logits[row].copy()
            for token, *bits in inputs["changes"][starts[row] : starts[row + 1]].tolist():
                bias, repetition, penalty = np.array(bits, np.int32).view(np.float32)
                x = scores[token] + bias
                scores[token] = (x / repetition if x > 0 else x * repetition) - penalty
            tokens[row] = seeded[row] if inputs["temperature"][row] > 0 else scores.argmax()
            count = inputs["reported"][row] - 1
            if count >= 0:
                own = logits[row] - np.log(np.exp(logits[row]).sum())
                logprob[row], order = own[tokens[row]], np.argsort(-own, kind="stable")[:count]
                likely[row, :count], logs[row, :count] = order, own[order]
        return {"tokens": tokens, "logprob": logprob, "likely": likely, "likely_logprobs": logs}


def engine(decoder: Drawing) -> Engine:
    return Engine(VARIANTS, lambda _: decoder, lambda ids: "x" * len(ids), range(64), VOCAB)


@pytest.fixture
def device() -> Iterator[tuple[Drawing, Engine]]:
    decoder = Drawing("logits", *LOGPROBS)
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
        on_device.submit(Request((1, 2, 3, 4, 5), 9, Sampling(seed=3, repetition_penalty=1.5))),
    ]
    decoder.go_on.set()
    assert tokens(beside[1]) == alone
    assert tokens(beside[2])[:2] == [1, 2]
    tokens(beside[0])
    tokens(beside[3])
    assert {"logits", *LOGPROBS} in decoder.read, "one step ran for all kinds of streams"


KINDS = [
    Sampling(temperature=0, repetition_penalty=1.5),
    Sampling(temperature=0, presence_penalty=2.0),
    Sampling(temperature=0, frequency_penalty=-0.5),
    Sampling(temperature=0, logit_bias={3: 1.5, 4: -9.0}),
    Sampling(temperature=0, logprobs=0),
    Sampling(temperature=0, logprobs=20),
    Sampling(temperature=0, presence_penalty=1.0, logit_bias={0: 2.5}, logprobs=3),
]


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_penalties_biases_and_logprobs_equal_the_hosts(device, sampling: Sampling) -> None:
    decoder, on_device = device
    on_host = engine(Drawing("logits"))
    request = Request((1, 2), 2, sampling)
    got, want = ([p.chosen for p in e.submit(request)] for e in (on_device, on_host))
    assert [one.token for one in got] == [one.token for one in want]
    for one, other in zip(got, want, strict=True):
        assert one.logprob == (other.logprob and pytest.approx(other.logprob, abs=1e-5))
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-5)
    reported = {"logprob"} if sampling.logprobs == 0 else LOGPROBS
    assert decoder.read == [{"tokens", *(reported if sampling.logprobs is not None else ())}] * 2
    on_host.close()


def test_the_device_counts_what_it_has_drawn(device) -> None:
    decoder, on_device = device
    penalised = Sampling(temperature=0, presence_penalty=1.0, logit_bias={6: 1.0})
    tokens(on_device.submit(Request((1, 2), 4, penalised)))
    assert decoder.changed == [1, 2, 3, 4]


def test_adjustments_past_the_room_are_drawn_on_the_host(device) -> None:
    decoder, on_device = device
    on_host = engine(Drawing("logits"))
    long = Request((1, 2, 3, 4, 5), 3, Sampling(seed=1, repetition_penalty=1.5))
    assert tokens(on_device.submit(long)) == tokens(on_host.submit(long))
    assert decoder.read == [{"logits"}] * 3
    assert decoder.changed == [0] * 3
    on_host.close()


def test_a_stream_that_outgrows_the_room_goes_on_alike(device) -> None:
    """From the step on in which it has ROOM + 1 different tokens."""
    decoder, on_device = device
    growing = Request((1, 2), 6, Sampling(temperature=0, repetition_penalty=100.0))
    on_host = engine(Drawing("logits"))
    alone = tokens(on_device.submit(growing))
    assert alone == tokens(on_host.submit(growing))
    assert decoder.read == [{"tokens"}] * 3 + [{"logits"}] * 3
    seeded = Request((1, 2), 6, Sampling(seed=3, repetition_penalty=1.1))
    want = tokens(on_device.submit(seeded))
    decoder.go_on.clear()
    beside = [on_device.submit(Request((3,), 8, how)) for how in KINDS[:3]]
    one = on_device.submit(seeded)
    decoder.go_on.set()
    assert tokens(one) == want
    for other in beside:
        tokens(other)
    on_host.close()


def test_a_prompt_that_goes_on_is_still_waited_for(device) -> None:
    decoder, on_device = device
    how = Sampling(logprobs=1, repetition_penalty=1.1)
    tokens(on_device.submit(Request((1,) * 40, 1, how)))
    assert len(decoder.read) > 2
    assert decoder.read == [{"tokens"}] * (len(decoder.read) - 1) + [LOGPROBS]
    assert decoder.changed == [0] * (len(decoder.read) - 1) + [1]


def test_how_to_draw_goes_over_row_by_row() -> None:
    samplers = {
        0: Sampler(Sampling(0.5, 1 << 40, 0.9, 0.1, seed=(1 << 63) + (3 << 32) + 7), ()),
        2: Sampler(Sampling(0, logit_bias={6: 2.5}, repetition_penalty=1.5, logprobs=5), (1, 6)),
        3: Sampler(Sampling(2.0, 5, seed=1, logprobs=0, logit_bias={4: -1.0}), ()),
    }
    got = sampling_inputs(5, samplers, {0: 1, 1: 9, 2: 0, 3: 7})
    assert {name: (array.dtype.name, array.shape) for name, array in got.items()} == {
        "temperature": ("float32", (5,)),
        "top_k": ("int32", (5,)),
        "top_p": ("float32", (5,)),
        "min_p": ("float32", (5,)),
        "seed": ("int32", (5, 2)),
        "step": ("int32", (5,)),
        "reported": ("int32", (5,)),
        "change_starts": ("int32", (6,)),
        "changes": ("int32", (3, 4)),
    }
    assert got["temperature"].tolist() == [0.5, 0, 0, 2, 0]
    assert got["top_k"].tolist() == [2**31 - 1, 0, 0, 5, 0]
    np.testing.assert_allclose(got["top_p"], [0.9, 0, 1, 1, 0])
    np.testing.assert_allclose(got["min_p"], [0.1, 0, 0, 0, 0])
    assert got["seed"][0].view(np.uint32).tolist() == [7, (1 << 31) + 3]
    assert got["step"].tolist() == [1, 0, 0, 7, 0]
    assert got["reported"].tolist() == [0, 0, 6, 1, 0]
    assert got["change_starts"].tolist() == [0, 0, 0, 2, 3, 3]
    assert got["changes"][:, 0].tolist() == [6, 1, 4]
    numbers = got["changes"][:, 1:].copy().view(np.float32)
    assert numbers.tolist() == [[2.5, 1.5, 0], [0, 1.5, 0], [-1, 1, 0]]


def test_a_variant_that_does_not_draw_gets_no_such_inputs() -> None:
    step = Step(VARIANTS[1], (Stream([1], 9),), (1,))
    inputs, wanted = feed(Drawing("logits").binding, step, [Sampler(Sampling(), ())])
    assert set(inputs) == {"input_ids", "lengths", "past", "pages"}
    assert wanted == {"logits"}


def test_an_unknown_seed_is_another_one_each_time() -> None:
    assert Sampler(Sampling(), ()).seed != Sampler(Sampling(), ()).seed
    assert Sampler(Sampling(seed=0), ()).seed == 0
