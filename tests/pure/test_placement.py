"""Which targets get executors, what they claim, and what Serve's status says of them."""

from __future__ import annotations

import pytest
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from rlx_ray.config.serve import ExecutorSpec, GatewaySpec, Placement, ServeSpec
from rlx_ray.host import Host
from rlx_ray.target import target
from rlx_serve.placement import (
    Cluster,
    absences,
    choose,
    deployment_options,
    failure,
    gateway_options,
    serves,
    settled,
)

V3, V4, ARM = map(target, ("cpu-x86_64-v3", "cpu-x86_64-v4", "cpu-aarch64"))
H100, A100, PTX = map(target, ("cuda-sm_90", "cuda-sm_80", "cuda-compute_80"))
ALL = (H100, A100, PTX, V4, V3, ARM)
OWN = Cluster(1, 0, own=True)
NO_GPU = "no CUDA device is visible"


def box(*devices: str) -> Host:
    return Host("x86_64", frozenset(V3.features), "some", devices)


def test_one_machine_gets_what_it_runs_and_reasons_for_the_rest() -> None:
    fleet = choose(ALL, (), ServeSpec(), box(), OWN)
    assert fleet.targets == (V3,)
    assert {name: fleet.passed_over[name] for name in ("cuda-sm_90", "cpu-aarch64")} == {
        "cuda-sm_90": NO_GPU,
        "cpu-aarch64": "the host is x86_64",
    }
    assert set(fleet.passed_over) == {t.name for t in ALL} - {V3.name}


def test_executors_here_claim_no_more_devices_than_there_are() -> None:
    fleet = choose(ALL, (), ServeSpec(), box("sm_90"), OWN)
    assert set(fleet.targets) == {H100, V3}
    assert fleet.passed_over[PTX.name] == "GPUs left here: 0, it claims 1"
    halves = ServeSpec(executors=(("cuda", ExecutorSpec(num_gpus=0.5)),))
    assert choose(ALL, (), halves, box("sm_90"), OWN).executors == (H100, PTX)
    two = ServeSpec(executors=(("cuda", ExecutorSpec(replicas=2)),))
    assert choose(ALL, (), two, box("sm_90"), OWN).targets == (V3,)


def test_a_head_without_a_gpu_places_all_on_several_nodes() -> None:
    assert choose(ALL, (), ServeSpec(), box(), Cluster(2, 0, own=False)).targets == (
        V3,
        *(t for t in ALL if t is not V3),
    )


def test_a_lone_node_gets_cuda_with_a_gpu_or_if_placed() -> None:
    lone = Cluster(1, 0, own=False)
    fleet = choose(ALL, (), ServeSpec(), box(), lone)
    assert fleet.targets == (V3,)
    assert "serve.executors" in fleet.passed_over[H100.name]
    assert choose(ALL, (), ServeSpec(), box(), Cluster(1, 1, own=False)).executors == (
        *(H100, A100, PTX),
    )
    named = ServeSpec(executors=(("cuda-sm_90", ExecutorSpec(num_gpus=1)),))
    assert choose(ALL, (), named, box(), lone).executors == (H100,)
    kind = ServeSpec(executors=(("cuda", ExecutorSpec()),))
    assert choose(ALL, (), kind, box(), lone).executors == (H100, A100, PTX)


def test_gateways_run_cpu_targets_that_have_no_executors() -> None:
    lone, many = Cluster(1, 0, own=False), Cluster(3, 0, own=False)
    for where in (OWN, lone, many):
        fleet = choose((V3, ARM), (), ServeSpec(), box(), where)
        assert fleet.local == (V3,)
        assert fleet.executors == ((ARM,) if where is many else ())
    for name in ("cpu", V3.name):
        spec = ServeSpec(executors=((name, ExecutorSpec(replicas=2)),))
        fleet = choose((V3,), (V3,), spec, box(), OWN)
        assert (fleet.local, fleet.executors) == ((), (V3,))


def test_text_has_executors_where_gateways_are_several() -> None:
    one, two = ServeSpec(), ServeSpec(gateway=GatewaySpec(replicas=2))
    assert choose((V3,), (V3,), one, box(), OWN).executors == ()
    fleet = choose((V3,), (V3,), two, box(), OWN)
    assert fleet.local == fleet.executors == fleet.targets == (V3,)
    assert choose((V3,), (), two, box(), OWN).executors == ()
    assert choose((V3,), (V3,), ServeSpec(replicas=2), box(), OWN).executors == (V3,)


