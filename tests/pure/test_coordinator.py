from __future__ import annotations

import asyncio

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import CompileError, Failure
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.build_task import BuildOutcome
from rlx_ray.spec import BuildSpec
from rlx_serve.coordinator.coordinator import Coordinator, Run
from rlx_serve.wire import Held
from tests.support.specs import make_spec


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(run: Run) -> tuple[Coordinator, Clock]:
    clock = Clock()
    return Coordinator(StoreSpec("memory://x", "/nowhere"), BuildLimits(), run, clock), clock


def digest(spec_json: bytes) -> str:
    return BuildSpec.loads(spec_json).digest


async def built(spec_json: bytes) -> BuildOutcome:
    await asyncio.sleep(0.01)
    return BuildOutcome(digest(spec_json), "built", 0.01)


def test_all_who_ask_for_one_variant_share_one_build() -> None:
    async def scene() -> None:
        builds, _ = make(built)
        wanted = [make_spec().dumps()] * 10 + [make_spec(seq=32).dumps()] * 3
        records = await asyncio.gather(*(builds.ensure(s) for s in wanted))
        assert [r.digest for r in records] == [digest(s) for s in wanted]
        assert await builds.builds() == 2

    asyncio.run(scene())


def test_two_models_of_one_digest_are_each_published() -> None:
    async def scene() -> None:
        builds, _ = make(built)
        specs = [make_spec(model=name).dumps() for name in ("ann", "bob")]
        one, two = await asyncio.gather(*(builds.ensure(s) for s in specs))
        assert one.digest == two.digest
        assert await builds.builds() == 2

    asyncio.run(scene())


def test_a_client_that_leaves_does_not_end_the_build() -> None:
    async def scene() -> None:
        builds, _ = make(built)
        spec = make_spec().dumps()
        first = asyncio.create_task(builds.ensure(spec))
        await asyncio.sleep(0)
        first.cancel()
        assert (await builds.ensure(spec)).status == "built"
        assert await builds.builds() == 1

    asyncio.run(scene())


def test_what_another_had_built_is_not_counted() -> None:
    async def present(spec_json: bytes) -> BuildOutcome:
        return BuildOutcome(digest(spec_json), "present", 0.0)

    async def scene() -> None:
        builds, _ = make(present)
        assert (await builds.ensure(make_spec().dumps())).status == "present"
        assert await builds.builds() == 0

    asyncio.run(scene())


def test_a_failure_is_typed_and_is_tried_again_after_seconds() -> None:
    async def fail(spec_json: bytes) -> BuildOutcome:
        raise CompileError("it does not compile.", "Mend it.")

    async def scene() -> None:
        builds, clock = make(fail)
        spec = make_spec().dumps()
        for _ in range(3):
            record = await builds.ensure(spec)
            assert record.status == "failed"
            assert record.failure == Failure("CompileError", "it does not compile.", "Mend it.")
        assert await builds.builds() == 1
        clock.now += 3.1
        await builds.ensure(spec)
        assert await builds.builds() == 2

    asyncio.run(scene())


def test_the_board_forgets_replicas_that_do_not_report() -> None:
    async def scene() -> None:
        builds, clock = make(built)
        first, second = Held({"d": "loaded"}, {"m": ("ending", 9)}), Held({}, {})
        await builds.report("a", first)
        clock.now += 20
        await builds.report("b", second)
        assert await builds.board() == {"a": first, "b": second}
        clock.now += 15
        assert await builds.board() == {"b": second}

    asyncio.run(scene())
