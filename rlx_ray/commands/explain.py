"""`rlx-ray explain`: how a variant's key comes to be and what the compiler makes of it."""

from __future__ import annotations

import argparse
from typing import Any

from rlx_ray.commands.output import config_options, write, write_json
from rlx_ray.component import ModelVariant
from rlx_ray.spec import BuildSpec

SECTIONS = ("key", "hir", "mir", "lir", "notes", "source")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "explain",
        help="a variant's key and its way through the compiler",
        description="Prints the key's ingredients, the HIR, the MIR after the passes, the "
        "decisions (dispatch, fusion, schedule) with their reasons, the LIR with its memory plan, "
        "and the source text. Needs no toolchain.",
    )
    config_options(parser)
    parser.add_argument("model", metavar="MODEL", help="a model of the config")
    parser.add_argument(
        "--variant", metavar="TEXT", help="such as encoder:b8:s128 (default: the first)"
    )
    parser.add_argument(
        "--show",
        choices=SECTIONS,
        action="append",
        help="only this section; may be given more than once (default: all but source)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the sections, or one JSON document with them."""
    from rlx_ray.catalog import open_model
    from rlx_ray.config import load
    from rlx_ray.job.matrix import expand
    from rlx_ray.local import find_model, pick

    config = load(args.config, store_override=args.store)
    model = open_model(find_model(config, args.model))
    cells = expand(model.spec, model.family, model.facts, dict(config.toolchain))
    wanted = ModelVariant.parse(args.variant) if args.variant else None
    spec = pick(cells, model.spec.name, wanted)
    shown = args.show or [s for s in SECTIONS if s != "source"]
    found = {name: text for name, text in sections(spec).items() if name in shown}
    if args.json:
        write_json({"variant": str(spec.component.variant), **found})
        return 0
    for name, value in found.items():
        write(f"== {name} ==\n{value if isinstance(value, str) else _lines(value)}")
    return 0


def sections(spec: BuildSpec) -> dict[str, Any]:
    """Every section of a variant: `key` and `notes` as data, the others as text."""
    from rlx_ray.compiler import source, stages
    from rlx_ray.ir.text import hir_text, lir_text, mir_text

    made = stages(spec)
    memory = {
        name: {"bytes": plan.size, "liveness_bound": plan.bound}
        for name, plan in (("arena", made.lir.arena), ("scratch_per_thread", made.lir.scratch))
    }
    return {
        "key": key_parts(spec) | {"memory": memory, "flops": made.lir.flops},
        "hir": hir_text(made.hir),
        "mir": mir_text(made.mir),
        "notes": [
            {"stage": n.stage, "subject": n.subject, "reason": n.text} for n in made.lir.notes
        ],
        "lir": lir_text(made.lir),
        "source": source(spec, made.lir),
    }


def key_parts(spec: BuildSpec) -> dict[str, Any]:
    """What the cache key and the artifact digest are made of."""
    component = spec.component
    return {
        "model": spec.model,
        "cache_key": component.cache_key_hex,
        "digest": spec.digest,
        "store_name": spec.store_name,
        "component": component.to_json(),
        "variant_key": f"{component.variant.key:016x}",
        "dim_binding": [list(pair) for pair in component.dim_binding],
        "profile": spec.profile.to_json(),
        "fingerprint": spec.fingerprint,
        "target": spec.target.name,
        "toolchain": spec.toolchain.to_json(),
        "build_id": spec.build_id,
        "abi": spec.abi,
    }


def _lines(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k}: {v}" for k, v in value.items())
    assert isinstance(value, list)
    return "\n".join(f"[{n['stage']}] {n['subject']}: {n['reason']}" for n in value)
