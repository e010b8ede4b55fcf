"""Pages of the key-value cache: who holds which, and which hold a beginning that comes again.

A page's content is named by the chain of all tokens up to its end, so that two prompts that begin
alike share their full pages. A page that nobody holds keeps its name until it is needed for other
tokens; the least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from rlx_ray.shape import PAGE

GONE = -1
"""In a page table: a page that nothing reads any more."""


class PagePool:
    """Page numbers from 0; no thread safety, no memory: only the book-keeping.

    Args:
        count: how many pages there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._unnamed = list(range(count - 1, -1, -1))
        self._held: dict[int, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._unnamed) + len(self._idle)

    def find(
        self, names: Sequence[bytes], unseen: Callable[[int], int] = lambda count: 0
    ) -> list[int]:
        """The pages of the longest known beginning of a chain of names, now held once more.

        Args:
            names: of the chain.
            unseen: how many of the first pages of a beginning of so many nothing will read: they
                need not be known, are not held, and are GONE in the answer.
        """
        longest = run = 0
        for count, name in enumerate(names, 1):
            run = run + 1 if name in self._named else 0
            if run >= count - unseen(count):
                longest = count
        first = unseen(longest)
        found = [self._named[name] for name in names[first:longest]]
        for page in found:
            self._idle.pop(page, None)
            self._held[page] = self._held.get(page, 0) + 1
        return [GONE] * first + found

    def take(self, count: int) -> list[int] | None:
        """New pages, held once; None if there are not so many free."""
        if count > self.free:
            return None
        taken = []
        for _ in range(count):
            if self._unnamed:
                page = self._unnamed.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._named[self._name_of.pop(page)]
            self._held[page] = 1
            taken.append(page)
        return taken

    def name(self, page: int, name: bytes) -> None:
        """Say what a held page holds; where another page holds the same, that one stays known."""
        if name not in self._named and page not in self._name_of:
            self._named[name] = page
            self._name_of[page] = name

    def give(self, pages: Sequence[int]) -> None:
        """Hold pages once less. The last of a chain goes idle first, so that beginnings stay."""
        for page in reversed([p for p in pages if p != GONE]):
            self._held[page] -= 1
            if self._held[page]:
                continue
            del self._held[page]
            if page in self._name_of:
                self._idle[page] = None
            else:
                self._unnamed.append(page)


def chain(tokens: Sequence[int]) -> list[bytes]:
    """The names of the full pages of some tokens: each covers all tokens up to its page's end."""
    names = []
    last = b""
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        part = b"".join(t.to_bytes(4, "little") for t in tokens[start : start + PAGE])
        last = blake2b(last + part, digest_size=16).digest()
        names.append(last)
    return names
