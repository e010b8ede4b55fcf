"""What MiniLM loses in lower precision: cosine to the reference, rank correlation with float32.

    .venv-bench/bin/python benchmarks/accuracy.py [--json]

The golden sentences have reference embeddings in float64; the similarity set has pairs from
paraphrase to unrelated, whose cosines in lower precision are ranked against those in float32
(Spearman). No peer: what counts is the distance to the reference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from harness import ROOT, arguments, report

PRECISIONS = {"f32": "minilm", "bf16": "minilm-bf16", "int8": "minilm-int8"}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[index]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two lists."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def embed(name: str, texts: list[str], threads: int) -> np.ndarray:
    """Embeddings of texts by a model of the configs, one text a call."""
    import rlx_ray

    config = "minilm" if name == "minilm" else "minilm-low"
    model = rlx_ray.load(ROOT / "configs" / f"{config}.yaml", name, threads)
    try:
        return np.concatenate([model.embed([text]).vectors for text in texts])
    finally:
        model.close()


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    golden = json.loads((ROOT / "tests/golden/minilm.json").read_text())["cases"]
    pairs = json.loads((ROOT / "tests/golden/similarity.json").read_text())["pairs"]
    wanted = np.array([case["embedding"] for case in golden])
    texts = [case["text"] for case in golden] + [text for pair in pairs for text in pair]
    rows, reference = [], None
    for precision, name in PRECISIONS.items():
        vectors = embed(name, texts, args.threads).astype(np.float64)
        cosines = (vectors[: len(golden)] * wanted).sum(1)
        pair = vectors[len(golden) :].reshape(len(pairs), 2, -1)
        similarity = (pair[:, 0] * pair[:, 1]).sum(1)
        reference = similarity if reference is None else reference
        rows.append(
            {
                "case": precision,
                "unit": "cosine",
                "better": "higher",
                "ours": round(float(cosines.min()), 6),
                "peers": {},
                "ratio": 1.0,
                "mean": round(float(cosines.mean()), 6),
                "spearman": round(spearman(similarity, reference), 5),
                "largest_change": round(float(np.abs(similarity - reference).max()), 5),
            }
        )
    report("accuracy", rows, args.json, pairs=len(pairs))


if __name__ == "__main__":
    main()
