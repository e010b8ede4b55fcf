"""What a step hands to its variant, and what it makes of what comes back.

A variant whose binding has an output `tokens` samples on the device (`device_sampling.py`); of
others, and for streams whose adjustments the device has no room for, the host samples the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.engine import device_sampling
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
    if not device_sampling.has_sampling(binding):
        return inputs, frozenset({"logits"})
    ending = {
        row: sampler
        for row, (stream, count, sampler) in enumerate(
            zip(step.streams, step.counts, samplers, strict=True)
        )
        if count == stream.left
    }
    on_device = {row: one for row, one in ending.items() if device_sampling.on_device(binding, one)}
    wanted = set[str]().union(
        *(device_sampling.outputs(one.sampling) for one in on_device.values())
    )
    if len(on_device) < len(ending):
        wanted.add("logits")
    drawn = {row: len(stream.tokens) - stream.prompt for row, stream in enumerate(step.streams)}
    inputs |= device_sampling.sampling_inputs(step.variant.batch, on_device, drawn)
    # Where all prompts go on, tokens are read for the wait alone: the scheduler times the run.
    return inputs, frozenset(wanted or {"tokens"})


def choose(
    binding: BindingManifest, found: Mapping[str, npt.NDArray[Any]], row: int, sampler: Sampler
) -> Chosen:
    """The next token of a stream from a run's outputs: the device's, or the host's draw."""
    if device_sampling.has_sampling(binding) and device_sampling.on_device(binding, sampler):
        return device_sampling.chosen(found, row, sampler)
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
