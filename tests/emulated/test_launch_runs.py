"""Launch plans run by the runtime, on the emulated device, against NumPy."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.artifact.launch_plan import NULL, Address, GemmStep, KernelStep, LaunchPlan
from rlx_ray.artifact.manifest import PREFIX, Binding, BindingManifest, BlobRef, WeightsManifest
from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.compiler.cuda.constants import Operand
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.compiler.cuda.source import unit
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError, DeviceError, DeviceLost, DeviceMemoryError, InputError
from rlx_ray.runtime.device_context import DeviceContext
from rlx_ray.runtime.launch_executable import LaunchExecutable, copy_ranges
from rlx_ray.runtime.weights import Weights
from tests.support.cuda_device import EmulatedDevice, HostGraph
from tests.support.needs import needs

ROWS, K, N = 4, 16, 8
PAGE = 4 * N
ADD = instance(
    "elementwise",
    "summed",
    t=DType.F32,
    rows=ROWS,
    n=N,
    operands=tuple(Operand(DType.F32, at, 1) for at in (f"row * {N}", "0", "0")),
    expr="v0 + v1 + v2",
)

BINDING = BindingManifest(
    (
        Binding("x", DType.F32, (ROWS, K), 0),
        Binding("pages", DType.I32, (1, 2), 256),
        Binding("steps", DType.I32, (3,), 512),
    ),
    (Binding("w", DType.F32, (N, K)), Binding("bias", DType.F32, (N,))),
    (Binding("h", DType.F32, (ROWS, N), 1024), Binding("y", DType.F32, (ROWS, N), 2048)),
    arena=4096,
    scratch=0,
    alignment=256,
    entry="",
    page=PAGE,
)
"""h = x w^T; y = h + page 0 of the cache + a row of the arena that a plan says is zero."""

PLAN = LaunchPlan(
    "sm_90",
    (
        GemmStep(
            Address("arena", 0), Address("param"), Address("arena", 1024), ROWS, N, K, K, K, N
        ),
        KernelStep(
            "summed",
            ADD.launch.grid,
            ADD.launch.block,
            ADD.launch.shared,
            (
                Address("arena", 1024),
                Address("cache"),
                Address("arena", 3072),
                NULL,
                Address("arena", 2048),
            ),
            "bias",
        ),
    ),
    zeroed=((3072, PAGE),),
    adjacent=((0, 1, 4 * N * K),),
)


class Card(EmulatedDevice):
    """An emulated device that counts, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, unit([ADD]), level="-O0")
        self.fault: Exception | None = None
        self.refusal: Exception | None = None
        self.captures = self.replays = 0
        self.copied: list[int] = []
        self.written: list[int] = []

    def write(self, address: int, values: np.ndarray) -> None:
        self.written.append(values.nbytes)
        super().write(address, values)

    def read(self, address: int, out: np.ndarray) -> None:
        self.copied.append(out.nbytes)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        super().read(address, out)

    def capture(self, enqueue: Callable[[], None]) -> HostGraph:
        self.captures += 1
        if self.refusal is not None:
            raise self.refusal
        graph = super().capture(enqueue)
        own = graph.replay

        def replay() -> None:
            self.replays += 1
            own()

        graph.replay = replay  # type: ignore[method-assign]
        return graph


@pytest.fixture
def card(tmp_path: Path) -> Card:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    return Card(tmp_path / "units")


W = np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)
BIAS = np.arange(N, dtype=np.float32)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    path = tmp_path / "weights"
    path.write_bytes(W.tobytes() + BIAS.tobytes())
    tensors = (
        Binding("w", DType.F32, (N, K), 0),
        Binding("bias", DType.F32, (N,), W.nbytes),
    )
    blob = BlobRef("weights", "0" * 64, W.nbytes + BIAS.nbytes)
    return Weights(WeightsManifest("m", "s", 1, "cuda", blob, tensors), path)


def load(
    resident: DeviceContext,
    weights: Weights,
    plan: LaunchPlan = PLAN,
    binding: BindingManifest = BINDING,
) -> LaunchExecutable:
    return LaunchExecutable(b"", plan.dumps(), binding, resident.upload(weights), resident)


def inputs(seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(ROWS, K)).astype(np.float32)
    return {"x": x, "pages": np.array([[0, -1]], np.int32), "steps": np.zeros(3, np.int32)}


def check(found: Mapping[str, np.ndarray], seed: int, cached: np.ndarray | float = 0.0) -> None:
    want = inputs(seed)["x"].astype(np.float64) @ W.astype(np.float64).T
    np.testing.assert_allclose(found["h"], want, atol=1e-5)
    np.testing.assert_allclose(found["y"], want + cached, atol=1e-5)


def test_replays_of_the_graph_equal_the_first_run(card: Card, weights: Weights) -> None:
    run = load(DeviceContext(card), weights)
    cache = run.make_cache(2)
    first = run.run(inputs(1), cache)
    for seed in (1, 2, 3):
        check(run.run(inputs(seed), cache), seed)
    again = run.run(inputs(1), cache)
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert (card.captures, card.replays) == (1, 4)


