"""The compiler: from a BuildSpec to an artifact, by way of `compile.py` and `pipeline.py`."""
