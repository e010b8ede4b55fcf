"""Chat templates: a model's own Jinja text, rendered in a sandbox.

A template comes with a checkpoint and is not trusted: it sees the messages and nothing else of
this process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlx_ray.errors import CheckpointError, InputError

_LONGEST = 4 << 20
"""Characters of a rendered prompt beyond which rendering is given up."""


class ChatTemplate:
    """A chat template.

    Args:
        source: the template's text.
        tokens: what it may name: `bos_token`, `eos_token` and so on.

    Raises:
        CheckpointError: the text is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        self._environment.filters["tojson"] = _to_json
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = _now
        self._tokens = dict(tokens)
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"the checkpoint's chat template cannot be read: {error}.",
                "Correct it, or send plain prompts to /v1/completions.",
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        """The prompt for some messages, ready for the assistant's answer.

        Args:
            messages: mappings with `role` and `content`.
            more: further names for the template, such as tools.

        Raises:
            InputError: the template refuses the messages, or does what the sandbox forbids.
        """
        parts: list[str] = []
        size = 0
        names = {**self._tokens, **more, "messages": messages, "add_generation_prompt": True}
        try:
            for part in self._template.generate(names):
                parts.append(part)
                size += len(part)
                if size > _LONGEST:
                    raise InputError(f"the chat template makes more than {_LONGEST} characters.")
        except InputError:
            raise
        except Exception as error:  # whatever a foreign template may raise
            raise InputError(
                f"the model's chat template does not take these messages: {error}.",
                "Check their roles and contents.",
            ) from error
        return "".join(parts)


def read_template(tokenizer_config: str | None, jinja: str | None) -> ChatTemplate | None:
    """The chat template of a checkpoint; None if it has none.

    Args:
        tokenizer_config: text of `tokenizer_config.json`, if there is one.
        jinja: text of `chat_template.jinja`, which wins, if there is one.

    Raises:
        CheckpointError: a text is malformed.
    """
    try:
        config = json.loads(tokenizer_config) if tokenizer_config else {}
    except ValueError as error:
        raise CheckpointError(f"tokenizer_config.json is malformed JSON: {error}.") from error
    source = jinja if jinja is not None else config.get("chat_template")
    if isinstance(source, list):  # several by name, as older files have them
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        tokens[name] = value if isinstance(value, str) else ""
    return ChatTemplate(source, tokens)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
