"""Tokens that a device draws: what it is told for each sequence, and what comes back.

It draws for every stream, unless that has more biases and tokens to penalise than `changes` of a
step has room for; then the host does, from the logits. Every sequence has a room of its own, the
same in all variants of a model, so a stream's way depends on its request, its tokens and the kind
of target alone, never on the streams beside it. A seed repeats on targets of one kind: the device
draws with Philox4x32-10 at (seed, tokens generated so far), the host with NumPy's generator of that
seed. Temperature 0 is the same on both, as far as float32 goes: the most likely token, of equals
the one of lowest number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.engine.sampling import Chosen, Sampler, Sampling

_INT32 = np.iinfo(np.int32).max


def has_sampling(binding: BindingManifest) -> bool:
    """Whether a variant draws tokens."""
    return any(output.name == "tokens" for output in binding.outputs)


def on_device(binding: BindingManifest, sampler: Sampler) -> bool:
    """Whether a variant that draws tokens draws a stream's next one."""
    count = len(sampler.adjustments)
    return count == 0 or count <= _room(binding)


def _room(binding: BindingManifest) -> int:
    """How many tokens of a sequence may have changed scores."""
    rows = {tensor.name: tensor.shape[0] for tensor in binding.inputs}
    return rows["changes"] // rows["temperature"]


def outputs(sampling: Sampling) -> frozenset[str]:
    """What is read for a stream that the device draws for."""
    if sampling.logprobs is None:
        return frozenset({"tokens"})
    if sampling.logprobs == 0:
        return frozenset({"tokens", "logprob"})
    return frozenset({"tokens", "logprob", "likely", "likely_logprobs"})


def chosen(found: Mapping[str, npt.NDArray[Any]], row: int, sampler: Sampler) -> Chosen:
    """A stream's next token, as the device has drawn it; the sampler counts it."""
    token, count = int(found["tokens"][row]), sampler.sampling.logprobs
    sampler.adjustments.generated(token)
    if count is None:
        return Chosen(token)
    logprob = float(found["logprob"][row])
    if count == 0:
        return Chosen(token, logprob)
    likely, logs = (found[name][row, :count].tolist() for name in ("likely", "likely_logprobs"))
    return Chosen(token, logprob, tuple(zip(likely, logs, strict=True)))


def sampling_inputs(
    batch: int, samplers: Mapping[int, Sampler], drawn: Mapping[int, int]
) -> dict[str, npt.NDArray[Any]]:
    """How the device is to draw.

    float32 `temperature`, `top_p`, `min_p` and int32 `top_k`, `step` [batch]; `seed` int32
    [batch, 2], the lower half first; int32 `reported` [batch], 0 for no logprobs, else 1 + how many
    of the likeliest; int32 `change_starts` [batch + 1] and `changes` [changed tokens, 4], a row's
    from its start to the next one's.

    Args:
        batch: rows of the variant.
        samplers: by row, where the device is to draw; the others have temperature 0 and no changes.
        drawn: by row, tokens that the stream has generated.
    """
    temperature, top_p, min_p = (np.zeros(batch, np.float32) for _ in range(3))
    top_k, step, reported = (np.zeros(batch, np.int32) for _ in range(3))
    seed, counts = np.zeros(batch, "<u8"), np.zeros(batch, np.int32)
    for row, sampler in samplers.items():
        how = sampler.sampling
        temperature[row], top_p[row], min_p[row] = how.temperature, how.top_p, how.min_p
        top_k[row] = min(how.top_k, _INT32)
        seed[row], step[row] = sampler.seed, drawn[row]
        reported[row] = 0 if how.logprobs is None else 1 + how.logprobs
        counts[row] = len(sampler.adjustments)
    changes = [samplers[row].adjustments.packed() for row in np.flatnonzero(counts).tolist()]
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed.view("<i4").reshape(batch, 2),
        "step": step,
        "reported": reported,
        "change_starts": np.concatenate([[0], counts.cumsum()]).astype(np.int32),
        "changes": np.concatenate([np.zeros((0, 4), np.int32), *changes]),
    }
