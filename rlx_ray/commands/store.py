"""`rlx-ray store`: look after the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rlx_ray.commands.listing import print_listing
from rlx_ray.commands.output import config_options, err, json_option, select_options, write_json
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError

if TYPE_CHECKING:
    from rlx_ray.spec import BuildSpec
    from rlx_ray.store import Miss, Store
    from rlx_ray.store.tiered import Fetched


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its actions."""
    parser = commands.add_parser("store", help="list, check and fetch artifacts")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="one row for each artifact")
    _where(listing)
    listing.add_argument("--model", metavar="NAME", help="only this model")
    listing.set_defaults(run=run_ls)
    check = actions.add_parser("verify", help="check every manifest and blob; exit 1 if damaged")
    _where(check)
    check.add_argument("--deep", action="store_true", help="hash every blob")
    check.set_defaults(run=run_verify)
    pull = actions.add_parser("pull", help="fill this host's cache with a config's artifacts")
    config_options(pull)
    select_options(pull)
    pull.set_defaults(run=run_pull)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="the config (or use --store)")
    parser.add_argument("--store", metavar="URL", help="use this store")
    json_option(parser)


def _store(args: argparse.Namespace) -> Store:
    from rlx_ray.config.load import load
    from rlx_ray.store import open_store

    if args.config:
        found = load(args.config, store_override=args.store).store
        return open_store(found.url, found.storage_options)
    if not args.store:
        raise ConfigError("neither CONFIG nor --store was given.", "Name one of them.")
    return open_store(args.store)


def run_ls(args: argparse.Namespace) -> int:
    """List the artifacts."""
    store = _store(args)
    rows = list(store.entries(args.model))
    if args.json:
        write_json({"rows": [r.to_json() for r in rows]})
        return 0
    print_listing(rows, store.url)
    err.print(f"{len(rows)} artifacts")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check every file; 1 if any is damaged."""
    rows = list(_store(args).verify(args.deep))
    damaged = [r for r in rows if r.status == "damaged"]
    if args.json:
        names = ("path", "kind", "status", "reason")
        write_json({"rows": [{n: getattr(r, n) for n in names} for r in rows]})
    else:
        for r in rows:
            if r.status != "ok":
                err.print(f"{r.status}: {r.path}: {r.reason}")
        err.print(f"{len(rows)} files, {len(damaged)} damaged")
    return 1 if damaged else 0


def run_pull(args: argparse.Namespace) -> int:
    """Bring a config's artifacts and weights to this host's cache; 1 if any is missing."""
    from rlx_ray.config.load import load
    from rlx_ray.inference.catalog import load_weights, open_model
    from rlx_ray.job.plan import select
    from rlx_ray.matrix.expand import expand
    from rlx_ray.store import HostCache, TieredStore, open_store

    config: Config = load(args.config, store_override=args.store)
    store = TieredStore(
        open_store(config.store.url, config.store.storage_options),
        HostCache(Path(config.store.cache_dir)),
    )
    rows = []
    models = [open_model(m) for m in config.models]
    cells = [c for m in models for c in expand(m.spec, m.family, m.info, dict(config.toolchain))]
    wanted = select(cells, args.model, args.target, args.variant, args.limit)
    for spec, found in store.pull([c.spec for c in wanted if not c.unsupported]):
        rows.append(_pulled(spec, found))
    by_name = {m.spec.name: m for m in models}
    specs = [c.spec for c in wanted if not c.unsupported]
    for spec in {(s.model, s.weights_family): s for s in specs}.values():
        load_weights(store, by_name[spec.model], spec)
    lacking = sum(r["status"] == "missing" for r in rows)
    if args.json:
        write_json({"total": len(rows), "missing": lacking, "rows": rows})
    for row in rows if not args.json else ():
        if row["status"] == "missing":
            err.print(f"missing: {row['model']} {row['variant']} {row['target']}: {row['reason']}")
    err.print(f"{len(rows) - lacking} of {len(rows)} artifacts are in {config.store.cache_dir}")
    return 1 if lacking else 0


def _pulled(spec: BuildSpec, found: Fetched | Miss) -> dict[str, object]:
    from rlx_ray.store import Miss

    missing = isinstance(found, Miss)
    return {
        "model": spec.model,
        "target": spec.target.name,
        "variant": str(spec.component.variant),
        "cache_key": spec.component.cache_key_hex,
        "digest": spec.digest,
        "status": "missing" if missing else "present",
        "tier": None if isinstance(found, Miss) else found.tier,
        "reason": found.reason if isinstance(found, Miss) else found.note,
    }
