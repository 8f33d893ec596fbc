"""The expanded filter bank through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

import torch

from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.conv2d_act.aten import conv2d_act


def split_conv2d(
    input: torch.Tensor,
    weight_row: torch.Tensor,
    bias_row: torch.Tensor | None,
    weight_col: torch.Tensor,
    bias_col: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """cat([act(conv(input, weight_row)), act(conv(input, weight_col))], 1), "same" padding."""
    n, _, height, width = input.shape
    rows, cols = weight_row.shape[0], weight_col.shape[0]
    output = empty_channels_last((n, rows + cols, height, width), input)
    for half, w, b in (
        (output[:, :rows], weight_row, bias_row),
        (output[:, rows:], weight_col, bias_col),
    ):
        padding = (w.shape[2] // 2, w.shape[3] // 2)
        conv2d_act(input, w, b, (1, 1), padding, activation, out=half)
    return output
