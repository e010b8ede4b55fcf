"""Every kernel on a card: the emulated tests' own inputs, oracles and limits, and model sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from rlx_ray.dtype import DType
from rlx_ray.runtime.cuda_device import CudaDevice
from tests.emulated import (
    test_cuda_attention,
    test_cuda_common,
    test_cuda_decode,
    test_cuda_draws,
    test_cuda_matvec,
    test_cuda_norms,
    test_cuda_ragged,
    test_cuda_rope,
    test_cuda_rows,
    test_cuda_sample,
)
from tests.support.card_unit import CardUnit
from tests.support.cuda_instances import every
from tests.support.cuda_oracle import IDS, TYPES
from tests.support.needs import needs_card

needs_card()

MODULES = (
    test_cuda_attention,
    test_cuda_common,
    test_cuda_decode,
    test_cuda_draws,
    test_cuda_matvec,
    test_cuda_norms,
    test_cuda_ragged,
    test_cuda_rope,
    test_cuda_rows,
    test_cuda_sample,
)


def _collected() -> dict[str, Callable[..., None]]:
    """The tests of these modules that take `kernels`, named after their module too."""
    found = {}
    for module in MODULES:
        kind = module.__name__.rpartition("test_cuda_")[2]
        for name, test in vars(module).items():
            is_test = name.startswith("test_") and inspect.isfunction(test)
            if is_test and "kernels" in inspect.signature(test).parameters:
                found[f"test_{kind}_{name.removeprefix('test_')}"] = test
    return found


globals().update(_collected())


@pytest.mark.parametrize("t", TYPES, ids=IDS)
def test_kernels_of_model_sizes_load(card: CudaDevice, t: DType) -> None:
    """Registers, shared memory and the driver's own check of every kernel's code."""
    unit = CardUnit(card, every(t))
    assert len(unit.instances) == len(every(t))
