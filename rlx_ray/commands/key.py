"""`rlx-ray key`: components as JSON lines to their keys as JSON lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rlx_ray.commands.output import write_json
from rlx_ray.component import key_line
from rlx_ray.errors import ConfigError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "key",
        help="cache keys of components",
        description="Reads one JSON object a line with the fields variant, policy, force_common, "
        "force_native, mode, profile_key, quant and layer_composition_key; prints one line each "
        "with variant_key, cache_key, aot_disk_base and dim_binding.",
    )
    parser.add_argument("file", metavar="FILE|-", help="JSON lines, or - for standard input")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the keys of every line; a bad line ends the run with its number."""
    for number, line in enumerate(_lines(args.file), 1):
        if line.strip():
            write_json(key_line(line, number))
    return 0


def _lines(name: str) -> Iterable[str]:
    try:
        if name == "-":
            return sys.stdin.read().splitlines()
        return Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{name!r} cannot be read: {error.strerror}.", "Name a file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name!r} is not UTF-8: {error}.", "Save it as UTF-8.") from error
