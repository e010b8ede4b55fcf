"""The queue of a lane, against what it promises, for any order of events."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlx_serve.gateway.batcher import Batcher, Waiting

MODELS = ("ann", "bob", "cat")
MAX_ROWS = 50


def waiting(key: int, model: str = "ann", rows: int = 10, deadline: float = 9.0) -> Waiting:
    return Waiting(key, model, rows, deadline)


def keys(taken: list[Waiting]) -> list[int]:
    return [one.key for one in taken]


def test_an_idle_lane_starts_at_once_and_what_gathers_is_next() -> None:
    lane = Batcher(1, MAX_ROWS)
    lane.add(waiting(0))
    assert keys(lane.next()) == [0]
    for key in range(1, 5):
        lane.add(waiting(key))
    assert lane.next() == []
    lane.done()
    assert keys(lane.next()) == [1, 2, 3, 4]
    assert len(lane) == 0


def test_a_pass_is_bounded_in_rows_and_large_ones_go_alone() -> None:
    lane = Batcher(3, MAX_ROWS)
    for key, rows in enumerate((30, 20, 1, 500, 10)):
        lane.add(waiting(key, rows=rows))
    assert keys(lane.next()) == [0, 1]
    assert keys(lane.next()) == [2]
    assert keys(lane.next()) == [3]
    assert lane.next() == []


def test_models_take_turns() -> None:
    lane = Batcher(9, 20)
    for key in range(6):
        lane.add(waiting(key, "ann"))
    lane.add(waiting(6, "bob"))
    assert [keys(lane.next()) for _ in range(4)] == [[0, 1], [6], [2, 3], [4, 5]]


def test_what_is_late_or_cancelled_is_not_run() -> None:
    lane = Batcher(1, MAX_ROWS)
    for key in range(4):
        lane.add(waiting(key, deadline=float(key)))
    lane.cancel([2, 99])
    assert keys(lane.late(1.0)) == [0, 1]
    assert keys(lane.next()) == [3]
    lane.done()
    lane.add(waiting(4))
    lane.cancel([4])
    assert (lane.next(), len(lane)) == ([], 0)


class Lane(RuleBasedStateMachine):
    """Everything that was added is taken, found late or cancelled once, in order, within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = Batcher(2, MAX_ROWS)
        self.left: list[Waiting] = []
        self.running = 0
        self.passed: Counter[str] = Counter()
        self.count = 0

    @rule(model=st.sampled_from(MODELS), rows=st.integers(1, 80), deadline=st.integers(0, 20))
    def add(self, model: str, rows: int, deadline: int) -> None:
        one = Waiting(self.count, model, rows, float(deadline))
        self.count += 1
        if model not in {other.model for other in self.left}:
            self.passed[model] = 0
        self.left.append(one)
        self.lane.add(one)

    @rule()
    def start(self) -> None:
        taken = self.lane.next()
        if self.running == 2 or not self.left:
            assert not taken
            return
        self.running += 1
        model = taken[0].model
        queue = [one for one in self.left if one.model == model]
        assert taken == queue[: len(taken)]
        assert len(taken) == 1 or sum(one.rows for one in taken) <= MAX_ROWS
        if len(taken) < len(queue):
            assert sum(one.rows for one in queue[: len(taken) + 1]) > MAX_ROWS
        self.left = [one for one in self.left if one not in taken]
        self.passed[model] = 0
        for other in {one.model for one in self.left} - {model}:
            self.passed[other] += 1
            assert self.passed[other] < len(MODELS)

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        self.running -= 1
        self.lane.done()

    @rule(now=st.integers(0, 20))
    def look(self, now: int) -> None:
        late = self.lane.late(now)
        assert sorted(keys(late)) == sorted(keys([o for o in self.left if o.deadline <= now]))
        self.left = [one for one in self.left if one.deadline > now]

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.left))
        self.lane.cancel([gone.key])
        self.left.remove(gone)

    @invariant()
    def counted(self) -> None:
        assert len(self.lane) == len(self.left)


TestLane = Lane.TestCase
TestLane.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
