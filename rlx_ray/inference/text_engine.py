"""Text generation: which variants an engine runs, its cache, and the engine itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.engine.detokenizer import Decode
from rlx_ray.engine.generator import Decoder, Engine
from rlx_ray.errors import ConfigError
from rlx_ray.inference.catalog import OpenModel
from rlx_ray.runtime.executable import Cache

PHASES = (ModelPhase.PREFILL, ModelPhase.DECODE)
"""Phases of the variants that generate text."""


def generating(variants: Iterable[ModelVariant]) -> tuple[ModelVariant, ...]:
    """Those of some variants that generate text, each once, in order."""
    return tuple(dict.fromkeys(v for v in variants if v.phase in PHASES))


def cache_pages(nbytes: int, page: int, setting: str) -> int:
    """How many pages of a key-value cache some bytes hold.

    Args:
        nbytes: of the cache, at most.
        page: bytes of a page of the model's variants; 0 if they have no cache.
        setting: what says `nbytes`, for the message.

    Raises:
        ConfigError: not one.
    """
    pages = nbytes // page if page else 0
    if not pages:
        raise ConfigError(f"{setting} is {nbytes}, too few for a page of {page}.", "Raise it.")
    return pages


def make_engine(
    model: OpenModel,
    variants: Iterable[ModelVariant],
    load: Callable[[ModelVariant], Decoder],
    decode: Decode,
    cache: Cache,
) -> Engine:
    """The engine of a model.

    Args:
        model: the model.
        variants: its prefill and decode variants.
        load: gives a variant's executable; runs in the engine's thread.
        decode: token ids to text.
        cache: of `make_cache` of one of the variants.
    """
    info = model.info
    return Engine(tuple(variants), load, decode, cache, info.vocab, info.window)
