"""Which step comes next, and on which pages: the scheduler's decisions without a model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.component import ModelVariant
from rlx_ray.engine.pages import NULL_PAGE, PagePool, block_hashes
from rlx_ray.engine.scheduler import Scheduler, Step, Stream, bound
from rlx_ray.errors import ConfigError, InputError
from rlx_ray.shape import PAGE
from tests.support.specs import TEXT_VARIANTS


def scheduler(pages: int = 64, cost=None, window: int = 0) -> Scheduler:
    return Scheduler(TEXT_VARIANTS, PagePool(pages), cost or (lambda v: None), window)


def stream(tokens: int, new: int, first: int = 0) -> Stream:
    return Stream([first + i for i in range(tokens)], tokens + new)


def advance(s: Scheduler, step: Step) -> None:
    """Take a step as a model would that always says 7."""
    ends = [count == one.left for one, count in zip(step.streams, step.counts, strict=True)]
    s.done(step, [7 if e else None for e in ends])
    for one in step.streams:
        if len(one.tokens) >= one.most:
            s.remove(one)


class Cache:
    """What pages hold: for each slot the beginning of a text that its keys and values are of."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.slots: dict[tuple[int, int], int] = {}
        self.beginnings: dict[tuple[int, int], int] = {}

    def run(self, step: Step) -> None:
        """Write what a step's tokens leave, then read all that they see."""
        texts = [self._beginnings(one.tokens) for one in step.streams]
        places = zip(step.streams, step.counts, texts, strict=True)
        new = [(one, range(one.past, one.past + count), text) for one, count, text in places]
        for one, tokens, text in new:
            for t in tokens:
                page = one.pages[t // PAGE]
                assert page != NULL_PAGE
                self.slots[page, t % PAGE] = text[t]
        for one, tokens, text in new:
            first = max(0, tokens.start + 1 - self.window) if self.window else 0
            for t in range(first, tokens.stop):
                assert self.slots[one.pages[t // PAGE], t % PAGE] == text[t]

    def _beginnings(self, tokens: list[int]) -> list[int]:
        """A number for each beginning; equal ones have equal numbers."""
        numbers, last = [], -1
        for token in tokens:
            last = self.beginnings.setdefault((last, token), len(self.beginnings))
            numbers.append(last)
        return numbers


def check_step(step: Step) -> None:
    """Every step fits its variant and its streams' pages."""
    assert 1 <= len(step.streams) <= step.variant.batch
    assert len(set(map(id, step.streams))) == len(step.streams)
    for one, count in zip(step.streams, step.counts, strict=True):
        assert 1 <= count <= min(step.variant.seq, one.left)
        assert one.past + count <= min(bound(step.variant), len(one.pages) * PAGE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2)), max_size=12),
    st.integers(11, 40),
    st.lists(st.integers(0, 11), max_size=4),
    st.sampled_from((0, 0, 1, 20, 33, 64, 150, 400)),
)
def test_every_stream_ends_and_all_pages_come_back(streams, pages, cancelled, window) -> None:
    s, cache = scheduler(pages, window=window), Cache(window)
    made = [stream(n, new, first) for n, new, first in streams]
    for one in made:
        s.add(one)
    gone = [made[i] for i in cancelled if i < len(made)]
    for number in range(4000):
        step = s.next_step()
        if step is None:
            break
        check_step(step)
        cache.run(step)
        advance(s, step)
        if gone and number % 5 == 0:
            s.remove(gone.pop())
    assert s.next_step() is None
    assert s.counts == (0, 0)
    assert s._pages.free == pages
    assert all(len(one.tokens) <= one.most for one in made)


def test_equal_beginnings_share_pages_and_are_computed_once() -> None:
    s = scheduler()
    first, second = stream(100, 5), stream(100, 5)
    s.add(first)
    while (step := s.next_step()) is not None:
        advance(s, step)
    s.add(second)
    step = s.next_step()
    assert step is not None
    assert second.past == 96
    assert step.counts == (4,)
    whole = stream(96, 5)
    s.add(whole)
    assert s.next_step() is not None
    assert whole.past == 64, "the last prompt token's logits are wanted"


def run_all(s: Scheduler, cache: Cache) -> int:
    """Run every stream to its end; the most that were admitted at once."""
    most = 0
    while (step := s.next_step()) is not None:
        cache.run(step)
        most = max(most, s.counts[1])
        advance(s, step)
    return most


