"""Targets, hosts and the pinned toolchains."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx_ray.errors import ConfigError
from rlx_ray.host import Host, this_host
from rlx_ray.target import CPU_TARGETS, CUDA_TARGETS, ZIG_VERSION, target, toolchain_for

V3 = frozenset(target("cpu-x86_64-v3").features)
V4 = frozenset(target("cpu-x86_64-v4").features)
ZEN4 = frozenset(target("cpu-znver4").features)
ZEN5 = frozenset(target("cpu-znver5").features)


@pytest.mark.parametrize(
    ("arch", "features", "names"),
    [
        ("x86_64", frozenset(), []),
        ("x86_64", V3, ["cpu-x86_64-v3"]),
        ("x86_64", V4, ["cpu-x86_64-v4", "cpu-x86_64-v3"]),
        ("x86_64", ZEN4, ["cpu-znver4", "cpu-x86_64-v4", "cpu-x86_64-v3"]),
        ("x86_64", ZEN5, ["cpu-znver5", "cpu-x86_64-v4", "cpu-x86_64-v3"]),
        ("aarch64", frozenset({"asimd"}), ["cpu-aarch64"]),
        ("riscv64", V3, []),
    ],
)
def test_the_ladder_holds_what_the_host_runs_best_first(arch, features, names) -> None:
    host = Host(arch, features, "some processor")
    assert [t.name for t in host.ladder()] == names
    for one in CPU_TARGETS:
        assert bool(host.refusal(one)) == (one.name not in names)


def test_a_host_without_any_target_says_so() -> None:
    with pytest.raises(ConfigError, match="names no known target on this x86_64"):
        Host("x86_64", frozenset(), "old").best()


def test_refusals_name_what_is_missing() -> None:
    refusal = Host("x86_64", V3 - {"fma"}, "old").refusal(target("cpu-x86_64-v3"))
    assert refusal == "the host lacks fma"


def test_features_come_from_the_processor_table(tmp_path: Path) -> None:
    table = tmp_path / "cpuinfo"
    table.write_text("model name\t: A B C\nflags\t\t: avx2 fma\n\nmodel name\t: other\n")
    host = this_host(table)
    assert (host.model, host.features) == ("A B C", frozenset({"avx2", "fma"}))


def test_the_toolchain_is_known_without_having_it() -> None:
    chain = toolchain_for(target("cpu-znver5"), {"cuda": 13})
    assert (chain.name, chain.version) == ("zig", ZIG_VERSION)
    assert "-mcpu=znver5" in chain.flags
    assert "-mprefer-vector-width=512" in chain.flags
    with pytest.raises(ConfigError, match=r"\$\.toolchain\.clang"):
        toolchain_for(target("cpu-znver5"), {"clang": 1})


def test_an_unknown_target_hints_at_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cpu-znver5'"):
        target("cpu-znver6")


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ((), []),
        (("sm_75",), []),
        (("sm_80",), ["cuda-sm_80", "cuda-compute_80"]),
        (("sm_89",), ["cuda-sm_89", "cuda-sm_86", "cuda-sm_80", "cuda-compute_80"]),
        (("sm_90",), ["cuda-sm_90", "cuda-compute_80"]),
        (("sm_103",), ["cuda-sm_100", "cuda-compute_80"]),
        (("sm_80", "sm_90"), ["cuda-sm_90", "cuda-sm_80", "cuda-compute_80"]),
    ],
)
def test_a_device_runs_cubins_of_lower_minors_and_ptx(devices, names) -> None:
    host = Host("x86_64", V3, "some processor", devices)
    assert [t.name for t in host.ladder()] == [*names, "cpu-x86_64-v3"]
    assert host.best().name == "cpu-x86_64-v3"
    for one in CUDA_TARGETS:
        assert bool(host.refusal(one)) == (one.name not in names)


def test_refusals_of_devices_say_why() -> None:
    host = Host("x86_64", V3, "some processor", ("sm_89",))
    assert host.refusal(target("cuda-sm_90")) == "the device is sm_89, older than sm_90"
    host = Host("x86_64", V3, "some processor", ("sm_90",))
    assert "only within their major version" in host.refusal(target("cuda-sm_80"))
    host = Host("x86_64", V3, "some processor", no_device="the driver is missing")
    assert host.refusal(target("cuda-sm_90")) == "the driver is missing"


def test_nvrtc_is_chosen_by_its_major_and_pinned() -> None:
    one = target("cuda-sm_90")
    newest, older = toolchain_for(one, {}), toolchain_for(one, {"cuda": 12})
    assert (newest.name, newest.version, older.version) == ("nvrtc", "13.5.37", "12.9.86")
    assert "--gpu-architecture=sm_90" in newest.flags
    for wrong in (11, "13", None, True):
        with pytest.raises(ConfigError, match=r"\$\.toolchain\.cuda"):
            toolchain_for(one, {"cuda": wrong})


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ((), ["cpu-x86_64-v3"]),
        (("sm_90", "sm_90"), ["cuda-sm_90", "cpu-x86_64-v3"]),
        (("sm_87", "sm_121"), ["cuda-sm_86", "cuda-sm_120", "cpu-x86_64-v3"]),
        (("sm_75",), ["cpu-x86_64-v3"]),
        (("sm_110",), ["cuda-compute_80", "cpu-x86_64-v3"]),
    ],
)
def test_host_means_the_best_of_each_device_before_the_processor(devices, names) -> None:
    host = Host("x86_64", frozenset(target("cpu-x86_64-v3").features), "some", devices)
    assert [t.name for t in host.targets()] == names
