"""What artifacts and the runtime share: `target.ABI` covers it, and changes when it does.

Artifacts of one process share a thread pool and the pages of a model's cache, and the runtime hands
each its frame and inputs by name. After a change that is meant, raise `target.ABI` and record what
it covers now: `RLX_RECORD=1 pytest tests/pure/test_abi.py`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from rlx_ray import shape
from rlx_ray.artifact import launch_plan, manifest
from rlx_ray.compiler.backend import backend_for
from rlx_ray.compiler.cpu.c import head
from rlx_ray.compiler.ir.program import Order
from rlx_ray.compiler.pipeline import run
from rlx_ray.component import ModelVariant
from rlx_ray.digest import json_digest
from rlx_ray.identity import PACKAGE
from rlx_ray.runtime.cpu import Frame
from rlx_ray.target import ABI, target
from tests.support.programs import NATIVE, PROFILE, bert, llama

KERNELS = PACKAGE / "compiler" / "kernels" / "c"
GOLDEN = Path(__file__).parent.parent / "golden" / "abi.json"


TOLD = re.compile(r"#ifndef (\w+)\n#error .*\n#endif")


def code(name: str) -> str:
    """A C source without comments and the spaces between words.

    Where it wants to be told a number, it has the one that units tell it.
    """
    defines = head(target("cpu-x86_64-v3"), ()).splitlines()
    told = {line.split()[1]: line for line in defines if line.startswith("#define")}
    text = TOLD.sub(lambda m: told[m[1]], (KERNELS / name).read_text())
    return re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", " ", text, flags=re.S))


def bindings() -> dict[str, object]:
    """Names, types and layouts of what callers bind: an encoder's and a decoder's, on each kind."""
    found: dict[str, object] = {}
    encoder, decoder = ModelVariant.encoder(2, 8), ModelVariant.decode(2, 63)
    for hir, variant in ((bert(), encoder), (llama(), decoder)):
        for name in ("cpu-x86_64-v3", "cuda-sm_90"):
            kind, binding = target(name), dict(variant.dim_binding)
            order = Order(PROFILE, NATIVE, kind, {}, hir.outputs)
            program = run(hir, binding, order, backend_for(kind)).program
            for group in ("inputs", "outputs"):
                tensors = getattr(program, group)
                rows = [[t.name, t.dtype.text, t.layout, len(t.shape)] for t in tensors]
                found[f"{group} of {variant.phase.spelling} on {kind.kind}"] = rows
    return found


def covered() -> dict[str, object]:
    return {
        "frame and regions (rlx_abi.h)": json_digest(code("rlx_abi.h")),
        "thread pool (pool.c)": json_digest(code("pool.c")),
        "pages of a cache (cache.h)": json_digest(code("cache.h")),
        "frame of the runtime": [[name, kind.__name__] for name, kind in Frame._fields_],
        "tokens of a page, likeliest tokens": [shape.PAGE, shape.LIKELIEST],
        "formats": [manifest.FORMAT, manifest.WEIGHTS_FORMAT, launch_plan.FORMAT],
        **bindings(),
    }


def test_what_the_abi_covers_changes_with_its_number_alone() -> None:
    found = {"abi": ABI, "covers": covered()}
    if os.environ.get("RLX_RECORD"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    kept = json.loads(GOLDEN.read_text())
    now = json.loads(json.dumps(found))
    changed = [name for name, value in now["covers"].items() if kept["covers"].get(name) != value]
    if changed and kept["abi"] == ABI:
        pytest.fail(f"changed under abi {ABI}: {changed}. Raise target.ABI and record anew.")
    assert kept == now, "record anew: RLX_RECORD=1"


def test_the_runtimes_abi_is_that_of_the_kernels() -> None:
    assert f"#define RLX_ABI {ABI}\n" in (KERNELS / "rlx_abi.h").read_text()
