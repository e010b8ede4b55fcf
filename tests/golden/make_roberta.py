"""How `roberta.json` was made: embeddings of tiny checkpoints by transformers.

Needs torch and transformers, which nothing else here does; run it from the repository root:

    PYTHONPATH=. python tests/golden/make_roberta.py

The checkpoints are those of `tests.support.tiny.write_tiny_roberta`, random from a seed. The
forward pass is float32 on a batch padded to its longest text, so that transformers finds the
positions itself; the mean over the attention mask and the normalisation are those of
sentence-transformers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tests.support.tiny import write_tiny_roberta

OUT = Path(__file__).with_name("roberta.json")
CHECKPOINTS: list[dict[str, Any]] = [
    {"model_type": "roberta", "seed": 11, "normalize": False, "prefix": "roberta."},
    {"model_type": "xlm-roberta", "seed": 12, "normalize": True},
]
CLASSES = {"roberta": transformers.RobertaModel, "xlm-roberta": transformers.XLMRobertaModel}
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "Der Schlüssel, ein key!",
    "ray",
    "",
    "a long text that is cut where the rows of the position table end " * 3,
]


def embeddings(checkpoint: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Each text with its token ids and its embedding."""
    config = write_tiny_roberta(folder, **checkpoint)
    model = CLASSES[checkpoint["model_type"]].from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = config["pad_token_id"]
    tokenizer.enable_truncation(config["max_position_embeddings"] - pad - 1)
    tokenizer.enable_padding(pad_id=pad, pad_token="<pad>")
    encoded = tokenizer.encode_batch(TEXTS)
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None].float()
    found = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if checkpoint["normalize"]:
        found = torch.nn.functional.normalize(found, p=2, dim=1)
    return [
        {
            "text": text,
            "input_ids": [i for i, m in zip(e.ids, e.attention_mask, strict=True) if m],
            "embedding": [round(value, 7) for value in row],
        }
        for text, e, row in zip(TEXTS, encoded, found.tolist(), strict=True)
    ]


def main() -> None:
    """Write the file."""
    models = []
    for checkpoint in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder:
            cases = embeddings(checkpoint, Path(folder))
        models.append({"checkpoint": checkpoint, "cases": cases})
    made = {
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, "
        "float32, mean over the attention mask, truncation at the last position",
        "models": models,
    }
    OUT.write_text(json.dumps(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
