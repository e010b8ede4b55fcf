"""Which variants a replica holds: absent, loading, loaded or failed. Pure: no Ray, no clock.

A slot is keyed by (model, digest). Whoever asks for a slot holds it until it lets go, while it
waits for the load as well as while it runs, and a slot that somebody holds is never evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class SlotKey:
    """A model's name and an artifact digest: which weights, and which code."""

    model: str
    digest: str


class State(Enum):
    """What a slot is; a key without a slot is absent."""

    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


class Step(Enum):
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
    """One slot; only `Slots` changes it."""

    state: State = State.LOADING
    value: _Value | None = None
    nbytes: int = 0
    holders: int = 0
    error: Exception | None = None
    retry_at: float = 0.0


class Slots(Generic[_Value]):
    """The slots of one replica, least recently used first.

    Both bounds are kept by evicting slots that nobody holds; the most recently used one stays even
    if it alone is too large, since evicting it would only have it loaded again.

    Args:
        max_slots: most slots.
        max_bytes: most bytes of code and arenas, and of weights, which count once for each model
            that has a loaded slot.
        clock: seconds, from any start.
        retry_after: how many seconds a failure is the answer before a load is tried again.
    """

    def __init__(
        self,
        max_slots: int,
        max_bytes: int,
        clock: Callable[[], float],
        retry_after: float = 3.0,
    ) -> None:
        self.max_slots = max_slots
        self.max_bytes = max_bytes
        self.evictions = 0
        self._clock = clock
        self._retry_after = retry_after
        self._slots: OrderedDict[SlotKey, Slot[_Value]] = OrderedDict()
        self._weights: dict[str, int] = {}

    def hold(self, key: SlotKey) -> Step:
        """Ask for a slot and hold it; every `hold` is followed by one `release`."""
        slot = self._slots.get(key)
        step = Step.WAIT
        if slot is None:
            slot = self._slots[key] = Slot()
            step = Step.LOAD
        elif slot.state is State.LOADED:
            step = Step.RUN
        elif slot.state is State.FAILED and self._clock() < slot.retry_at:
            step = Step.FAIL
        elif slot.state is State.FAILED:
            slot.state, slot.error = State.LOADING, None
            step = Step.LOAD
        slot.holders += 1
        self._slots.move_to_end(key)
        self._trim()
        return step

    def release(self, key: SlotKey) -> None:
        """Let go of a slot."""
        slot = self._slots[key]
        if slot.holders < 1:
            raise ValueError(f"slot {key} is released more often than it was held")
        slot.holders -= 1
        self._trim()

    def loaded(self, key: SlotKey, value: _Value, nbytes: int) -> None:
        """The load of a slot ended well.

        Args:
            key: a slot that is loading.
            value: what to run.
            nbytes: bytes of code and arena.
        """
        slot = self._loading(key)
        slot.state, slot.value, slot.nbytes = State.LOADED, value, nbytes
        self._trim()

    def failed(self, key: SlotKey, error: Exception) -> None:
        """The load of a slot failed; for a few seconds the error is the answer."""
        slot = self._loading(key)
        slot.state, slot.error = State.FAILED, error
        slot.retry_at = self._clock() + self._retry_after
        self._trim()

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

    def state(self, key: SlotKey) -> State | None:
        """What a slot is; None for absent."""
        slot = self._slots.get(key)
        return slot.state if slot else None

    def states(self) -> dict[SlotKey, State]:
        """All slots, the least recently used first."""
        return {key: slot.state for key, slot in self._slots.items()}

    def weigh(self, model: str, nbytes: int) -> None:
        """Say how many bytes a model's weights have."""
        self._weights[model] = nbytes
        self._trim()

    def evict_idle(self) -> int:
        """Evict every loaded slot that nobody holds, to make room on a device; how many."""
        idle = [k for k, s in self._slots.items() if s.state is State.LOADED and not s.holders]
        for key in idle:
            del self._slots[key]
        self.evictions += len(idle)
        return len(idle)

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget."""
        loaded = {k: s for k, s in self._slots.items() if s.state is State.LOADED}
        models = {key.model for key in loaded}
        return sum(s.nbytes for s in loaded.values()) + sum(
            self._weights.get(model, 0) for model in models
        )

    def _loading(self, key: SlotKey) -> Slot[_Value]:
        slot = self._slots[key]
        if slot.state is not State.LOADING:
            raise ValueError(f"slot {key} is {slot.state.value}, not loading")
        return slot

    def _trim(self) -> None:
        while len(self._slots) > self.max_slots or self.nbytes > self.max_bytes:
            victim = self._victim()
            if victim is None:
                return
            slot = self._slots.pop(victim)
            self.evictions += slot.state is State.LOADED

    def _victim(self) -> SlotKey | None:
        """The slot to evict: failed ones first, then the least recently used one."""
        newest = next(reversed(self._slots))
        idle = [
            (key, slot)
            for key, slot in self._slots.items()
            if key != newest and not slot.holders and slot.state is not State.LOADING
        ]
        failed = [key for key, slot in idle if slot.state is State.FAILED]
        if failed:
            return failed[0]
        return idle[0][0] if idle else None
