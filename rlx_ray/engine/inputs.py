"""What a step hands to its variant, and who draws the tokens: the device, or the host.

A variant whose binding has an output `tokens` draws on the device. It draws for every stream whose
request asks for nothing that only the host does; for the others the logits are read, as from a
variant without that output. So a stream's way depends on its request and on the kind of target
alone, never on the streams beside it. A seed repeats on targets of one kind: the device draws with
Philox4x32-10 at (seed, tokens generated so far), the host with NumPy's generator of that seed.
Temperature 0 is the same on both: the most likely token, of equals the one of lowest number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact import BindingManifest
from rlx_ray.engine.sampling import Chosen, Sampler
from rlx_ray.engine.scheduler import Step, bound
from rlx_ray.shape import PAGE

Arrays = dict[str, npt.NDArray[Any]]


def feed(
    binding: BindingManifest, step: Step, samplers: Sequence[Sampler]
) -> tuple[Arrays, frozenset[str]]:
    """The inputs of a step, and the outputs to read.

    Args:
        binding: of the step's variant.
        step: what to run.
        samplers: of its streams.
    """
    inputs = step_inputs(step)
    if not draws(binding):
        return inputs, frozenset({"logits"})
    ending = zip(step.streams, step.counts, samplers, strict=True)
    on_host = {own.sampling.needs_logits for one, count, own in ending if count == one.left}
    wanted = {"logits" if host else "tokens" for host in on_host}
    # Where all prompts go on, tokens are read for the wait alone: the scheduler times the run.
    return inputs | sampling_inputs(step, samplers), frozenset(wanted or {"tokens"})


def draws(binding: BindingManifest) -> bool:
    """Whether a variant draws tokens."""
    return any(output.name == "tokens" for output in binding.outputs)


def choose(found: Mapping[str, npt.NDArray[Any]], row: int, sampler: Sampler) -> Chosen:
    """The next token of a stream from a run's outputs: the device's, or the host's draw."""
    if "tokens" in found and not sampler.sampling.needs_logits:
        return Chosen(int(found["tokens"][row]))
    return sampler.choose(found["logits"][row])


def step_inputs(step: Step) -> Arrays:
    """The inputs of a step, int32.

    `input_ids` [batch, seq], `lengths` and `past` [batch], `pages` [batch, pages] with -1 past a
    stream's last and before its window; rows without a stream have length 0.
    """
    variant = step.variant
    ids = np.zeros((variant.batch, variant.seq), np.int32)
    lengths, past = (np.zeros(variant.batch, np.int32) for _ in range(2))
    pages = np.full((variant.batch, bound(variant) // PAGE), -1, np.int32)
    for row, (stream, count) in enumerate(zip(step.streams, step.counts, strict=True)):
        ids[row, :count] = stream.tokens[stream.past : stream.past + count]
        lengths[row], past[row] = count, stream.past
        table = stream.pages[: pages.shape[1]]
        pages[row, : len(table)] = table
    return {"input_ids": ids, "lengths": lengths, "past": past, "pages": pages}


def sampling_inputs(step: Step, samplers: Sequence[Sampler]) -> Arrays:
    """How the device is to draw, a row for each sequence of the batch.

    float32 `temperature`, `top_p`, `min_p` and int32 `top_k`, `step` [batch]; `seed` int32
    [batch, 2], the lower half first. Rows that the host draws for, or nobody, have temperature 0.
    """
    batch = step.variant.batch
    temperature, top_p, min_p = (np.zeros(batch, np.float32) for _ in range(3))
    top_k, drawn = (np.zeros(batch, np.int32) for _ in range(2))
    seed = np.zeros(batch, "<u8")
    for row, (stream, sampler) in enumerate(zip(step.streams, samplers, strict=True)):
        how = sampler.sampling
        if how.needs_logits:
            continue
        temperature[row], top_p[row], min_p[row] = how.temperature, how.top_p, how.min_p
        top_k[row] = min(how.top_k, np.iinfo(np.int32).max)
        seed[row] = sampler.seed
        drawn[row] = len(stream.tokens) - stream.prompt
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed.view("<i4").reshape(batch, 2),
        "step": drawn,
    }
