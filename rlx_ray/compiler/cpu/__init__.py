"""The CPU backend: MIR to regions of tiles (LIR), C text, and bytes by the pinned compiler."""
