"""What a replica holds: variants and text engines, each absent, loading, loaded, failed or ending.

A variant's slot is keyed by (model, digest, weights). Whoever asks for a slot holds it until it
lets go, while it waits for the load as well as while it runs, and a slot that somebody holds is
never evicted. A model's text engine has a slot too, whose bytes are those of its key-value cache;
its streams hold it, and it keeps the variants that it runs: they stay as long as it does.

Pure: no Ray, no clock, no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

_Value = TypeVar("_Value")

_ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class SlotKey:
    """A model's name, an artifact digest and a weights digest: whose, which code, which numbers."""

    model: str
    digest: str
    weights: str

    @property
    def slot_id(self) -> str:
        """How replicas report it; `Route.slot_id` of the routes that it runs."""
        return f"{self.model}.{self.digest}.{self.weights}"

    @property
    def is_engine(self) -> bool:
        """Whether it is a text engine's."""
        return self.digest == _ENGINE


def engine_key(model: str) -> SlotKey:
    """The key of a model's text engine."""
    return SlotKey(model, _ENGINE, "")


class SlotState(Enum):
    """What a slot is; a key without a slot is absent. Only engines take time to end."""

    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"
    ENDING = "ending"


class NextStep(Enum):
    """What whoever asked for a slot does next.

    LOAD: load it, then say `loaded` or `failed`. WAIT: somebody else is loading it. RUN: use the
    value. FAIL: it failed a moment ago; the error is the answer.
    """

    LOAD = "load"
    WAIT = "wait"
    RUN = "run"
    FAIL = "fail"


