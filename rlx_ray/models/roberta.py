"""RoBERTa and XLM-RoBERTa encoders: what sets their checkpoints apart from BERT's.

The position table begins with rows that no token takes: a text's first token has position
`pad_token_id` + 1, so a table of 514 rows with padding id 1 is for 512 tokens. A token that a text
spells as the padding token is an ordinary one here.

Source: Liu et al., "RoBERTa" (arXiv:1907.11692); Conneau et al., "Unsupervised Cross-lingual
Representation Learning at Scale" (arXiv:1911.02116).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlx_ray.errors import CheckpointError
from rlx_ray.models.bert import Kind, family_of, whole
from rlx_ray.models.head import REPAIR

_PAD = 1  # of a config.json that does not say, as in transformers


def _first_position(raw: Mapping[str, Any]) -> int:
    pad = raw.get("pad_token_id", _PAD)
    if type(pad) is not int or pad < 0:
        raise CheckpointError(
            f"config.json: pad_token_id is {pad!r}, expected a whole number of at least 0.", REPAIR
        )
    rows = whole(raw, "max_position_embeddings")
    if rows <= pad + 1:
        raise CheckpointError(
            f"config.json: max_position_embeddings {rows} leaves no position for a token: the "
            f"first is pad_token_id + 1 = {pad + 1}.",
            REPAIR,
        )
    return pad + 1


FAMILY = family_of(Kind("roberta", _first_position))
