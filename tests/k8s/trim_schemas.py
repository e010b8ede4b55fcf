"""Make `schemas/kuberay.json` from KubeRay's CustomResourceDefinitions.

    python tests/k8s/trim_schemas.py CRD_DIR

CRD_DIR is `ray-operator/config/crd/bases` of KubeRay v1.7.0. Kept are RayJob and RayService in
version v1: types, enums, patterns, bounds and required fields. Dropped are descriptions, defaults,
`status`, and Kubernetes' own extensions. Objects are closed, so that an unknown field is an error,
and what occurs more than once stands once, in `$defs`. CEL rules cannot be said in JSON Schema; the
ones that matter are in `operator_rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}
OUT = Path(__file__).parent / "schemas" / "kuberay.json"
NOTICE = (
    "Derived from the CustomResourceDefinitions of KubeRay v1.7.0, "
    "https://github.com/ray-project/kuberay, licensed under the Apache License, Version 2.0 "
    "(http://www.apache.org/licenses/LICENSE-2.0). Changed: trimmed by tests/k8s/trim_schemas.py."
)
_KEPT = frozenset(
    {"type", "enum", "pattern", "required", "minimum", "maximum"}
    | {"minItems", "maxItems", "minLength", "maxLength"}
)
_SHARED = 300  # characters from which a schema that occurs twice is worth a definition


def close(schema: Any) -> Any:
    """A structural schema of Kubernetes as a closed JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    out = {k: v for k, v in schema.items() if k in _KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    if "items" in schema:
        out["items"] = close(schema["items"])
    if "properties" in schema:
        out["properties"] = {k: close(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if "additionalProperties" in schema:
        out["additionalProperties"] = close(schema["additionalProperties"])
    return out


def dumps(value: object) -> str:
    """Compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def share(roots: dict[str, Any]) -> dict[str, Any]:
    """The same schemas as definitions that refer to each other instead of repeating."""
    seen: Counter[str] = Counter()

    def count(schema: Any) -> None:
        if isinstance(schema, dict):
            seen[dumps(schema)] += 1
            if seen[dumps(schema)] == 1:
                for child in schema.values():
                    count(child)

    for root in roots.values():
        count(root)
    names = {dumps(schema): name for name, schema in roots.items()}
    defs: dict[str, Any] = {}

    def refer(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        text = dumps(schema)
        shared = "type" in schema and seen[text] > 1 and len(text) >= _SHARED
        if text not in names and not shared:
            return {k: refer(v) for k, v in schema.items()}
        name = names.setdefault(text, "s" + hashlib.sha256(text.encode()).hexdigest()[:8])
        if name not in defs:
            defs[name] = {}
            defs[name] |= {k: refer(v) for k, v in schema.items()}
        return {"$ref": f"#/$defs/{name}"}

    for root in roots.values():
        refer(root)
    return defs


def main(folder: Path) -> None:
    """Read the CRDs and write the file."""
    roots: dict[str, Any] = {}
    for kind, name in KINDS.items():
        crd = yaml.load((folder / name).read_text(encoding="utf-8"), yaml.CSafeLoader)
        versions = {v["name"]: v for v in crd["spec"]["versions"]}
        schema = versions["v1"]["schema"]["openAPIV3Schema"]
        properties = schema["properties"]
        del properties["status"]
        roots[kind] = close(schema)
        roots[kind]["properties"]["metadata"] = {"$ref": "#/$defs/Metadata"}
        roots[kind]["required"] = ["apiVersion", "kind", "metadata", "spec"]
        if kind == "RayJob":
            roots["PodTemplate"] = close(properties["spec"]["properties"]["submitterPodTemplate"])
    OUT.write_text(dumps({"$comment": NOTICE, "$defs": share(roots)}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