@dataclass(slots=True)
class Slot(Generic[_Value]):
    """One slot; only `VariantCache` changes it. `kept` says that its model's engine runs it."""

    state: SlotState = SlotState.LOADING
    value: _Value | None = None
    nbytes: int = 0
    holders: int = 0
    kept: bool = False
    error: Exception | None = None
    retry_at: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it is evicted when there is no room: nobody holds it, no engine runs it."""
        there = self.state in (SlotState.LOADED, SlotState.FAILED)
        return there and not self.holders and not self.kept


class VariantCache(Generic[_Value]):
    """The slots of one replica, least recently used first.

    Both bounds are kept by evicting idle slots; the most recently used one stays even if it alone
    is too large, since evicting it would only have it loaded again.

    Args:
        max_slots: most variants.
        max_bytes: most bytes of code, arenas and key-value caches, and of weights, which count once
            for each model that has a loaded slot.
        clock: seconds, from any start.
        end: called with an engine that is evicted: end it, then say `ended`.
        retry_after: how many seconds a failure is the answer before a load is tried again.
    """

    def __init__(
        self,
        max_slots: int,
        max_bytes: int,
        clock: Callable[[], float],
        end: Callable[[SlotKey, _Value], None],
        retry_after: float = 3.0,
    ) -> None:
        self.max_slots = max_slots
        self.max_bytes = max_bytes
        self.evictions = 0
        self._clock = clock
        self._end = end
        self._retry_after = retry_after
        self._slots: OrderedDict[SlotKey, Slot[_Value]] = OrderedDict()
        self._weights: dict[str, int] = {}

    def hold(self, key: SlotKey, nbytes: int = 0) -> NextStep:
        """Ask for a slot and hold it; every `hold` is followed by one `release`.

        Args:
            key: not of an engine that is ending.
            nbytes: that are known before the load; they count from now on.
        """
        slot = self._slots.get(key)
        step = NextStep.WAIT
        if slot is None:
            slot = self._slots[key] = Slot(nbytes=nbytes)
            step = NextStep.LOAD
        elif slot.state is SlotState.ENDING:
            raise ValueError(f"slot {key} is ending")
        elif slot.state is SlotState.LOADED:
            step = NextStep.RUN
        elif slot.state is SlotState.FAILED and self._clock() < slot.retry_at:
            step = NextStep.FAIL
        elif slot.state is SlotState.FAILED:
            slot.state, slot.error, slot.nbytes = SlotState.LOADING, None, nbytes
            step = NextStep.LOAD
        slot.holders += 1
        self._slots.move_to_end(key)
        self._trim()
        return step

    def release(self, key: SlotKey) -> None:
        """Let go of a slot, which was used until now."""
        slot = self._slots[key]
        if slot.holders < 1:
            raise ValueError(f"slot {key} is released more often than it was held")
        slot.holders -= 1
        self._slots.move_to_end(key)
        self._trim()

    def keep(self, key: SlotKey) -> None:
        """Have a variant that somebody holds stay as long as its model's engine does."""
        if self.state(engine_key(key.model)) not in (SlotState.LOADING, SlotState.LOADED):
            raise ValueError(f"slot {key} is kept for an engine that is not there")
        self._slots[key].kept = True

    def loaded(self, key: SlotKey, value: _Value, nbytes: int) -> None:
        """The load of a slot ended well.

        Args:
            key: a slot that is loading.
            value: what to run.
            nbytes: bytes of a variant's code and arena, or of an engine's cache.
        """
        slot = self._in(SlotState.LOADING, key)
        slot.state, slot.value, slot.nbytes = SlotState.LOADED, value, nbytes
        self._trim()

    def failed(self, key: SlotKey, error: Exception) -> None:
        """The load of a slot failed; for a few seconds the error is the answer."""
        slot = self._in(SlotState.LOADING, key)
        slot.state, slot.error, slot.nbytes = SlotState.FAILED, error, 0
        slot.retry_at = self._clock() + self._retry_after
        self._let_go(key)
        self._trim()

    def ended(self, key: SlotKey) -> None:
        """An engine has ended and its cache is free."""
        self._in(SlotState.ENDING, key)
        del self._slots[key]

    def value(self, key: SlotKey) -> _Value:
        """What a loaded slot holds."""
        value = self._slots[key].value
        if value is None:
            raise ValueError(f"slot {key} is not loaded")
        return value

    def error(self, key: SlotKey) -> Exception | None:
        """Why a slot failed; None if it did not."""
        slot = self._slots.get(key)
        return slot.error if slot else None

    def state(self, key: SlotKey) -> SlotState | None:
        """What a slot is; None for absent."""
        slot = self._slots.get(key)
        return slot.state if slot else None

    def states(self) -> dict[SlotKey, SlotState]:
        """All variants' slots, the least recently used first."""
        return {key: slot.state for key, slot in self._slots.items() if not key.is_engine}

    def engines(self) -> dict[str, tuple[SlotState, int]]:
        """The state of each model's engine, and the bytes of its cache."""
        return {k.model: (s.state, s.nbytes) for k, s in self._slots.items() if k.is_engine}

    def weigh(self, model: str, nbytes: int) -> None:
        """Say how many bytes a model's weights have."""
        self._weights[model] = nbytes
        self._trim()

    def fits(self, model: str, nbytes: int) -> bool:
        """Whether an engine that is not there has room for its cache, once all idle slots go."""
        stay = {key: slot for key, slot in self._slots.items() if self._stays(key)}
        return self._counted({**stay, engine_key(model): Slot(nbytes=nbytes)}) <= self.max_bytes

    def evict_idle(self) -> int:
        """Evict every loaded slot that is idle, to make room on a device; how many there were."""
        before = self.evictions
        # An engine's variants are idle once it ends.
        while idle := [k for k, s in self._slots.items() if s.idle and s.state is SlotState.LOADED]:
            for key in idle:
                self._evict(key)
        return self.evictions - before

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget; those of an engine that is ending do no more."""
        return self._counted(self._slots)

    @property
    def code_bytes(self) -> int:
        """Bytes of the loaded variants' code and arenas."""
        return sum(slot.nbytes for key, slot in self._slots.items() if not key.is_engine)

    def _counted(self, slots: Mapping[SlotKey, Slot[_Value]]) -> int:
        """Bytes of what is loaded, of the caches of engines that are loading, and the weights."""
        found = {
            key: slot.nbytes
            for key, slot in slots.items()
            if slot.state is SlotState.LOADED or (key.is_engine and slot.state is SlotState.LOADING)
        }
        models = {key.model for key in found}
        return sum(found.values()) + sum(self._weights.get(model, 0) for model in models)

    def _stays(self, key: SlotKey) -> bool:
        """Whether a slot would be there if all idle ones and what they keep were evicted."""
        slot, engine = self._slots[key], self._slots.get(engine_key(key.model))
        used = slot.kept and engine is not None and not engine.idle
        return used or bool(slot.holders) or slot.state is SlotState.LOADING

    def _in(self, state: SlotState, key: SlotKey) -> Slot[_Value]:
        slot = self._slots[key]
        if slot.state is not state:
            raise ValueError(f"slot {key} is {slot.state.value}, not {state.value}")
        return slot

    def _trim(self) -> None:
        while self._over():
            victim = self._victim()
            if victim is None:
                return
            self._evict(victim)

    def _over(self) -> bool:
        variants = sum(not key.is_engine for key in self._slots)
        return variants > self.max_slots or self.nbytes > self.max_bytes

    def _victim(self) -> SlotKey | None:
        """The slot to evict: failed ones first, then the least recently used one."""
        newest = next(reversed(self._slots))
        idle = {key: slot for key, slot in self._slots.items() if key != newest and slot.idle}
        failed = [key for key, slot in idle.items() if slot.state is SlotState.FAILED]
        return next(iter((*failed, *idle)), None)

    def _evict(self, key: SlotKey) -> None:
        slot = self._slots[key]
        value, slot.value = slot.value, None
        self.evictions += slot.state is SlotState.LOADED
        if not key.is_engine or value is None:
            del self._slots[key]
            return
        slot.state = SlotState.ENDING
        self._let_go(key)
        self._end(key, value)

    def _let_go(self, key: SlotKey) -> None:
        """Let go of the variants that an engine keeps; nothing happens if a variant is named."""
        for other, slot in self._slots.items():
            if key.is_engine and other.model == key.model:
                slot.kept = False
