"""Opening a checkpoint: its tensors and its small metadata files, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlx_ray.checkpoint.folder import Folder, open_folder
from rlx_ray.checkpoint.gguf import read_gguf
from rlx_ray.checkpoint.gguf_texts import gguf_texts
from rlx_ray.checkpoint.safetensors import read_tensors
from rlx_ray.checkpoint.tensor import StoredTensor
from rlx_ray.digest import json_digest, sha256_hex
from rlx_ray.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        url: as it was asked for.
        folder: where its files are.
        tensors: by name, in the file's order; nothing of them is read yet.
        stamp: changes when a file of a local folder does; None where that is not known.
        texts: of a GGUF file, what it holds in the place of small files; None for a folder's own.
        file: the GGUF file's name in the folder; empty for a folder with safetensors.
    """

    url: str
    folder: Folder
    tensors: Mapping[str, StoredTensor]
    stamp: str | None = None
    texts: Mapping[str, str] | None = None
    file: str = ""

    def stamp_now(self) -> str | None:
        """What `stamp` would be if the checkpoint were opened now."""
        return _stamp(self.folder, self.file)

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
        if self.texts is not None:
            return self.texts.get(name)
        data = self.folder.get(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.folder.where}/{name} is not UTF-8 text: {error}.", "Fetch the file again."
            ) from error

    def tensor_digests(self, names: Iterable[str]) -> dict[str, str]:
        """The sha256 of tensors' bytes, as 64 hex digits, by name. Reads every byte.

        Raises:
            CheckpointError: one cannot be read, or is not there.
        """
        return {name: sha256_hex(self.tensors[name].raw()) for name in names}


def open_checkpoint(url: str, storage_options: Mapping[str, object] | None = None) -> Checkpoint:
    """Open the checkpoint in a folder, or a GGUF file.

    Args:
        url: `pkg://package/sub/path` (the package is found, never imported), a local path, or
            any fsspec URL; one that ends with `.gguf` names a file, any other a folder with
            safetensors. Remote tensors are fetched one by one when they are read.
        storage_options: for the fsspec file system, such as credentials.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if url.lower().endswith(".gguf"):
        return _open_gguf(url, storage_options)
    folder = open_folder(url, storage_options)
    before = folder.stamp()
    tensors = MappingProxyType(read_tensors(folder))
    return Checkpoint(url, folder, tensors, before if folder.stamp() == before else None)


def _open_gguf(url: str, storage_options: Mapping[str, object] | None) -> Checkpoint:
    parent, _, name = url.rpartition("/")
    folder = open_folder(parent or ".", storage_options)
    before = _stamp(folder, name)
    file = folder.open(name)
    if file is None:
        raise CheckpointError(
            f"checkpoint {url!r}: there is no file {name!r} in {folder.where}.",
            "Check the model's 'source'.",
        )
    found = read_gguf(file)
    stamp = before if _stamp(folder, name) == before else None
    texts = gguf_texts(found.metadata, url)
    return Checkpoint(url, folder, MappingProxyType(dict(found.tensors)), stamp, texts, name)


def _stamp(folder: Folder, file: str) -> str | None:
    found = folder.stamp()
    return json_digest([found, file]) if found and file else found
