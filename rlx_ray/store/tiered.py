"""The store as a runtime uses it: the store decides, the host's cache holds the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rlx_ray import record
from rlx_ray.artifact.manifest import BlobRef, Manifest, WeightsKey, WeightsManifest
from rlx_ray.digest import json_digest
from rlx_ray.errors import ArtifactError, RlxError, StoreError
from rlx_ray.spec import BuildSpec
from rlx_ray.store.base import Hit, Lookup, Miss, Store
from rlx_ray.store.cache import HostCache

Tier: TypeAlias = Literal["disk", "store"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact on this host.

    Attributes:
        manifest: of the digest that was asked for.
        paths: a verified local file for each blob's role.
        tier: `disk` if all blobs were cached, else `store`.
        note: why the store was not asked, else empty.
    """

    manifest: Manifest
    paths: Mapping[str, Path]
    tier: Tier
    note: str = ""


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """Packed weights on this host; the fields mean what those of `Fetched` do."""

    manifest: WeightsManifest
    path: Path
    tier: Tier
    note: str = ""


class TieredStore:
    """Fetches artifacts and weights by way of the host's cache. Safe for threads.

    One lookup in the store decides whether an artifact is present. Only while the store cannot be
    reached, a copy of the manifest on this host may stand in for it, and the result says so.
    """

    def __init__(self, store: Store, cache: HostCache) -> None:
        self.store = store
        self.cache = cache

    def fetch(self, spec: BuildSpec) -> Fetched | Miss:
        """The artifact of a spec as local files; a Miss for anything else, never an exception."""
        return self._bring(spec, self.store.lookup(spec))

    def fetch_weights(self, key: WeightsKey) -> FetchedWeights | Miss:
        """Packed weights as a local file; a Miss for anything else, never an exception."""
        name = f"weights-{json_digest(record.write(key))}"
        found = self.store.find_weights(key)
        note = ""
        if isinstance(found, Miss):
            kept = self._kept_weights(name, key) if found.kind == "unreachable" else None
            if kept is None:
                return found
            note = found.reason
            found = kept
        try:
            path, tier = self._blob(found.blob)
            self.cache.keep_copy(name, found.dumps())
        except RlxError as error:
            return _miss(error)
        return FetchedWeights(found, path, tier, note)

    def pull(
        self, specs: Iterable[BuildSpec], parallel: int = 8
    ) -> Iterator[tuple[BuildSpec, Fetched | Miss]]:
        """Fill the cache with many artifacts, several at a time; yields them in order.

        Raises:
            StoreError: the store cannot be reached.
        """
        wanted = list(specs)
        found = self.store.present(wanted)
        with ThreadPoolExecutor(parallel) as pool:
            brought = pool.map(lambda spec: self._bring(spec, found[spec.digest]), wanted)
            yield from zip(wanted, brought, strict=True)

    def _bring(self, spec: BuildSpec, found: Lookup) -> Fetched | Miss:
        name = f"artifact-{spec.digest}"
        note = ""
        if isinstance(found, Miss):
            kept = self._kept(name, spec) if found.kind == "unreachable" else None
            if kept is None:
                return found
            note = found.reason
            found = Hit(kept)
        paths: dict[str, Path] = {}
        tiers: set[Tier] = set()
        try:
            for ref in found.manifest.blobs:
                paths[ref.role], tier = self._blob(ref)
                tiers.add(tier)
            if self.cache.copy(name) is None:  # one digest, one manifest: no need to compare
                self.cache.keep_copy(name, found.manifest.dumps())
        except RlxError as error:
            return _miss(error)
        return Fetched(found.manifest, paths, "store" if "store" in tiers else "disk", note)

    def _blob(self, ref: BlobRef) -> tuple[Path, Tier]:
        cached = self.cache.cached(ref)
        if cached is not None:
            return cached, "disk"
        return self.cache.path(ref, self.store), "store"

    def _kept(self, name: str, spec: BuildSpec) -> Manifest | None:
        data = self.cache.copy(name)
        try:
            manifest = Manifest.loads(data) if data else None
        except ArtifactError:
            return None
        return manifest if manifest and manifest.spec.digest == spec.digest else None

    def _kept_weights(self, name: str, key: WeightsKey) -> WeightsManifest | None:
        data = self.cache.copy(name)
        try:
            kept = WeightsManifest.loads(data) if data else None
        except ArtifactError:
            return None
        return kept if kept is not None and kept.key == key else None


def _miss(error: RlxError) -> Miss:
    return Miss(str(error), "unreachable" if isinstance(error, StoreError) else "damaged")
