"""What a config says, as plain data; `config.load` reads it from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlx_ray.component import (
    CompilationMode,
    CompileProfile,
    KernelDispatchConfig,
    ModelPhase,
    QuantScheme,
)
from rlx_ray.config.serve import ServeSpec
from rlx_ray.target import Target


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One row of a model's matrix: the product of its lists, less `exclude`, plus `include`.

    `profile`, `quant`, `dispatch`, `targets` and `mode` override the model's where not None.
    `exclude` and `include` hold points: mappings of `batch`, `seq`, `past_seq`, `rows` to values
    (an `exclude` point may name some of them: it removes all that match).
    """

    phase: ModelPhase
    batch: tuple[int, ...]
    seq: tuple[int, ...]
    past_seq: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    exclude: tuple[tuple[tuple[str, int], ...], ...] = ()
    include: tuple[tuple[tuple[str, int], ...], ...] = ()
    profile: CompileProfile | None = None
    quant: str | None = None
    dispatch: KernelDispatchConfig | None = None
    targets: tuple[str, ...] | None = None
    mode: CompilationMode | None = None
    path: str = "$"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the config.

    Attributes:
        name: its name in URLs, the store and the CLI.
        family: the model family.
        source: where its checkpoint is (`pkg://`, a path, any fsspec URL; absolute by now).
        mode: when variants are compiled.
        profile: None means the preset of the row's phase.
        dispatch: native or common kernels.
        quant: None for dequantised weights, `file`, or a scheme.
        targets: what it is compiled for, in serving order.
        matrix: its variants.
    """

    name: str
    family: str
    source: str
    mode: CompilationMode
    profile: CompileProfile | None
    dispatch: KernelDispatchConfig
    quant: QuantScheme | str | None
    targets: tuple[Target, ...]
    matrix: tuple[MatrixRow, ...]


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """Where artifacts are kept: a URL, a cache folder of this host, and options for fsspec."""

    url: str
    cache_dir: str
    storage_options: tuple[tuple[str, object], ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A whole config file, read and checked.

    `models` keeps the file's order. `toolchain` is the section's mapping as sorted pairs.
    """

    path: str
    store: StoreSpec
    targets: tuple[Target, ...]
    toolchain: tuple[tuple[str, object], ...]
    models: tuple[ModelSpec, ...]
    serve: ServeSpec = field(default_factory=ServeSpec)
