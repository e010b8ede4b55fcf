"""Any history of a replica's slots keeps their bounds, and never evicts what somebody uses."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rlx_serve.replica.variant_cache import NextStep, SlotKey, SlotState, VariantCache, engine_key

MODELS = st.sampled_from(["m", "n", "o"])
VARIANTS = st.builds(SlotKey, MODELS, st.sampled_from("abcd"), st.sampled_from("wx"))
KEYS = VARIANTS | st.builds(engine_key, MODELS)
WEIGHTS = {"m": 20, "n": 5}
CACHE = 30
SLOTS, BYTES = 3, 100


class SlotsMachine(RuleBasedStateMachine):
    """A replica that asks, loads, fails, speaks and lets go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.ending: set[SlotKey] = set()
        self.slots: VariantCache[SlotKey] = VariantCache(SLOTS, BYTES, lambda: self.now, self.end)
        for model, nbytes in WEIGHTS.items():
            self.slots.weigh(model, nbytes)
        self.held: Counter[SlotKey] = Counter()
        self.kept: set[SlotKey] = set()
        self.loading: set[SlotKey] = set()
        self.sizes: dict[SlotKey, int] = {}

    def end(self, key: SlotKey, engine: SlotKey) -> None:
        assert key == engine
        assert not self.held[key]
        assert key not in self.loading
        self.ending.add(key)
        self.let_go(key)

    def let_go(self, key: SlotKey) -> None:
        if key.is_engine:
            self.kept = {variant for variant in self.kept if variant.model != key.model}

    def state(self, key: SlotKey) -> SlotState | None:
        return self.slots.state(key)

    @rule(key=KEYS)
    def hold(self, key: SlotKey) -> None:
        if key in self.ending:
            return
        if key.is_engine and self.state(key) not in (SlotState.LOADED, SlotState.LOADING):
            if not self.slots.fits(key.model, CACHE):
                return
            self.ask(key)
            assert self.slots.nbytes <= BYTES, "what fits has room"
        else:
            self.ask(key)

    def ask(self, key: SlotKey) -> None:
        step = self.slots.hold(key, CACHE if key.is_engine else 0)
        self.held[key] += 1
        assert (step is NextStep.WAIT) == (key in self.loading)
        if step is NextStep.LOAD:
            self.loading.add(key)
            self.sizes[key] = CACHE if key.is_engine else 0
        if step is NextStep.RUN:
            assert self.slots.value(key) == key
        if step is NextStep.FAIL:
            assert self.slots.error(key) is not None

    @rule(key=KEYS)
    def release(self, key: SlotKey) -> None:
        if self.held[key]:
            self.held[key] -= 1
            self.slots.release(key)

    @rule(key=KEYS, nbytes=st.integers(0, 60))
    def loaded(self, key: SlotKey, nbytes: int) -> None:
        if key in self.loading:
            self.loading.remove(key)
            self.sizes[key] = min(nbytes, CACHE) if key.is_engine else nbytes
            self.slots.loaded(key, key, self.sizes[key])

    @rule(key=KEYS)
    def failed(self, key: SlotKey) -> None:
        if key in self.loading:
            self.loading.remove(key)
            self.let_go(key)
            self.slots.failed(key, ValueError())

    @rule(key=VARIANTS)
    def keep(self, key: SlotKey) -> None:
        there = self.state(engine_key(key.model)) in (SlotState.LOADED, SlotState.LOADING)
        if there and self.held[key] and self.state(key) is SlotState.LOADED:
            self.kept.add(key)
            self.slots.keep(key)

    @rule(key=VARIANTS, nbytes=st.integers(0, 30), stream=st.booleans())
    def speak(self, key: SlotKey, nbytes: int, stream: bool) -> None:
        """A stream whose engine takes one more variant; it may go on."""
        engine = engine_key(key.model)
        self.hold(engine)
        self.loaded(engine, CACHE)
        self.hold(key)
        self.loaded(key, nbytes)
        self.keep(key)
        self.release(key)
        if not stream:
            self.release(engine)

    @rule(key=st.builds(engine_key, MODELS))
    def ended(self, key: SlotKey) -> None:
        if key in self.ending:
            self.ending.remove(key)
            self.slots.ended(key)

    @rule()
    def evict_idle(self) -> None:
        self.slots.evict_idle()
        assert self.idle() == [] or all(self.state(key) is SlotState.FAILED for key in self.idle())

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def there(self) -> list[SlotKey]:
        """All slots, the least recently used first, but for engines that are ending."""
        return [key for key in self.slots._slots if key not in self.ending]

    def idle(self) -> list[SlotKey]:
        used = {key for key, count in self.held.items() if count} | self.kept | self.loading
        return [key for key in self.there() if key not in used]

    @invariant()
    def what_is_used_or_loading_is_there(self) -> None:
        there = set(self.there())
        assert {key for key, count in self.held.items() if count} <= there
        assert self.kept <= there
        assert {key for key in there if self.state(key) is SlotState.LOADING} == self.loading

    @invariant()
    def what_is_kept_has_its_engine(self) -> None:
        live = (SlotState.LOADED, SlotState.LOADING)
        assert all(self.state(engine_key(key.model)) in live for key in self.kept)

    @invariant()
    def engines_that_are_ending_are_those_that_were_told_to(self) -> None:
        assert {k for k in self.slots._slots if self.state(k) is SlotState.ENDING} == self.ending

    @invariant()
    def the_bounds_hold_unless_nothing_more_can_go(self) -> None:
        variants = sum(not key.is_engine for key in self.there())
        over = variants > SLOTS or self.slots.nbytes > BYTES
        newest = list(self.slots._slots)[-1:]
        assert not over or self.idle() in ([], newest)

    @invariant()
    def bytes_are_those_of_code_caches_and_weights(self) -> None:
        counted = [
            key
            for key in self.there()
            if self.state(key) is SlotState.LOADED or (key.is_engine and key in self.loading)
        ]
        weights = sum(WEIGHTS.get(model, 0) for model in {key.model for key in counted})
        assert self.slots.nbytes == sum(self.sizes[key] for key in counted) + weights


SlotsMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase
