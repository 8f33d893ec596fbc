"""Fused factorized convolutions and Inception networks for PyTorch."""

from . import models
from ._version import __version__
from .fuse import FusionReport, fuse, refresh, report
from .modules import Conv2dAct, FactorizedConv2d, GridReduction, SplitConv2d
from .ops import available_backends, conv2d_act, factorized_conv2d, grid_reduction, split_conv2d

__all__ = [
    "Conv2dAct",
    "FactorizedConv2d",
    "FusionReport",
    "GridReduction",
    "SplitConv2d",
    "__version__",
    "available_backends",
    "conv2d_act",
    "factorized_conv2d",
    "fuse",
    "grid_reduction",
    "models",
    "refresh",
    "report",
    "split_conv2d",
]
