"""Two language models on one emulated card with room for one: memory goes and comes."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.config.load import load
from rlx_ray.engine.generation import Request
from rlx_ray.engine.sampling import Sampling
from rlx_ray.errors import DeviceMemoryError
from rlx_ray.inference.loader import TargetLoader, tiered
from rlx_ray.job.build import build
from rlx_ray.spec import BuildSpec
from rlx_ray.target import target
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.text_engines import HeldEngine, TextEngines
from rlx_serve.table import open_table
from tests.support.emulated_loader import put_in_card
from tests.support.llama_checkpoint import write_tiny_llama
from tests.support.needs import needs

CONFIG = """
store: {url: "file://store", cache_dir: cache}
targets: [cuda-sm_90]
models:
- {name: ann, family: llama, source: ann, mode: lazy, matrix: &rows
    [{phase: prefill, batch: 1, seq: 16}, {phase: decode, batch: 1, seq: 1, past_seq: 31}]}
- {name: bob, family: llama, source: bob, mode: lazy, matrix: *rows}
"""
CACHE = 1 << 18
GREEDY = Sampling(temperature=0)


async def say(engine: HeldEngine, count: int) -> list[int]:
    """Greedy tokens after a prompt."""
    stream = engine.generate(Request((5, 6, 7), count, GREEDY), streamed=True)
    return [chosen.token async for batch in stream for chosen in batch.chosen]


def test_models_share_a_device_and_a_running_one_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(zig.installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")
    device = put_in_card(monkeypatch, tmp_path / "units")
    for seed, name in enumerate(("ann", "bob")):
        write_tiny_llama(tmp_path / name, seed)
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load(tmp_path / "config.yaml")
    table = open_table(config)

    def publish(spec: BuildSpec, reason: str) -> None:
        """The models are of one shape, so one build is right for both."""
        made = build(spec)
        for name in table.models:
            manifest = replace(made.manifest, spec=replace(spec, model=name))
            host.store.store.put(replace(made, manifest=manifest))

    host = TargetLoader(tiered(config.store), target("cuda-sm_90"), 1, publish)

    async def story(threads: ThreadPoolExecutor) -> None:
        residency = Residency(8, 1 << 40, host.load, threads, threads)
        for name, model in table.models.items():
            specs = [row.spec for row in table.rows if row.route.model == name]
            residency.slots.weigh(
                name, host.add_weights(model, specs, table.deployed[name].weights)
            )
        engines = TextEngines(table.rows, table.models, residency, CACHE)

        async def ask(name: str) -> list[int]:
            with contextlib.ExitStack() as stack:
                return await say(await engines.hold(name, stack), 5)

        ann = await ask("ann")
        assert len(ann) == 5
        device.room = device.held + CACHE // 2
        bob = await ask("bob")
        assert bob != ann
        assert list(residency.slots.engines()) == ["bob"]
        assert {key.model for key in residency.slots.states()} == {"bob"}
        assert await ask("ann") == ann
        with contextlib.ExitStack() as stack:
            speaking = await engines.hold("ann", stack)
            stream = speaking.generate(Request((5, 6, 7), 5, GREEDY), streamed=True)
            first = await anext(stream)
            with pytest.raises(DeviceMemoryError, match="no room"):
                await ask("bob")
            rest = [chosen.token async for batch in stream for chosen in batch.chosen]
            assert [chosen.token for chosen in first.chosen] + rest == ann
        await residency.make_room(DeviceMemoryError("the end"))

    with ThreadPoolExecutor(4) as threads:
        asyncio.run(story(threads))
    assert device.held == 0
    host.close()
