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


def halving_max_pool2d_(input: torch.Tensor, output: torch.Tensor) -> None:
    """Write the largest of every 3×3 window, stride 2, into `output`, (N, C, P, Q) of any strides.

    First along columns, then along rows: that keeps no indices, which PyTorch's own writes in 64
    bits each. Which of +0 and -0 stays is left open, as are the bits of a NaN. Also for integers.
    """
    rows, columns = 2 * output.shape[2], 2 * output.shape[3]
    tall = torch.maximum(input[:, :, 0:rows:2], input[:, :, 1:rows:2])
    torch.maximum(tall, input[:, :, 2 : rows + 1 : 2], out=tall)
    wide = torch.maximum(tall[..., 0:columns:2], tall[..., 1:columns:2])
    torch.maximum(wide, tall[..., 2 : columns + 1 : 2], out=output)


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
