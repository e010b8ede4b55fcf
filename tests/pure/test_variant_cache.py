"""The slots of a replica: who loads, who waits, and what is evicted."""

from __future__ import annotations

import pytest

from rlx_serve.replica.variant_cache import NextStep, SlotKey, SlotState, VariantCache, engine_key


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(number: int = 0, model: str = "m") -> SlotKey:
    return SlotKey(model, f"{number:064x}", "a5" * 32)


def make(max_slots: int = 3, max_bytes: int = 1000) -> tuple[VariantCache[str], Clock]:
    clock = Clock()
    return VariantCache(max_slots, max_bytes, clock, lambda key, engine: None), clock


def fill(slots: VariantCache[str], *numbers: int, nbytes: int = 10) -> None:
    for number in numbers:
        assert slots.hold(key(number)) is NextStep.LOAD
        slots.loaded(key(number), f"v{number}", nbytes)
        slots.release(key(number))


def test_the_first_loads_the_next_wait_and_later_ones_run() -> None:
    slots, _ = make()
    assert slots.state(key()) is None
    assert slots.hold(key()) is NextStep.LOAD
    assert slots.state(key()) is SlotState.LOADING
    assert slots.hold(key()) is NextStep.WAIT
    slots.loaded(key(), "code", 10)
    assert slots.hold(key()) is NextStep.RUN
    assert slots.value(key()) == "code"


def test_one_digest_of_two_models_is_two_slots() -> None:
    slots, _ = make()
    fill(slots, 0)
    assert slots.hold(key(0, "other")) is NextStep.LOAD


def test_a_failure_is_the_answer_for_seconds_then_loads_again() -> None:
    slots, clock = make()
    slots.hold(key())
    slots.failed(key(), ValueError("no"))
    slots.release(key())
    clock.now += 2.9
    assert slots.hold(key()) is NextStep.FAIL
    assert str(slots.error(key())) == "no"
    slots.release(key())
    clock.now += 0.2
    assert slots.hold(key()) is NextStep.LOAD
    assert slots.error(key()) is None


def test_the_least_recently_used_slot_goes_first() -> None:
    slots, _ = make()
    fill(slots, 0, 1, 2)
    assert slots.hold(key(0)) is NextStep.RUN
    slots.release(key(0))
    fill(slots, 3)
    assert list(slots.states()) == [key(2), key(0), key(3)]
    assert slots.evictions == 1


def test_a_failed_slot_goes_before_any_loaded_one() -> None:
    slots, _ = make()
    fill(slots, 0, 1)
    slots.hold(key(2))
    slots.failed(key(2), ValueError())
    slots.release(key(2))
    fill(slots, 3)
    assert list(slots.states()) == [key(0), key(1), key(3)]
    assert slots.evictions == 0


def test_a_slot_that_somebody_holds_stays_until_it_is_released() -> None:
    slots, _ = make(max_slots=1)
    fill(slots, 0)
    assert slots.hold(key(0)) is NextStep.RUN
    fill(slots, 1)
    assert slots.value(key(0)) == "v0"
    slots.release(key(0))
    assert list(slots.states()) == [key(0)], "it was used until now"


def test_bytes_count_each_slot_and_the_weights_of_a_model_once() -> None:
    slots, _ = make(max_bytes=1000)
    slots.weigh("m", 500)
    slots.weigh("unused", 10_000)
    fill(slots, 0, 1, nbytes=100)
    assert slots.nbytes == 700
    fill(slots, 2, nbytes=350)
    assert list(slots.states()) == [key(1), key(2)]
    assert slots.nbytes == 950


def test_a_slot_larger_than_the_budget_stays_while_the_latest() -> None:
    slots, _ = make(max_bytes=100)
    fill(slots, 0, nbytes=1000)
    assert slots.hold(key(0)) is NextStep.RUN
    slots.release(key(0))
    fill(slots, 1, nbytes=10)
    assert list(slots.states()) == [key(1)]


def test_misuse_is_an_error() -> None:
    slots, _ = make()
    fill(slots, 0)
    with pytest.raises(ValueError, match="released more often"):
        slots.release(key(0))
    with pytest.raises(ValueError, match="not loading"):
        slots.loaded(key(0), "again", 1)
    slots.hold(key(1))
    with pytest.raises(ValueError, match="not loaded"):
        slots.value(key(1))


def test_room_is_made_of_loaded_slots_that_nobody_holds() -> None:
    slots, _ = make(8)
    fill(slots, 0, 1, 2)
    slots.hold(key(1))
    slots.hold(key(3))
    assert slots.evict_idle() == 2
    assert set(slots.states()) == {key(1), key(3)}
    assert slots.evict_idle() == 0
    assert slots.evictions == 2


