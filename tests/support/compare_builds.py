"""Whether two stores hold the same machine code: `python -m tests.support.compare_builds OLD NEW`.

For changes that move and rename without meaning to change what a machine runs. Both arguments are
folders of stores of the same configs, of any versions: manifests are read as plain JSON. Of CPU
artifacts code and thread pool are compared after `objcopy --strip-all`, since the symbol table
keeps C names. Of CUDA artifacts the unit is compiled anew with the names of its kernels replaced by
ordinals, and the launch plans are compared with the same names.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.target import Toolchain
from rlx_ray.target import target as find

_KERNEL = re.compile(r"^#define RLX_NAME (\w+)$", re.M)
_AARCH64 = b"\xb7\0"
_PARAMETERS = {"rope.turns": "rope.cos_sin"}
"""Parameters that have another name since."""
Key = tuple[str, str, str]


def artifacts(store: Path) -> dict[Key, dict[str, Any]]:
    """The manifests of a store by model, target, and what the variant is."""
    found = {}
    for file in sorted((store / "manifests").rglob("*.json")):
        value = json.loads(file.read_text())
        spec = value["spec"]
        variant = {k: v for k, v in spec["component"].items() if k not in ("mode", "dim_binding")}
        found[value["model"], value["target"], json.dumps(variant, sort_keys=True)] = value
    return found


def blob(store: Path, manifest: dict[str, Any], role: str) -> bytes:
    (ref,) = (b for b in manifest["blobs"] if b["role"] == role)
    return (store / "blobs" / ref["sha256"][:2] / ref["sha256"]).read_bytes()


@cache
def stripped(data: bytes) -> bytes:
    """An ELF file without its symbol table; one of aarch64 with it, as objcopy may not know it."""
    if data[18:20] == _AARCH64:
        return data
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        subprocess.run(["objcopy", "--strip-all", file.name], check=True)
        return Path(file.name).read_bytes()


def ordinals(plan: str) -> dict[str, str]:
    """A name for each kernel of a launch plan by the place of its first launch."""
    steps = (step["kernel"]["kernel"] for step in json.loads(plan)["steps"] if "kernel" in step)
    return {name: f"kernel_{i:03}" for i, name in enumerate(dict.fromkeys(steps))}


def in_order(unit: str) -> str:
    """A unit's kernels by their names, whatever their order was."""
    starts = [m.start() for m in _KERNEL.finditer(unit)] + [len(unit)]
    return "".join(sorted(unit[a:b] for a, b in pairwise(starts)))


def renamed(text: str, names: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda m: names.get(m[0], m[0]), text)


@cache
def cubin(text: str, toolchain: Toolchain, target: str) -> bytes:
    return bytes(nvrtc.build(text, find(target), toolchain))


def parts(store: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What a machine runs of an artifact, by what it is called in the comparison."""
    roles = {b["role"] for b in manifest["blobs"]}
    if "pool" in roles:
        yield "cpu code", stripped(blob(store, manifest, "code"))
        yield "thread pool", stripped(blob(store, manifest, "pool"))
    else:
        plan = blob(store, manifest, "plan").decode()
        names = ordinals(plan)
        plain = in_order(renamed(blob(store, manifest, "text").decode(), names))
        chain = manifest["spec"]["toolchain"]
        toolchain = Toolchain(chain["name"], chain["version"], tuple(chain["flags"]))
        yield "cubin", cubin(plain, toolchain, manifest["target"])
        yield "launch plan", renamed(plan, names)
    binding = json.dumps(manifest["binding"], sort_keys=True)
    for old, new in _PARAMETERS.items():
        binding = binding.replace(json.dumps(old), json.dumps(new))
    yield "binding", binding


def main(old: Path, new: Path) -> int:
    """Print what is equal and what is not; 1 if anything differs or is missing."""
    before, after = artifacts(old), artifacts(new)
    equal: Counter[str] = Counter()
    differ: list[str] = [f"missing in {new}: {key}" for key in before.keys() - after.keys()]
    differ += [f"missing in {old}: {key}" for key in after.keys() - before.keys()]
    for key in sorted(before.keys() & after.keys()):
        mine, theirs = dict(parts(old, before[key])), dict(parts(new, after[key]))
        for what, value in mine.items():
            if value == theirs.get(what):
                equal[what] += 1
            else:
                differ.append(f"{what} of {' '.join(key[:2])} {key[2]}")
    for what, count in sorted(equal.items()):
        print(f"{what}: {count} equal")
    for line in differ:
        print(f"differs: {line}")
    print(f"{len(before)} artifacts, {len(differ)} differences")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
