"""A model in this process whose misses are compiled in a child process and published."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rlx_ray.config.load import load as load_config
from rlx_ray.config.schema import Config
from rlx_ray.inference.local import LocalModel
from rlx_ray.job.build import BuildLimits, build
from rlx_ray.spec import BuildSpec
from rlx_ray.store import open_store


def load(config: str | Path | Config, model: str, threads: int = 0) -> LocalModel:
    """Open a model of a config in this process.

    In lazy and eager mode a missing variant is compiled in a child process and published; in aot
    mode it is an error that names the prebuild command.

    Args:
        config: a path, or a config already read.
        model: the model's name.
        threads: threads of the pool; 0 means the processors of this process.

    Raises:
        RlxError: as `config.load` and `LocalModel` do.
    """
    found = config if isinstance(config, Config) else load_config(config)
    return LocalModel(found, model, threads, partial(compile_miss, found))


def compile_miss(config: Config, spec: BuildSpec, reason: str) -> None:
    """Compile a variant that a config's store lacks, and publish it."""
    limits = BuildLimits(config.serve.build_timeout_s, config.serve.build_memory_bytes)
    store = open_store(config.store.url, config.store.storage_options)
    store.put(build(spec, limits))
