"""The example of docs/families.md, installed as a distribution of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.programs import Bench
from tests.support.tiny import safetensors_bytes, write_tokenizer

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
store: {url: "file://store", cache_dir: cache}
targets: [host]
models:
  - {name: words, family: bag, source: model, matrix: [{phase: encoder, batch: 2, seq: 8}]}
"""
RUN = """
import json, sys
from rlx_ray import load
model = load("config.yaml", "words")
done = model.embed(["the quick fox", "ray"])
source = model.cells[0].spec.family_source
ids = [e.ids for e in model.tokenizer.encode_batch(["the quick fox", "ray"])]
print(json.dumps([done.vectors.tolist(), ids, source.distribution, source.version]))
model.close()
"""


def install(folder: Path) -> None:
    """Write the example as an installed distribution below `folder`."""
    page = (ROOT / "docs" / "families.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (points,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (folder / "bag_family.py").write_text(code)
    info = folder / "bag_family-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bag-family\nVersion: 1.2\n")
    text = re.sub(r'project\.entry-points\."(.*?)"', r"\1", points).replace('"', "")
    (info / "entry_points.txt").write_text(text)
    (info / "RECORD").write_text("")


def test_the_documented_family_compiles_and_answers(bench: Bench, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site)
    words = np.random.default_rng(0).normal(0, 1, (120, 10)).astype(np.float32)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(safetensors_bytes({"words": words}))
    write_tokenizer(tmp_path / "model", 120)
    (tmp_path / "config.yaml").write_text(CONFIG)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    vectors, ids, distribution, version = json.loads(done.stdout)
    assert (distribution, version) == ("bag-family", "1.2")
    for vector, tokens in zip(vectors, ids, strict=True):
        mean = words[tokens].astype(np.float64).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
