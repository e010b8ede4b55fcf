"""The config file: YAML to plain data, strictly.

Format: YAML 1.1 as PyYAML's safe loader reads it, less keys that appear twice. The sections are
`store`, `targets`, `toolchain`, `models` and `serve`; what they may hold is what the readers here
and in `config_models` name. Relative paths and `file://` URLs are taken from the config's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlx_ray.config.executors import check_executors, read_executors, read_gateway, slot_bytes
from rlx_ray.config.models import FindHost, read_models, read_targets
from rlx_ray.config.reader import ConfigNode, absolute_path, store_url
from rlx_ray.config.schema import Config, StoreSpec
from rlx_ray.config.serve import ServeSpec
from rlx_ray.digest import canonical_json
from rlx_ray.errors import ConfigError
from rlx_ray.runtime.cuda import this_host

_CUDA_MAJORS = {"12": 12, "13": 13}


def load(
    path: str | Path,
    *,
    store_override: str | None = None,
    host: FindHost = this_host,
) -> Config:
    """Read and check a config file.

    Args:
        path: the YAML file.
        store_override: a store URL or path that replaces the file's; relative to the working
            directory.
        host: finds this machine's processor and CUDA devices; called if the file names the target
            `host`.

    Raises:
        ConfigError: the file is missing or malformed, or says something that is invalid. The
            message has the path inside the file, such as `$.models[0].matrix[1].seq`.
    """
    # Not resolved: a mounted config may be a link into a folder whose name changes.
    file = Path(os.path.abspath(Path(path).expanduser()))
    root = ConfigNode(_parse(file), "$")
    nodes = root.section(
        ("store", "targets", "toolchain", "models", "serve"),
        ("targets", "models") if store_override else ("store", "targets", "models"),
    )
    targets = read_targets(nodes["targets"], host)
    return Config(
        path=str(file),
        store=_store(nodes.get("store"), file.parent, store_override),
        targets=targets,
        toolchain=_toolchain(nodes.get("toolchain")),
        models=read_models(nodes["models"], targets, file.parent, host),
        serve=_serve(nodes.get("serve")),
    )


class _Loader(yaml.SafeLoader):
    """The safe loader, which knows no `!!python` tags, less keys that appear twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _parse(file: Path) -> object:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"config {str(file)!r} does not exist.", "Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(file)!r} cannot be read: {error}.") from error
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"config {str(file)!r}{line}: {error.problem}.", "") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {str(file)!r} is not YAML: {error}.") from error


def _store(node: ConfigNode | None, base: Path, override: str | None) -> StoreSpec:
    known = ("url", "cache_dir", "storage_options", "shared")
    nodes = node.section(known, () if override else ("url",)) if node else {}
    url = store_url(override, Path.cwd()) if override else store_url(nodes["url"].text(), base)
    cache = nodes["cache_dir"].text() if "cache_dir" in nodes else ".rlx/cache"
    shared = nodes["shared"].boolean() if "shared" in nodes else False
    options = _options(nodes["storage_options"]) if "storage_options" in nodes else ()
    return StoreSpec(url, absolute_path(cache, base), options, shared)


def _options(node: ConfigNode) -> tuple[tuple[str, object], ...]:
    """Sorted pairs; nested values stay as fsspec wants them, but must be JSON."""
    for child in node.mapping().values():
        try:
            canonical_json(child.value)
        except (TypeError, ValueError) as error:
            raise child.wrong("a value of JSON's types") from error
    return tuple(sorted((key, child.value) for key, child in node.mapping().items()))


def _toolchain(node: ConfigNode | None) -> tuple[tuple[str, object], ...]:
    if node is None or node.value is None:
        return ()
    nodes = node.section(("cuda",))
    if "cuda" not in nodes:
        return ()
    major = ConfigNode(str(nodes["cuda"].value), nodes["cuda"].path)
    return (("cuda", major.choice(_CUDA_MAJORS)),)


def _whole(low: int, high: int) -> Callable[[ConfigNode], object]:
    return lambda node: node.whole(low, high)


def _seconds(node: ConfigNode) -> object:
    return node.number(0, 86_400)


def _texts(node: ConfigNode) -> object:
    return () if node.value == [] else tuple(item.text() for item in node.items())


_TERA = 1 << 40

_SERVE: Mapping[str, Callable[[ConfigNode], object]] = {
    "host": ConfigNode.text,
    "port": _whole(0, 65_535),
    "replicas": _whole(1, 100_000),
    "threads": _whole(0, 1024),
    "max_slots": _whole(1, 1_000_000),
    "max_slot_bytes": slot_bytes,
    "kv_cache_bytes": _whole(1, _TERA),
    "max_body_bytes": _whole(1, _TERA),
    "max_texts": _whole(1, 1_000_000),
    "max_ongoing_requests": _whole(1, 1_000_000),
    "max_queued_requests": _whole(1, 1_000_000),
    "request_timeout_s": _seconds,
    "build_timeout_s": _seconds,
    "build_memory_bytes": _whole(1, _TERA),
    "warm": _texts,
    "gateway": read_gateway,
    "executors": read_executors,
}
"""How each field of ServeSpec is read; `tests/pure/test_config.py` holds it against the class."""


def _serve(node: ConfigNode | None) -> ServeSpec:
    if node is None or node.value is None:
        return ServeSpec()
    values: dict[str, Any] = {k: _SERVE[k](child) for k, child in node.section(_SERVE).items()}
    serve = ServeSpec(**values)
    check_executors(serve)
    return serve