def test_the_gateway_is_placed_as_the_config_says() -> None:
    actor = {"num_cpus": 0.0}
    assert gateway_options(ServeSpec()) == {"num_replicas": 1, "ray_actor_options": actor}
    spec = ServeSpec(replicas=3, gateway=GatewaySpec(None, 2, (("pool", "cpu"),)))
    actor = {"num_cpus": 2, "label_selector": {"pool": "cpu"}}
    assert gateway_options(spec) == {"num_replicas": 3, "ray_actor_options": actor}


def test_options_are_those_that_serve_knows() -> None:
    spec = ServeSpec(max_ongoing_requests=10)
    assert deployment_options(spec, Placement(0, 0, (), 2)) == {
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0},
    }
    labels = (("ray.io/accelerator-type", "H100"),)
    assert deployment_options(spec, Placement(1.5, 1, labels, 1, 8)) == {
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": 8,
            "target_ongoing_requests": 5,
        },
        "ray_actor_options": {
            "num_cpus": 1.5,
            "num_gpus": 1,
            "label_selector": {"ray.io/accelerator-type": "H100"},
        },
    }


def deployed(**statuses: tuple[str, int, str]) -> ApplicationStatusOverview:
    """An application; each deployment has a status, running replicas and a message."""
    found = {
        name
        if name in ("Gateway", "Coordinator")
        else f"Executor-{name}": DeploymentStatusOverview(
            status, "UNSPECIFIED", {"RUNNING": running} if running else {"STARTING": 1}, message
        )
        for name, (status, running, message) in statuses.items()
    }
    return ApplicationStatusOverview("DEPLOYING", "", 0.0, found)


CORE = {"Gateway": ("HEALTHY", 1, ""), "Coordinator": ("HEALTHY", 1, "")}
UP, NEW = ("HEALTHY", 1, ""), ("UPDATING", 0, "")
WAITING = ("UPDATING", 0, "a has 1 replicas that have taken more than 30s.\nUse `ray status`.")
CRASH = ("DEPLOY_FAILED", 0, "Failed 3 times.\nTraceback:\n \x1b[36mConfigError\x1b[0m: no GPU\n")
MODELS = {"m": ("gpu", "cpu")}


def test_an_executor_without_replicas_is_absent_and_says_why() -> None:
    app = deployed(**CORE, cpu=UP, gpu=WAITING, slow=NEW, bad=CRASH, half=("UNHEALTHY", 1, "x"))
    assert absences(app, ("gpu", "cpu", "slow", "bad", "half", "none")) == {
        "gpu": "its executor has no replica yet: a has 1 replicas that have taken more than 30s.",
        "slow": "its executor is starting",
        "bad": "its executor did not start: ConfigError: no GPU",
        "none": "its executor is not deployed",
    }


@pytest.mark.parametrize(
    ("gpu", "cpu", "served", "done", "failed"),
    [
        (UP, UP, True, True, False),
        (NEW, UP, True, False, False),
        (WAITING, UP, True, False, False),
        (CRASH, UP, True, True, False),
        (NEW, NEW, False, False, False),
        (CRASH, NEW, False, False, False),
        (CRASH, CRASH, False, True, True),
    ],
)
def test_a_model_is_served_until_its_last_executor_is_lost(
    gpu, cpu, served: bool, done: bool, failed: bool
) -> None:
    app = deployed(**CORE, gpu=gpu, cpu=cpu)
    assert serves(app, MODELS) is served
    assert settled(app, MODELS["m"]) is done
    assert bool(failure(app, MODELS)) is failed


def test_without_the_gateway_nothing_is_served() -> None:
    for core in (NEW, CRASH):
        app = deployed(Gateway=core, Coordinator=UP, gpu=UP, cpu=UP)
        assert not serves(app, MODELS)
        assert bool(failure(app, MODELS)) is (core is CRASH)
    assert not serves(ApplicationStatusOverview("DEPLOYING", "", 0.0, {}), MODELS)
    assert failure(ApplicationStatusOverview("DEPLOY_FAILED", "no import", 0.0, {}), MODELS)
