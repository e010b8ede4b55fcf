"""The memory planner and the schedule's choices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.compiler.cpu.regions import analyse, candidates, group, reads_whole
from rlx_ray.compiler.ir.memory import Buffer
from rlx_ray.compiler.ir.verify import verify_plan
from rlx_ray.compiler.passes.arena import liveness_bound, plan
from rlx_ray.target import CPU_TARGETS, target
from tests.support.programs import COMMON, NATIVE, bert, stages

BUFFERS = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 8)), max_size=25
).map(lambda rows: [Buffer(str(i), size, at, at + life) for i, (size, at, life) in enumerate(rows)])


@given(BUFFERS)
@settings(max_examples=300, deadline=None)
def test_no_two_live_buffers_overlap(buffers: list[Buffer]) -> None:
    made = plan(buffers)
    verify_plan(made, "plan")
    assert made.size >= made.bound == liveness_bound(made.buffers)
    assert [b.name for b in made.buffers] == [b.name for b in buffers]


MINILM = {
    "hidden": 384,
    "heads": 12,
    "intermediate": 1536,
    "layers": 6,
    "vocab": 30522,
    "positions": 512,
}


@pytest.mark.parametrize("config", [NATIVE, COMMON], ids=["native", "common"])
@pytest.mark.parametrize(("batch", "seq"), [(1, 16), (1, 128), (2, 64), (8, 128), (32, 256)])
def test_the_arena_is_within_a_tenth_of_the_liveness_bound(config, batch: int, seq: int) -> None:
    lir = stages(bert(**MINILM), batch, seq, config, target=target("cpu-x86_64-v3")).program
    for made in (lir.arena, lir.scratch):
        assert made.size <= 1.1 * made.bound


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("seq", [1, 4, 6, 16])
def test_every_cut_puts_a_barrier_before_a_read_of_the_whole(batch: int, seq: int) -> None:
    mir = stages(bert(), batch, seq, target=target("cpu-x86_64-v3")).mir
    known = analyse(mir)
    assert (known.sequences, known.rows) == (batch, batch * seq)
    for tiling in candidates(known):
        groups = group(mir, tiling, known, 16)
        done = [n for g in groups for n in g.nodes]
        assert done == sorted(done)
        for one in groups:
            for index in one.nodes:
                node = mir.nodes[index]
                if reads_whole(node, one.axis):
                    assert not any(known.root[i] in one.nodes for i in node.inputs)


def test_batches_pairs_and_single_texts_are_cut_their_own_way() -> None:
    wide = stages(bert(**MINILM), 8, 128, target=target("cpu-x86_64-v3")).program
    assert [r.axis for r in wide.regions] == ["sequences"]
    pair = stages(bert(**MINILM), 2, 64, target=target("cpu-x86_64-v3")).program
    assert pair.regions[0].axis == "rows"
    assert len(pair.regions) == 6 + 2
    short = stages(bert(**MINILM), 1, 16, target=target("cpu-x86_64-v3")).program
    assert {r.axis for r in short.regions} == {"rows", "columns", "heads", "each"}


def test_a_hidden_tile_too_large_for_the_cache_is_cut_by_columns() -> None:
    made = stages(bert(**MINILM), 8, 128, target=target("cpu-x86_64-v3")).program
    calls = [c for r in made.regions for c in r.calls if "layer.0.up" in c.origin]
    assert len(calls) > 1
    assert len({c.kernel.sizes["n"] for c in calls}) == 1
    small = stages(bert(), 8, 16, target=target("cpu-x86_64-v3")).program
    assert len([c for r in small.regions for c in r.calls if "layer.0.up" in c.origin]) == 1


@pytest.mark.parametrize("one", CPU_TARGETS, ids=lambda t: t.name)
def test_every_target_has_a_schedule(one) -> None:
    assert stages(bert(), 2, 4, target=one).program.regions
