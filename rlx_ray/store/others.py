"""Why what a store has under a cache key is not what is wanted: another build of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from rlx_ray.artifact.manifest import Manifest
from rlx_ray.errors import ArtifactError, FormatError, StoreError
from rlx_ray.spec import BuildSpec
from rlx_ray.store.base import manifest_path

_READS = 1000
"""Manifests that are read for reasons; what is missing is missing without one."""

_UNTOLD = "the store has another artifact under this key, as it has of the variants before"


class Others:
    """The artifacts that a store has beside those that are wanted.

    Args:
        read: gives a file of the store.
        names: of each model, the manifests that are there.
    """

    def __init__(self, read: Callable[[str], bytes], names: Mapping[str, Iterable[str]]) -> None:
        self._read = read
        self._left = _READS
        self._by_key: dict[tuple[str, str], list[str]] = {}
        for model, found in names.items():
            for name in sorted(found):
                self._by_key.setdefault((model, _key(name)), []).append(name)

    def tell(self, spec: BuildSpec, name: str) -> str:
        """Why no artifact with a spec's cache key is the spec's, by the one that is most like it.

        Args:
            spec: what is wanted.
            name: what its manifest would be called; it is not there.

        Returns:
            One sentence for each difference; empty if there is none for its target.
        """
        nearest: tuple[str, ...] | None = None
        for other in self._by_key.get((spec.model, _key(name)), ()):
            if self._left <= 0:
                return _UNTOLD
            self._left -= 1
            try:
                there = Manifest.loads(self._read(manifest_path(spec.model, other)))
            except FormatError as error:
                return f"another version of rlx_ray built what the store has of it: {error}"
            except (ArtifactError, FileNotFoundError, StoreError):
                continue  # a look-up of its own spec says what is wrong with it
            if there.spec.target.name != spec.target.name:
                continue
            found = spec.differences(there.spec)
            if nearest is None or len(found) < len(nearest):
                nearest = found
        return f"what the store has of it is another: {' '.join(nearest)}" if nearest else ""


def _key(name: str) -> str:
    """The part of a manifest's name that says its cache key."""
    return name.partition("__")[0]
