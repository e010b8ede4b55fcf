"""What Ray starts as HAProxy: closes the configuration that Ray has written, then becomes HAProxy.

    python -I -S haproxy_launcher.py HAPROXY ERROR_PAGE [HAProxy's own arguments]

Statistics and metrics go to loopback, the admin socket is for this user alone, headers have a limit
of time, and where HAProxy itself has no answer it gives the page: Ray makes a plain 500 of it. This
imports little: Ray waits for it some seconds alone, and gives it little of the processor.

Format: https://docs.haproxy.org/2.8/configuration.html
"""

from __future__ import annotations

import ctypes
import os
import re
import sys

HEADER_S = 10
"""Seconds that a client may take to send its headers."""

_STAND_IN = re.compile(r"^\s*server \S+ \S+ check backup\n", re.MULTILINE)
"""Ray's Python proxy, asked where no gateway is up: all that it says is that there is no path."""

_CLOSED = "# Closed by rlx_serve.\n"
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def closed(text: str, page: str) -> str:
    """A configuration of Ray's, closed.

    Args:
        text: as Ray has written it, or closed already: Ray does not write it anew for each start.
        page: path of the answer that HAProxy gives where no gateway does.

    Raises:
        ValueError: it is not as Ray 2.60 writes it, so that something would stay open.
    """
    if text.startswith(_CLOSED):
        return text
    changes = (
        (r"^(frontend prometheus\n\s*bind) \*?:(\d+)$", r"\1 127.0.0.1:\2", 1),
        (r"^(listen stats\n\s*bind) \*?:(\d+)$", r"\1 127.0.0.1:\2", 1),
        (r"^(\s*stats socket \S+ mode) 666\b", r"\1 600", 1),
        (r"^(\s*errorfile 50[234]) \S+$", rf"\1 {page}", 3),
        (
            r"^(backend default_backend\n\s*http-request return status) 404 .*$",
            r"\1 503 default-errorfiles",
            1,
        ),
        (r"^(defaults\n\s*mode http)$", rf"\1\n    timeout http-request {HEADER_S}s", 1),
    )
    for pattern, new, count in changes:
        text, found = re.subn(pattern, new, text, flags=re.MULTILINE)
        if found != count:
            raise ValueError(
                f"HAProxy's configuration has {found} lines like {pattern!r}, not {count}. Install "
                "the Ray that pyproject.toml names, or serve with --proxy python."
            )
    return _CLOSED + _STAND_IN.sub("", text)


def main(binary: str, page: str, *arguments: str) -> None:
    """Close the configuration that the arguments name, then become HAProxy."""
    # It ends with Ray's process that starts it, however that ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if "-f" in arguments:
        path = arguments[arguments.index("-f") + 1]
        with open(path, encoding="utf-8") as file:
            text = closed(file.read(), page)
        with open(f"{path}.closed", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.closed", path)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
