"""Model variants: a phase with the sizes that a model is compiled for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from rlx_ray.errors import ConfigError, nearest
from rlx_ray.rust_hash import U64, RustHasher

BATCH, SEQ, ROWS, PAST_SEQ = 0, 1, 2, 3
"""Symbols of a dim binding that RLX defines."""

FIRST_OWN = 16
"""The first symbol of this project's own."""


class ModelPhase(Enum):
    """What a variant is for; the value is the Rust name, the order gives the discriminant."""

    PREFILL = "Prefill"
    DECODE = "Decode"
    ENCODER = "Encoder"
    INFERENCE = "Inference"

    @property
    def discriminant(self) -> int:
        """The Rust discriminant."""
        return list(type(self)).index(self)

    @property
    def spelling(self) -> str:
        """How configs and variant texts spell it: `encoder`."""
        return self.value.lower()

    @classmethod
    def parse(cls, text: str) -> ModelPhase:
        """The phase from its Rust name or its spelling.

        Raises:
            ConfigError: no such phase.
        """
        for one in cls:
            if text in (one.value, one.spelling):
                return one
        names = [one.spelling for one in cls]
        raise ConfigError(
            f"phase {text!r} is not known.", nearest(text, names) or f"Use one of {names}."
        )


_PART = re.compile(r"(?:([bsp])(\d+)|x(\d+)=(\d+))\Z")


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One specialisation of a model.

    Attributes:
        phase: what it is for.
        batch: sequences at once.
        seq: tokens of each.
        past_seq: bound on tokens already in the cache; None for none.
        extra: more (symbol, size) bindings, in the order in which they count in the key.
    """

    phase: ModelPhase
    batch: int
    seq: int
    past_seq: int | None = None
    extra: tuple[tuple[int, int], ...] = ()

    @classmethod
    def prefill(cls, batch: int, seq: int) -> ModelVariant:
        """A prompt of up to `seq` tokens."""
        return cls(ModelPhase.PREFILL, batch, seq)

    @classmethod
    def decode(cls, batch: int, past_seq: int, seq: int = 1) -> ModelVariant:
        """`seq` new tokens after up to `past_seq` cached ones."""
        return cls(ModelPhase.DECODE, batch, seq, past_seq)

    @classmethod
    def encoder(cls, batch: int, seq: int) -> ModelVariant:
        """A padded batch of an encoder."""
        return cls(ModelPhase.ENCODER, batch, seq)

    @classmethod
    def inference(cls, batch: int, seq: int) -> ModelVariant:
        """One forward pass of any other model."""
        return cls(ModelPhase.INFERENCE, batch, seq)

    def with_extra(self, symbol: int, size: int) -> ModelVariant:
        """The same variant with one more binding at the end."""
        return replace(self, extra=(*self.extra, (symbol, size)))

    @property
    def key(self) -> int:
        """RLX's variant key, a u64."""
        hasher = RustHasher()
        hasher.u64(self.phase.discriminant)
        hasher.u64(self.batch)
        hasher.u64(self.seq)
        hasher.u64(0 if self.past_seq is None else 1)
        if self.past_seq is not None:
            hasher.u64(self.past_seq)
        for symbol, size in self.extra:
            hasher.u32(symbol)
            hasher.u64(size)
        return hasher.finish()

    @property
    def dim_binding(self) -> tuple[tuple[int, int], ...]:
        """(symbol, size) pairs sorted by symbol; extras override.

        ROWS is bound when batch > 1 outside Decode, PAST_SEQ in Decode, as RLX does.
        """
        binding = {BATCH: self.batch, SEQ: self.seq}
        decode = self.phase is ModelPhase.DECODE
        if self.batch > 1 and not decode:
            binding[ROWS] = self.batch * self.seq & U64
        if decode and self.past_seq is not None:
            binding[PAST_SEQ] = self.past_seq
        binding.update(self.extra)
        return tuple(sorted(binding.items()))

    def __str__(self) -> str:
        parts = [self.phase.spelling, f"b{self.batch}", f"s{self.seq}"]
        if self.past_seq is not None:
            parts.append(f"p{self.past_seq}")
        return ":".join([*parts, *(f"x{symbol}={size}" for symbol, size in self.extra)])

    @classmethod
    def parse(cls, text: str) -> ModelVariant:
        """The variant that a text such as `encoder:b8:s128` or `decode:b1:s1:p512` names.

        Raises:
            ConfigError: the text names no variant.
        """
        phase, *parts = text.split(":")
        sizes: dict[str, int] = {}
        extra: list[tuple[int, int]] = []
        for part in parts:
            found = _PART.match(part)
            letter = found[1] if found else None
            if found is None or (letter and (letter in sizes or extra)):
                raise _bad_text(text, f"part {part!r} is not understood")
            if letter:
                sizes[letter] = int(found[2])
            else:
                extra.append((int(found[3]), int(found[4])))
        if "b" not in sizes or "s" not in sizes:
            raise _bad_text(text, "it lacks the batch or the seq")
        if any(not 1 <= size <= U64 for size in (*sizes.values(), *(s for _, s in extra))):
            raise _bad_text(text, "every size is at least 1")
        return cls(ModelPhase.parse(phase), sizes["b"], sizes["s"], sizes.get("p"), tuple(extra))


def _bad_text(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"variant {text!r} cannot be read: {why}.",
        "Write it as encoder:b8:s128, decode:b1:s1:p512, or with extras :x2=1024.",
    )
