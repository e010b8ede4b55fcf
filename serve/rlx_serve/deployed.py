"""What an application serves of each model: decided when it is deployed, the same in every replica.

A checkpoint may be overwritten while replicas run, and one of them may start anew. It serves what
was deployed, from the packed weights in the store, or it refuses; never something else under one
name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import CheckpointError, StoreError
from rlx_ray.inference.catalog import OpenModel
from rlx_ray.store import HostCache

_log = logging.getLogger("rlx_serve")


@dataclass(frozen=True, slots=True)
class Deployed:
    """One model's content.

    Attributes:
        weights: the weights digest, 64 hex digits (`OpenModel.weights_digest`).
        texts: the digest of its config and tokenizer files (`OpenModel.texts_digest`).
    """

    weights: str
    texts: str


def decide(models: Mapping[str, OpenModel], store: StoreSpec) -> dict[str, Deployed]:
    """What to serve of each model: what its checkpoint holds now. Reads every tensor, once a host.

    Args:
        models: by name.
        store: names the host's cache, where digests are kept.

    Raises:
        CheckpointError: a checkpoint cannot be read, or changes meanwhile.
    """
    cache: HostCache | None = None
    try:
        cache = HostCache(Path(store.cache_dir))
    except StoreError as error:  # the node that deploys may have none; replicas check their own
        _log.warning("digests of checkpoints are not kept: %s", error)
    return {
        name: Deployed(model.weights_digest(cache), model.texts_digest())
        for name, model in models.items()
    }


def check(name: str, model: OpenModel, wanted: Deployed) -> None:
    """Check that a checkpoint still has the config and tokenizer that were deployed.

    Its weights are checked when they are loaded: the store may have those that are wanted.

    Raises:
        CheckpointError: it has not, or cannot be read.
    """
    if model.texts_digest() != wanted.texts:
        raise CheckpointError(
            f"{model.checkpoint.url}: the config or tokenizer files of {name!r} have changed since "
            "it was deployed.",
            "Deploy again to serve what they say now, or put the old files back.",
        )
