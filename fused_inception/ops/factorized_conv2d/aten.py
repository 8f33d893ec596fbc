"""The pair through PyTorch's own convolutions: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

import torch

from fused_inception.ops.conv2d_act.aten import conv2d_act


def same_padding(weight: torch.Tensor) -> tuple[int, int]:
    """Padding (rows, columns) that keeps the size of the map, for odd filters."""
    return weight.shape[2] // 2, weight.shape[3] // 2


def conv2d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """One factor: act(conv(input, weight) + bias), "same" padding, in channels_last."""
    return conv2d_act(input, weight, bias, (1, 1), same_padding(weight), activation)


def factorized_conv2d(
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    mid_activation: str,
    activation: str,
) -> torch.Tensor:
    """act(conv(act_mid(conv(input, weight1) + bias1), weight2) + bias2), "same" padding."""
    return conv2d(conv2d(input, weight1, bias1, mid_activation), weight2, bias2, activation)
