"""What sentence-transformers wrote beside an encoder: its head and its limit on the length.

Source: Reimers and Gurevych, "Sentence-BERT" (arXiv:1908.10084). Files: `modules.json`, the
pooling module's `config.json` and `sentence_bert_config.json`; `tokenizer_config.json` as
transformers writes it.

A checkpoint without `modules.json` is taken as sentence-transformers takes it: mean pooling over
the tokens, no normalisation.
"""

from __future__ import annotations

import json
from typing import Any

from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import Texts, TokenLimits

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}

REPAIR = "Fetch the checkpoint again, or correct the file."
"""What to do about a damaged file."""


def read_json(texts: Texts, name: str, kind: type = dict) -> Any:
    """The value of a JSON file of a checkpoint; None if there is no such file.

    Raises:
        CheckpointError: it is malformed, or not of that kind.
    """
    text = texts(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{name} is malformed JSON: {error}.", REPAIR) from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{name} is a {type(value).__name__}, not a {kind.__name__}.", REPAIR)
    return value


def read_head(texts: Texts, family: str) -> tuple[str, bool]:
    """Pooling (`mean`, `max` or `cls`), and whether the embedding is normalised.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConfigError: a head that is not known for the family.
    """
    rows = read_json(texts, "modules.json", list)
    if rows is None:
        return "mean", False
    if not all(isinstance(r, dict) and isinstance(r.get("type"), str) for r in rows):
        raise CheckpointError("modules.json has an entry without a 'type'.", REPAIR)
    kinds = [row["type"].rpartition(".")[2] for row in rows]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"modules.json: the modules {kinds} are not known for family {family}.",
            "Known are Transformer, Pooling and then perhaps Normalize.",
        )
    name = f"{rows[1].get('path', '1_Pooling')}/config.json"
    return _pooling(texts, name, family), len(kinds) == 3


def _pooling(texts: Texts, name: str, family: str) -> str:
    flags = read_json(texts, name)
    if flags is None:
        raise CheckpointError(f"The checkpoint has no {name}, which modules.json names.", REPAIR)
    mode = flags.get("pooling_mode")
    if isinstance(mode, str):
        modes = [mode]
    else:
        # sentence-transformers takes the mean unless the file says that it does not.
        flags = {"pooling_mode_mean_tokens": True, **flags}
        on = sorted(k for k, v in flags.items() if k.startswith("pooling_mode_") and v)
        modes = [_POOLINGS.get(k, k) for k in on]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        raise ConfigError(
            f"{name}: pooling {modes} is not known for family {family}.",
            f"Known is exactly one of {sorted(_POOLINGS.values())}.",
        )
    return modes[0]


def read_limits(texts: Texts, positions: int) -> TokenLimits:
    """The head's limit wins over the tokenizer's; no text has more tokens than positions.

    Args:
        texts: the checkpoint's text files.
        positions: how many tokens the position table has rows for.

    Raises:
        CheckpointError: a file is malformed.
    """
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = (read_json(texts, name) or {}).get(key)
        if value is None:
            continue
        # transformers writes int(1e30) for "no limit".
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise CheckpointError(f"{name}: {key} is {value!r}, expected a whole number.", REPAIR)
        return TokenLimits(int(min(value, positions)), positions)
    return TokenLimits(positions, positions)
