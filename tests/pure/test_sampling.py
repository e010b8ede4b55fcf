"""From logits to a token, and from tokens to text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.engine.adjustments import LogitAdjustments
from rlx_ray.engine.detokenizer import TextStream
from rlx_ray.engine.sampling import Sampler, Sampling, _nucleus
from rlx_ray.errors import InputError

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.5], np.float32)


def draws(sampling: Sampling, count: int = 2000, prompt=()) -> np.ndarray:
    shares = np.zeros(len(LOGITS))
    sampler = Sampler(sampling, prompt)
    for _ in range(count):
        shares[sampler.choose(LOGITS).token] += 1 / count
    return shares


def softmax(x) -> np.ndarray:
    e = np.exp(np.asarray(x, float) - max(x))
    return e / e.sum()


def test_greedy_takes_the_best_and_a_seed_repeats() -> None:
    assert draws(Sampling(temperature=0), 5)[1] == pytest.approx(1)
    one, two = (
        [Sampler(Sampling(seed=5), ()).choose(LOGITS).token for _ in range(20)] for _ in range(2)
    )
    assert one == two


def test_a_nucleus_is_the_shortest_head_of_the_sorted_tokens() -> None:
    rng = np.random.default_rng(0)
    for size, spread, share in ((5, 1, 0.9), (3000, 0.1, 0.95), (3000, 4, 0.5), (3000, 1, 0.999)):
        weights = np.exp(rng.normal(0, spread, size)).round(2)
        order = np.argsort(-weights, kind="stable")
        goal = share * weights.sum()
        count = int(np.searchsorted(weights[order].cumsum(), goal)) + 1
        assert _nucleus(weights, goal).tolist() == order[:count].tolist()


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(seed=1), softmax(LOGITS)),
        (Sampling(seed=2, temperature=0.5), softmax(LOGITS * 2)),
        (Sampling(seed=3, top_k=2), [0, *softmax([3, 2]), 0, 0]),
        (Sampling(seed=4, top_p=0.7), [0, *softmax([3, 2]), 0, 0]),
        (Sampling(seed=5, top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(seed=6, min_p=0.3), [0, *softmax([3, 2]), 0, 0]),
        (Sampling(seed=7, logit_bias={1: -100.0}), softmax([1, -97, 2, -1, 0.5])),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling: Sampling, want) -> None:
    np.testing.assert_allclose(draws(sampling), want, atol=0.04)


def test_penalties() -> None:
    def best(sampling: Sampling, prompt, turns: int) -> list[int]:
        sampler = Sampler(sampling, prompt)
        return [sampler.choose(LOGITS).token for _ in range(turns)]

    assert best(Sampling(temperature=0, repetition_penalty=2.0), [1], 1) == [2]
    assert best(Sampling(temperature=0, presence_penalty=1.5), [1], 3) == [1, 2, 1]
    assert best(Sampling(temperature=0, frequency_penalty=0.6), [], 4) == [1, 1, 2, 1]


def plainly(scores: list[float], bias: dict[int, float], seen, answer, penalties) -> list[float]:
    """Biases and penalties by the book, token by token."""
    repetition, presence, frequency = penalties
    found = list(scores)
    for token in range(len(scores)):
        x = scores[token] + bias.get(token, 0.0)
        if token in (*seen, *answer):
            x = x / repetition if x > 0 else x * repetition
        if token in answer:
            x -= presence + frequency * answer.count(token)
        found[token] = x
    return found


_tokens = st.integers(0, 9)


@given(
    scores=st.lists(st.floats(-20, 20, width=32), min_size=10, max_size=10),
    bias=st.dictionaries(_tokens, st.floats(-100, 100)),
    prompt=st.lists(_tokens, max_size=12),
    answer=st.lists(_tokens, max_size=12),
    penalties=st.tuples(
        st.sampled_from([1.0, 1.3, 0.5]), st.sampled_from([0, 0.7]), st.sampled_from([0, -0.25])
    ),
)
def test_adjustments_are_biases_and_penalties_of_tokens_so_far(
    scores, bias, prompt, answer, penalties
) -> None:
    changes = LogitAdjustments(bias, prompt, *penalties)
    for token in answer:
        changes.generated(token)
    x = np.array(scores, np.float32)
    want = plainly([float(v) for v in x], bias, prompt, answer, penalties)
    np.testing.assert_allclose(changes.apply(x), want, rtol=1e-12, atol=1e-12)
    assert x.tolist() == scores, "the logits stay"
    packed = changes.packed()
    assert packed.dtype == np.int32
    assert packed.shape == (len(changes), 4)
    assert len(set(packed[:, 0].tolist())) == len(changes), "a token has one entry"
    for token, *values in packed.tolist():
        change, repetition, penalty = np.array(values, np.int32).view(np.float32).astype(float)
        y = scores[token] + change
        y = (y / repetition if y > 0 else y * repetition) - penalty
        assert y == pytest.approx(want[token], rel=1e-5, abs=1e-4)


def test_changes_are_of_the_tokens_that_they_touch_alone() -> None:
    assert len(LogitAdjustments({}, range(100))) == 0
    assert len(LogitAdjustments({7: 1.0}, range(100), presence=1.0)) == 1
    assert len(LogitAdjustments({7: 1.0, 100: 2.0}, range(100), repetition=1.1)) == 101
    grown = LogitAdjustments({}, [5] * 9, frequency=0.5)
    for token in [*range(300), 5]:
        grown.generated(token)
    assert len(grown) == 300
    assert grown.apply(np.zeros(300, np.float32)).tolist() == [-0.5] * 5 + [-1.0] + [-0.5] * 294
    plain = LogitAdjustments({}, [5])
    plain.generated(5)
    assert len(plain) == 0
    assert plain.apply(LOGITS) is LOGITS


def test_logprobs_are_of_the_model_itself() -> None:
    chosen = Sampler(Sampling(temperature=0, logprobs=2, logit_bias={0: 50.0}), ()).choose(LOGITS)
    logs = np.log(softmax(LOGITS))
    assert chosen.token == 0
    assert chosen.logprob == pytest.approx(logs[0])
    assert [t for t, _ in chosen.top] == [1, 2]
    assert chosen.top[0][1] == pytest.approx(logs[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"seed": -1},
        {"logprobs": 21},
        {"logit_bias": {5: 1.0}},
        {"logit_bias": {0: 101.0}},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(bad: dict) -> None:
    (name,) = bad
    with pytest.raises(InputError, match=name):
        Sampling(**bad).check(5)


# Text -------------------------------------------------------------------------------------------


def decode(tokens) -> str:
    """Tokens are bytes."""
    return bytes(tokens).decode(errors="replace")


def pieces(text: bytes, stop=()) -> tuple[list[str], TextStream]:
    stream_ = TextStream(decode, stop)
    found = []
    for byte in text:
        found.append(stream_.add(byte))
        if stream_.stopped:
            break
    return found, stream_


def test_characters_come_whole() -> None:
    found, rest = pieces("aé東b".encode())
    assert found == ["a", "", "é", "", "", "東", "b"]
    assert rest.finish() == ""


def test_broken_bytes_end_as_one_replacement_character() -> None:
    found, rest = pieces(b"a\xe6\x9d")
    assert "".join(found) == "a"
    assert rest.finish() == "\N{REPLACEMENT CHARACTER}"
    found, rest = pieces(b"\xffb")
    assert "".join(found) + rest.finish() == "\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("stop", ["END", "E", "ENDING"])
def test_stop_strings_across_token_borders(stop: str) -> None:
    found, rest = pieces(b"one ENENDINGS", (stop,))
    text = "".join(found)
    assert rest.stopped
    assert text == b"one ENENDINGS".decode().partition(stop)[0]
    assert rest.finish() == ""


def test_a_half_stop_string_is_handed_out_in_the_end() -> None:
    found, rest = pieces(b"one EN", ("END",))
    assert "".join(found) == "one "
    assert rest.finish() == "EN"


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_up_to_the_first_stop(text: str, stop) -> None:
    found, rest = pieces(text.encode(errors="replace"), stop)
    whole = text.encode(errors="replace").decode()
    ends = [whole.find(s) for s in stop if s in whole]
    # Bytes come one by one, so the stop string that is complete first ends the text.
    got = "".join(found) + rest.finish()
    assert whole.startswith(got)
    assert (got == whole) == (not ends)
