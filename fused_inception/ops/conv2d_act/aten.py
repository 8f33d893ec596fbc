"""One convolution with its epilogue through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fused_inception.ops.common.onednn import strides_to_one_column
from fused_inception.ops.common.packed_weights import conv2d
from fused_inception.ops.common.relu import relu_, relu_into


def conv2d_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """act(conv(input, weight) + bias), computed in channels_last.

    `out`, (N, K, P, Q) of any strides, for example a slice of the channels of a larger output, is
    written to if given, without a gradient.
    """
    rows, columns = stride
    one_column = strides_to_one_column(input, weight, stride, padding)
    result = conv2d(
        input.contiguous(memory_format=torch.channels_last),
        weight,
        bias,
        (rows, 1 if one_column else columns),
        tuple(padding),
    )
    if one_column:
        result = result[..., :1]
    if out is not None:
        return activate(result, activation, out)
    return relu_(result) if activation == "relu" else result


def activate(input: torch.Tensor, activation: str, out: torch.Tensor) -> torch.Tensor:
    """act(input) written to `out`, of the same shape and any strides; returns `out`."""
    if activation == "relu":
        return relu_into(input, out)
    with torch.no_grad():  # as in `relu_into`
        return out.copy_(input)
