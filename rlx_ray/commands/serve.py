"""`rlx-ray serve`: the HTTP endpoint on Ray Serve, until interrupted."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rlx_ray.commands.output import config_options, err, write_json

if TYPE_CHECKING:
    from rlx_ray.config.schema import Config, ModelSpec


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="serve the models over HTTP with Ray Serve",
        description="Starts Ray if no cluster is named, deploys the config's models, prints the "
        "URL once they are ready, and serves until SIGTERM (exit 0) or Ctrl-C (exit 130).",
    )
    config_options(parser)
    parser.add_argument("--host", metavar="ADDRESS", help="where to listen (default: serve.host)")
    parser.add_argument(
        "--port", metavar="N", type=int, help="where to listen (default: serve.port; 0: any free)"
    )
    parser.add_argument(
        "--proxy",
        choices=("haproxy", "python"),
        help="what listens on a Ray of its own (default: haproxy, much the faster one)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from rlx_ray.config.load import load
    from rlx_ray.job.cluster import named
    from rlx_serve import haproxy

    config = load(args.config, store_override=args.store)
    stopped = threading.Event()
    proxy = haproxy.chosen(args.proxy, named(None))
    with ExitStack() as stack:
        stack.enter_context(haproxy.proxied(proxy))
        from rlx_serve.app import serving  # reads the environment

        url = stack.enter_context(serving(config, host=args.host, port=args.port))
        try:
            # After the start, since Ray has handlers of its own.
            signal.signal(signal.SIGTERM, lambda *_: stopped.set())
            _announce(url, config, proxy, args.json)
            while not stopped.wait(0.5):  # finite waits let Ctrl-C through
                pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            err.print("stopping")
    return 0


def _announce(url: str, config: Config, proxy: str, as_json: bool) -> None:
    models = [model.name for model in config.models]
    if as_json:
        write_json({"url": url, "models": models, "proxy": proxy})
        return
    behind = {"haproxy": " behind HAProxy", "python": " behind Ray's Python proxy"}.get(proxy, "")
    err.print(f"serving {', '.join(models)} at {url}{behind} (Ctrl-C stops)")
    err.print(f"try: {example(url, config.models[0])}")


def example(url: str, model: ModelSpec) -> str:
    """A command that asks a model for something."""
    from rlx_ray.component import ModelPhase

    embeds = any(row.phase is ModelPhase.ENCODER for row in model.matrix)
    path, said = ("embeddings", "input") if embeds else ("completions", "prompt")
    body = json.dumps({"model": model.name, said: "hello"})
    return f"curl {url}/v1/{path} -H 'content-type: application/json' -d '{body}'"
