"""Models of a config, opened: checkpoint, ModelInfo, tokenizer, and packed weights in the store."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rlx_ray import record
from rlx_ray.artifact.manifest import BlobRef, WeightsKey, WeightsManifest
from rlx_ray.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import ModelPhase
from rlx_ray.config.schema import ModelSpec
from rlx_ray.digest import canonical_json, json_digest, sha256_hex
from rlx_ray.engine.template import ChatTemplate, read_template
from rlx_ray.errors import CheckpointError, StoreError
from rlx_ray.models.family import Family, ModelInfo
from rlx_ray.models.family import family as find_family
from rlx_ray.runtime.weights import Weights
from rlx_ray.spec import BuildSpec
from rlx_ray.store import HostCache, Miss, Store, TieredStore
from rlx_ray.weights.packing import pack_for
from rlx_ray.weights.sources import SourceTensors

_TEXTS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Small files that are read when a text is to be tokenised, beside those that the family reads."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model of the config with what its checkpoint says. Tensors are read when packed."""

    spec: ModelSpec
    family: Family
    info: ModelInfo
    checkpoint: Checkpoint
    _texts: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)
    _hashes: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def tensor_digests(self, cache: HostCache | None = None) -> Mapping[str, str]:
        """The sha256 of each needed tensor's bytes, by name; reads every byte of them, once.

        Args:
            cache: of this host, where the digests of a checkpoint are kept by the stamp of its
                files, so that the next process need not hash.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        if not self._hashes:
            names = [tensor.name for tensor in self.info.tensors]
            self._hashes.update(_tensor_digests(self.checkpoint, names, cache))
        return self._hashes

    def weights_digest(self, cache: HostCache | None = None) -> str:
        """The weights' identity: of the source tensors, and of how parameters are made of them.

        Args:
            cache: see `tensor_digests`.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        digests = self.tensor_digests(cache)
        rows = [[*tensor.to_json(), digests[tensor.name]] for tensor in self.info.tensors]
        return json_digest([rows, [record.write(param) for param in self.info.params]])

    def text(self, name: str) -> str | None:
        """A small text file of the checkpoint; None if it has none of that name.

        Raises:
            CheckpointError: it is not what it was when this model read it first.
        """
        return _read_text(self.checkpoint, self._texts, name)

    def texts_digest(self) -> str:
        """The sha256 over the small text files that say what the model and its tokens mean.

        Raises:
            CheckpointError: one cannot be read, or has changed since this model read it first.
        """
        for name in _TEXTS:
            self.text(name)
        return json_digest(self._texts)

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, truncating an encoder's texts at its limit.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        text = self.text("tokenizer.json")
        if text is None:
            raise CheckpointError(
                f"{self.checkpoint.url} has no tokenizer.json.",
                "Save the model with its fast tokenizer.",
            )
        cut = ModelPhase.ENCODER in self.family.phases
        return Tokenizer(text, self.info.limits.max_tokens if cut else None)

    def template(self) -> ChatTemplate | None:
        """The checkpoint's chat template; None if it has none.

        Raises:
            CheckpointError: it is malformed.
        """
        return read_template(self.text("tokenizer_config.json"), self.text("chat_template.jinja"))


def open_model(spec: ModelSpec) -> OpenModel:
    """Open a model's checkpoint and read what it says.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or lacks a tensor.
        ConfigError: the family is not known.
    """
    kind = find_family(spec.family)
    checkpoint = open_checkpoint(spec.source)
    texts: dict[str, str | None] = {}
    info = kind.info(partial(_read_text, checkpoint, texts), checkpoint.tensors)
    return OpenModel(spec, kind, info, checkpoint, texts)


def _read_text(checkpoint: Checkpoint, seen: dict[str, str | None], name: str) -> str | None:
    """A small text file, whose digest is noted when it is read first, and compared later."""
    text = checkpoint.text(name)
    digest = None if text is None else sha256_hex(text.encode())
    if seen.setdefault(name, digest) != digest:
        raise CheckpointError(
            f"{checkpoint.url}: {name} has changed since it was opened.",
            "Open the checkpoint again: restart, or deploy again.",
        )
    return text


