"""What compiles is the oracle of what decides bytes: each file that it imports counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlx_ray.digest import canonical_json
from rlx_ray.identity import COMPILER, PACKAGE, UNCOUNTED, counted
from rlx_ray.inference.catalog import open_model
from rlx_ray.matrix.expand import expand
from tests.support.llama_checkpoint import write_tiny_llama
from tests.support.modules import loaded_by
from tests.support.serving import tiny_model, write_config

COMPILE = (
    "import json, sys\n"
    "from rlx_ray.compiler.compile import compile\n"
    "from rlx_ray.spec import BuildSpec\n"
    "for value in json.load(sys.stdin):\n    compile(BuildSpec.from_json(value))"
)
COMMON = {"policy": "force_common"}
INT8 = {"precision": {"compute": "int8"}}
ROWS: list[dict[str, Any]] = [{}, {"dispatch": COMMON}, {"quant": "int8/32"}]


@pytest.mark.parametrize("target", ["cpu-x86_64-v3", "cuda-sm_90"])
def test_nothing_is_imported_by_a_build_that_does_not_count(tmp_path: Path, target: str) -> None:
    more = [{"profile": INT8}] if target.startswith("cpu") else []
    encoder = {"phase": "encoder", "batch": 1, "seq": 8}
    decoder = {"phase": "decode", "batch": 1, "seq": 1, "past_seq": 63}
    write_tiny_llama(tmp_path / "llama")
    bert = tiny_model(tmp_path, "ann", 1)
    llama = {"name": "bob", "family": "llama", "source": str(tmp_path / "llama"), "mode": "lazy"}
    models = [
        {**base, "name": f"{base['name']}{i}", "targets": [target], "matrix": [{**row, **fields}]}
        for base, row in ((bert, encoder), (llama, decoder))
        for i, fields in enumerate([*ROWS, *more])
    ]
    specs = []
    for entry in write_config(tmp_path, models).models:
        model = open_model(entry)
        cells = expand(model.spec, model.family, model.info, {})
        specs += [cell.spec.to_json() for cell in cells if not cell.unsupported]
    assert len(specs) >= 5
    found = loaded_by(COMPILE, canonical_json(specs))
    assert found <= {*counted(PACKAGE, COMPILER), *UNCOUNTED}
