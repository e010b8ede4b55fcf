"""Quantisation schemes: RLX's fifteen, and three GGUF formats that real files use beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlx_ray.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How a weight tensor is packed.

    Attributes:
        debug: Rust's Debug text, which enters the cache key.
        display: how RLX, configs and reports spell it.
        bits_x10: ten times the bits of one weight, rounded as RLX rounds.
        has_scale: scales are kept beside the packed weights.
        has_zero_point: so are zero points.
        is_gguf: the format is one of GGUF's blocks.
        gguf_block_size: weights in one GGUF block; 0 for others.
        gguf_block_bytes: bytes of one GGUF block; 0 for others.
    """

    debug: str
    display: str
    bits_x10: int
    has_scale: bool = False
    has_zero_point: bool = False
    is_gguf: bool = False
    gguf_block_size: int = 0
    gguf_block_bytes: int = 0

    def __str__(self) -> str:
        return self.display

    @property
    def text(self) -> str:
        """How JSON names it: the Debug text."""
        return self.debug

    @property
    def bits_per_weight(self) -> float:
        """Bits of one weight, to a tenth."""
        return self.bits_x10 / 10

    @classmethod
    def int8_block(cls, block: int) -> QuantScheme:
        """Symmetric int8 with one scale a block."""
        return cls(f"Int8Block {{ block_size: {block} }}", f"int8/{block}", 80, True)

    @classmethod
    def int8_block_asym(cls, block: int) -> QuantScheme:
        """Int8 with a scale and a zero point a block."""
        return cls(f"Int8BlockAsym {{ block_size: {block} }}", f"int8a/{block}", 80, True, True)

    @classmethod
    def int4_block(cls, block: int) -> QuantScheme:
        """Symmetric int4 with one scale a block."""
        return cls(f"Int4Block {{ block_size: {block} }}", f"int4/{block}", 40, True)

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """The scheme from its display or Debug text.

        Raises:
            ConfigError: no such scheme.
        """
        if text in _FIXED:
            return _FIXED[text]
        for pattern, make in _BLOCKS:
            found = pattern.match(text)
            if found:
                return make(int(found[1] or found[2]))
        names = [s.display for s in SCHEMES]
        raise ConfigError(
            f"quant scheme {text!r} is not known.", nearest(text, names) or f"Use one of {names}."
        )


def _gguf(name: str, bits_x10: int, size: int, nbytes: int) -> QuantScheme:
    display = f"gguf_{name.removeprefix('Gguf').lower()}"
    return QuantScheme(name, display, bits_x10, False, False, True, size, nbytes)


_PLAIN = (
    QuantScheme("Fp8E4m3", "fp8e4m3", 80),
    QuantScheme("Fp8E5m2", "fp8e5m2", 80),
    _gguf("GgufQ4K", 45, 256, 144),
    _gguf("GgufQ5K", 55, 256, 176),
    _gguf("GgufQ6K", 66, 256, 210),
    _gguf("GgufQ8K", 91, 256, 292),
    _gguf("GgufQ2K", 26, 256, 84),
    _gguf("GgufQ3K", 34, 256, 110),
    _gguf("GgufQ4_0", 45, 32, 18),
    _gguf("GgufQ8_0", 85, 32, 34),
    QuantScheme("Nvfp4Block", "nvfp4/16", 40, True),
)
EXTENSIONS = (
    _gguf("GgufQ4_1", 50, 32, 20),
    _gguf("GgufQ5_0", 55, 32, 22),
    _gguf("GgufQ5_1", 60, 32, 24),
)
"""Formats that RLX does not have; the texts are this project's own."""

SCHEMES: tuple[QuantScheme, ...] = (
    QuantScheme.int8_block(32),
    QuantScheme.int8_block(128),
    QuantScheme.int8_block_asym(64),
    QuantScheme.int4_block(32),
    *_PLAIN,
    *EXTENSIONS,
)
"""Every scheme, the block ones with their usual sizes."""

_FIXED = {text: s for s in (*_PLAIN, *EXTENSIONS) for text in (s.display, s.debug)}
_BLOCKS = tuple(
    (
        re.compile(
            rf"(?:{display}/([1-9][0-9]{{0,5}})|{rust} \{{ block_size: ([1-9][0-9]{{0,5}}) \}})\Z"
        ),
        make,
    )
    for display, rust, make in (
        ("int8", "Int8Block", QuantScheme.int8_block),
        ("int8a", "Int8BlockAsym", QuantScheme.int8_block_asym),
        ("int4", "Int4Block", QuantScheme.int4_block),
    )
)
