"""Language models that share a replica's memory: engines are made, take turns, and end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from rlx_ray.component import CompilationMode
from rlx_ray.engine.generation import Request
from rlx_ray.errors import Busy, DeviceMemoryError, EngineError, Failure, RlxError
from rlx_serve.http.problems import problem
from rlx_serve.replica.preload import preload
from rlx_serve.replica.residency import slot_key
from rlx_serve.replica.variant_cache import SlotKey, SlotState, engine_key
from tests.support.scripted_decoders import (
    CACHE,
    CODE,
    MODELS,
    PAGE,
    ROOM_FOR_ONE,
    VARIANTS,
    WEIGHTS,
    Card,
    Replica,
    play,
    row,
    until,
)


@pytest.fixture
def card() -> Iterator[Card]:
    """No engine's thread is left at the end."""
    made = Card()
    yield made
    for event in (*made.go_on.values(), made.may_load):
        event.set()


def test_models_take_turns_and_free_before_they_take(card) -> None:
    async def story(replica: Replica) -> None:
        gc.disable()  # memory is free because nobody holds it
        try:
            for model in ("ann", "bob", "ann", "cid"):
                assert await replica.say(model) == [MODELS.index(model)] * 5
                assert replica.engines == {model: SlotState.LOADED}
                assert {talker._model for talker in card.code} == {model}
                assert (len(card.caches), card.held) == (1, CACHE + 2 * CODE)
                assert replica.residency.slots.nbytes == card.held
        finally:
            gc.enable()

    card.room = ROOM_FOR_ONE  # the card is never asked for more
    play(card, story)


def test_where_there_is_room_for_both_both_stay(card) -> None:
    async def story(replica: Replica) -> None:
        for _ in range(2):
            assert await asyncio.gather(replica.say("ann"), replica.say("bob")) == [
                [0] * 5,
                [1] * 5,
            ]
        assert replica.engines == {"ann": SlotState.LOADED, "bob": SlotState.LOADED}
        assert replica.residency.slots.evictions == 0

    play(card, story, 2 * ROOM_FOR_ONE)


def test_a_streaming_model_is_not_cut_for_another(card) -> None:
    async def story(replica: Replica) -> None:
        card.go_on["ann"].clear()
        first = asyncio.create_task(replica.say("ann", 20))
        await until(lambda: "ann" in card.running)
        for _ in range(3):
            with pytest.raises(Busy, match=r"hold 685 bytes .*'bob' and a cache of 640") as caught:
                await replica.say("bob")
        answer = problem(Failure.of(caught.value).error())  # as it reaches the gateway
        assert (answer.status, answer.code, answer.retry_after) == (503, "overloaded", 1)
        queued = asyncio.create_task(replica.say("ann", 7))
        card.go_on["ann"].set()
        assert await first == [0] * 20
        assert await queued == [0] * 7
        assert await replica.say("bob") == [1] * 5

    play(card, story)


