"""`rlx-ray doctor`: what this host can build and run, and what to do about the rest."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlx_ray import __version__
from rlx_ray.commands.output import json_option, store_option, write, write_json
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError, DeviceError, RlxError
from rlx_ray.identity import build_id
from rlx_ray.inference.catalog import open_model
from rlx_ray.runtime.cuda import installation, this_host, visible_devices
from rlx_ray.store import open_store
from rlx_ray.target import (
    ABI,
    CPU_TARGETS,
    CUDA_TARGETS,
    NVRTC_VERSIONS,
    TARGETS,
    ZIG_VERSION,
    Target,
    Toolchain,
    toolchain_for,
)

_PACKAGES = ("ray", "fsspec", "numpy", "tokenizers", "s3fs", "gcsfs", "cupy")


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `status` is ok, warn or fail; a warn or fail says the remedy."""

    subject: str
    status: str
    found: str
    remedy: str = ""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this host can build and run",
        description="Checks targets, devices, the compilers (by compiling a unit for each target), "
        "packages and, with a CONFIG, its store and checkpoints. Exits 1 if anything fails; every "
        "failing line says the remedy.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="also check this config")
    store_option(parser)
    json_option(parser)
    parser.set_defaults(run=run)


def _config(path: str | None, store_override: str | None) -> Config | ConfigError | None:
    """A config, or what is wrong with it; None where none is named."""
    if path is None:
        return None
    try:
        return load(path, store_override=store_override)
    except ConfigError as error:
        return error


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 if one failed."""
    found = _config(args.config, args.store)
    choice = dict(found.toolchain) if isinstance(found, Config) else {}
    checks = [*host_checks(), *cuda_checks(), *toolchain_checks(choice), *package_checks()]
    if found is not None:
        checks += config_checks(found)
    if args.json:
        names = ("subject", "status", "found", "remedy")
        write_json({"checks": [{n: getattr(c, n) for n in names} for c in checks]})
    for c in checks if not args.json else ():
        write(f"{c.status:4}  {c.subject:30} {c.found}" + (f"  -> {c.remedy}" if c.remedy else ""))
    return 1 if any(c.status == "fail" for c in checks) else 0


def host_checks() -> Iterator[Check]:
    """The processor and which targets it runs."""
    host = this_host()
    yield Check("host", "ok", f"{host.model}, {platform.system()} {platform.release()}")
    for one in TARGETS:
        refusal = host.refusal(one)
        yield Check(f"run {one.name}", "ok", f"not here: {refusal}" if refusal else "yes")
    if not host.ladder():
        yield Check("run", "fail", "no target", "Use an x86-64-v3 or aarch64 machine.")


def cuda_checks() -> Iterator[Check]:
    """The driver, the runtime that CuPy has, and the devices; a machine need not have them."""
    try:
        found = installation()
    except DeviceError as error:
        yield Check("cuda", "ok", f"not here: {error}")
        return
    yield Check("cuda runtime", "ok", found.runtime)
    if not found.driver:
        yield Check("cuda driver", "ok", "not here: no NVIDIA driver is loaded")
        return
    older = int(found.driver.split(".")[0]) < int(found.runtime.split(".")[0])
    if older:
        remedy = "Update the driver, or install the extra of its own major: rlx_ray[gpu12]."
        yield Check("cuda driver", "fail", f"{found.driver}, older than the runtime", remedy)
    else:
        yield Check("cuda driver", "ok", found.driver)
    for index, (arch, name, memory) in enumerate(found.devices):
        yield Check(f"device {index}", "ok", f"{name}, {arch}, {memory / (1 << 30):.1f} GiB")
    if not found.devices and not older:
        remedy = "See what CUDA_VISIBLE_DEVICES holds, and nvidia-smi."
        yield Check("device", "warn", f"not here: {visible_devices().reason}", remedy)


def toolchain_checks(choice: Mapping[str, object]) -> Iterator[Check]:
    """The compilers: present, pinned, and able to build a unit for every target.

    Args:
        choice: the section `toolchain` of a config, which selects NVRTC's major.
    """
    from rlx_ray.compiler.cuda import nvrtc

    for one in CPU_TARGETS:
        yield _build_check(one, toolchain_for(one, {}))
    found = nvrtc.installed_version()
    pins = ", ".join(f"{pin} for CUDA {major}" for major, (pin, _) in NVRTC_VERSIONS.items())
    if found is None:
        hint = "To build for GPUs: pip install 'rlx_ray[cuda13]'"
        yield Check("nvrtc", "warn", f"not installed (optional); pinned are {pins}", hint)
        return
    yield Check("nvrtc", "ok", f"{found}; pinned are {pins}")
    major = int(found.split(".")[0])
    if not choice and major in NVRTC_VERSIONS:
        choice = {"cuda": major}  # no config says which; the other one's pin is no fault here
    for one in CUDA_TARGETS:
        yield _build_check(one, toolchain_for(one, choice))


def _build_check(wanted: Target, chain: Toolchain) -> Check:
    """Compile a probe for a target."""
    from rlx_ray.compiler.backend import backend_for

    backend = backend_for(wanted)
    try:
        backend.check(chain)
        size = len(backend.probe(wanted, chain))
    except RlxError as error:
        return Check(f"build {wanted.name}", "fail", error.message, error.remedy)
    return Check(
        f"build {wanted.name}", "ok", f"{chain.name} {chain.version}, probe of {size} bytes"
    )


def package_checks() -> Iterator[Check]:
    """Versions of the packages that matter; optional ones may be absent."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            extra = {"s3fs": "s3", "gcsfs": "gcs", "cupy": "cuda13"}.get(name)
            if extra is None:
                yield Check(f"package {name}", "fail", "missing", f"pip install {name}")
            else:
                hint = f"pip install 'rlx_ray[{extra}]'"
                yield Check(f"package {name}", "warn", "not installed (optional)", hint)
            continue
        yield Check(f"package {name}", "ok", _version(name))


