"""What has gathered while a lane was busy becomes its next pass. Pure: no clock and no task."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request, or a part of one, that waits for a lane.

    Attributes:
        key: what it is known by.
        model: whose variants run it.
        rows: its token rows.
        deadline: seconds on the caller's clock; it is not run after that.
    """

    key: int
    model: str
    rows: int
    deadline: float


class Batcher:
    """The queue of a lane, and how many passes it runs.

    A lane that is idle starts at once, with whatever is there: nothing waits for others to come.
    In a pass are requests of one model, oldest first, up to a bound of rows; models take turns.

    Args:
        passes: how many the lane runs at once.
        max_rows: of a pass; what alone has more is a pass of its own.
    """

    def __init__(self, passes: int, max_rows: int) -> None:
        self._free = passes
        self._max_rows = max_rows
        self._queues: dict[str, deque[Waiting]] = {}
        """By model, in the order of their turns; none is empty."""

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(queue) for queue in self._queues.values())

    def add(self, one: Waiting) -> None:
        """Let something wait."""
        self._queues.setdefault(one.model, deque()).append(one)

    def cancel(self, keys: Sequence[int]) -> None:
        """Forget what nobody wants any more, as far as it still waits."""
        gone = set(keys)
        for model in tuple(self._queues):
            self._keep(model, [one for one in self._queues[model] if one.key not in gone])

    def late(self, now: float) -> list[Waiting]:
        """Take out what waits past its deadline."""
        found = []
        for model in tuple(self._queues):
            queue = self._queues[model]
            late = [one for one in queue if one.deadline <= now]
            if late:
                found += late
                self._keep(model, [one for one in queue if one.deadline > now])
        return found

    def next(self) -> list[Waiting]:
        """The next pass, which `done` ends; nothing where the lane is busy, or nothing waits."""
        if not self._free or not self._queues:
            return []
        self._free -= 1
        model = next(iter(self._queues))
        queue = self._queues.pop(model)
        taken = [queue.popleft()]
        rows = taken[0].rows
        while queue and rows + queue[0].rows <= self._max_rows:
            rows += queue[0].rows
            taken.append(queue.popleft())
        if queue:
            self._queues[model] = queue  # behind the others
        return taken

    def done(self) -> None:
        """A pass has ended, or is not to keep others waiting any longer."""
        self._free += 1

    def _keep(self, model: str, left: list[Waiting]) -> None:
        if left:
            self._queues[model] = deque(left)
        else:
            del self._queues[model]
