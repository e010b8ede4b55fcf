"""Backends: LIR to source text, source text to bytes."""
