"""Rust's DefaultHasher, byte for byte: SipHash-1-3 with a zero key over what `Hash` impls write.

Numbers are little-endian, `usize` and `isize` have 64 bits, a `str` is its UTF-8 bytes and 0xff.
Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
"""

from __future__ import annotations

import siphash24

U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
"""The largest values of their types."""


class RustHasher:
    """Collects what a Rust `Hash` implementation writes; `finish` gives the u64."""

    def __init__(self) -> None:
        self._hasher = siphash24.siphash13(key=bytes(16))

    def u8(self, value: int) -> None:
        """Write one byte."""
        self._hasher.update(value.to_bytes(1, "little"))

    def u32(self, value: int) -> None:
        """Write four bytes."""
        self._hasher.update(value.to_bytes(4, "little"))

    def u64(self, value: int) -> None:
        """Write eight bytes; also for `usize` and enum discriminants."""
        self._hasher.update(value.to_bytes(8, "little"))

    def text(self, value: str) -> None:
        """Write a string."""
        self._hasher.update(value.encode() + b"\xff")

    def finish(self) -> int:
        """The hash of all that was written, as a u64."""
        digest: bytes = self._hasher.digest()
        return int.from_bytes(digest, "little")
