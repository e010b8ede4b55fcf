"""Variants as people read them: a table for each model and target, the reasons below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

STYLES = {
    "present": "green",
    "compiled": "green",
    "missing": "yellow",
    "quarantined": "magenta",
    "unsupported": "dim",
    "skipped": "dim",
    "failed": "red",
    "damaged": "red",
    "foreign": "dim",
}


class Listed(Protocol):
    """A row of a plan, or of a store's listing."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def target(self) -> str:
        """The target's name; empty where it is not known."""

    @property
    def variant(self) -> str:
        """The variant's text; empty where it is not known."""

    @property
    def cache_key(self) -> str:
        """The component's key, 16 digits."""

    @property
    def status(self) -> str:
        """One of STYLES."""

    @property
    def reason(self) -> str:
        """Why it is so; empty where it is as it should be."""

    @property
    def seconds(self) -> float | None:
        """Of its build."""

    @property
    def bytes(self) -> int | None:
        """Of its blobs."""


def print_listing(rows: Iterable[Listed], title: str) -> None:
    """Print rows on standard output; 80 columns hold them.

    Args:
        rows: in any order.
        title: above them all.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    console.print(title, style="bold", soft_wrap=True)
    groups: dict[tuple[str, str], list[Listed]] = {}
    for row in rows:
        groups.setdefault((row.model, row.target), []).append(row)
    reasons: dict[str, int] = {}
    for (model, target), group in groups.items():
        table = Table("variant", "cache key", "status", box=None, padding=(0, 1), pad_edge=False)
        table.add_column("s", justify="right")
        table.add_column("KiB", justify="right")
        for r in group:
            status = Text(r.status, STYLES[r.status])
            if r.reason:
                status.append(f" [{reasons.setdefault(r.reason, len(reasons) + 1)}]")
            seconds = "" if r.seconds is None else f"{r.seconds:.1f}"
            size = "" if r.bytes is None else f"{r.bytes / 1024:.0f}"
            table.add_row(r.variant or "?", r.cache_key, status, seconds, size)
        console.print(f"\n{model} · {target or 'target not known'}", soft_wrap=True)
        console.print(table)
    if reasons:
        console.print()
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", soft_wrap=True)
