"""The grid reduction through PyTorch: any device, any dtype. Not batch-invariant."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.conv2d_act.aten import activate, conv2d_act


def pool2d(input: torch.Tensor, kernel: int, pool: str) -> torch.Tensor:
    """The pool half: window `kernel`, stride 2, no padding."""
    pool2d = F.max_pool2d if pool == "max" else F.avg_pool2d
    return pool2d(input.contiguous(memory_format=torch.channels_last), kernel, 2)


def grid_reduction(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pool: str,
    activation: str,
) -> torch.Tensor:
    """cat([act(conv(input, weight, stride 2)), pool(input, k, stride 2)], 1)."""
    pooled = pool2d(input, weight.shape[2], pool)
    n, channels, out_height, out_width = pooled.shape
    filters = weight.shape[0]
    output = empty_channels_last((n, filters + channels, out_height, out_width), input)
    conv2d_act(input, weight, bias, (2, 2), (0, 0), activation, out=output[:, :filters])
    activate(pooled, "none", output[:, filters:])
    return output


def pool2d_backward(
    grad: torch.Tensor, input: torch.Tensor, kernel: int, pool: str
) -> torch.Tensor:
    """The pool half's gradient for the input."""
    window, stride, padding = [kernel, kernel], [2, 2], [0, 0]
    if pool == "avg":
        return torch.ops.aten.avg_pool2d_backward(
            grad, input, window, stride, padding, False, True, None
        )
    _, indices = torch.ops.aten.max_pool2d_with_indices(input, window, stride)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad, input, window, stride, padding, [1, 1], False, indices
    )
