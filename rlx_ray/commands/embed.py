"""`rlx-ray embed`: texts as JSON lines to vectors as JSON lines, in this process."""

from __future__ import annotations

import argparse
import json
import sys

from rlx_ray.commands.output import config_options, err, write, write_json
from rlx_ray.errors import InputError

_TEXTS_AT_ONCE = 256


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "embed",
        help="embed texts in this process, without Ray",
        description="Reads JSON strings, one a line, from standard input and prints one JSON list "
        "of numbers for each. In lazy and eager mode a missing variant is compiled and published.",
    )
    config_options(parser)
    parser.add_argument("model", metavar="MODEL", help="a model of the config")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: processors)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embed every line of standard input."""
    from rlx_ray.config.load import load
    from rlx_ray.job.compile_miss import load as open_local

    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}.", "Use 0 or more.")
    config = load(args.config, store_override=args.store)
    model = open_local(config, args.model, args.threads)
    texts = read_texts(sys.stdin.buffer.read())
    try:
        if not texts:
            raise InputError("standard input has no texts.", "Send one JSON string a line.")
        rows: list[list[float]] = []
        truncated = 0
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            done = model.embed(texts[start : start + _TEXTS_AT_ONCE])
            truncated += done.truncated
            rows += done.vectors.tolist()
            if not args.json:
                write("\n".join(json.dumps(row) for row in done.vectors.tolist()))
        if args.json:
            write_json({"model": args.model, "embeddings": rows, "truncated": truncated})
        if truncated:
            limit = model.tokenizer.max_length
            err.print(f"{truncated} texts were truncated to the model's {limit} tokens")
    finally:
        model.close()
    return 0


def read_texts(data: bytes) -> list[str]:
    """The JSON strings of some lines; empty lines are skipped.

    Raises:
        InputError: a line is not UTF-8 or not a JSON string; the message has its number.
    """
    texts = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except ValueError as error:
            raise InputError(f"line {number} is not JSON: {error}.", 'Write "a text".') from error
        if not isinstance(value, str):
            raise InputError(f"line {number} is {type(value).__name__}.", "Write one JSON string.")
        texts.append(value)
    return texts
