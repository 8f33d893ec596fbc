"""`grid_reduction`: a stride-2 convolution and a stride-2 pool side by side, concatenated."""

from __future__ import annotations

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

from . import aten
from .launch import BACKENDS, NAME


class Problem(NamedTuple):
    """One call in numbers; filters and pool window are kernel×kernel."""

    batch: int
    c_in: int
    height: int
    width: int
    c_out: int
    kernel: int
    out_height: int
    out_width: int
    pool: str
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.c_out + self.c_in, self.out_height, self.out_width


def _check(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pool: str,
    activation: str,
    backend: str,
) -> Problem:
    checks.check_options(NAME, pool=pool, activation=activation, backend=backend)
    checks.check_input(NAME, input)
    checks.check_same_kind(NAME, input, weight=weight, bias=bias)
    n, c_in, height, width = input.shape
    checks.check_weight(NAME, "weight", weight, c_in, "(Cout, Cin, k, k)")
    c_out, _, kernel, columns = weight.shape
    if kernel != columns or kernel % 2 == 0:
        raise ValueError(f"{NAME}: weight must be kxk with k odd, got {kernel}x{columns}")
    checks.check_bias(NAME, "bias", bias, c_out)
    if height < kernel or width < kernel:
        raise ValueError(
            f"{NAME}: input must have H and W of at least the filter's {kernel}, "
            f"got {height}x{width}"
        )
    return Problem(
        n, c_in, height, width, c_out, kernel,
        conv_output_size(height, kernel, 2, 0), conv_output_size(width, kernel, 2, 0), pool,
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
    "(Tensor input, Tensor weight, Tensor? bias, str pool, str activation, str backend) -> Tensor",
    _implementation,
    _fake,
)


class _GridReduction(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        return _operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight, _, ctx.pool, activation, _ = inputs
        ctx.save_for_backward(input, weight, kept_result(output, activation))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight, result = ctx.saved_tensors
        wants = ctx.needs_input_grad
        c_out, kernel = weight.shape[0], weight.shape[2]
        grad_input, grad_weight, grad_bias = conv_backward(
            activation_backward(grad[:, :c_out], None if result is None else result[:, :c_out]),
            input,
            weight,
            (2, 2),
            (0, 0),
            wants[:3],
        )
        if grad_input is not None:
            grad_input = grad_input + aten.pool2d_backward(grad[:, c_out:], input, kernel, ctx.pool)
        return grad_input, grad_weight, grad_bias, None, None, None


def grid_reduction(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    pool: str = "max",
    activation: str = "relu",
    backend: str = "auto",
) -> torch.Tensor:
    """Halve a map: a stride-2 convolution and a stride-2 pool of the same window, concatenated.

    Equivalent to::

        conv = act(F.conv2d(input, weight, bias, stride=2))
        out = torch.cat([conv, F.max_pool2d(input, k, 2)], 1)  # or F.avg_pool2d

    No padding, dilation 1, groups 1.

    Args:
        input: (N, Cin, H, W), H and W at least k; float64, float32, float16 or bfloat16, any
            strides (channels_last is not copied).
        weight: (Cout, Cin, k, k), k odd; channels_last is not copied.
        bias: (Cout,) or None.
        pool: "max" or "avg", window k×k, stride 2. Default "max".
        activation: "relu" or "none", after the convolution only. Default "relu".
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, Cout + Cin, P, Q) with P = (H − k) // 2 + 1 and Q alike, input's dtype (the autocast
        dtype under autocast), channels_last.

    Raises:
        TypeError: an argument is not a tensor, is not floating-point, or its dtype is not the
        input's. ValueError: a rank, shape, device or option is not one of those above.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        The max pool is bitwise `F.max_pool2d`: row-major over the window, replaced when greater or
        NaN. float16 and bfloat16 accumulate in float32. float32 follows
        `torch.backends.cudnn.conv.fp32_precision`: "tf32" rounds operands to nearest, anything else
        is IEEE. On "triton" and "cuda" an image's result is bitwise independent of the batch around
        it. Differentiable, twice.

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015), section
        5, figure 10.
    """
    checks.check_tensors(NAME, input=input, weight=weight, bias=bias)
    checks.check_options(NAME, pool=pool, activation=activation, backend=backend)
    tensors = autocast(input, weight, bias)
    call = _GridReduction.apply if wants_grad(*tensors) else _operator
    return call(*tensors, pool, activation, backend)
