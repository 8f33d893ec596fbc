"""Fused Inception blocks: functions of an input and of weights with BatchNorm folded in.

`FUSED_BLOCKS` is the table that `fuse` runs from. Its keys are the kinds that recognition finds; a
block's convolutions are named by the fields of `weights`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fused_inception.blocks.common import ConvWeights
from fused_inception.blocks.conv_unit import ConvUnitWeights, conv_unit
from fused_inception.blocks.inception_b import InceptionBWeights, inception_b
from fused_inception.blocks.inception_c import InceptionCWeights, inception_c
from fused_inception.blocks.inception_d import InceptionDWeights, inception_d
from fused_inception.blocks.inception_e import InceptionEWeights, inception_e

__all__ = [
    "FUSED_BLOCKS",
    "ConvUnitWeights",
    "ConvWeights",
    "FusedBlockSpec",
    "InceptionBWeights",
    "InceptionCWeights",
    "InceptionDWeights",
    "InceptionEWeights",
    "conv_unit",
    "inception_b",
    "inception_c",
    "inception_d",
    "inception_e",
]


class FusedBlockSpec(NamedTuple):
    """How a kind of block runs.

    Attributes:
        weights: the named tuple of the block's `ConvWeights`.
        forward: called as `forward(input, weights, **options)`.
    """

    weights: Callable[..., Any]
    forward: Callable[..., Tensor]


FUSED_BLOCKS: dict[str, FusedBlockSpec] = {
    "inception_b": FusedBlockSpec(InceptionBWeights, inception_b),
    "inception_c": FusedBlockSpec(InceptionCWeights, inception_c),
    "inception_d": FusedBlockSpec(InceptionDWeights, inception_d),
    "inception_e": FusedBlockSpec(InceptionEWeights, inception_e),
    "conv2d_act": FusedBlockSpec(ConvUnitWeights, conv_unit),
}