def test_another_cache_is_captured_anew(card: Card, weights: Weights) -> None:
    run = load(DeviceContext(card), weights)
    caches = [run.make_cache(1) for _ in range(2)]
    card.write(caches[1].address, BIAS)
    for cache in (caches[0], caches[0]):
        check(run.run(inputs(1), cache), 1)
    check(run.run(inputs(1), caches[1]), 1, BIAS)
    check(run.run(inputs(2), caches[1]), 2, BIAS)
    check(run.run(inputs(2), caches[0]), 2)
    assert card.captures == 3


def test_a_plan_that_cannot_be_captured_runs_step_by_step(
    card: Card, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    run = load(DeviceContext(card), weights)
    cache = run.make_cache(1)
    card.refusal = DeviceError("no capture here.")
    for seed in range(4):
        check(run.run(inputs(seed), cache), seed)
    assert card.captures == 1
    assert [record.getMessage() for record in caplog.records] == [
        "emulated sm_90 runs a plan step by step: no capture here."
    ]
    other = load(DeviceContext(card), weights)
    cache = other.make_cache(1)
    other.run(inputs(1), cache)
    for fault in (DeviceMemoryError("no room for a graph."), DeviceLost("gone.")):
        card.refusal = fault
        with pytest.raises(type(fault)):
            other.run(inputs(1), cache)
    card.refusal = None
    check(other.run(inputs(2), cache), 2)
    assert card.replays == 1


def test_only_wanted_outputs_are_copied_back(card: Card, weights: Weights) -> None:
    run = load(DeviceContext(card), weights)
    cache = run.make_cache(1)
    for _ in range(3):
        card.copied.clear()
        assert list(run.run(inputs(1), cache, ("y",))) == ["y"]
        assert card.copied == [4 * ROWS * N]
    card.copied.clear()
    assert run.run(inputs(1), cache, ()) == {}
    assert card.copied == []
    with pytest.raises(InputError, match=r"output 'z' is not known.*'h', 'y'"):
        run.run(inputs(1), cache, ("z",))


def test_inputs_go_over_in_as_few_copies_as_their_places_allow(
    card: Card, weights: Weights
) -> None:
    run = load(DeviceContext(card), weights)
    cache = run.make_cache(1)
    card.written.clear()
    run.run(inputs(1), cache)
    assert len(card.written) == 1
    near = [Binding("a", DType.I32, (60,), 0), Binding("b", DType.F32, (2, 2), 256)]
    far = Binding("c", DType.I32, (1,), 768)
    (first, second) = copy_ranges((far, *reversed(near)), 256)
    assert (first.offset, first.staged.nbytes, set(first.views)) == (0, 272, {"a", "b"})
    assert (second.offset, second.staged.nbytes) == (768, 4)
    first.views["b"][...] = 2
    assert first.staged[256:].view(np.float32).tolist() == [2, 2, 2, 2]


def test_of_an_input_given_in_part_only_the_part_is_copied(card: Card, weights: Weights) -> None:
    some = replace(BINDING.inputs[0], layout=PREFIX)
    binding = replace(BINDING, inputs=(*BINDING.inputs[1:], some))
    run = load(DeviceContext(card), weights, binding=binding)
    cache = run.make_cache(1)
    check(run.run(inputs(1), cache), 1)
    want = run.run(inputs(1), cache)["h"]
    for seed, count in ((2, 3), (3, 1), (4, 0), (5, ROWS)):
        card.written.clear()
        part = inputs(seed)
        part["x"] = part["x"][:count]
        got = run.run(part, cache)["h"]
        assert card.written == [4 * K * count, 256 + 12], "what lies behind it goes by itself"
        np.testing.assert_allclose(got[:count], part["x"] @ W.T, atol=1e-5)
        assert got[count:].tolist() == want[count:].tolist(), "the rest is as it was"
        want = got
    one = inputs(1)["x"]
    for bad in (np.repeat(one, 2, 0), one[:, :-1], one[0], one.astype(np.float64), np.float32(1)):
        with pytest.raises(
            InputError, match=r"input 'x' is .*takes float32\[4, 16\], or the first rows"
        ):
            run.run({**inputs(1), "x": np.asarray(bad)}, cache)
    with pytest.raises(InputError, match=r"input 'steps' is int32\[2\]"):
        run.run({**inputs(1), "steps": np.zeros(2, np.int32)}, cache)


def test_executables_share_weights_and_one_arena(card: Card, weights: Weights) -> None:
    resident = DeviceContext(card)
    first = load(resident, weights)
    alone = card.held
    second = load(resident, weights)
    assert card.held == alone == 4096 + W.nbytes + BIAS.nbytes
    cache = first.make_cache(1)
    for seed in range(4):
        check(first.run(inputs(seed), cache), seed)
        check(second.run(inputs(seed + 9), cache), seed + 9)
    del first, second, cache
    gc.collect()
    assert card.held == 0


def test_the_arena_is_as_large_as_the_largest_executable_wants(
    card: Card, weights: Weights
) -> None:
    resident = DeviceContext(card)
    small = load(resident, weights)
    cache = small.make_cache(1)
    for _ in range(2):
        check(small.run(inputs(1), cache), 1)
    before = card.held
    large = load(resident, weights, binding=replace(BINDING, arena=8192))
    assert card.held == before + 4096
    check(small.run(inputs(2), cache), 2)
    check(large.run(inputs(3), cache), 3)
    assert card.captures == 2
    del large
    check(small.run(inputs(4), cache), 4)
    assert card.held == before
    assert card.captures == 3


def test_zeros_are_restored_after_another_executable_wrote(card: Card, weights: Weights) -> None:
    resident = DeviceContext(card)
    careful = load(resident, weights)
    binding = replace(BINDING, inputs=(*BINDING.inputs, Binding("dirt", DType.F32, (N,), 3072)))
    careless = load(resident, weights, replace(PLAN, zeroed=()), binding)
    cache = careful.make_cache(1)
    for seed in range(3):
        check(careful.run(inputs(seed), cache), seed)
        dirty = {**inputs(seed), "dirt": BIAS}
        check(careless.run(dirty, cache), seed, BIAS)


def test_a_failed_run_leaves_the_executable_usable(card: Card, weights: Weights) -> None:
    run = load(DeviceContext(card), weights)
    cache = run.make_cache(1)
    for _ in range(3):
        card.fault = DeviceError("a copy failed.")
        with pytest.raises(DeviceError, match="a copy failed"):
            run.run(inputs(1), cache)
        check(run.run(inputs(1), cache), 1)


def test_a_full_device_is_a_typed_error_and_others_go_on(card: Card, weights: Weights) -> None:
    resident = DeviceContext(card)
    run = load(resident, weights)
    cache = run.make_cache(1)
    check(run.run(inputs(1), cache), 1)
    card.room = card.held + 64
    with pytest.raises(DeviceMemoryError, match="no room") as failed:
        load(resident, weights, binding=replace(BINDING, arena=1 << 20))
    with pytest.raises(DeviceMemoryError):
        run.make_cache(1000)
    check(run.run(inputs(2), cache), 2)
    card.room = 1 << 30
    large = load(resident, weights, binding=replace(BINDING, arena=1 << 20))
    check(large.run(inputs(3), cache), 3)
    assert failed.value.message


def test_runs_of_several_threads_do_not_mix(card: Card, weights: Weights) -> None:
    resident = DeviceContext(card)
    runs = [load(resident, weights) for _ in range(2)]
    cache = runs[0].make_cache(1)
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(10):
                check(runs[seed % 2].run(inputs(seed), cache), seed)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_cache_of_another_size_or_device_is_refused(
    card: Card, weights: Weights, tmp_path: Path
) -> None:
    run = load(DeviceContext(card), weights)
    other = load(DeviceContext(card), weights, binding=replace(BINDING, page=2 * PAGE))
    elsewhere = load(DeviceContext(Card(tmp_path / "other")), weights)
    for cache, found in (
        (None, "is none"),
        (np.zeros((1, PAGE), np.uint8), "is ndarray"),
        (other.make_cache(1), f"pages of {2 * PAGE} bytes"),
        (elsewhere.make_cache(1), "on emulated"),
    ):
        with pytest.raises(InputError, match=found):
            run.run(inputs(1), cache)
    beyond = {**inputs(1), "pages": np.array([[0, 3]], np.int32)}
    with pytest.raises(InputError, match=r"pages from 0 to 3, the cache has 3"):
        run.run(beyond, run.make_cache(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adjacent": ((0, 1, 1024),)}, "reads parameters 0 and 1 as one"),
        ({"zeroed": ((4000, 256),)}, "behind the arena"),
        ({"steps": (replace(PLAN.steps[0], a=Address("arena", 4096)),)}, "'GemmStep' names"),
        ({"steps": (replace(PLAN.steps[0], b=Address("param", 0, 2)),)}, r"\['param', 0, 2\]"),
        ({"steps": (replace(PLAN.steps[1], kernel="sub"),)}, "no kernel 'sub'"),
    ],
)
def test_a_plan_that_does_not_fit_its_artifact_is_refused(
    card: Card, weights: Weights, change: dict, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(DeviceContext(card), weights, replace(PLAN, **change))
    bare = replace(BINDING, page=0)
    with pytest.raises(ArtifactError, match=r"'bias' names \['cache', 0, 0\]"):
        load(DeviceContext(card), weights, binding=bare)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (Binding("v", DType.F32, (N, K)), "lack parameter 'v'"),
        (Binding("w", DType.F32, (K, N)), r"packed as f32 plain\[8, 16\]"),
        (Binding("w", DType.F16, (N, K)), r"wants f16 plain\[8, 16\]"),
        (Binding("w", DType.F32, (N, K), layout="tiled"), r"wants f32 tiled"),
    ],
)
def test_weights_of_another_make_are_refused(
    card: Card, weights: Weights, param: Binding, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(
            DeviceContext(card),
            weights,
            binding=replace(BINDING, params=(param, BINDING.params[1])),
        )
