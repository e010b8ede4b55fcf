"""Variants of CUDA targets, compiled here and run by the runtime on the emulated device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlx_ray.artifact import Artifact
from rlx_ray.catalog import OpenModel, load_weights, open_model
from rlx_ray.compiler import compile
from rlx_ray.config import load
from rlx_ray.job.matrix import Cell, expand
from rlx_ray.runtime.launches import LaunchExecutable
from rlx_ray.runtime.resident import Resident
from rlx_ray.store import HostCache, TieredStore, open_store
from rlx_ray.target import target
from tests.support.cuda_device import EmulatedDevice

CONFIGS = Path(__file__).parent.parent.parent / "configs"


class Card:
    """A model of a config on an emulated device.

    Args:
        folder: where its store is and units are compiled.
        config: a file of configs/.
        changes: of the model's fields; its targets are cuda-sm_90 unless they say otherwise.
        changes of the precision go into the profile of each row.
    """

    def __init__(self, folder: Path, config: str, rows: list[dict], **changes: object) -> None:
        found = load(CONFIGS / config, store_override=f"file://{folder}/store")
        first = found.models[0].matrix[0]
        matrix = tuple(replace(first, exclude=(), **row) for row in rows)
        model = replace(found.models[0], targets=(target("cuda-sm_90"),), matrix=matrix)
        self.model: OpenModel = open_model(replace(model, **changes))
        self.cells: tuple[Cell, ...] = expand(
            self.model.spec, self.model.family, self.model.facts, {}
        )
        assert [c.unsupported for c in self.cells] == [""] * len(self.cells)
        store = open_store(f"file://{folder}/store", ())
        self._store = TieredStore(store, HostCache(folder / "cache"))
        self.device = EmulatedDevice(folder / "units")
        self._resident = Resident(self.device)

    def load(self, cell: Cell) -> LaunchExecutable:
        """Compile a cell and load it with the model's weights."""
        artifact = compile(cell.spec)
        self.device.made_of(blob(artifact, "code"), blob(artifact, "text").decode())
        weights = load_weights(self._store, self.model, cell.spec)
        return LaunchExecutable(
            blob(artifact, "code"),
            blob(artifact, "plan"),
            artifact.manifest.binding,
            self._resident.upload(weights),
            self._resident,
        )


def blob(artifact: Artifact, role: str) -> bytes:
    """A blob of an artifact by its role."""
    roles = [ref.role for ref in artifact.manifest.blobs]
    return artifact.blobs[roles.index(role)]