def test_who_comes_while_an_engine_ends_waits_for_a_new_one(card) -> None:
    async def story(replica: Replica) -> None:
        card.go_on["ann"].clear()
        dropped = asyncio.create_task(replica.say("ann"))
        await until(lambda: "ann" in card.running)
        (cache,) = card.caches
        old = weakref.ref(cache)
        del cache
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        bob = asyncio.create_task(replica.say("bob"))
        await until(lambda: replica.engines.get("ann") is SlotState.ENDING)
        again = [asyncio.create_task(replica.say("ann")) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not bob.done(), "it has no room before the step of the other one is through"
        assert not any(task.done() for task in again)
        assert old() is not None
        card.go_on["ann"].set()
        assert await bob == [1] * 5
        found = await asyncio.gather(*again, return_exceptions=True)
        assert all(isinstance(answer, Busy) or answer == [0] * 5 for answer in found)
        assert await replica.say("ann") == [0] * 5
        assert old() is None

    play(card, story)


def test_an_ending_engines_own_model_gets_a_new_one(card) -> None:
    async def story(replica: Replica) -> None:
        await replica.say("ann")
        (cache,) = card.caches
        old = weakref.ref(cache)
        del cache
        room = asyncio.create_task(replica.residency.make_room(DeviceMemoryError("full")))
        await asyncio.sleep(0)
        assert replica.engines == {"ann": SlotState.ENDING}
        assert await asyncio.gather(replica.say("ann"), replica.say("ann", 3)) == [[0] * 5, [0] * 3]
        await room
        assert old() is None
        assert len(card.caches) == 1

    play(card, story)


def test_a_full_device_has_room_once_an_idle_engine_has_ended(card) -> None:
    async def story(replica: Replica) -> None:
        card.room = ROOM_FOR_ONE
        assert await replica.say("ann") == [0] * 5
        assert await replica.say("bob") == [1] * 5
        assert replica.engines == {"bob": SlotState.LOADED}

    play(card, story, 1 << 30)


def test_a_device_that_is_full_of_streams_sheds_the_other_model(card) -> None:
    async def story(replica: Replica) -> None:
        card.room = ROOM_FOR_ONE
        card.go_on["ann"].clear()
        first = asyncio.create_task(replica.say("ann", 20))
        await until(lambda: "ann" in card.running)
        with pytest.raises(DeviceMemoryError, match="no room") as caught:
            await replica.say("bob")
        answer = problem(caught.value)
        assert (answer.status, answer.code, answer.retry_after) == (503, "out_of_device_memory", 1)
        gc.collect()
        assert card.held == CACHE + 2 * CODE, "a variant of each, and the cache of one"
        card.go_on["ann"].set()
        assert await first == [0] * 20
        assert {talker._model for talker in card.code} == {"ann"}

    play(card, story, 1 << 30)


def test_a_variant_of_a_stream_takes_the_room_of_idle_ones(card) -> None:
    async def story(replica: Replica) -> None:
        idle = row("bob", VARIANTS[0])
        with contextlib.ExitStack() as stack:
            await replica.residency.hold(idle, stack)
        card.room = CACHE + 2 * CODE
        assert await replica.say("ann") == [0] * 5
        assert replica.residency.slots.state(slot_key(idle.route)) is None

    play(card, story, 1 << 30)


def test_an_engine_that_waits_for_a_variant_does_not_end(card) -> None:
    async def story(replica: Replica) -> None:
        card.go_on["ann"].clear()
        dropped = asyncio.create_task(replica.say("ann"))
        await until(lambda: "ann" in card.running)
        card.may_load.clear()  # the decode step's variant is being built
        card.go_on["ann"].set()
        decode = SlotKey("ann", str(VARIANTS[1]), WEIGHTS)
        await until(lambda: replica.residency.slots.state(decode) is SlotState.LOADING)
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        with pytest.raises(Busy):
            await replica.say("bob")
        card.may_load.set()
        await until(lambda: replica.residency.slots.state(decode) is SlotState.LOADED)
        await until(lambda: replica.residency.slots.fits("bob", CACHE))
        assert await replica.say("bob") == [1] * 5

    play(card, story)


def test_an_engine_that_is_ending_gets_no_variant(card) -> None:
    async def story(replica: Replica) -> None:
        with contextlib.ExitStack() as stack:
            engine = await replica.text_engines.hold("ann", stack)
        replica.residency.slots.evict_idle()
        with pytest.raises(EngineError, match="'ann' is ending"):
            await asyncio.to_thread(engine._variants.load, VARIANTS[1])
        await until(lambda: replica.engines == {})
        with pytest.raises(EngineError, match="closed"):
            engine._engine.submit(Request((1,), 1))

    play(card, story)


def test_a_cache_without_one_page_is_refused_with_both_sizes(card) -> None:
    async def story(replica: Replica) -> None:
        replica.text_engines._cache_bytes = PAGE - 1
        with pytest.raises(RlxError, match=r"kv_cache_bytes is 9, too few for a page of 10"):
            await replica.say("ann")

    play(card, story)


def test_a_failed_engine_is_made_anew_and_leaves_nothing(card) -> None:
    async def story(replica: Replica) -> None:
        card.room = CODE
        for _ in range(2):
            with pytest.raises(DeviceMemoryError):
                await replica.say("ann")
        assert replica.residency.slots.state(engine_key("ann")) is SlotState.FAILED
        assert replica.residency.slots.nbytes == CODE
        card.room = 1 << 20
        replica.residency.slots._clock = lambda: float("inf")
        assert await replica.say("ann") == [0] * 5

    play(card, story)


@pytest.mark.parametrize("seed", range(4))
def test_any_crowd_is_answered_within_the_budget(card, seed: int) -> None:
    """Some leave early; whoever stays gets the whole answer, or is told to come again."""
    rng = np.random.default_rng(seed)

    async def client(replica: Replica, model: str, count: int, stay: bool) -> None:
        await asyncio.sleep(float(rng.uniform(0, 0.2)))
        for _ in range(200):
            try:
                if stay:
                    assert await replica.say(model, count) == [MODELS.index(model)] * count
                else:
                    async with contextlib.aclosing(replica.stream(model, count)) as stream:
                        await anext(stream)
                return
            except (Busy, DeviceMemoryError):  # both are 503 with Retry-After
                await asyncio.sleep(0.02)
        raise AssertionError(f"{model} never had a turn")

    async def story(replica: Replica) -> None:
        replica.residency.slots._retry_after = 0.01
        crowd = zip(
            rng.choice(MODELS, 40), rng.integers(1, 30, 40), rng.uniform(size=40) < 0.7, strict=True
        )
        clients = [client(replica, str(m), int(n), bool(stay)) for m, n, stay in crowd]
        await asyncio.gather(*clients)

    card.room = 2 * ROOM_FOR_ONE
    play(card, story, 2 * ROOM_FOR_ONE)


@pytest.mark.parametrize("mode", [CompilationMode.EAGER, CompilationMode.LAZY])
def test_eager_variants_stay_and_warm_ones_while_there_is_room(card, mode: CompilationMode) -> None:
    checked: list[int] = []

    async def story(replica: Replica) -> None:
        rows = [row("ann", variant) for variant in VARIANTS]
        for one in rows:
            one.mode = mode
        told: list[str] = []

        async def advertise(route_id: str) -> None:
            told.append(route_id)

        kept = await preload(
            rows, ["ann"], replica.residency, replica.text_engines, advertise, checked.append
        )
        assert set(told) == {one.route.route_id for one in rows}
        assert replica.engines == {"ann": SlotState.LOADED}
        assert card.held == CACHE + 2 * CODE
        eager = mode is CompilationMode.EAGER
        assert checked == [0, 2 * CODE * eager]
        if eager:
            with pytest.raises(Busy):
                await replica.say("bob")
        else:
            assert await replica.say("bob") == [1] * 5
        await replica.residency.make_room(DeviceMemoryError("full"))
        assert replica.engines == ({"ann": SlotState.LOADED} if eager else {})
        kept.close()

    play(card, story)
