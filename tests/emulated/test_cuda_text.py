"""Text that an emulated card generates, with penalties, biases and logprobs, against the CPU's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.engine import device_sampling
from rlx_ray.engine.sampling import Chosen, Sampling
from rlx_ray.errors import VariantMissing
from rlx_ray.inference.text_model import TextModel
from rlx_ray.job.compile_miss import load as open_local
from tests.emulated.test_cuda_local import CPU, LADDER, config
from tests.support.emulated_loader import put_in_card
from tests.support.llama_checkpoint import write_tiny_llama
from tests.support.needs import needs

ROWS = "{phase: prefill, batch: 1, seq: 16}, {phase: decode, batch: [1, 2], seq: 1, past_seq: 63}"
PROMPT = tuple(range(5, 25))
SHORT = tuple(range(100, 108))
TOKENS = 5
KINDS = {
    "greedy": Sampling(temperature=0),
    "repetition": Sampling(temperature=0, repetition_penalty=1.7),
    "frequency": Sampling(temperature=0, presence_penalty=1.5, frequency_penalty=0.5),
    "bias": Sampling(temperature=0, logit_bias={7: 3.0, 9: -2.0, 200: 1.5}),
    "logprob": Sampling(temperature=0, logprobs=0),
    "all": Sampling(0, 3, 0.9, 0.1, 1.2, 0.3, -0.2, None, {5: 1.0, 300: 2.0}, 20),
}
SIZES = {"logprob": [4, 4], "all": [4, 4, 80, 80]}
"""Bytes that are read of a step of one sequence, where they are not those of a token alone."""
SEEDED = Sampling(temperature=1.0, top_p=0.9, seed=7)
PENALISED = Sampling(0.8, repetition_penalty=1.3, presence_penalty=0.4, seed=7, logprobs=3)
VOCAB = 320


def speaker(folder: Path, targets: Sequence[str]) -> TextModel:
    if not (folder / "model").exists():
        write_tiny_llama(folder / "model")
    return TextModel(open_local(config(folder, "llama", ROWS, targets), "tiny", 1), 1 << 20)


@pytest.fixture(scope="module")
def speakers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TextModel, TextModel, list[int]]]:
    """A model on the CPU, the same on the card, and the bytes that each read of the card takes."""
    needs(zig.installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")
    folder = tmp_path_factory.mktemp("text")
    on_cpu = speaker(folder, [CPU])
    with pytest.MonkeyPatch.context() as patch:
        device = put_in_card(patch, folder / "units")
        on_card = speaker(folder, LADDER)
        assert on_card.model.cells[0].spec.target.name == "cuda-sm_90"
        read: list[int] = []
        copy = device.read

        def counted(address: int, out: np.ndarray) -> None:
            read.append(out.nbytes)
            copy(address, out)

        patch.setattr(device, "read", counted)
        yield on_cpu, on_card, read
        for one in (on_card, on_cpu):
            one.close()
            one.model.close()


def answers(
    model: TextModel, *kinds: Sampling, prompt: Sequence[int] = SHORT
) -> list[list[Chosen]]:
    """What streams that run together are answered, token by token."""
    streams = [model.start(prompt, TOKENS, how) for how in kinds]
    return [[piece.chosen for piece in one if piece.chosen] for one in streams]


def ids(chosen: Sequence[Chosen]) -> list[int]:
    return [one.token for one in chosen]


def check_chosen(got: Sequence[Chosen], want: Sequence[Chosen]) -> None:
    assert ids(got) == ids(want)
    for one, other in zip(got, want, strict=True):
        assert one.logprob == (other.logprob and pytest.approx(other.logprob, abs=1e-5))
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-5)


def test_a_device_writes_the_cpus_text_and_reads_no_extra_logits(speakers) -> None:
    on_cpu, on_card, read = speakers
    want = {name: answers(on_cpu, how)[0] for name, how in KINDS.items()}
    for name, how in KINDS.items():
        read.clear()
        check_chosen(answers(on_card, how)[0], want[name])
        sizes = SIZES.get(name, [4])
        assert sorted(read) == sorted(sizes * len(want[name]))
        plain = ids(want[name]) == ids(want["greedy"])
        assert plain == (name in ("greedy", "logprob")), f"{name} has no effect"
    read.clear()
    names = ("all", "greedy", "frequency", "bias")
    for got, name in zip(answers(on_card, *(KINDS[n] for n in names)), names, strict=True):
        check_chosen(got, want[name])
    assert max(read) == 160, "of two sequences the 20 likeliest"


def test_a_seed_draws_alike_beside_any_other_stream(speakers) -> None:
    on_cpu, on_card, read = speakers
    read.clear()
    plain, penalised = (answers(on_card, how)[0] for how in (SEEDED, PENALISED))
    assert answers(on_card, SEEDED, PENALISED) == [plain, penalised]
    beside = answers(on_card, KINDS["all"], PENALISED, SEEDED)
    assert beside[1:] == [penalised, plain]
    assert max(read) == 160
    greedy = ids(answers(on_cpu, KINDS["greedy"])[0])
    assert greedy not in (ids(plain), ids(penalised))


def test_adjustments_past_the_devices_room_draw_on_the_host(
    speakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_card, read = speakers
    variant = on_card.model.cells[0].spec.component.variant
    assert device_sampling._room(on_card.model.executable(variant)[0].binding) == VOCAB
    monkeypatch.setattr(device_sampling, "_room", lambda binding: 10)
    how, seeded = KINDS["repetition"], Sampling(seed=7, repetition_penalty=1.7)
    read.clear()
    (want,) = answers(on_cpu, how, prompt=PROMPT)
    check_chosen(answers(on_card, how, prompt=PROMPT)[0], want)
    assert read == [4] + [4 * VOCAB] * TOKENS, "the first part of the prompt is waited for"
    read.clear()
    check_chosen(answers(on_card, how)[0], answers(on_cpu, how)[0])
    assert read == [4] * 3 + [4 * VOCAB] * (TOKENS - 3), "until the answer has filled the room"
    (alone,) = answers(on_card, seeded)
    got, beside = answers(on_card, seeded, KINDS["all"])
    assert got == alone
    check_chosen(beside, answers(on_cpu, KINDS["all"])[0])


def test_a_missing_artifact_is_passed_over_as_in_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = speaker(tmp_path, [CPU])
    wanted = on_cpu.generate(SHORT, TOKENS).token_ids
    on_cpu.close()
    on_cpu.model.close()
    put_in_card(monkeypatch, tmp_path / "units")
    aot = config(tmp_path, "llama", ROWS, LADDER, "aot")
    model = open_local(aot, "tiny", 1)
    fallen = TextModel(model, 1 << 20)
    assert fallen.generate(SHORT, TOKENS).token_ids == wanted
    assert [reason.partition(":")[0] for reason in model.passed_over] == [
        "cuda-sm_90",
        "cuda-compute_80",
    ]
    fallen.close()
    model.close()
    none = open_local(config(tmp_path, "llama", ROWS, LADDER[:2], "aot"), "tiny", 1)
    with pytest.raises(VariantMissing, match="cuda-sm_90"):
        TextModel(none, 1 << 20)
    none.close()
