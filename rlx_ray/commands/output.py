"""What every command shares: consoles, JSON on standard output, and options."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
"""People read this: progress, logs, errors. Standard output is for results alone. Brackets in a
message are its own (`rlx_ray[build]`); what is coloured is a `Text`."""


def write_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write(text: str) -> None:
    """Text on standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def config_options(parser: argparse.ArgumentParser) -> None:
    """CONFIG, --store and --json."""
    parser.add_argument("config", metavar="CONFIG", help="the YAML file with store and models")
    store_option(parser)
    json_option(parser)


def store_option(parser: argparse.ArgumentParser) -> None:
    """--store URL."""
    parser.add_argument("--store", metavar="URL", help="use this store instead of the config's")


def json_option(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )


def select_options(parser: argparse.ArgumentParser) -> None:
    """--model, --target, --variant and --limit, which narrow a matrix."""
    parser.add_argument("--model", metavar="NAME", help="only this model")
    parser.add_argument("--target", metavar="NAME", help="only this target")
    parser.add_argument("--variant", metavar="TEXT", help="only this variant (encoder:b8:s128)")
    parser.add_argument("--limit", metavar="N", type=int, help="at most N variants")
