"""Model variants: a phase with the sizes that a model is compiled for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rlx_ray.component import reader
from rlx_ray.component.rust_enum import RustEnum
from rlx_ray.component.rust_hash import U32, U64, RustHasher
from rlx_ray.errors import ConfigError
from rlx_ray.shape import Symbol


class ModelPhase(RustEnum):
    """What a variant is for; the value is the Rust name, the order gives the discriminant."""

    PREFILL = "Prefill"
    DECODE = "Decode"
    ENCODER = "Encoder"
    INFERENCE = "Inference"

    @classmethod
    def what(cls) -> str:
        """What a member is called in messages."""
        return "phase"


_SIZES = {"b": "batch", "s": "seq", "p": "past_seq"}
_NUMBER = r"[1-9][0-9]{0,19}"
_PART = re.compile(rf"([bsp])({_NUMBER})|x(0|[1-9][0-9]{{0,9}})=({_NUMBER})")


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

    def __post_init__(self) -> None:
        reader.whole(self.batch, "variant.batch")
        reader.whole(self.seq, "variant.seq")
        if self.past_seq is not None:
            reader.whole(self.past_seq, "variant.past_seq")
        for i, pair in enumerate(self.extra):
            if len(pair) != 2:
                raise ConfigError(f"variant.extra[{i}] is {pair!r}.", "It is (symbol, size).")
            reader.whole(pair[0], f"variant.extra[{i}][0]", most=U32)
            reader.whole(pair[1], f"variant.extra[{i}][1]")

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
        plain = symbol.value if isinstance(symbol, Symbol) else symbol
        return replace(self, extra=(*self.extra, (plain, size)))

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
        binding = {Symbol.BATCH.value: self.batch, Symbol.SEQ.value: self.seq}
        decode = self.phase is ModelPhase.DECODE
        if self.batch > 1 and not decode:
            binding[Symbol.ROWS.value] = self.batch * self.seq & U64
        if decode and self.past_seq is not None:
            binding[Symbol.PAST_SEQ.value] = self.past_seq
        binding.update(self.extra)
        return tuple(sorted(binding.items()))

    @property
    def ragged_rows(self) -> int | None:
        """The most token rows of a ragged encoder variant; None for a padded one."""
        return dict(self.extra).get(Symbol.ROWS) if self.phase is ModelPhase.ENCODER else None

    def __str__(self) -> str:
        parts = [self.phase.spelling, f"b{self.batch}", f"s{self.seq}"]
        if self.past_seq is not None:
            parts.append(f"p{self.past_seq}")
        return ":".join([*parts, *(f"x{symbol}={size}" for symbol, size in self.extra)])

    @classmethod
    def parse(cls, text: str) -> ModelVariant:
        """The variant that a text such as `encoder:b8:s128` or `decode:b1:s1:p512` names.

        Exactly the texts that `str` gives are taken: fields in the order b, s, p, x, numbers of
        at least 1 without leading zeros.

        Raises:
            ConfigError: the text names no variant.
        """
        spelling, *parts = text.split(":")
        phase = reader.named(ModelPhase.parse, spelling, f"variant {text!r}")
        if spelling != phase.spelling:
            raise _bad_text(text, f"phase {spelling!r} is spelt {phase.spelling!r}")
        sizes: dict[str, int] = {}
        extra: list[tuple[int, int]] = []
        for part in parts:
            found = _PART.fullmatch(part)
            if found is None or (found[1] and (extra or found[1] != "bsp"[len(sizes) :][:1])):
                raise _bad_text(text, f"{part[:30]!r} {_hint(part)}")
            if found[1]:
                sizes[found[1]] = int(found[2])
            else:
                extra.append((int(found[3]), int(found[4])))
        _check_sizes(text, phase, sizes)
        return cls(phase, sizes["b"], sizes["s"], sizes.get("p"), tuple(extra))


def _hint(part: str) -> str:
    name = _SIZES.get(part[:1])
    if name and re.fullmatch(_NUMBER, part[1:]):
        return f"({name}) is not in its place"
    if name:
        return f"is no {name}, a whole number of at least 1"
    return "is not understood"


def _check_sizes(text: str, phase: ModelPhase, sizes: dict[str, int]) -> None:
    for letter in ("b", "s"):
        if letter not in sizes:
            raise _bad_text(text, f"it lacks the {_SIZES[letter]}")
    if phase is ModelPhase.DECODE and "p" not in sizes:
        raise _bad_text(text, "decode needs a past_seq")
    # RLX binds no past_seq in these phases: the text would promise what is not compiled.
    if phase in (ModelPhase.PREFILL, ModelPhase.ENCODER) and "p" in sizes:
        raise _bad_text(text, f"{phase.spelling} has no past_seq; a chunk's bound is :x3=")


def _bad_text(text: str, why: str) -> ConfigError:
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return ConfigError(
        f"variant {shown!r} cannot be read: {why}.",
        "Write it as encoder:b8:s128, decode:b1:s1:p512, or with extras :x2=1024.",
    )