# Text engines -----------------------------------------------------------------------------------


def ending(max_bytes: int = 1000) -> tuple[VariantCache[str], list[str]]:
    """Slots, and the engines that were told to end."""
    told: list[str] = []
    return VariantCache(8, max_bytes, Clock(), lambda key, engine: told.append(engine)), told


def speak(
    slots: VariantCache[str], model: str, cache: int, *numbers: int, nbytes: int = 10
) -> None:
    """A stream of a model, whose engine is made for it and keeps some variants; it goes on."""
    assert slots.hold(engine_key(model), cache) is NextStep.LOAD
    for number in numbers:
        slots.hold(key(number, model))
        slots.loaded(key(number, model), "code", nbytes)
        slots.keep(key(number, model))
        slots.release(key(number, model))
    slots.loaded(engine_key(model), model, cache)


def test_a_cache_counts_from_the_time_that_it_is_asked_for() -> None:
    slots, _ = ending()
    slots.weigh("m", 100)
    slots.hold(engine_key("m"), 500)
    assert slots.nbytes == 600
    slots.loaded(engine_key("m"), "m", 480)
    assert slots.nbytes == 580
    assert slots.engines() == {"m": (SlotState.LOADED, 480)}
    assert slots.states() == {}, "variants alone"


def test_an_engine_fits_if_weights_and_cache_find_room() -> None:
    slots, told = ending()
    slots.weigh("m", 200)
    slots.weigh("n", 300)
    assert slots.fits("n", 700)
    assert not slots.fits("n", 701)
    speak(slots, "m", 390, 0)
    assert not slots.fits("n", 101)
    assert slots.fits("n", 100)
    slots.release(engine_key("m"))
    assert slots.fits("n", 700), "an idle engine goes with its variants and its weights"
    slots.hold(key(0, "m"))
    assert not slots.fits("n", 700)
    assert slots.fits("n", 490), "its cache goes"
    assert told == []


def test_the_least_recently_used_goes_first() -> None:
    slots, told = ending()
    speak(slots, "m", 400, 0)
    fill(slots, 7, nbytes=100)
    slots.release(engine_key("m"))  # its last stream ended after the variant ran
    fill(slots, 8, nbytes=550)
    assert list(slots.states()) == [key(0), key(8)]
    assert slots.nbytes == 960
    fill(slots, 9, nbytes=100)
    assert told == ["m"]
    assert slots.engines() == {"m": (SlotState.ENDING, 400)}
    assert list(slots.states()) == [key(0), key(8), key(9)]
    assert slots.nbytes == 660


def test_what_an_engine_keeps_goes_with_it_and_not_before() -> None:
    slots, told = ending(100)
    speak(slots, "m", 40, 0, 1)
    slots.release(engine_key("m"))
    assert slots.hold(engine_key("m")) is NextStep.RUN
    fill(slots, 5, nbytes=90)
    assert {key(0), key(1)} <= set(slots.states())
    slots.release(engine_key("m"))
    assert told == []
    assert list(slots.states()) == [key(0), key(1)]
    assert slots.evict_idle() == 3
    assert told == ["m"]
    assert slots.states() == {}
    assert slots.nbytes == 0


def test_an_engine_with_a_stream_never_ends() -> None:
    slots, told = ending(100)
    speak(slots, "m", 90, 0)
    fill(slots, 5, 6, nbytes=90)
    assert slots.evict_idle() == 1
    assert told == []
    assert slots.hold(engine_key("m")) is NextStep.RUN


def test_an_ending_engine_is_asked_for_again_once_ended() -> None:
    slots, _ = ending()
    speak(slots, "m", 90, 0)
    slots.release(engine_key("m"))
    slots.evict_idle()
    with pytest.raises(ValueError, match="is ending"):
        slots.hold(engine_key("m"))
    slots.hold(key(0))
    with pytest.raises(ValueError, match="not there"):
        slots.keep(key(0))
    slots.ended(engine_key("m"))
    assert slots.hold(engine_key("m"), 90) is NextStep.LOAD
    with pytest.raises(ValueError, match="loading, not ending"):
        slots.ended(engine_key("m"))


def test_what_an_engine_kept_that_could_not_be_made_is_idle() -> None:
    slots, _ = ending()
    slots.hold(engine_key("m"), 90)
    fill(slots, 0)
    slots.hold(key(0))
    slots.keep(key(0))
    slots.release(key(0))
    assert slots.evict_idle() == 0
    slots.failed(engine_key("m"), ValueError("no room"))
    assert slots.nbytes == 10
    assert slots.hold(engine_key("m"), 90) is NextStep.FAIL
    assert slots.evict_idle() == 1
