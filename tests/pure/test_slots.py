from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rlx_serve.slots import SlotKey, Slots, State, Step


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(number: int = 0, model: str = "m") -> SlotKey:
    return SlotKey(model, f"{number:064x}")


def make(max_slots: int = 3, max_bytes: int = 1000) -> tuple[Slots[str], Clock]:
    clock = Clock()
    return Slots(max_slots, max_bytes, clock), clock


def fill(slots: Slots[str], *numbers: int, nbytes: int = 10) -> None:
    for number in numbers:
        assert slots.hold(key(number)) is Step.LOAD
        slots.loaded(key(number), f"v{number}", nbytes)
        slots.release(key(number))


def test_the_first_to_ask_loads_the_next_ones_wait_and_later_ones_run() -> None:
    slots, _ = make()
    assert slots.state(key()) is None
    assert slots.hold(key()) is Step.LOAD
    assert slots.state(key()) is State.LOADING
    assert slots.hold(key()) is Step.WAIT
    slots.loaded(key(), "code", 10)
    assert slots.hold(key()) is Step.RUN
    assert slots.value(key()) == "code"


def test_one_digest_of_two_models_is_two_slots() -> None:
    slots, _ = make()
    fill(slots, 0)
    assert slots.hold(key(0, "other")) is Step.LOAD


def test_a_failure_is_the_answer_for_a_few_seconds_and_then_loads_again() -> None:
    slots, clock = make()
    slots.hold(key())
    slots.failed(key(), ValueError("no"))
    slots.release(key())
    clock.now += 2.9
    assert slots.hold(key()) is Step.FAIL
    assert str(slots.error(key())) == "no"
    slots.release(key())
    clock.now += 0.2
    assert slots.hold(key()) is Step.LOAD
    assert slots.error(key()) is None


def test_the_least_recently_used_slot_goes_first() -> None:
    slots, _ = make()
    fill(slots, 0, 1, 2)
    assert slots.hold(key(0)) is Step.RUN
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
    assert slots.hold(key(0)) is Step.RUN
    fill(slots, 1)
    assert slots.value(key(0)) == "v0"
    slots.release(key(0))
    assert list(slots.states()) == [key(1)]


def test_bytes_count_each_slot_and_the_weights_of_a_model_once() -> None:
    slots, _ = make(max_bytes=1000)
    slots.weigh("m", 500)
    slots.weigh("unused", 10_000)
    fill(slots, 0, 1, nbytes=100)
    assert slots.nbytes == 700
    fill(slots, 2, nbytes=350)
    assert list(slots.states()) == [key(1), key(2)]
    assert slots.nbytes == 950


def test_a_slot_larger_than_the_budget_is_kept_while_it_is_the_latest() -> None:
    slots, _ = make(max_bytes=100)
    fill(slots, 0, nbytes=1000)
    assert slots.hold(key(0)) is Step.RUN
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


KEYS = st.builds(key, st.integers(0, 5), st.sampled_from(["m", "n"]))


class SlotsMachine(RuleBasedStateMachine):
    """Any history of loads, failures and releases keeps the bounds and what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.clock = make(max_slots=3, max_bytes=100)
        self.slots.weigh("m", 20)
        self.held: Counter[SlotKey] = Counter()
        self.loading: set[SlotKey] = set()
        self.sizes: dict[SlotKey, int] = {}

    @rule(slot=KEYS)
    def hold(self, slot: SlotKey) -> None:
        step = self.slots.hold(slot)
        self.held[slot] += 1
        assert (step is Step.WAIT) == (slot in self.loading)
        if step is Step.LOAD:
            self.loading.add(slot)
        if step is Step.RUN:
            assert self.slots.value(slot) == slot.digest
        if step is Step.FAIL:
            assert self.slots.error(slot) is not None

    @rule(slot=KEYS)
    def release(self, slot: SlotKey) -> None:
        if self.held[slot]:
            self.held[slot] -= 1
            self.slots.release(slot)

    @rule(slot=KEYS, nbytes=st.integers(0, 60))
    def loaded(self, slot: SlotKey, nbytes: int) -> None:
        if slot in self.loading:
            self.loading.remove(slot)
            self.sizes[slot] = nbytes
            self.slots.loaded(slot, slot.digest, nbytes)

    @rule(slot=KEYS)
    def failed(self, slot: SlotKey) -> None:
        if slot in self.loading:
            self.loading.remove(slot)
            self.slots.failed(slot, ValueError())

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def what_is_held_or_loading_is_there(self) -> None:
        states = self.slots.states()
        assert all(slot in states for slot, count in self.held.items() if count)
        assert {slot for slot, state in states.items() if state is State.LOADING} == self.loading

    @invariant()
    def the_bounds_hold_unless_nothing_more_can_go(self) -> None:
        states = self.slots.states()
        over = len(states) > 3 or self.slots.nbytes > 100
        idle = [s for s in states if not self.held[s] and s not in self.loading]
        assert not over or idle in ([], [list(states)[-1]])

    @invariant()
    def bytes_are_those_of_loaded_slots_and_their_models(self) -> None:
        loaded = [s for s, state in self.slots.states().items() if state is State.LOADED]
        weights = 20 * any(s.model == "m" for s in loaded)
        assert self.slots.nbytes == sum(self.sizes[s] for s in loaded) + weights


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase


def test_room_is_made_of_loaded_slots_that_nobody_holds() -> None:
    slots, _ = make(8)
    fill(slots, 0, 1, 2)
    slots.hold(key(1))
    slots.hold(key(3))
    assert slots.evict_idle() == 2
    assert set(slots.states()) == {key(1), key(3)}
    assert slots.evict_idle() == 0
    assert slots.evictions == 2
