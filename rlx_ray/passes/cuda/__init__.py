"""From the MIR to launches: what CUDA targets have in the place of a schedule of regions.

`lower.py` walks a program; the other modules say how groups of operations become launches.
"""

from rlx_ray.passes.cuda.lower import lower

__all__ = ["lower"]