def _version(name: str) -> str:
    for wheel in (name, f"{name}-cuda13x", f"{name}-cuda12x"):
        try:
            return metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    return "installed"


def config_checks(config: Config | ConfigError) -> Iterator[Check]:
    """The config itself, its store, its cache folder and each model's checkpoint."""
    if isinstance(config, ConfigError):
        yield Check("config", "fail", config.message, config.remedy)
        return
    yield Check("config", "ok", f"{len(config.models)} models")
    try:
        store = open_store(config.store.url, config.store.storage_options)
        count = sum(1 for _ in store.entries())
        yield Check("store", "ok", f"{store.url}: {count} artifacts")
    except RlxError as error:
        yield Check("store", "fail", error.message, error.remedy)
    yield _cache_check(Path(config.store.cache_dir))
    for model in config.models:
        try:
            info = open_model(model).info
            limit = info.limits.max_tokens
            yield Check(f"model {model.name}", "ok", f"{model.family}, {limit} tokens")
        except RlxError as error:
            yield Check(f"model {model.name}", "fail", error.message, error.remedy)


def _cache_check(folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return Check("cache", "ok", str(folder))
    except OSError as error:
        remedy = "Set store.cache_dir to a folder that this user can write."
        return Check("cache", "fail", f"{folder}: {error.strerror}", remedy)


def version() -> str:
    """What `--version` prints."""
    from rlx_ray.compiler.cpu import zig
    from rlx_ray.compiler.cuda import nvrtc

    none = "not installed"
    pins = " or ".join(pin for pin, _ in NVRTC_VERSIONS.values())
    return (
        f"rlx-ray {__version__}\nbuild_id {build_id()}\nabi {ABI}\n"
        f"toolchain zig {zig.installed_version() or none} (pinned {ZIG_VERSION})\n"
        f"toolchain nvrtc {nvrtc.installed_version() or none} (pinned {pins})"
    )
