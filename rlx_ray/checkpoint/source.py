"""Opening a checkpoint: its tensors and its small metadata files, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlx_ray.checkpoint.folder import Folder, open_folder
from rlx_ray.checkpoint.safetensors import StoredTensor, read_tensors
from rlx_ray.digest import canonical_json
from rlx_ray.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        url: as it was asked for.
        folder: where its files are.
        tensors: by name, in the file's order; nothing of them is read yet.
        stamp: changes when a file of a local folder does; None where that is not known.
    """

    url: str
    folder: Folder
    tensors: Mapping[str, StoredTensor]
    stamp: str | None = None

    def text(self, name: str) -> str | None:
        """A small UTF-8 metadata file such as `1_Pooling/config.json`; None if it is not there.

        Raises:
            CheckpointError: it is not UTF-8, cannot be read, or the name leaves the folder.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise CheckpointError(
                f"{self.url}: {name!r} is not a file inside the checkpoint.",
                "Use a name relative to the checkpoint's folder.",
            )
        data = self.folder.get(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.folder.where}/{name} is not UTF-8 text: {error}.", "Fetch the file again."
            ) from error

    def source_digest(self) -> str:
        """The sha256 over the sorted tensors' names, dtypes, shapes and bytes, as 64 hex digits.

        How the tensors are spread over files does not count. Reads every byte.
        """
        hasher = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            head = canonical_json([name, tensor.dtype.text, list(tensor.shape)])
            hasher.update(head + b"\n")
            hasher.update(tensor.raw())
        return hasher.hexdigest()


def open_checkpoint(url: str, storage_options: Mapping[str, object] | None = None) -> Checkpoint:
    """Open the checkpoint in a folder.

    Args:
        url: `pkg://package/sub/path` (the package is found, never imported), a local path, or
            any fsspec URL. Remote tensors are fetched one by one when they are read.
        storage_options: for the fsspec file system, such as credentials.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    folder = open_folder(url, storage_options)
    before = folder.stamp()
    tensors = MappingProxyType(read_tensors(folder))
    return Checkpoint(url, folder, tensors, before if folder.stamp() == before else None)
