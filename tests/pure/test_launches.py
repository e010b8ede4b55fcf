"""Programs of launches: what is fused and what is not, the verifier, the text, the arena."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.artifact.launch_plan import Address, GemmStep, LaunchPlan
from rlx_ray.compiler.cuda import emit as cuda
from rlx_ray.compiler.cuda.launches import KernelLaunch, Launches
from rlx_ray.compiler.cuda.printer import launches_text
from rlx_ray.compiler.cuda.verify import verify_launches
from rlx_ray.compiler.cuda.writer import Writer
from rlx_ray.component import CompileProfile, KernelDispatchConfig, Preset
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError, VerifyError
from rlx_ray.target import target
from tests.support.programs import COMMON, NATIVE, PROFILE, bert, llama, one_common, stages

SM_90 = target("cuda-sm_90")
WIDE = {"hidden": 64, "heads": 4, "kv_heads": 2, "dim": 16, "intermediate": 128}


def encoder(batch: int, seq: int, config: KernelDispatchConfig = NATIVE, **changes) -> Launches:
    return stages(bert(**changes), batch, seq, config, target=SM_90).program


def decoder(
    batch: int,
    seq: int,
    past: int = 40,
    profile: CompileProfile = PROFILE,
    config: KernelDispatchConfig = NATIVE,
    **changes,
) -> Launches:
    made = stages(llama(**changes), batch, seq, config, profile, SM_90, past=past)
    return made.program


def names(program: Launches) -> list[str]:
    return [s.kernel.template if isinstance(s, KernelLaunch) else "gemm" for s in program.steps]


def constants(program: Launches, template: str) -> list[dict]:
    calls = [s for s in program.steps if isinstance(s, KernelLaunch)]
    return [dict(c.kernel.constants) for c in calls if c.kernel.template == template]


def test_a_layer_of_a_decode_step_is_five_launches() -> None:
    layer = ["matvec", "attention_step", "matvec", "matvec", "matvec"]
    assert names(decoder(4, 1, **WIDE)) == ["embed", *layer, *layer, "matvec", "sample"]


def test_a_layer_of_a_prompt_is_nine_launches() -> None:
    layer = ["rms_norm", "gemm", "rope", "attention_cached", "gemm", "rms_norm"]
    layer += ["gemm", "gated", "gemm"]
    found = names(decoder(2, 32, 0, **WIDE))
    assert found == ["embed", *layer, *layer, "elementwise", "pool", "matvec", "sample"]


def test_a_layer_of_an_encoder_of_many_rows_is_eight_launches() -> None:
    layer = ["gemm", "attention", "gemm", "layer_norm", "gemm", "elementwise", "gemm", "layer_norm"]
    assert names(encoder(8, 16)) == ["embed", "layer_norm", *layer, *layer, "pool"]


def test_a_layer_of_an_encoder_of_few_rows_is_five_launches() -> None:
    layer = ["matvec", "attention", "matvec", "matvec", "matvec"]
    assert names(encoder(2, 16)) == ["embed", *layer, *layer, "layer_norm", "pool"]


def test_notes_say_why_operations_share_a_launch() -> None:
    found = {(n.subject, n.text) for n in decoder(1, 1, **WIDE).notes if n.stage == "launches"}
    assert ("layer.0.norm1: in layer.0.qkv", "its first reader is a product of few rows") in found
    assert (
        "layer.0.up + layer.0.gated: gate and up are one product",
        "their weights are neighbours",
    ) in found
    found = {n.subject for n in decoder(2, 32, 0).notes if n.stage == "launches"}
    assert "layer.0.out + layer.0.residual1: epilogue in layer.0.norm2" in found


def test_layers_share_their_kernels() -> None:
    few, many = decoder(4, 1, layers=2), decoder(4, 1, layers=9)
    assert len(few.kernels) == len(many.kernels)
    assert cuda.emit(many).count("#define RLX_NAME") == len(many.kernels)


def test_a_norm_without_room_beside_a_product_is_launched_alone() -> None:
    big = {"layers": 1, "hidden": 4096, "intermediate": 64, "heads": 2, "kv_heads": 2, "dim": 16}
    assert names(decoder(32, 1, **big)).count("rms_norm") == 3
    assert "rms_norm" not in names(decoder(1, 1, **big))


def test_a_norm_that_many_blocks_would_repeat_is_launched_alone() -> None:
    large = {**WIDE, "layers": 1, "vocab": 131072}
    assert "rms_norm" not in names(decoder(4, 1, **large))  # 8192 blocks, 1 KiB of rows
    found = names(decoder(5, 1, **large))
    assert found[-3:] == ["rms_norm", "matvec", "sample"]
    assert found.count("rms_norm") == 1


def test_gates_ending_within_a_tile_are_read_without_their_ups() -> None:
    together, apart = (decoder(1, 1, **{**WIDE, "intermediate": n}) for n in (128, 120))
    assert [c["gated"] for c in constants(together, "matvec")].count(1) == 2
    assert not any(c["gated"] for c in constants(apart, "matvec"))
    params = [tensor.name for tensor in together.params]
    assert [(params[a], params[b], size) for a, b, size in together.adjacent] == [
        (f"layer.{i}.gate.weight", f"layer.{i}.up.weight", 64 * 128 * 4) for i in range(2)
    ]
    assert not apart.adjacent


def test_few_tokens_over_a_long_cache_share_out_its_keys() -> None:
    assert Counter(names(decoder(1, 8, 500)))["attention_decode"] == 2
    assert Counter(names(decoder(1, 8, 500)))["attention_combine"] == 2
    assert Counter(names(decoder(8, 256, 500)))["attention_cached"] == 2
    assert Counter(names(decoder(1, 8, 100)))["attention_cached"] == 2


def test_tickets_of_attention_are_zero_before_and_after() -> None:
    program = decoder(1, 1, 1000)
    ((offset, size),) = program.zeroed
    slots = {dict(s.arguments)["tickets"] for s in program.steps if _is_step(s)}
    assert slots == {Address("arena", offset)}
    (buffer,) = (b for b in program.arena.buffers if b.name == "tickets")
    assert (buffer.first, buffer.last) == (0, len(program.steps) - 1)
    assert size == 2 * 4  # a count for each head of keys
    assert not decoder(1, 1, 20).zeroed  # one split needs none


def _is_step(step: KernelLaunch | GemmStep) -> bool:
    return isinstance(step, KernelLaunch) and step.kernel.template == "attention_step"


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_types_are_the_profiles_but_for_vectors_and_outputs(precision: str) -> None:
    t = DType.parse(precision)
    program = decoder(
        2, 32, 0, PROFILE.override({"precision": {"compute": precision}}), qkv_bias=True
    )
    for tensor in program.params:
        wide = tensor.layout == "rows" or tensor.name == "embed.word"
        assert tensor.dtype is (t if wide else DType.F32), tensor.name
    assert [(o.name, o.dtype) for o in program.outputs] == [
        ("logits", DType.F32),
        ("tokens", DType.I32),
        ("logprob", DType.F32),
        ("likely", DType.I32),
        ("likely_logprobs", DType.F32),
    ]
    assert {s.dtype for s in program.steps if isinstance(s, GemmStep)} == {t}
    assert program.page == 2 * 2 * 2 * 32 * 10 * t.size


def test_float32_products_are_exact_unless_the_profile_says() -> None:
    fast = PROFILE.override({"backend": {"tf32": True}})
    half = fast.override({"precision": {"compute": "f16"}})
    for profile, wanted in ((PROFILE, False), (fast, True), (half, False)):
        steps = decoder(2, 32, 0, profile).steps
        assert {s.tf32 for s in steps if isinstance(s, GemmStep)} == {wanted}


def test_inputs_lie_side_by_side_and_stay() -> None:
    program = decoder(2, 1)
    offsets = [tensor.offset for tensor in program.inputs]
    assert offsets == list(range(offsets[0], offsets[0] + 256 * len(offsets), 256))
    assert [t.name for t in program.inputs[4:]] == [
        *("temperature", "top_k", "top_p", "min_p", "seed", "step"),
        *("reported", "change_starts", "changes"),
    ]
    assert [t.name for t in program.inputs if t.layout != "plain"] == ["changes"]


@pytest.mark.parametrize("vocab", [5, 50, 9000])
def test_adjustments_have_equal_room_in_every_variant(vocab: int) -> None:
    few, many = decoder(1, 1, vocab=vocab), decoder(3, 16, 0, vocab=vocab)
    room = [one.inputs[-1].shape for one in (few, many)]
    assert room == [(min(vocab, 4096), 4), (3 * min(vocab, 4096), 4)]
    likely = min(vocab, 20)
    assert [o.shape for o in many.outputs[1:]] == [(3,), (3,), (3, likely), (3, likely)]


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 9),
    seq=st.sampled_from([1, 2, 16, 40]),
    past=st.sampled_from([0, 40, 700]),
    common=st.booleans(),
    bias=st.booleans(),
    policy=st.sampled_from(["direct", "fusable"]),
    skip=st.booleans(),
)
def test_programs_of_any_size_are_sound(
    batch: int, seq: int, past: int, common: bool, bias: bool, policy: str, skip: bool
) -> None:
    profile = PROFILE.override({"fusion": {"policy": policy, "skip": skip}})
    config = COMMON if common else NATIVE
    program = decoder(batch, seq, past, profile, config, qkv_bias=bias)  # verified as it is made
    plan = cuda.plan(program, SM_90)
    assert LaunchPlan.loads(plan.dumps()) == plan
    assert set(plan.kernels) == {kernel.name for kernel in program.kernels}
    assert program.arena.size <= 1.25 * program.arena.bound


def test_the_verifier_names_what_is_broken() -> None:
    program = encoder(8, 16)
    assert verify_launches(program) is program

    def broken(at: int, step: KernelLaunch | GemmStep) -> Launches:
        return replace(program, steps=(*program.steps[:at], step, *program.steps[at + 1 :]))

    at = next(i for i, s in enumerate(program.steps) if isinstance(s, GemmStep))
    product, call = program.steps[at], program.steps[at - 1]
    assert isinstance(product, GemmStep)
    assert isinstance(call, KernelLaunch)
    with pytest.raises(VerifyError, match=r"qkv\): Address.* is not there"):
        verify_launches(broken(at, replace(product, n=product.n + 10**6)))
    with pytest.raises(VerifyError, match="is not there"):
        verify_launches(broken(at, replace(product, b=Address("param", 0, len(program.params)))))
    with pytest.raises(VerifyError, match="arguments are not"):
        verify_launches(broken(at - 1, replace(call, arguments=call.arguments[:-1])))
    gone = tuple((name, Address("arena", program.arena.size)) for name, _ in call.arguments)
    with pytest.raises(VerifyError, match="is not there"):
        verify_launches(broken(at - 1, replace(call, arguments=gone)))
    squeezed = tuple(replace(b, offset=0) for b in program.arena.buffers)
    with pytest.raises(VerifyError, match="overlap"):
        verify_launches(replace(program, arena=replace(program.arena, buffers=squeezed)))
    with pytest.raises(VerifyError, match="cannot be neighbours"):
        verify_launches(replace(program, adjacent=((0, 2, 256),)))


def test_the_text_has_a_line_for_each_launch() -> None:
    profile = PROFILE.override({"precision": {"compute": "bf16"}})
    program = decoder(2, 32, 0, profile)
    assert launches_text(program) == launches_text(decoder(2, 32, 0, profile))
    lines = launches_text(program).splitlines()
    launches = [line for line in lines if line.partition(":")[0].isdigit()]
    assert len(launches) == len(program.steps)
    assert any("layer.0.qkv: gemm [64, 24] x [24, 100] bf16" in line for line in launches)
    (drawn,) = (line for line in launches if "sample" in line)
    assert drawn.endswith(
        "tokens: sample likely=20 n=50 rows=2 t=f32 | grid 2,1,1 block 32 shared 8448"
    )


def test_a_graph_without_the_inputs_of_launches_is_refused() -> None:
    hir = bert()
    odd = tuple(replace(t, name="tokens") if t.name == "input_ids" else t for t in hir.inputs)
    nodes = tuple(
        replace(n, inputs=tuple("tokens" if i == "input_ids" else i for i in n.inputs))
        for n in hir.nodes
    )
    with pytest.raises(CompileError, match=r"no input 'input_ids' of 1 or 2 axes.*CPU targets"):
        stages(replace(hir, inputs=odd, nodes=nodes), 1, 4, target=SM_90)


def test_common_lowerings_that_mix_ragged_rows_are_refused() -> None:
    with pytest.raises(CompileError, match="operations of a ragged variant mix rows"):
        stages(bert(), 4, 8, one_common("LayerNorm"), target=SM_90, rows=16)


def test_launches_that_no_device_takes_are_refused_by_reason() -> None:
    heads = {"heads": 1, "kv_heads": 1, "dim": 64}
    writer = Writer()
    with pytest.raises(
        CompileError, match=r"layer\.0: attention would have a grid of 1 x 1 x 70000"
    ):
        writer.call("attention", "layer.0", {"t": DType.F16, "batch": 70000, "seq": 16, **heads})
    wide = {"t": DType.F16, "batch": 2, "seq": 16, "n": 32768, "pool": 0, "l2": 1}
    with pytest.raises(CompileError, match="pool would have 262144 bytes of shared memory, of 101"):
        writer.call("pool", "pooling", wide)
    for kernel in ("softmax", "gated", "embed"):
        writer.call(kernel, "many", {"t": DType.F16, "rows": 1 << 20, "n": 1 << 10})
    more = {"t": DType.F16, "rows": 1 << 20, "n": 1 << 11, "operands": (), "expr": "0"}
    with pytest.raises(CompileError, match="would have 2147483648 elements"):
        writer.call("elementwise", "more", more)


def test_presets_of_both_policies_give_the_same_launches() -> None:
    direct, fusable = (
        CompileProfile.preset(p) for p in (Preset.LLAMA32_PREFILL, Preset.LLAMA32_DECODE)
    )
    one, other = (decoder(2, 32, 0, p, qkv_bias=True) for p in (direct, fusable))
    assert names(one) == names(other)


def test_a_ragged_encoder_finds_its_rows_once() -> None:
    padded = names(encoder(8, 16))
    ragged = stages(bert(), 8, 16, target=SM_90, rows=64).program
    assert names(ragged) == ["starts", *padded]
    assert {c["seq"] for c in constants(ragged, "layer_norm")} == {64}
    (kernel,) = {k for k in ragged.kernels if k.template == "attention"}
    assert kernel.launch.grid == (64 // 16 + 8, 3, 1)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_masks_scores_and_sums_of_common_lowerings_are_float32(precision: str) -> None:
    """In f16 a masked score would be infinite, and a count beyond 2048 inexact."""
    profile = PROFILE.override({"precision": {"compute": precision}})
    t = DType.parse(precision)
    program = decoder(2, 8, 64, profile, COMMON, **WIDE)
    assert {c["t"] for c in constants(program, "causal_mask")} == {DType.F32}
    assert {(c["t"], c["out"]) for c in constants(program, "reduce")} == {(DType.F32, DType.F32)}
    assert {c["t"] for c in constants(program, "cache_read")} == {t}
    products = [s for s in program.steps if isinstance(s, GemmStep)]
    assert {step.dtype for step in products} == {t}
    assert {step.out for step in products} == {DType.F32, t}
    tables = {c["vocab"]: c["t"] for c in constants(program, "embed")}
    assert tables == {50: t, 128: DType.F32}, "embeddings, and angles"
    program = decoder(2, 8, 64, profile, one_common("Attention"), **WIDE)
    (softmax,) = {(c["t"], c["out"]) for c in constants(program, "softmax")}
    assert softmax == (DType.F32, t), "a product reads it"
