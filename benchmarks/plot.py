"""A bar chart of a benchmark's JSON, as one SVG file without dependencies.

    .venv-bench/bin/python benchmarks/encoder.py --json > encoder.json
    .venv-bench/bin/python benchmarks/plot.py encoder.json docs/encoder.svg

Bars are times relative to the best peer of each case: shorter is faster, the line is that peer.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

NAMES = {
    "ours": "rlx_ray",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch_compile": "torch.compile",
    "torch_eager": "torch eager",
    "aotinductor": "AOTInductor",
}
COLOURS = ("#2f6fb0", "#9aa5b1", "#c3a878", "#a08bb3", "#8fb39a")
WIDTH, LEFT, BAR, GAP, TOP = 760, 150, 13, 14, 56


def chart(found: dict) -> str:
    """The SVG text of a report."""
    rows = found["rows"]
    engines = ["ours", *rows[0]["peers"]]
    times = [[relative(row, engine) for engine in engines] for row in rows]
    most = max(1.0, *(t for line in times for t in line))
    scale = (WIDTH - LEFT - 70) / most
    parts, y = [], TOP
    for row, line in zip(rows, times, strict=True):
        middle = y + len(engines) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{row["case"]}</text>')
        for engine, value, colour in zip(engines, line, COLOURS, strict=False):
            raw = row["ours"] if engine == "ours" else row["peers"][engine]
            width = value * scale
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>'
                f'<text class="n" x="{LEFT + width + 5:.1f}" y="{y + BAR - 4}">{raw:.4g}</text>'
            )
            y += BAR
        y += GAP
    line = LEFT + scale
    parts.append(f'<path d="M{line:.1f} {TOP - 6}V{y - GAP + 4}" class="one"/>')
    return page(found, engines, parts, y + 6)


def relative(row: dict, engine: str) -> float:
    """Time over the best peer's time; of a rate its inverse."""
    value = row["ours"] if engine == "ours" else row["peers"][engine]
    lower = row["better"] == "lower"
    best = (min if lower else max)(row["peers"].values())
    return float(value / best if lower else best / value)


def page(found: dict, engines: list[str], parts: list[str], height: float) -> str:
    """The whole file: title, legend, bars."""
    host = found["host"]
    title = f"{found['name']}: {host['cpu']}, {found.get('threads', '?')} threads, {found['date']}"
    unit = found["rows"][0]["unit"]
    legend, x = [], LEFT
    for engine, colour in zip(engines, COLOURS, strict=False):
        name = NAMES.get(engine, engine)
        legend.append(
            f'<rect x="{x}" y="30" width="11" height="11" fill="{colour}"/>'
            f'<text x="{x + 16}" y="40">{escape(name)}</text>'
        )
        x += 30 + 8 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><style>'
        "text{font:12px system-ui,sans-serif;fill:#1c2430}.n{font-size:10px;fill:#5b6675}"
        ".one{stroke:#1c2430;stroke-dasharray:3 3;fill:none}</style>"
        '<rect width="100%" height="100%" fill="#fbfbf9"/>'
        f'<text x="{LEFT}" y="18">{escape(title)} ({unit})</text>'
        f"{''.join(legend)}{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(chart(report), encoding="utf-8")
