"""The expanded filter bank through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

import torch

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
    halves = [
        conv2d_act(input, w, b, (1, 1), (w.shape[2] // 2, w.shape[3] // 2), activation)
        for w, b in ((weight_row, bias_row), (weight_col, bias_col))
    ]
    return torch.cat(halves, 1)
