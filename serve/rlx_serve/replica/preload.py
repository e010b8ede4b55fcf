"""What a replica loads before its first request: the eager variants, and the hot set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence

from rlx_ray.component import CompilationMode
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.text_engines import TextEngines
from rlx_serve.table import ServedVariant, names_of

_log = logging.getLogger("ray.serve")


async def preload(
    rows: Sequence[ServedVariant],
    warm: Collection[str],
    residency: Residency,
    engines: TextEngines,
    advertise: Callable[[str], Awaitable[object]],
    check: Callable[[int], None],
) -> contextlib.ExitStack:
    """Hold for good what is eager, which must fit, and load the hot set as well as it goes.

    Args:
        rows: what the replica serves; at least one.
        warm: names of the hot set, of models or of variants.
        residency: loads variants.
        engines: loads text engines.
        advertise: tells Ray that this replica holds a route.
        check: raises unless that many bytes of code fit beside the models' weights.

    Returns:
        What holds the eager variants and engines until it is closed.
    """

    async def load(row: ServedVariant, stack: contextlib.ExitStack) -> None:
        await advertise(row.route.route_id)
        await residency.hold(row, stack)

    check(0)
    kept = contextlib.ExitStack()
    eager = [row for row in rows if row.mode is CompilationMode.EAGER]
    await asyncio.gather(*(load(row, kept) for row in eager))
    check(residency.slots.code_bytes)
    for name in dict.fromkeys(row.route.model for row in eager):
        if name in engines.names:
            await engines.hold(name, kept)
    hot = [row for row in rows if names_of(row.route) & set(warm)]
    with contextlib.ExitStack() as stack:
        await _as_well_as_it_goes({row.route.route_id: load(row, stack) for row in hot})
    for name in dict.fromkeys(row.route.model for row in hot):
        if name in engines.names:
            with contextlib.ExitStack() as stack:
                await _as_well_as_it_goes({name: engines.hold(name, stack)})
    return kept


async def _as_well_as_it_goes(work: Mapping[str, Coroutine[None, None, object]]) -> None:
    found = await asyncio.gather(*work.values(), return_exceptions=True)
    for name, result in zip(work, found, strict=True):
        if isinstance(result, BaseException):
            _log.warning("%s is not warm: %s", name, result)
