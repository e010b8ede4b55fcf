"""Running artifacts: no compiler here, only bytes, bindings and memory."""
