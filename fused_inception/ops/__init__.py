"""The public ops. Each folder has the same rooms.

`op.py` is the contract, `aten.py` the reference, `launch.py` the choice and the launches.
"""

from .common.dispatch import available_backends
from .conv2d_act.op import conv2d_act
from .factorized_conv2d.op import factorized_conv2d
from .grid_reduction.op import grid_reduction
from .split_conv2d.op import split_conv2d

__all__ = [
    "available_backends",
    "conv2d_act",
    "factorized_conv2d",
    "grid_reduction",
    "split_conv2d",
]
