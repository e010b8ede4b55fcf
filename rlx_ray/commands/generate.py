"""`rlx-ray generate`: a prompt on standard input to text, in this process."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from rlx_ray.commands.output import config_options, err, write_json
from rlx_ray.errors import InputError

if TYPE_CHECKING:
    from rlx_ray.engine.generation import Request
    from rlx_ray.inference.text_model import TextModel


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "generate",
        help="generate text in this process, without Ray",
        description="Reads a prompt from standard input and prints the answer as it comes. The "
        "prompt is taken as a user's message and put into the model's chat template, unless --raw. "
        "In lazy and eager mode a missing variant is compiled and published.",
    )
    config_options(parser)
    parser.add_argument("model", metavar="MODEL", help="a model of the config")
    parser.add_argument("--max-tokens", type=int, default=256, help="most new tokens (256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the most likely token (default)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="share of probability kept (1)")
    parser.add_argument("--seed", type=int, default=None, help="of the draws")
    parser.add_argument("--stop", action="append", default=[], help="a string that ends the text")
    parser.add_argument("--raw", action="store_true", help="no chat template, no stop tokens")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: processors)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the prompt on standard input."""
    from rlx_ray.config.load import load
    from rlx_ray.engine.generation import Request
    from rlx_ray.engine.sampling import Sampling
    from rlx_ray.inference.text_model import TextModel
    from rlx_ray.job.compile_miss import load as open_local

    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}.", "Use 0 or more.")
    prompt = read_prompt(sys.stdin.buffer.read())
    model = open_local(load(args.config, store_override=args.store), args.model, args.threads)
    try:
        text = TextModel(model)
        try:
            ids = (
                tuple(model.tokenizer.encode(prompt))
                if args.raw
                else text.chat_prompt([{"role": "user", "content": prompt}])
            )
            sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
            stop_ids = frozenset() if args.raw else frozenset(model.model.info.stop_ids)
            request = Request(ids, args.max_tokens, sampling, tuple(args.stop), stop_ids)
            return _answer(args, text, request)
        finally:
            text.close()
    finally:
        model.close()


def _answer(args: argparse.Namespace, text: TextModel, request: Request) -> int:
    tokens: list[int] = []
    parts: list[str] = []
    finish = ""
    begun = time.perf_counter()
    first = begun
    for delta in text.answer(request):
        if delta.chosen is not None:
            first = first if tokens else time.perf_counter()
            tokens.append(delta.chosen.token)
        parts.append(delta.text)
        finish = delta.finish
        if not args.json:
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    ended = time.perf_counter()
    prefill = len(request.prompt) / (first - begun)
    decode = (len(tokens) - 1) / (ended - first) if len(tokens) > 1 else 0.0
    if args.json:
        write_json(
            {
                "model": args.model,
                "token_ids": tokens,
                "text": "".join(parts),
                "finish_reason": finish,
                "prompt_tokens": len(request.prompt),
                "prefill_tok_s": round(prefill, 1),
                "decode_tok_s": round(decode, 1),
            }
        )
    else:
        sys.stdout.write("\n")
        err.print(
            f"{len(request.prompt)} prompt tokens at {prefill:.1f}/s, {len(tokens)} new ones at "
            f"{decode:.1f}/s ({finish})"
        )
    return 0


def read_prompt(data: bytes) -> str:
    """The prompt, without the line feed at its end.

    Raises:
        InputError: it is empty or not UTF-8.
    """
    try:
        text = data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt is not UTF-8: {error}.", "Send UTF-8 text.") from error
    if not text:
        raise InputError("standard input has no prompt.", "Send a text.")
    return text
