"""One convolution with its epilogue through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def conv2d_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
) -> torch.Tensor:
    """act(conv(input, weight) + bias), computed in channels_last."""
    out = F.conv2d(
        input.contiguous(memory_format=torch.channels_last),
        weight.contiguous(memory_format=torch.channels_last),
        bias,
        tuple(stride),
        tuple(padding),
    )
    return F.relu_(out) if activation == "relu" else out
