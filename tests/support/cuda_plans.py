"""Variants of CUDA targets, compiled here and run by the runtime on the emulated device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlx_ray.artifact.manifest import Artifact, BlobRef, WeightsManifest
from rlx_ray.compiler.backend import backend_for
from rlx_ray.compiler.compile import compile
from rlx_ray.compiler.cuda import emit as cuda
from rlx_ray.compiler.cuda.backend import BACKEND
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.compiler.ir.program import Order
from rlx_ray.compiler.pipeline import run
from rlx_ray.component import KernelDispatchConfig, QuantScheme
from rlx_ray.config.load import load
from rlx_ray.digest import canonical_json, sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.inference.catalog import OpenModel, load_weights, open_model
from rlx_ray.matrix.expand import BuildCell, expand
from rlx_ray.runtime.device_context import DeviceContext, DeviceWeights
from rlx_ray.runtime.launch_executable import LaunchExecutable
from rlx_ray.runtime.weights import Weights
from rlx_ray.store import HostCache, TieredStore, open_store
from rlx_ray.target import target
from rlx_ray.weights import packing_cuda
from rlx_ray.weights.blocks import quantise
from rlx_ray.weights.formats import QUANT_ROWS, scheme_block, scheme_format
from rlx_ray.weights.params import ParamSpec
from tests.support.cuda_device import EmulatedDevice
from tests.support.programs import NATIVE, PROFILE, TINY_LLAMA

CONFIGS = Path(__file__).parent.parent.parent / "configs"


class Card:
    """A model of a config on an emulated device.

    Args:
        folder: where its store is and units are compiled.
        config: a file of configs/.
        rows: changes of the matrix's first row, one for each row of the new matrix.
        changes: of the model's fields.
    """

    def __init__(self, folder: Path, config: str, rows: list[dict], **changes: object) -> None:
        found = load(CONFIGS / config, store_override=f"file://{folder}/store")
        first = found.models[0].matrix[0]
        matrix = tuple(replace(first, exclude=(), **row) for row in rows)
        model = replace(found.models[0], targets=(target("cuda-sm_90"),), matrix=matrix)
        self.model: OpenModel = open_model(replace(model, **changes))
        self.cells: tuple[BuildCell, ...] = expand(
            self.model.spec, self.model.family, self.model.info, {}
        )
        assert [c.unsupported for c in self.cells] == [""] * len(self.cells)
        store = open_store(f"file://{folder}/store", ())
        self._store = TieredStore(store, HostCache(folder / "cache"))
        self.device = EmulatedDevice(folder / "units")
        self._resident = DeviceContext(self.device)

    def load(self, cell: BuildCell) -> LaunchExecutable:
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


class TinyCard:
    """Variants of a small template with given parameters, on an emulated device.

    Args:
        folder: where units are compiled and weights lie.
        hir: the template.
        params: float32 parameters by name, matrices (K, N).
        config: native or common kernels.
        profile: changes of it.
        scheme: by which matrices are quantised, or None.
        level: how well the host's compiler is to optimise.
    """

    def __init__(
        self,
        folder: Path,
        hir: Hir,
        params: Mapping[str, np.ndarray],
        config: KernelDispatchConfig = NATIVE,
        profile: Mapping[str, Any] | None = None,
        scheme: QuantScheme | None = None,
        level: str = "-O0",
    ) -> None:
        self._folder, self._hir, self._config = folder, hir, config
        self.profile = PROFILE.override(profile or {})
        self.device = EmulatedDevice(folder / "units", level=level)
        self._resident = DeviceContext(self.device)
        self._params, self._scheme = params, scheme
        self._loaded: dict[tuple[int, int, int | None, int | None], LaunchExecutable] = {}
        self._weights: DeviceWeights | None = None

    @property
    def formats(self) -> dict[str, str]:
        """The formats of the matrices that are quantised."""
        if self._scheme is None:
            return {}
        form, block = scheme_format(self._scheme), scheme_block(self._scheme)
        assert form is not None
        found = {}
        for tensor in self._hir.params:
            if tensor.layout == "matrix" and tensor.shape[0].size % block == 0:
                found[tensor.name] = form.name
            if tensor.name == "embed.word" and form.name == "b8":
                found[tensor.name] = QUANT_ROWS
        return found

    def launches(
        self, batch: int, seq: int, past: int | None = None, rows: int | None = None
    ) -> Launches:
        """A variant's program; ragged with `rows`."""
        binding = {0: batch, 1: seq} | ({} if past is None else {3: past})
        binding |= {} if rows is None else {2: rows}
        wanted = target("cuda-sm_90")
        names = self._hir.outputs
        order = Order(self.profile, self._config, wanted, self.formats, names)
        return run(self._hir, binding, order, backend_for(wanted)).program

    def load(
        self, batch: int, seq: int, past: int | None = None, rows: int | None = None
    ) -> LaunchExecutable:
        """A variant, loaded once."""
        key = (batch, seq, past, rows)
        if key not in self._loaded:
            program = self.launches(*key)
            text = cuda.emit(program)
            self.device.made_of(text.encode(), text)
            plan = cuda.plan(program, target("cuda-sm_90")).dumps()
            if self._weights is None:
                self._weights = self._resident.upload(self._pack())
            self._loaded[key] = LaunchExecutable(
                text.encode(), plan, BACKEND.binding(program), self._weights, self._resident
            )
        return self._loaded[key]

    def _pack(self) -> Weights:
        specs, sources = [], {}
        for tensor in self._hir.params:
            shape = tuple(d.size for d in tensor.shape)
            if tensor.name == "rope.cos_sin":
                rope = canonical_json(TINY_LLAMA["rope"]).decode()
                specs.append(ParamSpec(tensor.name, shape, "rope", (), made=rope))
                continue
            specs.append(ParamSpec(tensor.name, shape, tensor.layout, (tensor.name,)))
            value = self._params[tensor.name]
            sources[tensor.name] = np.ascontiguousarray(
                value.T if tensor.layout == "matrix" else value
            )
        assert self._scheme is None or self.formats
        data, bindings = packing_cuda.pack(
            specs,
            sources.__getitem__,
            DType.parse(self.profile.precision.compute),
            self.formats,
            lambda name, form: quantise(sources[name], self._scheme),
        )
        path = self._folder / "weights"
        path.write_bytes(bytes(data))
        blob = BlobRef("weights", sha256_hex(data.data), len(data))
        return Weights(WeightsManifest("m", "0" * 64, 1, "cuda", blob, bindings), path)
