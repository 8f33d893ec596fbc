"""Fused factorized convolutions and Inception networks for PyTorch."""

from ._version import __version__
from .ops import available_backends, conv2d_act, factorized_conv2d, grid_reduction, split_conv2d

__all__ = [
    "__version__",
    "available_backends",
    "conv2d_act",
    "factorized_conv2d",
    "grid_reduction",
    "split_conv2d",
]