def test_pages_behind_the_window_are_free_for_others() -> None:
    """A stream of 500 tokens holds four pages at once: a window of 32 and a chunk of up to 64."""
    s = scheduler(8, window=32)
    for i in range(4):
        s.add(stream(400, 100, 1000 * i))
    assert run_all(s, Cache(32)) == 2
    assert s._pages.free == 8
    assert s.context == 512
    assert scheduler(8).context == 8 * PAGE
    assert scheduler(3, window=32).context == 3 * PAGE


def test_what_streams_within_their_window_share_counts_once() -> None:
    for window in (0, 200):
        s, cache = scheduler(8, window=window), Cache(window)
        s.add(stream(100, 30))
        while (step := s.next_step()) is not None and step.variant.seq > 1:
            cache.run(step)
            advance(s, step)
        s.add(stream(100, 30))
        assert run_all(s, cache) == 2


def test_a_beginning_is_shared_as_far_as_the_window_reads_it() -> None:
    s, cache = scheduler(10, window=40), Cache(40)
    s.add(stream(300, 5))
    run_all(s, cache)
    s.add(stream(100, 5, 1000))
    run_all(s, cache)
    again = stream(300, 5)
    assert s._pages.find(block_hashes(again.tokens)[:1]) == [], "its page serves the other text"
    s.add(again)
    step = s.next_step()
    assert step is not None
    assert again.past == 288
    assert again.pages[:7] == [NULL_PAGE] * 7
    assert NULL_PAGE not in again.pages[7:]
    cache.run(step)


def test_a_beginning_may_lack_what_nothing_reads() -> None:
    pool = PagePool(4)
    taken = pool.acquire(4)
    assert taken is not None
    for page, name in zip(taken, (b"a", b"b", b"c", b"d"), strict=True):
        pool.register(page, name)
        pool.release([page])
    pool.acquire(1)
    names = [b"a", b"b", b"c", b"d", b"e"]
    assert pool.find(names) == []
    assert pool.find(names, lambda count: max(0, count - 2)) == [NULL_PAGE, NULL_PAGE, *taken[2:]]
    assert pool.find(names, lambda count: max(0, count - 4)) == []
    assert pool.free == 1


def test_a_page_is_not_reused_while_somebody_holds_it() -> None:
    pool = PagePool(4)
    taken = pool.acquire(3)
    assert taken is not None
    pool.register(taken[0], b"a")
    assert pool.find([b"a", b"b"]) == [taken[0]]
    pool.release(taken)
    assert pool.free == 3
    assert pool.acquire(4) is None
    assert pool.find([b"a"]) == [taken[0]]
    pool.release([taken[0]])
    pool.release([taken[0]])
    assert pool.acquire(4) is not None
    assert pool.find([b"a"]) == []


def test_block_hashes_depend_on_all_that_came_before() -> None:
    one, two = block_hashes([1] * 64), block_hashes([2] + [1] * 63)
    assert len(one) == 2
    assert not set(one) & set(two)
    assert block_hashes([1] * 63) == one[:1]


def test_prefill_and_decode_take_turns_and_chunks_do_not_stall() -> None:
    costs = dict.fromkeys(TEXT_VARIANTS, 1.0) | {TEXT_VARIANTS[1]: 9.0, TEXT_VARIANTS[0]: 1.5}
    s = scheduler(cost=costs.get)
    for i in range(3):
        s.add(stream(10, 50, 100 * i))
    for _ in range(3):
        step = s.next_step()
        assert step is not None
        advance(s, step)
    s.add(stream(200, 5, 1000))
    kinds = []
    for _ in range(24):
        step = s.next_step()
        assert step is not None
        kinds.append(step.variant)
        advance(s, step)
    assert ModelVariant.prefill(1, 64) not in kinds, "it takes nine times a decode step"
    chunks = [i for i, v in enumerate(kinds) if v.phase.spelling == "prefill"]
    assert chunks
    assert all(b - a >= 2 for a, b in pairwise(chunks))


def test_nobody_overtakes_a_long_stream_that_waits_for_pages() -> None:
    s = scheduler(pages=8)
    running, long, short = stream(100, 100), stream(200, 50, 500), stream(3, 3, 900)
    for one in (running, long, short):
        s.add(one)
    step = s.next_step()
    assert step is not None
    assert step.streams == (running,)
    assert s.counts == (2, 1)
    s.remove(running)
    s.next_step()
    assert s.counts == (1, 1)


def test_what_exceeds_the_context_is_refused_with_both_numbers() -> None:
    s = scheduler()
    assert s.context == 512
    with pytest.raises(InputError, match=r"500 tokens and 13 new .* context of 512"):
        s.add(stream(500, 13))
    assert scheduler(pages=4).context == 128
    with pytest.raises(ConfigError, match="no decode rows"):
        Scheduler(TEXT_VARIANTS[:3], PagePool(4), lambda v: None)
