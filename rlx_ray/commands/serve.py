"""`rlx-ray serve`: the HTTP endpoint on Ray Serve, until interrupted."""

from __future__ import annotations

import argparse
import signal
import threading

from rlx_ray.commands.output import config_options, err, write_json


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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from rlx_ray.config import load
    from rlx_serve.app import run as start
    from rlx_serve.app import stop

    config = load(args.config, store_override=args.store)
    stopped = threading.Event()
    try:
        url = start(config, host=args.host, port=args.port)
        # After the start, since Ray has handlers of its own.
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        _announce(url, [model.name for model in config.models], args.json)
        while not stopped.wait(0.5):  # finite waits let Ctrl-C through
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        err.print("stopping")
        stop()
    return 0


def _announce(url: str, models: list[str], as_json: bool) -> None:
    if as_json:
        write_json({"url": url, "models": models})
        return
    err.print(f"serving {', '.join(models)} at {url} (Ctrl-C stops)")
    err.print(
        f"""try: curl {url}/v1/embeddings -H 'content-type: application/json' """
        f"""-d '{{"model": "{models[0]}", "input": "hello"}}'"""
    )
