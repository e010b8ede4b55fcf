"""`rlx-ray prebuild`: compile what the store lacks, with Ray."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.text import Text

from rlx_ray.commands.listing import STYLES
from rlx_ray.commands.output import config_options, err, select_options, write_json
from rlx_ray.commands.plan import selected, tell_refused
from rlx_ray.errors import ConfigError
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.plan import BuildPlan, VariantStatus
from rlx_ray.job.prebuild import Report, prebuild

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "prebuild",
        help="compile what the store lacks, with Ray",
        description="Compiles every missing variant, each in a child process with limits, and "
        "publishes it at once: a run that was stopped goes on where it was. Exits 1 if any "
        "variant failed or has no compiler where it is built, 130 with a partial report if "
        "interrupted.",
    )
    config_options(parser)
    select_options(parser)
    parser.add_argument(
        "--address",
        metavar="A",
        help="a running Ray cluster (auto, HOST:PORT; default: RAY_ADDRESS, else one of its own)",
    )
    parser.add_argument("--html", metavar="F", help="also write a report to this HTML file")
    parser.add_argument("--timeout", metavar="S", type=float, help="seconds for one variant")
    parser.add_argument(
        "--memory",
        metavar="MIB",
        type=int,
        help="MiB that may be resident while one variant is built",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its report."""
    config, models, cells = selected(args)
    limits = _limits(args, config.serve.build_timeout_s, config.serve.build_memory_bytes)
    if args.html:
        _check_writable(args.html)
    signal.signal(signal.SIGTERM, _interrupt)
    shown = Progress()
    try:
        report = prebuild(cells, models, config.store, limits, args.address, shown.plan, shown.row)
    finally:
        shown.close()
    if args.json:
        write_json(report.to_json())
    _summary(report)
    if args.html:
        _write_html(args.html, report)
    if report.interrupted:
        return 130
    return 1 if report.failed or report.refused else 0


def _limits(args: argparse.Namespace, seconds: float, memory: int) -> BuildLimits:
    for option, value in (("--timeout", args.timeout), ("--memory", args.memory)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} is {value}.", "Use more than 0.")
    return BuildLimits(args.timeout or seconds, (args.memory << 20) if args.memory else memory)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_writable(name: str) -> None:
    """See before the run that its report will find a place."""
    try:
        with Path(name).open("a"):
            pass
    except OSError as error:
        raise _unwritable(name, error) from error


def _unwritable(name: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"--html {name!r} cannot be written: {error.strerror}.", "Name a writable file."
    )


def _write_html(name: str, report: Report) -> None:
    from rlx_ray.job.report import html

    try:
        Path(name).write_text(html(report), encoding="utf-8")
    except OSError as error:
        raise _unwritable(name, error) from error
    err.print(f"report: {name}")


def _summary(report: Report) -> None:
    for row in report.rows:
        if row.status == "failed":
            what = f"  {row.model} {row.target} {row.variant}: {row.reason}"
            err.print(Text.assemble(("failed", STYLES["failed"]), what))
    for name, message in report.weights:
        err.print(Text.assemble(("weights", STYLES["failed"]), f" {name}: {message}"))
    tell_refused(report.refused)
    counts = [
        Text(f"{n} {s}", STYLES[s])
        for s in ("present", "compiled", "failed", "skipped", "unsupported")
        if (n := report.count(s))
    ]
    ended = "interrupted after" if report.interrupted else "in"
    told = Text(", ").join(counts or [Text("none")])
    err.print(
        Text.assemble(f"{len(report.rows)} variants: ", told, f" {ended} {report.seconds:.1f} s")
    )


class Progress:
    """A live bar with the time left on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._done = 0
        self._total = 0
        self._begun = time.monotonic()
        self._bar: RichProgress | None = None

    def plan(self, plan: BuildPlan) -> None:
        """Say what there is to do, and start the bar."""
        self._total = len(plan.todo)
        self._begun = time.monotonic()
        err.print(
            f"{len(plan.rows)} variants: {plan.count('present')} present, {self._total} to build"
        )
        if not self._total or not err.is_terminal:
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("starting Ray", total=self._total)
        self._bar.start()

    def row(self, row: VariantStatus) -> None:
        """Count a variant that is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"{row.variant} {row.status}")
            return
        spent = time.monotonic() - self._begun
        left = spent / self._done * (self._total - self._done)
        seconds = "" if row.seconds is None else f" {row.seconds:.1f} s"
        err.print(
            f"[{self._done}/{self._total}] {row.model} {row.target} {row.variant}: "
            f"{row.status}{seconds}, about {left:.0f} s left"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
