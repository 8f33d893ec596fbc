"""One convolution with its epilogue through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fused_inception.ops.common.geometry import conv_output_size


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
    # oneDNN's bfloat16 convolution returns garbage where it strides to a single output column
    # (pytorch#169688). With one column the step between columns means nothing, so take steps of 1.
    one_column = (
        columns > 1
        and input.device.type == "cpu"
        and input.dtype == torch.bfloat16
        and conv_output_size(input.shape[3], weight.shape[3], columns, padding[1]) == 1
    )
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
