"""Checkpoints: where they are, their tensors and metadata files, and their tokenizer."""

from __future__ import annotations

from rlx_ray.checkpoint.source import Checkpoint, open_checkpoint
from rlx_ray.checkpoint.tensor import StoredTensor, to_f32
from rlx_ray.checkpoint.tokenizer import Encoded, Tokenizer

__all__ = ["Checkpoint", "Encoded", "StoredTensor", "Tokenizer", "open_checkpoint", "to_f32"]
