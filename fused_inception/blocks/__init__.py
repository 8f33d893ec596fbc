"""Fused Inception blocks: functions of an input and of weights with BatchNorm folded in.

`FUSED_BLOCKS` is the table that `fuse` runs from. Its keys are the kinds that recognition finds; a
block's convolutions are named by the fields of `weights`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fused_inception.blocks.inception_c import ConvWeights, InceptionCWeights, inception_c

__all__ = ["FUSED_BLOCKS", "ConvWeights", "FusedBlockSpec", "InceptionCWeights", "inception_c"]


class FusedBlockSpec(NamedTuple):
    """How a kind of block runs.

    Attributes:
        weights: the named tuple of the block's `ConvWeights`.
        forward: called as `forward(input, weights, **options)`.
    """

    weights: Callable[..., Any]
    forward: Callable[..., Tensor]


FUSED_BLOCKS: dict[str, FusedBlockSpec] = {
    "inception_c": FusedBlockSpec(InceptionCWeights, inception_c),
}
