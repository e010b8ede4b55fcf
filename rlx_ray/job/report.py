"""The HTML report of a run: one file, no outside resources, readable in light and dark."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from html import escape

from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.job.plan import VariantStatus
from rlx_ray.job.prebuild import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fbfbf9;
  --line: #d9dde3;
  --present: #cfe3f5; --compiled: #bfe5c6; --failed: #f6b8b2; --missing: #f5e2ad;
  --quarantined: #e3c8f0; --unsupported: #e6e8eb; --skipped: #e6e8eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --paper: #14181e;
  --line: #323a45; --present: #1f4a70; --compiled: #1f5c33; --failed: #83302a; --missing: #66531a;
  --quarantined: #58346b; --unsupported: #2a3038; --skipped: #2a3038; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
.soft { color: var(--soft) } .key span { padding: .15rem .6rem; border-radius: .3rem;
  margin-right: .4rem; white-space: nowrap }
table { border-collapse: separate; border-spacing: 3px } th { font-weight: 600; color: var(--soft);
  padding: .2rem .6rem; text-align: right } td.cell { min-width: 4.2rem; height: 2.4rem;
  text-align: center; border-radius: .3rem; font-variant-numeric: tabular-nums }
td.none { border: 1px dashed var(--line); border-radius: .3rem }
table.list { border-spacing: 0 } table.list td, table.list th { text-align: left;
  padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
pre { white-space: pre-wrap; margin: 0; font-size: .85rem }
.present { background: var(--present) } .compiled { background: var(--compiled) }
.failed { background: var(--failed) } .missing { background: var(--missing) }
.quarantined { background: var(--quarantined) } .unsupported, .skipped { background:
  var(--unsupported) }
"""

STATUSES = ("present", "compiled", "failed", "missing", "quarantined", "unsupported", "skipped")


def html(report: Report) -> str:
    """A self-contained page: summary, a heat map for each model and target, and the failures."""
    when = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    ended = "interrupted after" if report.interrupted else "finished in"
    key = " ".join(
        f'<span class="{s}">{report.count(s)} {s}</span>' for s in STATUSES if report.count(s)
    )
    groups = dict.fromkeys((r.model, r.target) for r in report.rows)
    parts = [
        f"<h1>rlx-ray prebuild</h1><p class=soft>{escape(when)} · {escape(report.host)} · "
        f"{len(report.rows)} variants, {ended} {report.seconds:.1f} s</p><p class=key>{key}</p>"
    ]
    for model, target in groups:
        rows = [r for r in report.rows if (r.model, r.target) == (model, target)]
        parts.append(f"<h2>{escape(model)} <span class=soft>on {escape(target)}</span></h2>")
        parts.append(_group(rows))
    parts.append(_failures(report))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>rlx-ray prebuild</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _group(rows: Sequence[VariantStatus]) -> str:
    """Encoder variants without extras as a heat map, everything else as a list."""
    parsed = [(ModelVariant.parse(r.variant), r) for r in rows]
    plane = [(v, r) for v, r in parsed if v.phase is ModelPhase.ENCODER and not v.extra]
    rest = [r for v, r in parsed if v.phase is not ModelPhase.ENCODER or v.extra]
    return (_heat_map(plane) if plane else "") + (_listing(rest) if rest else "")


def _heat_map(plane: Sequence[tuple[ModelVariant, VariantStatus]]) -> str:
    cells = {(v.batch, v.seq): r for v, r in plane}
    seqs = sorted({v.seq for v, _ in plane})
    head = "".join(f"<th>seq {s}</th>" for s in seqs)
    lines = [f"<tr><th></th>{head}</tr>"]
    for batch in sorted({v.batch for v, _ in plane}):
        line = "".join(_cell(cells.get((batch, s))) for s in seqs)
        lines.append(f"<tr><th>batch {batch}</th>{line}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(row: VariantStatus | None) -> str:
    if row is None:
        return "<td class=none></td>"
    shown = f"{row.seconds:.1f} s" if row.seconds is not None else row.status
    size = f" · {row.bytes / 1024:.0f} KiB" if row.bytes else ""
    about = f"{row.variant} · {row.status}{size} · key {row.cache_key} · digest {row.digest[:16]}"
    if row.reason:
        about += f" · {row.reason}"
    return f'<td class="cell {row.status}" title="{escape(about)}">{escape(shown)}</td>'


def _listing(rows: Iterable[VariantStatus]) -> str:
    lines = "".join(
        f"<tr><td>{escape(r.variant)}</td><td class={r.status}>{r.status}</td>"
        f"<td>{'' if r.seconds is None else f'{r.seconds:.1f} s'}</td>"
        f"<td>{escape(r.cache_key)}</td><td>{escape(r.reason)}</td></tr>"
        for r in rows
    )
    head = "<tr><th>variant</th><th>status</th><th>built in</th><th>key</th><th>reason</th></tr>"
    return f"<table class=list>{head}{lines}</table>"


def _failures(report: Report) -> str:
    found = [(f"{r.model} · {r.target} · {r.variant}", *r.error) for r in report.rows if r.error]
    found += [("packed weights", name, message) for name, message in report.weights]
    if not found:
        return ""
    lines = "".join(
        f"<tr><td>{escape(what)}</td><td>{escape(name)}</td><td><pre>{escape(message)}</pre></td>"
        "</tr>"
        for what, name, message in found
    )
    head = "<tr><th>what</th><th>error</th><th>message and remedy</th></tr>"
    return f"<h2>Failures</h2><table class=list>{head}{lines}</table>"
