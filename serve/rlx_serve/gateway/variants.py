"""What `/variants` shows: the rows of a plan, and what the replicas hold."""

from __future__ import annotations

from collections.abc import Mapping

from rlx_ray.store import Hit, Lookup
from rlx_serve.table import ServedVariant
from rlx_serve.wire import Held

_STATUS = {
    "absent": "missing",
    "damaged": "quarantined",
    "foreign": "quarantined",
    "unreachable": "unknown",
}


def engine_rows(board: Mapping[str, Held]) -> list[dict[str, object]]:
    """One object for each text engine of each replica: its state and the bytes of its cache."""
    return [
        {"model": model, "replica": name, "state": state, "cache_bytes": nbytes}
        for name, held in sorted(board.items())
        for model, (state, nbytes) in sorted(held.engines.items())
    ]


def variant_row(
    row: ServedVariant,
    found: Lookup | None,
    board: Mapping[str, Held],
    absent: Mapping[str, str],
) -> dict[str, object]:
    """What the store has of a variant, which replicas hold it, and why none can.

    Args:
        row: the variant.
        found: what the store said; None if it did not answer.
        board: what each replica holds.
        absent: why the executor of a target does not answer, by the target's name.
    """
    slot = row.route.slot_id
    status, reason, seconds, size = "unknown", "the store did not answer", None, None
    if row.unsupported:
        status, reason = "unsupported", row.unsupported
    elif isinstance(found, Hit):
        status, reason = "present", ""
        seconds, size = found.manifest.build.seconds, found.manifest.size
    elif found is not None:
        status, reason = _STATUS[found.kind], found.reason
    return {
        "model": row.route.model,
        "target": row.spec.target.name,
        "variant": row.route.variant,
        "cache_key": row.route.cache_key,
        "digest": row.route.digest,
        "weights": row.route.weights[:16],
        "status": status,
        "reason": reason,
        "seconds": seconds,
        "bytes": size,
        "error": None,
        "mode": row.mode.spelling,
        "passed_over": absent.get(row.spec.target.name, ""),
        "replicas": [
            {"replica": name, "state": held.slots[slot]}
            for name, held in sorted(board.items())
            if slot in held.slots
        ],
    }
