"""The aarch64 kernels and the thread pool, run for real under qemu, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rlx_ray.compiler.cpu.regions import Tiling
from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.component.profile import Precision
from rlx_ray.target import target
from tests.support.aarch64 import CPUS, EmulatedBench
from tests.support.mir_oracle import evaluate
from tests.support.needs import needs
from tests.support.programs import (
    COMMON,
    NATIVE,
    PROFILE,
    bert,
    pack_inputs,
    random_inputs,
    random_params,
    stages,
)

ODD = {"hidden": 33, "heads": 3, "intermediate": 17}
WAYS = [Tiling("sequences", 2), Tiling("rows", 3), Tiling("columns", 0)]


EITHER = list(CPUS)
PLAIN = [EITHER[0], *(pytest.param(name, marks=pytest.mark.slow) for name in EITHER[1:])]


@pytest.fixture(scope="session")
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EmulatedBench:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    return EmulatedBench(tmp_path_factory.mktemp("arm"), target(request.param))


@pytest.mark.parametrize("arm", EITHER, indirect=True)
@pytest.mark.parametrize("sizes", [{}, ODD], ids=["h24", "h33"])
@pytest.mark.parametrize("config", [NATIVE, COMMON], ids=["native", "common"])
def test_a_program_agrees_with_float64(arm: EmulatedBench, sizes, config) -> None:
    made = stages(bert(**sizes), 3, 7, config, target=arm.target)
    params, inputs = random_params(made.program), random_inputs(3, 7)
    (want,) = evaluate(made.lowered, params | inputs)
    got = arm.load(made.program, params).run(inputs)["embedding"]
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("arm", PLAIN, indirect=True)
def test_every_way_to_cut_and_any_threads_give_the_same_bits(arm: EmulatedBench) -> None:
    params = random_params(stages(bert(), 4, 12, target=arm.target).program)
    inputs = random_inputs(4, 12, lengths=[12, 3, 1, 7])
    found = set()
    for way in WAYS:
        made = stages(bert(), 4, 12, target=arm.target, tiling=way)
        (want,) = evaluate(made.lowered, params | inputs)
        for threads in (1, 3):
            got = arm.load(made.program, params, threads).run(inputs, runs=20)["embedding"]
            np.testing.assert_allclose(got, want, atol=2e-6)
            found.add(got.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("arm", PLAIN, indirect=True)
def test_a_ragged_variant_gives_the_bits_of_a_padded_one(arm: EmulatedBench) -> None:
    padded = stages(bert(), 6, 12, target=arm.target)
    ragged = stages(bert(), 6, 12, target=arm.target, rows=30)
    params, inputs = random_params(padded.program), random_inputs(6, 12)
    inputs["lengths"][:] = [12, 3, 1, 7, 0, 2]
    want = arm.load(padded.program, params).run(inputs)["embedding"]
    got = arm.load(ragged.program, params).run(pack_inputs(inputs, 30))["embedding"]
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("arm", EITHER, indirect=True)
@pytest.mark.parametrize(("precision", "error"), [("int8", 0.03), ("bf16", 0.006)])
def test_low_precision(arm: EmulatedBench, precision: str, error: float) -> None:
    profile = replace(PROFILE, precision=Precision(precision))
    made = stages(bert(**ODD), 3, 7, profile=profile, target=arm.target)
    params, inputs = random_params(made.program), random_inputs(3, 7)
    (want,) = evaluate(made.lowered, params | inputs)
    got = arm.load(made.program, params).run(inputs)["embedding"]
    np.testing.assert_allclose(got, want, atol=error)
    assert np.abs(got - want).max() > 1e-5, "this is not low precision"


FUNCTIONS = {
    # name: (lowest, highest, float64, error measured against this scale, its bound)
    "vexp": (-87.3, 88.3, math.exp, math.exp, 2.4e-7),
    "verf": (-6, 6, math.erf, lambda x: 1, 6e-7),
    "vtanh": (-12, 12, math.tanh, lambda x: 1, 4e-7),
    "vsqrt": (1e-30, 3e38, math.sqrt, math.sqrt, 7e-8),
    "vrsqrt": (1e-30, 3e38, lambda x: 1 / math.sqrt(x), lambda x: 1 / math.sqrt(x), 1.3e-7),
}

VMATH = """
#define RLX_LANES {lanes}
#define RLX_TILE_ROWS 6
#define RLX_TILE_VECTORS 4
#include "bare.h"
#include "vmath.h"
#define EACH(name) \\
    for (long i = 0; i < {count}; i += RLX_LANES) st(x + i, name(ld(x + i))); \\
    x += {count};
static int run(int count, char **words) {{
    long bytes;
    float *all = contents(words[1], &bytes), *x = all;
    (void)count, (void)start, (void)number;
    {calls}
    keep(words[1], all, bytes);
    return 0;
}}
"""


@pytest.mark.parametrize("arm", EITHER, indirect=True)
def test_vector_functions_against_float64(arm: EmulatedBench, tmp_path) -> None:
    count = 4096
    rng = np.random.default_rng(3)
    points = {}
    for name, (low, high, *_) in FUNCTIONS.items():
        wide = low > 0 and high / low > 1e6
        x = rng.uniform(np.log(low), np.log(high), count) if wide else rng.uniform(low, high, count)
        points[name] = (np.exp(x) if wide else x).astype(np.float32)
    calls = "\n".join(f"EACH({name})" for name in FUNCTIONS)
    source = tmp_path / "vmath.c"
    source.write_text(VMATH.format(lanes=arm.target.lanes, count=count, calls=calls))
    values = tmp_path / "values"
    values.write_bytes(b"".join(x.tobytes() for x in points.values()))
    arm.execute(arm.link(source), values)
    found = np.fromfile(values, np.float32).reshape(len(FUNCTIONS), count)
    for (name, (_, _, exact, scale, bound)), got in zip(FUNCTIONS.items(), found, strict=True):
        pairs = zip(got.tolist(), points[name].tolist(), strict=True)
        errors = [abs(g - exact(v)) / scale(v) for g, v in pairs]
        assert max(errors) <= bound, name
