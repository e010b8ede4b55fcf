"""`rlx-ray doctor`: what this host can build and run, and what to do about the rest."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlx_ray import __version__
from rlx_ray.commands.output import json_option, store_option, write, write_json
from rlx_ray.digest import build_id
from rlx_ray.errors import RlxError
from rlx_ray.target import ABI, CPU_TARGETS, TARGETS, ZIG_VERSION, this_host, toolchain_for

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
        description="Checks targets, the toolchain (by compiling a unit), packages and, with a "
        "CONFIG, its store and checkpoints. Exits 1 if anything fails; every failing line says "
        "the remedy.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="also check this config")
    store_option(parser)
    json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 if one failed."""
    checks = [*host_checks(), *toolchain_checks(), *package_checks()]
    if args.config:
        checks += config_checks(args.config, args.store)
    if args.json:
        names = ("subject", "status", "found", "remedy")
        write_json({"checks": [{n: getattr(c, n) for n in names} for c in checks]})
    for c in checks if not args.json else ():
        write(f"{c.status:4}  {c.subject:28} {c.found}" + (f"  -> {c.remedy}" if c.remedy else ""))
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


def toolchain_checks() -> Iterator[Check]:
    """The C compiler: present, pinned, and able to build a unit for every target."""
    from rlx_ray.codegen import zig

    for one in CPU_TARGETS:
        chain = toolchain_for(one, {})
        try:
            size = len(zig.compile_c(_probe(), chain))
        except RlxError as error:
            yield Check(f"build {one.name}", "fail", error.message, error.remedy)
            continue
        yield Check(f"build {one.name}", "ok", f"zig {chain.version}, probe of {size} bytes")


def _probe() -> str:
    return '__attribute__((visibility("default"))) int rlx_probe(void) { return 1; }\n'


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
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "installed"


def config_checks(path: str, store_override: str | None) -> Iterator[Check]:
    """The config itself, its store, its cache folder and each model's checkpoint."""
    from rlx_ray.catalog import open_model
    from rlx_ray.config import load
    from rlx_ray.store import open_store

    try:
        config = load(path, store_override=store_override)
    except RlxError as error:
        yield Check("config", "fail", error.message, error.remedy)
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
            facts = open_model(model).facts
            limit = facts.limits.max_tokens
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
    from rlx_ray.codegen.zig import installed_version

    found = installed_version() or "not installed"
    return (
        f"rlx-ray {__version__}\nbuild_id {build_id()}\nabi {ABI}\n"
        f"toolchain zig {found} (pinned {ZIG_VERSION})"
    )
