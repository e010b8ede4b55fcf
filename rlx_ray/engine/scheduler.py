"""Which step comes next: a pure decision over the streams' states.

Streams join and leave between steps. A stream is admitted once the cache has pages for all that it
may hold at once, so none is thrown out later. That is its whole length or, where tokens see no
further than a window, the window and a step: pages behind the window are free for others. Prompts
are worked off in chunks; while streams are running, a chunk and a decode step take turns, and the
chunk is one that takes little longer than such a step, so that no running stream stalls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.engine.pages import NULL_PAGE, PagePool, block_hashes
from rlx_ray.errors import ConfigError, InputError
from rlx_ray.shape import PAGE, Symbol

STALL = 1.25
"""A chunk beside running streams may take this many times as long as a decode step."""


@dataclass(slots=True, eq=False)
class Stream:
    """One generation.

    Attributes:
        tokens: the prompt, then what has been generated.
        most: most tokens that `tokens` may have at the end.
        past: how many of them the cache holds.
        pages: its page table; NULL_PAGE stands for pages behind the window.
        hashed: how many of its pages are registered under their hashes.
        gone: how many of its first pages are NULL_PAGE.
    """

    tokens: list[int]
    most: int
    prompt: int = 0
    past: int = 0
    pages: list[int] = field(default_factory=list)
    hashed: int = 0
    gone: int = 0

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def left(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.tokens) - self.past

    @property
    def running(self) -> bool:
        """Whether its prompt is done and each step gives a token."""
        return self.left == 1 and self.past >= self.prompt


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: a variant, its streams, and how many tokens of each it takes."""

    variant: ModelVariant
    streams: tuple[Stream, ...]
    counts: tuple[int, ...]