def _tensor_digests(
    checkpoint: Checkpoint, names: Sequence[str], cache: HostCache | None
) -> Mapping[str, str]:
    stamp = checkpoint.stamp
    if cache is None or stamp is None:
        return checkpoint.tensor_digests(names)
    name = f"source-{stamp}"
    kept = _kept_digests(cache.copy(name))
    if kept.keys() >= set(names):
        return {name: kept[name] for name in names}
    digests = checkpoint.tensor_digests(names)
    if checkpoint.stamp_now() == stamp:
        cache.keep_copy(name, canonical_json({**kept, **digests}))
    return digests


def _kept_digests(data: bytes | None) -> dict[str, str]:
    """What a file of the cache says; nothing if it does not say what it should."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    sound = isinstance(found, dict) and all(
        isinstance(v, str) and _DIGEST.fullmatch(v) for v in found.values()
    )
    return found if sound else {}


_DIGEST = re.compile("[0-9a-f]{64}")


def ensure_weights(
    store: Store,
    model: OpenModel,
    spec: BuildSpec,
    cache: HostCache | None = None,
    wanted: str | None = None,
) -> WeightsManifest:
    """The packed weights that a variant reads, packed and published if not there.

    Args:
        store: where they are looked for and published.
        model: whose they are.
        spec: of any variant of the model.
        cache: of this host, for the digests of the source.
        wanted: the weights digest that it must be; None for that of the checkpoint as it is. If the
            store has those of the wanted one, the checkpoint's tensors are not read.

    Raises:
        StoreError: the store cannot be reached or written.
        CheckpointError: a tensor cannot be read, the checkpoint changes meanwhile, or its weights
            are not the wanted ones.
    """
    digest = wanted or model.weights_digest(cache)
    key = WeightsKey(model.spec.name, digest, spec.packing, spec.weights_family)
    found = store.find_weights(key)
    if not isinstance(found, Miss):
        return found
    if found.kind == "unreachable":
        raise StoreError(found.reason)
    if model.weights_digest(cache) != digest:
        raise CheckpointError(
            f"{model.checkpoint.url}: its weights are {model.weights_digest(cache)[:16]} now, "
            f"those that are served as {model.spec.name!r} are {digest[:16]}.",
            "Deploy again to serve what it holds now, or put the old checkpoint back.",
        )
    return _pack(store, model, spec, key, cache)


def _pack(
    store: Store, model: OpenModel, spec: BuildSpec, key: WeightsKey, cache: HostCache | None
) -> WeightsManifest:
    """Pack weights and publish them."""
    sources = SourceTensors(
        model.checkpoint.tensors,
        model.tensor_digests(cache),
        spec.component.quant,
        model.checkpoint.url,
    )
    data, bindings = pack_for(spec, model.info.params, sources)
    view = data.data
    blob = BlobRef("weights", sha256_hex(view), len(view))
    manifest = WeightsManifest(**record.write(key), blob=blob, tensors=bindings)
    store.put_weights(manifest, view)
    return manifest


def load_weights(
    store: TieredStore, model: OpenModel, spec: BuildSpec, wanted: str | None = None
) -> Weights:
    """The packed weights that a variant reads, mapped from this host's cache.

    Args:
        store: where they are looked for and published.
        model: whose they are.
        spec: of any variant of the model.
        wanted: see `ensure_weights`.

    Raises:
        StoreError: the store cannot be reached, or does not have them after packing.
        CheckpointError: see `ensure_weights`.
    """
    manifest = ensure_weights(store.store, model, spec, store.cache, wanted)
    found = store.fetch_weights(manifest.key)
    if isinstance(found, Miss):
        raise StoreError(f"packed weights of {model.spec.name!r}: {found.reason}")
    return Weights(found.manifest, found.path)
