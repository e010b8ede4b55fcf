"""`rlx-ray explain`: how a variant's key comes to be and what the compiler makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlx_ray import record
from rlx_ray.commands.output import config_options, write, write_json
from rlx_ray.component import ModelVariant
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.spec import BuildSpec

if TYPE_CHECKING:
    from rlx_ray.config.schema import Config
    from rlx_ray.matrix.expand import BuildCell
    from rlx_ray.target import Target

SECTIONS = ("key", "hir", "mir", "lir", "launches", "resources", "notes", "source")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "explain",
        help="a variant's key and its way through the compiler",
        description="Prints the key's ingredients, the HIR, the MIR after the passes, the "
        "decisions (dispatch, fusion, schedule) with their reasons, the LIR (of a CUDA target the "
        "launches) with its memory plan, what each CUDA kernel takes of a multiprocessor, and the "
        "source text. Needs no toolchain but for `resources`, which needs NVRTC.",
    )
    config_options(parser)
    parser.add_argument("model", metavar="MODEL", help="a model of the config")
    parser.add_argument(
        "--variant", metavar="TEXT", help="such as encoder:b8:s128 (default: the first)"
    )
    parser.add_argument("--target", metavar="NAME", help="one of the model's (default: the first)")
    parser.add_argument(
        "--show",
        choices=SECTIONS,
        action="append",
        help="only this section; may be given more than once (default: all but source)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="build the variant with counters, run it on full sequences, and print time, GFLOP/s "
        "and GB/s of each kernel (needs the compiler and a host that can run the target)",
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="for --profile (1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=20, help="for --profile (20)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the sections, or one JSON document with them."""
    from rlx_ray.config.load import load
    from rlx_ray.inference.catalog import open_model
    from rlx_ray.inference.local import find_model, pick
    from rlx_ray.matrix.expand import expand

    config = load(args.config, store_override=args.store)
    if args.profile:
        return run_profile(args, config)
    model = open_model(find_model(config, args.model))
    cells = expand(model.spec, model.family, model.info, dict(config.toolchain))
    wanted = ModelVariant.parse(args.variant) if args.variant else None
    if args.target:
        cells = _of_target(cells, args.target)
    spec = pick(cells, model.spec.name, wanted)
    known = sections(spec)
    shown = args.show or [name for name in known if name != "source"]
    _check_known(shown, known, spec.target)
    found = {name: make() for name, make in known.items() if name in shown}
    if args.json:
        write_json({"variant": str(spec.component.variant), **found})
        return 0
    for name, value in found.items():
        write(f"== {name} ==\n{_text(name, value)}")
    return 0


def run_profile(args: argparse.Namespace, config: Config) -> int:
    """Print where the time of a variant goes."""
    from rlx_ray.commands.profiling import profile
    from rlx_ray.job.compile_miss import load as open_local

    if args.target or args.show:
        raise ConfigError(
            "--profile runs the variant on this host and prints one table.",
            "Leave out --target and --show.",
        )
    for option, value, most in (("--threads", args.threads, 64), ("--rounds", args.rounds, 10**6)):
        if not 1 <= value <= most:
            raise ConfigError(f"{option} is {value}.", f"Use 1 to {most}.")
    local = open_local(config, args.model, args.threads)
    wanted = ModelVariant.parse(args.variant) if args.variant else local.variants[0]
    weights, library = local.parts(wanted)
    made = profile(local.spec(wanted), weights, library, args.threads, args.rounds)
    if args.json:
        write_json({"variant": str(wanted), **asdict(made)})
        return 0
    write(
        f"{wanted}: {made.milliseconds:.2f} ms a forward pass with counters on, "
        f"{made.threads} threads, {made.busy:.0%} of their time in kernels"
    )
    write(f"{'kernel':<44} {'calls':>6} {'ms':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>6}")
    for k in made.kernels:
        write(
            f"{k.kernel:<44} {k.calls:>6} {k.milliseconds:>9.3f} {k.share:>6.1%} "
            f"{k.gflops:>8.1f} {k.gbytes:>6.2f}"
        )
    return 0


def _check_known(shown: Iterable[str], known: Iterable[str], target: Target) -> None:
    for name in shown:
        if name not in known:
            raise ConfigError(
                f"--show is {name!r}, which a variant for {target.name} does not have.",
                f"It has {', '.join(known)}.",
            )


def _of_target(cells: Iterable[BuildCell], name: str) -> tuple[BuildCell, ...]:
    known = list(cells)
    names = list(dict.fromkeys(cell.spec.target.name for cell in known))
    found = tuple(cell for cell in known if cell.spec.target.name == name)
    if not found:
        raise ConfigError(
            f"--target is {name!r}, which is not one of the model's.",
            nearest(name, names) or f"It has {', '.join(names)}.",
        )
    return found


def sections(spec: BuildSpec) -> dict[str, Callable[[], Any]]:
    """What makes each section of a variant: `key`, `notes`, `resources` as data, others as text."""
    from rlx_ray.compiler.backend import backend_for
    from rlx_ray.compiler.compile import stages
    from rlx_ray.compiler.ir.printer import hir_text, mir_text

    made, backend = stages(spec), backend_for(spec.target)
    program = made.program
    memory = {
        name: {"bytes": plan.size, "liveness_bound": plan.bound}
        for name, plan in backend.memory(program).items()
    }
    return {
        "key": lambda: key_parts(spec) | {"memory": memory, "flops": program.flops},
        "hir": lambda: hir_text(made.hir),
        "mir": lambda: mir_text(made.mir),
        "notes": lambda: [
            {"stage": n.stage, "subject": n.subject, "reason": n.text} for n in program.notes
        ],
        **backend.printer(program, spec.target),
        "source": lambda: backend.emit(program, spec.target),
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
        "toolchain": record.write(spec.toolchain),
        "build_id": spec.build_id,
        "abi": spec.abi,
    }


def _text(name: str, value: object) -> str:
    match value:
        case str():
            return value
        case dict():
            return "\n".join(f"{k}: {v}" for k, v in value.items())
        case list() if name == "resources":
            return _table(value)
        case list():
            return "\n".join(f"[{n['stage']}] {n['subject']}: {n['reason']}" for n in value)
        case _:
            raise AssertionError(name)


def _table(kernels: list[dict[str, Any]]) -> str:
    """A line for each kernel, under the names of its numbers."""
    columns = ("registers", "local_bytes", "shared_bytes", "block", "blocks", "occupancy")
    lines = [" ".join([f"{'kernel':<28}", *(f"{c:>12}" for c in columns)])]
    lines += [
        " ".join([f"{one['kernel']:<28}", *(f"{one[c]:>12}" for c in columns)]) for one in kernels
    ]
    return "\n".join(lines)
