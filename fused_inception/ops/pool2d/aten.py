"""The pools through PyTorch: any device, any dtype. The averages are not batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def max_pool2d(
    input: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The largest of every window, computed in channels_last."""
    input = input.contiguous(memory_format=torch.channels_last)
    return F.max_pool2d(input, tuple(kernel), tuple(stride), tuple(padding))


def global_avg_pool2d(input: torch.Tensor) -> torch.Tensor:
    """The mean of every map, (N, C, 1, 1)."""
    return F.adaptive_avg_pool2d(input, 1)


def avg_pool2d_act_(
    input: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    kernel: int,
    include_pad: bool,
) -> None:
    """Write relu(pool(input) + bias) into `output`, (N, C, H, W): stride 1, "same" padding.

    What comes in 16 bits is summed, shifted and rounded once, in float32.
    """
    wide = torch.float32 if input.element_size() < 4 else input.dtype
    pooled = F.avg_pool2d(
        input.to(wide, memory_format=torch.channels_last),
        kernel,
        stride=1,
        padding=kernel // 2,
        count_include_pad=include_pad,
    )
    if bias is not None:
        pooled += bias.to(wide).reshape(1, -1, 1, 1)
    output.copy_(F.relu_(pooled))
