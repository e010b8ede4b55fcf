"""The page at `/`: a table of all variants and one of text engines, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_COLUMNS = ("model", "target", "variant", "mode", "cache_key", "status", "bytes", "seconds")
_ENGINE_COLUMNS = ("model", "replica", "state", "cache_bytes")

_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2rem; color: #1c1e21; background: #fff }
table { border-collapse: collapse; margin-bottom: 2rem }
th, td { padding: .25rem .75rem; text-align: left }
thead th { border-bottom: 2px solid #555 } tbody tr:nth-child(even) { background: #f3f4f6 }
td { font-variant-numeric: tabular-nums } caption { text-align: left; padding: .5rem 0 }
.present { color: #0a6b2d } .missing, .unknown { color: #6b4d00 } .quarantined { color: #a1121f }
"""


def page(rows: Sequence[Mapping[str, object]], engines: Sequence[Mapping[str, object]]) -> str:
    """The page as HTML.

    Args:
        rows: of the variants.
        engines: of the text engines that replicas hold.
    """
    present = sum(row["status"] == "present" for row in rows)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*_COLUMNS, "replicas"))
    body = "\n".join(_line(row) for row in rows)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>rlx-ray</title><style>{_STYLE}</style></head><body><h1>rlx-ray</h1>\n"
        f"<table><caption>{len(rows)} variants, {present} in the store. The same as JSON: "
        '<a href="variants">/variants</a></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"
        f"{_engines(engines)}</body></html>\n"
    )


def _engines(engines: Sequence[Mapping[str, object]]) -> str:
    if not engines:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _ENGINE_COLUMNS)
    body = "\n".join(
        f"<tr>{''.join(_cell(name, engine[name], '') for name in _ENGINE_COLUMNS)}</tr>"
        for engine in engines
    )
    return (
        "<table><caption>Text engines with their key-value caches</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"
    )


def _line(row: Mapping[str, object]) -> str:
    cells = "".join(_cell(name, row[name], str(row["reason"])) for name in _COLUMNS)
    holders = row["replicas"]
    assert isinstance(holders, list)
    text = ", ".join(f"{h['replica']} ({h['state']})" for h in holders)
    text = text or str(row["passed_over"])
    return f"<tr>{cells}<td>{escape(text)}</td></tr>"


def _cell(name: str, value: object, reason: str) -> str:
    text = escape("" if value is None else str(value))
    if name == "status":
        return f'<td class="{text}" title="{escape(reason)}">{text}</td>'
    return f"<td>{text}</td>"
