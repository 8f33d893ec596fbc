"""One convolution with its epilogue through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fused_inception.ops.common.onednn import strides_to_one_column


def conv2d_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
) -> torch.Tensor:
    """act(conv(input, weight) + bias), computed in channels_last."""
    rows, columns = stride
    one_column = strides_to_one_column(input, weight, stride, padding)
    out = F.conv2d(
        input.contiguous(memory_format=torch.channels_last),
        weight.contiguous(memory_format=torch.channels_last),
        bias,
        (rows, 1 if one_column else columns),
        tuple(padding),
    )
    if one_column:
        out = out[..., :1]
    return F.relu_(out) if activation == "relu" else out
