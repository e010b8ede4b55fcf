"""Configs and checkpoints for the serving tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.host import this_host
from tests.support.tiny import write_tiny_bert

TINY_MATRIX = ({"phase": "encoder", "batch": [1, 4], "seq": [8, 16]},)
"""Four variants; the largest takes 16 tokens, the tiny models' limit is 48."""


def tiny_model(folder: Path, name: str, seed: int, **fields: Any) -> dict[str, Any]:
    """A model entry of a config, with its checkpoint written below the folder."""
    source = folder / name
    if not source.exists():
        write_tiny_bert(source, seed=seed)
    entry = {"name": name, "family": "bert", "source": str(source), "mode": "lazy"}
    return {**entry, "matrix": list(TINY_MATRIX), **fields}


def write_config(
    folder: Path, models: Sequence[dict[str, Any]], *, name: str = "rlx", **serve: Any
) -> Config:
    """Write a config with a store and a cache of its own, and read it; `host` is the processor."""
    path = folder / f"{name}.yaml"
    value = {
        "store": {"url": f"file://{folder}/{name}-store", "cache_dir": f"{folder}/{name}-cache"},
        "targets": ["host"],
        "models": list(models),
        "serve": {"threads": 1, **serve},
    }
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return load(path, host=this_host)
