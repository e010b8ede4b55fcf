"""Pages of the key-value cache: who holds which, and which hold a beginning that comes again.

A full page is known by its block hash, which covers all tokens up to its end, so that two prompts
that begin alike share their full pages. A page that nobody holds keeps its hash until it is needed
for other tokens; the least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from rlx_ray.shape import PAGE

NULL_PAGE = -1
"""In a page table: a page that nothing reads any more."""


class PagePool:
    """Page numbers from 0; no thread safety, no memory: only the book-keeping.

    Args:
        count: how many pages there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._unhashed = list(range(count - 1, -1, -1))
        self._held: dict[int, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._unhashed) + len(self._idle)

    def find(
        self, hashes: Sequence[bytes], unseen: Callable[[int], int] = lambda count: 0
    ) -> list[int]:
        """The pages of the longest known beginning of some block hashes, now held once more.

        Args:
            hashes: of a sequence's full pages, in order.
            unseen: how many of the first pages of a beginning of n nothing will read: they need
                not be known, are not held, and are NULL_PAGE in the answer.
        """
        longest = run = 0
        for count, block in enumerate(hashes, 1):
            run = run + 1 if block in self._by_hash else 0
            if run >= count - unseen(count):
                longest = count
        first = unseen(longest)
        found = [self._by_hash[block] for block in hashes[first:longest]]
        for page in found:
            self._idle.pop(page, None)
            self._held[page] = self._held.get(page, 0) + 1
        return [NULL_PAGE] * first + found

    def acquire(self, count: int) -> list[int] | None:
        """`count` new pages, held once; None if fewer are free."""
        if count > self.free:
            return None
        taken = []
        for _ in range(count):
            if self._unhashed:
                page = self._unhashed.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._by_hash[self._hash_of.pop(page)]
            self._held[page] = 1
            taken.append(page)
        return taken

    def register(self, page: int, block: bytes) -> None:
        """Say what a held page holds; where another page holds the same, that one stays known."""
        if block not in self._by_hash and page not in self._hash_of:
            self._by_hash[block] = page
            self._hash_of[page] = block

    def release(self, pages: Sequence[int]) -> None:
        """Hold pages once less. The last of a sequence goes idle first, so that beginnings stay."""
        for page in reversed([p for p in pages if p != NULL_PAGE]):
            self._held[page] -= 1
            if self._held[page]:
                continue
            del self._held[page]
            if page in self._hash_of:
                self._idle[page] = None
            else:
                self._unhashed.append(page)


def block_hashes(tokens: Sequence[int]) -> list[bytes]:
    """The hashes of the full pages of some tokens: each covers all tokens up to its page's end."""
    hashes = []
    last = b""
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        part = b"".join(t.to_bytes(4, "little") for t in tokens[start : start + PAGE])
        last = blake2b(last + part, digest_size=16).digest()
        hashes.append(last)
    return hashes
