"""The `rlx-ray` command: arguments, environment, exit codes; the commands are in `commands/`.

Exit status: 0 done, 1 the work failed, 2 bad usage or config, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rlx_ray.errors import ConfigError, RlxError

_COMMANDS = ("key", "plan", "prebuild", "embed", "generate", "serve", "store", "explain", "doctor")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="rlx-ray",
        description="Compile matrices of model variants ahead of time, and serve them.",
        epilog="Exit status: 0 done, 1 the work failed, 2 bad usage or config, 130 interrupted.",
    )
    root.add_argument("--version", action="store_true", help="version, build_id and toolchains")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    for name in _COMMANDS:
        import_module(f"rlx_ray.commands.{name}").add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; prints errors without a traceback."""
    root = parser()
    args = root.parse_args(argv)
    if args.version:
        from rlx_ray.commands.doctor import version

        print(version())
        return 0
    if args.command is None:
        root.print_help()
        return 2
    try:
        return int(args.run(args))
    except ConfigError as error:
        _complain(error)
        return 2
    except RlxError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _complain(error: RlxError) -> None:
    sys.stderr.write(f"rlx-ray: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
