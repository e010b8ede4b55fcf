"""The last launch of a decoder: how tokens are to be drawn comes in, what was drawn goes out."""

from __future__ import annotations

from collections.abc import Mapping

from rlx_ray.artifact.manifest import PREFIX
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.state import Lowering
from rlx_ray.compiler.cuda.writer import Place
from rlx_ray.compiler.ir.memory import Tensor
from rlx_ray.dtype import DType
from rlx_ray.shape import LIKELIEST, elements

CHANGES = 4096
"""Tokens of a sequence whose scores a step may change (biases and penalties). It is the same in all
variants: whether the device can draw for a stream must not depend on which one runs."""


def sampling_inputs(batch: int, vocab: int) -> list[Tensor]:
    """What kernels/cuda/sample.cu wants to know of each sequence, without offsets.

    A seed is 64 bits, the low word first. `changes` are those of all sequences, one behind the
    other, as `change_starts` says; it comes last, so that what is not used of it is not copied.
    """
    f32, i32 = DType.F32, DType.I32
    return [
        Tensor("temperature", f32, (batch,), -1),
        Tensor("top_k", i32, (batch,), -1),
        Tensor("top_p", f32, (batch,), -1),
        Tensor("min_p", f32, (batch,), -1),
        Tensor("seed", i32, (batch, 2), -1),
        Tensor("step", i32, (batch,), -1),
        Tensor("reported", i32, (batch,), -1),
        Tensor("change_starts", i32, (batch + 1,), -1),
        Tensor("changes", i32, (batch * min(vocab, CHANGES), 4), -1, PREFIX),
    ]


def sampling_outputs(batch: int, vocab: int) -> list[Tensor]:
    """What it gives, without offsets: a token of each sequence, and how likely tokens were."""
    likely = min(vocab, LIKELIEST)
    return [
        Tensor("tokens", DType.I32, (batch,), -1),
        Tensor("logprob", DType.F32, (batch,), -1),
        Tensor("likely", DType.I32, (batch, likely), -1),
        Tensor("likely_logprobs", DType.F32, (batch, likely), -1),
    ]


def sample(
    s: Lowering, logits: Place, shape: tuple[int, ...], inputs: Mapping[str, Place]
) -> list[tuple[Place, Tensor]]:
    """Draw a token of each sequence from its logits [batch, vocab]; gives the new outputs."""
    batch, vocab = shape
    made: list[tuple[Place, Tensor]] = [
        (s.writer.buffer(t.name, elements(t.shape) * t.dtype.size), t)
        for t in sampling_outputs(batch, vocab)
    ]
    places = {t.name: inputs[t.name] for t in sampling_inputs(batch, vocab)}
    places |= {"y" if t.name == "tokens" else t.name: place for place, t in made}
    constants: dict[str, Value] = {"t": DType.F32, "rows": batch, "n": vocab}
    s.writer.call("sample", "tokens", constants, x=logits, lengths=s.lengths, **places)
    return made
