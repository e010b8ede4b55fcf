"""Models of a config, opened: checkpoint, facts, tokenizer, and packed weights in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rlx_ray.artifact import Binding, BlobRef, WeightsManifest
from rlx_ray.checkpoint.source import Checkpoint, open_checkpoint
from rlx_ray.checkpoint.tensor import StoredTensor
from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import ModelPhase, QuantScheme
from rlx_ray.config.spec import ModelSpec
from rlx_ray.digest import json_digest, sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.engine.template import ChatTemplate, read_template
from rlx_ray.errors import CheckpointError, StoreError
from rlx_ray.models.family import Family, ModelFacts
from rlx_ray.models.family import family as find_family
from rlx_ray.runtime.weights import Weights
from rlx_ray.spec import BuildSpec
from rlx_ray.store import HostCache, Miss, Store, TieredStore
from rlx_ray.target import PACK_VERSION
from rlx_ray.weights import packing_cpu, packing_cuda
from rlx_ray.weights.blocks import Blocks, as_blocks, quantise
from rlx_ray.weights.formats import QUANT_ROWS

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_ROWS = QuantScheme.parse("gguf_q8_0")


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model of the config with what its checkpoint says. Tensors are read when packed."""

    spec: ModelSpec
    family: Family
    facts: ModelFacts
    checkpoint: Checkpoint
    _digests: list[str] = field(default_factory=list, compare=False, repr=False)

    def source_digest(self, cache: HostCache | None = None) -> str:
        """The digest of the source tensors; reads every byte of them, once.

        Args:
            cache: of this host, where the digest of a local folder is kept by the stamp of its
                files (size, inode and times of change), so that the next process need not hash.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        if not self._digests:
            self._digests.append(_source_digest(self.checkpoint, cache))
        return self._digests[0]

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, truncating an encoder's texts at its limit.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        text = self.checkpoint.text("tokenizer.json")
        if text is None:
            raise CheckpointError(
                f"{self.checkpoint.url} has no tokenizer.json.",
                "Save the model with its fast tokenizer.",
            )
        cut = ModelPhase.ENCODER in self.family.phases
        return Tokenizer(text, self.facts.limits.max_tokens if cut else None)

    def template(self) -> ChatTemplate | None:
        """The checkpoint's chat template; None if it has none.

        Raises:
            CheckpointError: it is malformed.
        """
        text = self.checkpoint.text
        return read_template(text("tokenizer_config.json"), text("chat_template.jinja"))


def open_model(spec: ModelSpec) -> OpenModel:
    """Open a model's checkpoint and read its facts.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or lacks a tensor.
        ConfigError: the family is not known.
    """
    kind = find_family(spec.family)
    checkpoint = open_checkpoint(spec.source)
    facts = kind.facts(checkpoint.text, checkpoint.tensors)
    return OpenModel(spec, kind, facts, checkpoint)


def _source_digest(checkpoint: Checkpoint, cache: HostCache | None) -> str:
    if cache is None or checkpoint.stamp is None:
        return checkpoint.source_digest()
    name = f"source-{checkpoint.stamp}"
    kept = cache.copy(name)
    if kept is not None and _DIGEST.fullmatch(kept):
        return kept.decode()
    digest = checkpoint.source_digest()
    if checkpoint.stamp_now() == checkpoint.stamp:
        cache.keep_copy(name, digest.encode())
    return digest


def _with_made(source: str, facts: ModelFacts) -> str:
    """The digest of the source tensors and of what computed parameters are made from."""
    made = [p.made for p in facts.params if p.made]
    return json_digest([source, made]) if made else source


def ensure_weights(
    store: Store, model: OpenModel, spec: BuildSpec, cache: HostCache | None = None
) -> WeightsManifest:
    """The packed weights that a variant reads, packed and published if not there.

    Args:
        store: where they are looked for and published.
        model: whose they are.
        spec: of any variant of the model.
        cache: of this host, for the source's digest.

    Raises:
        StoreError: the store cannot be reached or written.
        CheckpointError: a tensor cannot be read.
    """
    source = _with_made(model.source_digest(cache), model.facts)
    family = spec.weights_family
    found = store.find_weights(model.spec.name, source, PACK_VERSION, family)
    if not isinstance(found, Miss):
        return found
    if found.kind == "unreachable":
        raise StoreError(found.reason)
    data, bindings = _packed(model, spec)
    view = data.data
    manifest = WeightsManifest(
        model.spec.name,
        source,
        PACK_VERSION,
        family,
        BlobRef("weights", sha256_hex(view), len(view)),
        bindings,
    )
    store.put_weights(manifest, view)
    return manifest


def packed_bytes(model: OpenModel, spec: BuildSpec) -> int:
    """How many bytes the packed weights have that a variant reads; no tensor is read for it."""
    params, formats, kind = model.facts.params, dict(spec.matrices), spec.profile.precision.compute
    if spec.target.kind == "cuda":
        return packing_cuda.places(params, DType.parse(kind), formats)[1]
    return packing_cpu.places(params, spec.target.panel, kind, formats)[1]


def _packed(model: OpenModel, spec: BuildSpec) -> tuple[Any, tuple[Binding, ...]]:
    """The weights as the kernels of a variant's target read them."""
    params, tensors, formats = model.facts.params, model.checkpoint.tensors, dict(spec.matrices)
    precision = spec.profile.precision.compute

    def read(name: str) -> Any:
        return tensors[name].f32()

    def read_blocks(name: str, form: str) -> Blocks:
        return _blocks(tensors[name], form, spec.component.quant)

    if spec.target.kind == "cuda":
        return packing_cuda.pack(params, read, DType.parse(precision), formats, read_blocks)
    return packing_cpu.pack(params, read, spec.target.panel, precision, formats, read_blocks)


def _blocks(tensor: StoredTensor, form: str, scheme: QuantScheme | None) -> Blocks:
    """A tensor as blocks: as the file has it, or quantised from its floats.

    Rows of an embedding table have one block format: those of another one are quantised anew.
    """
    if tensor.scheme is not None:
        n, k = tensor.shape
        found = as_blocks(tensor.raw(), tensor.scheme, (n, k))
        if form != QUANT_ROWS or found.form.name == "b8":
            return found
    assert scheme is not None
    return quantise(tensor.f32(), _ROWS if form == QUANT_ROWS else scheme)


def load_weights(store: TieredStore, model: OpenModel, spec: BuildSpec) -> Weights:
    """The packed weights that a variant reads, mapped from this host's cache.

    Raises:
        StoreError: the store cannot be reached, or does not have them after packing.
    """
    manifest = ensure_weights(store.store, model, spec, store.cache)
    found = store.fetch_weights(
        manifest.model, manifest.source, manifest.pack_version, manifest.target_family
    )
    if isinstance(found, Miss):
        raise StoreError(f"packed weights of {model.spec.name!r}: {found.reason}")
    return Weights(found.manifest, found.path)
