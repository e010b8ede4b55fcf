"""`rlx-ray plan`: the matrix with what the store has of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from rlx_ray.commands.listing import print_listing
from rlx_ray.commands.output import config_options, err, select_options, write_json
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.inference.catalog import OpenModel, open_model
from rlx_ray.job.plan import absent, make_plan, select
from rlx_ray.job.prebuild import look_up
from rlx_ray.job.toolchains import refusals
from rlx_ray.matrix.expand import BuildCell, expand
from rlx_ray.store import open_store


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "plan",
        help="what prebuild would do",
        description="Prints each variant as present, missing, quarantined or unsupported, and "
        "what building the rest may cost. A variant that is not there is unsupported where this "
        "machine has no compiler for its target.",
    )
    config_options(parser)
    select_options(parser)
    parser.add_argument("--check", action="store_true", help="exit 1 if anything is missing")
    parser.set_defaults(run=run)


def selected(args: argparse.Namespace) -> tuple[Config, list[OpenModel], tuple[BuildCell, ...]]:
    """The config, its models, and the cells that the options name."""
    config = load(args.config, store_override=args.store)
    models = [open_model(m) for m in config.models]
    choice = dict(config.toolchain)
    cells = [c for m in models for c in expand(m.spec, m.family, m.info, choice)]
    return config, models, select(cells, args.model, args.target, args.variant, args.limit)


def run(args: argparse.Namespace) -> int:
    """Print the plan; with --check exit 1 if something is missing."""
    config, _, cells = selected(args)
    store = open_store(config.store.url, config.store.storage_options)
    lookups = look_up(cells, store)
    plan = make_plan(cells, lookups, refusals(absent(cells, lookups).items()))
    wall = plan.estimate / len(os.sched_getaffinity(0))
    if args.json:
        counts = {s: plan.count(s) for s in ("present", "missing", "quarantined", "unsupported")}
        write_json(
            {
                "total": len(plan.rows),
                **counts,
                "refused": dict(plan.refused),
                "targets": [t.name for t in config.targets],
                "estimate_seconds": round(plan.estimate, 1),
                "estimate_wall_seconds": round(wall, 1),
                "rows": [r.to_json() for r in plan.rows],
            }
        )
    else:
        print_listing(plan.rows, store.url)
        err.print(
            f"targets: {', '.join(t.name for t in config.targets)}; to build: {len(plan.todo)}, "
            f"about {plan.estimate:.0f} s of one processor, {wall:.0f} s on this machine"
        )
        tell_refused(plan.refused)
    return 1 if args.check and (plan.todo or plan.refused) else 0


def tell_refused(refused: Mapping[str, str]) -> None:
    """Say which targets lack something that nobody here can build."""
    for target, why in refused.items():
        err.print(f"cannot build for {target}: {why}")
