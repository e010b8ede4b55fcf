"""Weights: the formats of packed matrices, and packing for each kind of target."""
