from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.component import ModelVariant
from rlx_ray.errors import (
    BuildLimitError,
    Busy,
    CompileError,
    InputError,
    StoreError,
    VariantMissing,
)
from rlx_ray.inference.fallback import PASSED_ON
from rlx_serve.gateway.embedding import Answer, Call, Lane, embed
from rlx_serve.wire import CallResult, Route

VARIANTS = tuple(ModelVariant.encoder(b, s) for b in (1, 4) for s in (8, 16))


class Fake:
    """An executor whose vector of a text is its length, its first id and its number of types."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[Route] = []
        self.running = 0
        self.most = 0

    async def __call__(self, route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult:
        tier = "memory" if route in self.calls else "disk"
        self.calls.append(route)
        if self.error:
            raise self.error
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        rows = [inputs["lengths"], inputs["input_ids"][:, 0], inputs["token_type_ids"].sum(1)]
        return CallResult({"embedding": np.stack(rows, 1).astype(np.float32)}, tier)


def lane(call: Call, target: str = "cpu-a", variants: Sequence[ModelVariant] = VARIANTS) -> Lane:
    routes = {v: Route("m", str(v), f"{v.key:016x}", f"{target}{v}", "a5" * 32) for v in variants}
    return Lane(target, call, routes, calls=8)


def texts(*lengths: int) -> list[Encoded]:
    return [Encoded((i + 1,) * n, (1,) * n, n == 16) for i, n in enumerate(lengths)]


def run(items: Sequence[Encoded], *lanes: Lane) -> Answer:
    return asyncio.run(embed(items, (len(items),), lanes, "m", "$.models[0]"))[0]


def test_vectors_come_back_in_the_order_of_the_texts() -> None:
    lengths = [3, 16, 1, 8, 9, 2, 16, 5, 7]
    answer = run(texts(*lengths), lane(Fake()))
    expected = [[n, i + 1, n] for i, n in enumerate(lengths)]
    assert np.array_equal(answer.embedded.vectors, np.array(expected, np.float32))
    assert answer.embedded.tokens == tuple(lengths)
    assert answer.embedded.truncated == 2


def test_headers_list_each_variant_once_with_its_first_tier() -> None:
    fake = Fake()
    headers = run(texts(*[2] * 9, 16), lane(fake)).headers()
    variants = headers["x-rlx-variant"].split(", ")
    assert len(set(variants)) == len(variants)
    assert {r.variant for r in fake.calls} == set(variants)
    assert headers["x-rlx-tier"] == ", ".join(["disk"] * len(variants))
    keys = {r.variant: r.cache_key for r in fake.calls}
    assert headers["x-rlx-cache-key"] == ", ".join(keys[v] for v in variants)
    assert headers["x-rlx-truncated"] == "1"


def test_pad_waste_is_the_padded_part_of_all_rows() -> None:
    padded = lane(Fake())
    routes = {v: replace(r, packed=False) for v, r in padded.routes.items()}
    answer = run(texts(6), replace(padded, routes=routes))
    assert answer.headers()["x-rlx-pad-waste"] == "0.2500"
    answer = run(texts(6), lane(Fake()))
    assert answer.headers()["x-rlx-pad-waste"] == "0.0000"
    assert "x-rlx-truncated" not in answer.headers()


def test_calls_of_one_request_run_at_once_but_not_all() -> None:
    fake = Fake()
    run(texts(*[8] * 200), lane(fake, variants=VARIANTS[:1]))
    assert len(fake.calls) == 200
    assert 1 < fake.most <= 8


def test_a_processor_runs_the_calls_of_a_pass_in_turn() -> None:
    fake = Fake()
    routes = lane(fake, variants=VARIANTS[:1]).routes
    run(texts(*[8] * 20), Lane("cpu-a", fake, routes))
    assert (len(fake.calls), fake.most) == (20, 1)


def test_requests_that_share_calls_get_their_own_answers() -> None:
    items = texts(6, 3, 16, 8)
    answers = asyncio.run(embed(items, (1, 2, 1), [lane(Fake())], "m", "$.models[0]"))
    assert [a.embedded.vectors[:, 1].tolist() for a in answers] == [[1], [2, 3], [4]]
    assert [a.embedded.tokens for a in answers] == [(6,), (3, 16), (8,)]
    assert [a.embedded.truncated for a in answers] == [0, 1, 0]


def test_the_padding_of_a_shared_call_is_shared_out_by_rows() -> None:
    padded = lane(Fake(), variants=[ModelVariant.encoder(4, 8)])
    routes = {v: replace(r, packed=False) for v, r in padded.routes.items()}
    found = Lane("cpu-a", padded.call, routes)
    answers = asyncio.run(embed(texts(6, 2, 8), (2, 1), [found], "m", "$.models[0]"))
    # A call of 32 rows for 16: half of each request's rows are padding.
    assert [a.embedded.pad_waste for a in answers] == [0.5, 0.5]
    joined = Answer.joined(answers)
    assert joined.embedded.tokens == (6, 2, 8)
    assert joined.embedded.pad_waste == 0.5
    assert len(joined.used) == 1


@pytest.mark.parametrize("error", [kind("no") for kind in PASSED_ON])
def test_a_busy_or_empty_executor_passes_its_part_on_to_the_next(error: Exception) -> None:
    first, second = Fake(error), Fake()
    answer = run(texts(3, 4), lane(first), lane(second, "cpu-b", VARIANTS[:1]))
    assert answer.embedded.vectors[:, 0].tolist() == [3, 4]
    assert [route.digest for route, _ in answer.used] == ["cpu-bencoder:b1:s8"]


def test_the_first_executors_error_is_told_when_none_is_left() -> None:
    with pytest.raises(VariantMissing, match="first"):
        run(texts(3), lane(Fake(VariantMissing("first"))), lane(Fake(Busy("second"))))
    with pytest.raises(Busy, match="first"):
        run(texts(16), lane(Fake(Busy("first"))), lane(Fake(), "cpu-b", VARIANTS[:1]))


@pytest.mark.parametrize("error", [CompileError("no"), BuildLimitError("no"), StoreError("no")])
def test_other_errors_are_not_passed_on(error: Exception) -> None:
    second = Fake()
    with pytest.raises(type(error)):
        run(texts(3), lane(Fake(error)), lane(second))
    assert not second.calls


def test_a_long_text_goes_to_an_executor_with_a_larger_variant() -> None:
    small, large = lane(Fake(), variants=VARIANTS[:1]), lane(Fake(), "cpu-b")
    assert run(texts(12), small, large).used[0][0].variant == "encoder:b1:s16"
    with pytest.raises(InputError, match=r"17 tokens.* takes 16.*models\[0\].matrix"):
        run(texts(17), small, large)


def test_a_failure_cancels_the_other_calls() -> None:
    seen: list[str] = []

    async def call(route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult:
        if inputs["lengths"][0] == 8:
            raise CompileError("no")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        raise AssertionError

    with pytest.raises(CompileError):
        run(texts(8, 7), lane(call, variants=VARIANTS[:1]))
    assert seen == ["cancelled"]