def bound(variant: ModelVariant) -> int:
    """The most tokens that a stream may have after a step of a variant: its page table's reach."""
    past = dict(variant.dim_binding).get(Symbol.PAST_SEQ, 0)
    return -(-(past + variant.seq) // PAGE) * PAGE


class Scheduler:
    """The streams of one model.

    Args:
        variants: the model's prefill and decode variants.
        pages: of the cache.
        cost: seconds that a variant took lately; None where nobody knows.
        window: most tokens that a token sees, itself included; 0 for all.

    Raises:
        ConfigError: the variants cannot generate: a phase is missing.
    """

    def __init__(
        self,
        variants: Iterable[ModelVariant],
        pages: PagePool,
        cost: Callable[[ModelVariant], float | None],
        window: int = 0,
    ) -> None:
        known = sorted(set(variants), key=lambda v: (v.seq, v.batch, bound(v)))
        self._prefill = [v for v in known if v.phase is ModelPhase.PREFILL]
        self._decode = [v for v in known if v.phase is ModelPhase.DECODE and v.seq == 1]
        if not self._prefill or not self._decode:
            lacking = "decode rows with seq 1" if self._prefill else "prefill rows"
            raise ConfigError(
                f"the model's matrix has no {lacking}.", "Generating takes both phases."
            )
        self._pages = pages
        self._cost = cost
        self._window = window
        self._waiting: deque[Stream] = deque()
        self._active: list[Stream] = []
        self._turn = 0
        self._decoded_last = True

    @property
    def context(self) -> int:
        """The most tokens of a stream: prompt and answer."""
        whole = max(bound(v) for v in self._decode)
        enough = self._at_once(whole) <= self._pages.count
        return whole if enough else min(whole, self._pages.count * PAGE)

    @property
    def counts(self) -> tuple[int, int]:
        """Streams that are waiting for pages, and admitted ones."""
        return len(self._waiting), len(self._active)

    def add(self, stream: Stream) -> None:
        """Queue a stream.

        Raises:
            InputError: it has no tokens, or could outgrow the context.
        """
        if not stream.tokens:
            raise InputError("the prompt has no tokens.", "Send at least one.")
        if stream.most > self.context:
            raise InputError(
                f"the prompt's {stream.prompt} tokens and {stream.most - stream.prompt} new ones "
                f"are more than the context of {self.context}.",
                "Shorten the prompt or lower max_tokens.",
            )
        self._waiting.append(stream)

    def remove(self, stream: Stream) -> None:
        """Take a stream out and free its pages; nothing happens if it is out already."""
        if stream in self._waiting:
            self._waiting.remove(stream)
        if stream in self._active:
            self._active.remove(stream)
            self._pages.release(stream.pages)
            stream.pages = []

    def next_step(self) -> Step | None:
        """What to run now; None if there is nothing to do."""
        self._admit()
        step = self._choose()
        if step is not None:
            for stream, count in zip(step.streams, step.counts, strict=True):
                self._extend(stream, stream.past + count)
        return step

    def _choose(self) -> Step | None:
        running = [s for s in self._active if s.running]
        starting = [s for s in self._active if not s.running]
        if starting and (not running or self._decoded_last):
            self._decoded_last = False
            return self._chunk(starting[0], running)
        if running:
            self._decoded_last = True
            return self._decode_step(running)
        return None

    def done(self, step: Step, tokens: Sequence[int | None]) -> None:
        """Take a step's results in.

        Args:
            step: as `next_step` gave it.
            tokens: for each of its streams the token that follows; None where its prompt goes on
                or it has ended.
        """
        for stream, count, token in zip(step.streams, step.counts, tokens, strict=True):
            stream.past += count
            full = stream.past // PAGE
            if full > stream.hashed and stream.pages:
                hashes = block_hashes(stream.tokens[: full * PAGE])
                for i in range(stream.hashed, full):
                    self._pages.register(stream.pages[i], hashes[i])
                stream.hashed = full
            self._leave(stream)
            if token is not None:
                stream.tokens.append(token)

    def _admit(self) -> None:
        """Give pages to the first in the queue while there are enough; nobody overtakes."""
        while self._waiting:
            stream = self._waiting[0]
            # One token at least is left to compute: its logits are wanted.
            hashes = block_hashes(stream.tokens[:-1])
            shared = self._pages.find(hashes, lambda count: self._unseen(count * PAGE))
            taken = self._reserve(stream, shared)
            if taken is None:
                self._pages.release(shared)
                return
            self._waiting.popleft()
            stream.pages = shared + taken
            stream.hashed = len(shared)
            stream.past = len(shared) * PAGE
            stream.gone = self._unseen(stream.past)
            self._active.append(stream)

    def _reserve(self, stream: Stream, shared: list[int]) -> list[int] | None:
        """The pages behind its shared ones that a stream begins with; None if it has to wait.

        A fixed stream begins with all that it will hold. One that moves on takes pages step by
        step, so those that it may hold at once are kept free for it, shared or not: what it leaves
        to another that shares it does not come back.
        """
        moving = [s for s in (*self._active, stream) if not self._fixed(s)]
        tables = [s.pages for s in self._active if self._fixed(s)]
        rest = 0
        if self._fixed(stream):
            tables.append(shared)
            rest = -(-stream.most // PAGE) - len(shared)
        kept = {page for table in tables for page in table} - {NULL_PAGE}
        most = len(kept) + rest + sum(self._at_once(s.most) for s in moving)
        return self._pages.acquire(rest) if most <= self._pages.count else None

    def _fixed(self, stream: Stream) -> bool:
        """Whether a stream may hold its whole length at once."""
        return self._at_once(stream.most) == -(-stream.most // PAGE)

    def _at_once(self, tokens: int) -> int:
        """The most pages that a stream of `tokens` tokens holds in one step."""
        whole = -(-tokens // PAGE)
        if not self._window:
            return whole
        step = max(v.seq for v in self._prefill)
        return min(whole, (self._window + step - 2) // PAGE + 2)

    def _unseen(self, past: int) -> int:
        """How many first pages hold only tokens that those from `past` on do not see."""
        return max(0, past + 1 - self._window) // PAGE if self._window else 0

    def _extend(self, stream: Stream, tokens: int) -> None:
        """Give a stream pages for `tokens` tokens; there are as many, by `_reserve`."""
        taken = self._pages.acquire(max(0, -(-tokens // PAGE) - len(stream.pages)))
        assert taken is not None, stream
        stream.pages += taken

    def _leave(self, stream: Stream) -> None:
        """Free the pages behind a stream's window."""
        gone = min(self._unseen(stream.past), len(stream.pages))
        self._pages.release(stream.pages[stream.gone : gone])
        stream.pages[stream.gone : gone] = [NULL_PAGE] * (gone - stream.gone)
        stream.gone = max(gone, stream.gone)

    def _chunk(self, stream: Stream, running: Sequence[Stream]) -> Step:
        fitting = [v for v in self._prefill if bound(v) > stream.past]
        if not fitting:
            return self._by_decode(stream)
        if running:
            fitting = self._short(fitting, running)
        # The smallest that takes all that is left, else the largest.
        reach = [(v, min(stream.left, v.seq, bound(v) - stream.past)) for v in fitting]
        whole = [r for r in reach if r[1] == stream.left]
        most = max(count for _, count in reach)
        variant, count = whole[0] if whole else next(r for r in reach if r[1] == most)
        return Step(variant, (stream,), (count,))

    def _by_decode(self, stream: Stream) -> Step:
        """A prompt beyond the reach of every prefill variant goes token by token."""
        fitting = [v for v in self._decode if bound(v) > stream.past]
        return Step(min(fitting, key=bound), (stream,), (1,))

    def _short(self, fitting: list[ModelVariant], running: Sequence[Stream]) -> list[ModelVariant]:
        """The variants that do not stall running streams; the shortest where none is known to."""
        usual = self._cost(self._decode_for(running))
        shortest = min(fitting, key=lambda v: (v.batch * v.seq, bound(v)))
        if usual is None:
            return [shortest]
        kept = [v for v in fitting if (c := self._cost(v)) is not None and c <= STALL * usual]
        return kept or [shortest]

    def _decode_for(self, streams: Sequence[Stream]) -> ModelVariant:
        longest = max(s.past for s in streams) + 1
        fitting = [v for v in self._decode if bound(v) >= longest]
        enough = [v for v in fitting if v.batch >= len(streams)]
        if enough:
            return min(enough, key=lambda v: (v.batch, bound(v)))
        return max(fitting, key=lambda v: (v.batch, -bound(v)))

    def _decode_step(self, running: Sequence[Stream]) -> Step:
        """One token for as many running streams as a variant takes, in turn."""
        first = self._turn % len(running)
        ordered = [*running[first:], *running[:first]]
        variant = self._decode_for(ordered)
        chosen = tuple(ordered[: variant.batch])
        self._turn = first + len(chosen)
        return Step(variant, chosen, (1,) * len(chosen))
