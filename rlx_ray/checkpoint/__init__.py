"""Checkpoints: where they are, their tensors and metadata files, and their tokenizer."""
