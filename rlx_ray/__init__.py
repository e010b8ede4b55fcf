"""rlx_ray: a Ray-distributed batch compile and serving orchestrator."""

__version__ = "0.1.0"
