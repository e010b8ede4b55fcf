"""Packed weights of a model: one memory map for all variants of a process."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlx_ray.artifact.manifest import Binding, WeightsManifest
from rlx_ray.errors import ArtifactError


class Weights:
    """A weights blob, mapped read-only, so that processes of one host share its pages.

    Args:
        manifest: where each parameter lies.
        path: a local copy of the blob whose hash has been checked.

    Raises:
        ArtifactError: the file is shorter than the manifest says.
    """

    def __init__(self, manifest: WeightsManifest, path: Path) -> None:
        self.manifest = manifest
        with path.open("rb") as file:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # no page fault in a forward pass
            self._map = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        if len(self._map) != manifest.blob.size:
            raise ArtifactError(
                f"weights blob of {manifest.model!r} has {len(self._map)} bytes, its manifest says "
                f"{manifest.blob.size}."
            )
        self._base = np.frombuffer(self._map, np.uint8).ctypes.data

    @property
    def nbytes(self) -> int:
        """Bytes of the blob."""
        return len(self._map)

    def addresses(self, params: Sequence[Binding]) -> tuple[int, ...]:
        """The address of each parameter, in the order of a binding manifest.

        Raises:
            ArtifactError: see `offsets`.
        """
        return tuple(self._base + offset for offset in offsets(self.manifest, params))

    def array(self) -> np.ndarray:
        """The whole blob, uint8 [nbytes], read-only."""
        return np.frombuffer(self._map, np.uint8)


def offsets(manifest: WeightsManifest, params: Sequence[Binding]) -> tuple[int, ...]:
    """Where each parameter of a binding manifest begins in a weights blob, in bytes.

    Raises:
        ArtifactError: a parameter is missing, or has another shape, layout or dtype than the code
            was compiled for.
    """
    by_name = {t.name: t for t in manifest.tensors}
    found = []
    for wanted in params:
        have = by_name.get(wanted.name)
        if have is None:
            raise ArtifactError(f"the packed weights lack parameter {wanted.name!r}.")
        if (have.shape, have.layout, have.dtype) != (wanted.shape, wanted.layout, wanted.dtype):
            raise ArtifactError(
                f"parameter {wanted.name!r} is packed as {have.dtype} {have.layout}"
                f"{list(have.shape)}, the code wants {wanted.dtype} {wanted.layout}"
                f"{list(wanted.shape)}."
            )
        found.append(have.offset)
    return tuple(found)
