"""`conv2d_act`: one convolution with bias and activation in its epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fused_inception.ops.common import checks
from fused_inception.ops.common.autocast import autocast, without_autocast
from fused_inception.ops.common.autograd import (
    activation_backward,
    conv_backward,
    kept_result,
    wants_grad,
)
from fused_inception.ops.common.dispatch import select
from fused_inception.ops.common.geometry import conv_output_size, empty_channels_last
from fused_inception.ops.common.registration import register

from .launch import BACKENDS, NAME


class Problem(NamedTuple):
    """One call in numbers: input N, C, H, W, filters K of R×S, output P×Q."""

    batch: int
    c_in: int
    height: int
    width: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    out_height: int
    out_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.c_out, self.out_height, self.out_width


def _check(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    backend: str,
) -> Problem:
    checks.check_options(NAME, activation=activation, backend=backend)
    checks.check_input(NAME, input)
    checks.check_same_kind(NAME, input, weight=weight, bias=bias)
    n, c_in, height, width = input.shape
    checks.check_weight(NAME, "weight", weight, c_in, "(Cout, Cin, R, S)")
    c_out, _, rows, columns = weight.shape
    checks.check_bias(NAME, "bias", bias, c_out)
    strides = checks.pair(NAME, "stride", stride, 1)
    paddings = checks.pair(NAME, "padding", padding, 0)
    out_height = conv_output_size(height, rows, strides[0], paddings[0])
    out_width = conv_output_size(width, columns, strides[1], paddings[1])
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"{NAME}: input of {height}x{width} with padding {paddings} must be at least as large "
            f"as the {rows}x{columns} filter"
        )
    return Problem(
        n, c_in, height, width, c_out, (rows, columns), strides, paddings, out_height, out_width,
        input.dtype, input.device,
    )  # fmt: skip


def _implementation(*args: Any) -> torch.Tensor:
    *operands, backend = args
    problem = _check(*args)
    chosen = select(NAME, backend, BACKENDS, problem, problem.device)
    return chosen.run(problem, *operands)


def _fake(*args: Any) -> torch.Tensor:
    return empty_channels_last(_check(*args).output_shape, args[0])


_operator = register(
    NAME,
    "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
    "str activation, str backend) -> Tensor",
    _implementation,
    _fake,
)


class _Conv2dAct(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        return _operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight, _, ctx.stride, ctx.padding, activation, _ = inputs
        ctx.save_for_backward(input, weight, kept_result(output, activation))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight, result = ctx.saved_tensors
        grads = conv_backward(
            activation_backward(grad, result),
            input,
            weight,
            ctx.stride,
            ctx.padding,
            ctx.needs_input_grad[:3],
        )
        return *grads, None, None, None, None


def conv2d_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    activation: str = "relu",
    backend: str = "auto",
) -> torch.Tensor:
    """Apply one convolution, its bias and its activation.

    Equivalent to::

        out = act(F.conv2d(input, weight, bias, stride, padding))

    Dilation 1, groups 1, zero padding.

    Args:
        input: (N, Cin, H, W), float64, float32, float16 or bfloat16, any strides (channels_last is
            not copied).
        weight: (Cout, Cin, R, S), any R and S; channels_last is not copied.
        bias: (Cout,) or None.
        stride: pixels, one integer or (rows, columns), at least 1. Default 1.
        padding: pixels on each side, one integer or (rows, columns), at least 0. Default 0.
        activation: "relu" or "none". Default "relu".
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, Cout, P, Q) with P = (H + 2·padding − R) // stride + 1 and Q alike, input's dtype (the
        autocast dtype under autocast), channels_last.

    Raises:
        TypeError: an argument is not a tensor, is not floating-point, or its dtype is not the
        input's. ValueError: a rank, shape, device or option is not one of those above, or the
        filter exceeds the padded map. RuntimeError: `backend` was named and cannot run here.

    Note:
        float16 and bfloat16 accumulate in float32. float32 follows
        `torch.backends.cudnn.conv.fp32_precision`: "tf32" rounds operands to nearest, anything else
        is IEEE. On "triton" and "cuda" an image's result is bitwise independent of the batch around
        it. Differentiable, twice. On "triton" up to 8 channels, as an image has, are read from any
        strides without a copy.
    """
    checks.check_tensors(NAME, input=input, weight=weight, bias=bias)
    checks.check_options(NAME, activation=activation, backend=backend)
    tensors = autocast(input, weight, bias)
    strides = checks.pair(NAME, "stride", stride, 1)
    paddings = checks.pair(NAME, "padding", padding, 0)
    call = _Conv2dAct.apply if wants_grad(*tensors) else _operator
    return call(*tensors, strides, paddings, activation, backend)
