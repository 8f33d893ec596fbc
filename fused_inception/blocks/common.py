"""What the fused blocks share: folded weights, and the ops applied to them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d
from fused_inception.ops.split_conv2d.op import split_conv2d


class ConvWeights(NamedTuple):
    """One convolution with its BatchNorm folded in.

    Attributes:
        weight: `(K, C, R, S)`, channels_last.
        bias: `(K,)` or None.
    """

    weight: Tensor
    bias: Tensor | None


def conv(
    input: Tensor,
    weights: ConvWeights,
    backend: str,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    activation: str = "relu",
) -> Tensor:
    """`conv2d_act` on folded weights."""
    return conv2d_act(
        input,
        weights.weight,
        weights.bias,
        stride=stride,
        padding=padding,
        activation=activation,
        backend=backend,
    )


def conv_pair(input: Tensor, first: ConvWeights, second: ConvWeights, backend: str) -> Tensor:
    """`factorized_conv2d` on folded weights: one factor behind the other."""
    return factorized_conv2d(
        input, first.weight, first.bias, second.weight, second.bias, backend=backend
    )


def conv_split(input: Tensor, row: ConvWeights, col: ConvWeights, backend: str) -> Tensor:
    """`split_conv2d` on folded weights: the factors side by side."""
    return split_conv2d(input, row.weight, row.bias, col.weight, col.bias, backend=backend)
