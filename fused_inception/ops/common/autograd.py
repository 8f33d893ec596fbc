"""Gradients of the ops.

A gradient is attached by an `autograd.Function` around the registered operator, entered only when
one is wanted, so that inference pays nothing for it. What is kept for the backward are the operands
and, behind a ReLU, the result, which the next layer keeps as its operand anyway. The backward
recomputes the rest and calls PyTorch's own convolution backward; it is made of differentiable
operators, so second derivatives work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from .geometry import conv_output_size
from .onednn import strides_to_one_column

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def wants_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record an operation on `tensors`.

    Also inside forward-mode differentiation: the operators have no rule for it and would drop the
    tangents, where an `autograd.Function` refuses them.
    """
    return forward_ad._current_level >= 0 or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def kept_result(result: torch.Tensor, activation: str) -> torch.Tensor | None:
    """What `activation_backward` needs of the activation's result: nothing where there is none."""
    return result if activation == "relu" else None


def activation_backward(grad: torch.Tensor, result: torch.Tensor | None) -> torch.Tensor:
    """The gradient before the activation, from the one after it and what `kept_result` kept."""
    return grad if result is None else torch.ops.aten.threshold_backward(grad, result, 0)


def with_strides_of(grad: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """`grad` with these strides where they differ in dimensions of size 1 alone.

    There PyTorch accumulates a gradient as it comes, and DistributedDataParallel warns.
    """
    pairs = zip(grad.shape, grad.stride(), strides, strict=True)
    if grad.stride() == tuple(strides) or any(n != 1 and have != to for n, have, to in pairs):
        return grad
    return grad.as_strided(grad.shape, strides)


class _KeepStrides(torch.autograd.Function):
    @staticmethod
    def forward(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.strides = inputs[0].stride()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return with_strides_of(grad, ctx.strides)


def keep_strides(tensor: torch.Tensor) -> torch.Tensor:
    """A view of `tensor` through which its gradient comes with its strides, as above."""
    result: torch.Tensor = _KeepStrides.apply(tensor)
    return result


def conv_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    mask: Sequence[bool],
) -> Gradients:
    """Gradients for (input, weight, bias), each None where `mask` does not ask for it."""
    if not any(mask):
        return None, None, None
    if strides_to_one_column(input, weight, stride, padding):
        columns = conv_output_size(input.shape[3], weight.shape[3], 1, padding[1])
        grad, stride = F.pad(grad, (0, columns - 1)), (stride[0], 1)
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        [weight.shape[0]],
        stride,
        padding,
        [1, 1],
        False,
        [0, 0],
        1,
        list(mask),
    )
    if grad_weight is not None:
        grad_weight = with_strides_of(grad_weight, weight.stride())
    return grad_input, grad_weight, grad_bias
