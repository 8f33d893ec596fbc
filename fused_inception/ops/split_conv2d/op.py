"""`split_conv2d`: a `1×n` and an `n×1` convolution side by side on one input, concatenated."""

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
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.common.registration import register

from .launch import BACKENDS, NAME


class Problem(NamedTuple):
    """One call in numbers."""

    batch: int
    c_in: int
    height: int
    width: int
    c_row: int
    c_col: int
    taps_row: int
    taps_col: int
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.c_row + self.c_col, self.height, self.width


def _check(
    input: torch.Tensor,
    weight_row: torch.Tensor,
    bias_row: torch.Tensor | None,
    weight_col: torch.Tensor,
    bias_col: torch.Tensor | None,
    activation: str,
    backend: str,
) -> Problem:
    checks.check_options(NAME, activation=activation, backend=backend)
    checks.check_input(NAME, input)
    checks.check_same_kind(
        NAME,
        input,
        weight_row=weight_row,
        bias_row=bias_row,
        weight_col=weight_col,
        bias_col=bias_col,
    )
    n, c_in, height, width = input.shape
    checks.check_weight(NAME, "weight_row", weight_row, c_in, "(Cr, Cin, 1, n)")
    checks.check_weight(NAME, "weight_col", weight_col, c_in, "(Cc, Cin, m, 1)")
    checks.check_bias(NAME, "bias_row", bias_row, weight_row.shape[0])
    checks.check_bias(NAME, "bias_col", bias_col, weight_col.shape[0])
    for name, weight, axis in (("weight_row", weight_row, 2), ("weight_col", weight_col, 3)):
        if weight.shape[axis] != 1:
            takes = "1xn" if axis == 2 else "nx1"
            raise ValueError(
                f"{NAME}: {name} must be {takes}, got {weight.shape[2]}x{weight.shape[3]}"
            )
    taps_row, taps_col = weight_row.shape[3], weight_col.shape[2]
    checks.check_taps(NAME, "weight_row", taps_row)
    checks.check_taps(NAME, "weight_col", taps_col)
    return Problem(
        n, c_in, height, width, weight_row.shape[0], weight_col.shape[0], taps_row, taps_col,
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
    "(Tensor input, Tensor weight_row, Tensor? bias_row, Tensor weight_col, Tensor? bias_col, "
    "str activation, str backend) -> Tensor",
    _implementation,
    _fake,
)


class _SplitConv2d(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        return _operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight_row, _, weight_col, _, activation, _ = inputs
        ctx.save_for_backward(input, weight_row, weight_col, kept_result(output, activation))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight_row, weight_col, result = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = activation_backward(grad, result)
        c_row = weight_row.shape[0]
        input_row, *row = conv_backward(
            grad[:, :c_row], input, weight_row, (1, 1), (0, weight_row.shape[3] // 2), wants[:3]
        )
        input_col, *col = conv_backward(
            grad[:, c_row:],
            input,
            weight_col,
            (1, 1),
            (weight_col.shape[2] // 2, 0),
            (wants[0], wants[3], wants[4]),
        )
        both = None if input_row is None or input_col is None else input_row + input_col
        return both, *row, *col, None, None


def split_conv2d(
    input: torch.Tensor,
    weight_row: torch.Tensor,
    bias_row: torch.Tensor | None,
    weight_col: torch.Tensor,
    bias_col: torch.Tensor | None,
    *,
    activation: str = "relu",
    backend: str = "auto",
) -> torch.Tensor:
    """Apply a `1×n` and an `m×1` convolution to one input and concatenate their channels.

    Equivalent to::

        row = act(F.conv2d(input, weight_row, bias_row, padding="same"))
        col = act(F.conv2d(input, weight_col, bias_col, padding="same"))
        out = torch.cat([row, col], 1)

    Stride 1, dilation 1, groups 1, zero padding.

    Args:
        input: (N, Cin, H, W), float64, float32, float16 or bfloat16, any strides (channels_last is
            not copied).
        weight_row: (Cr, Cin, 1, n), n odd, 1 to 31; channels_last is not copied.
        bias_row: (Cr,) or None.
        weight_col: (Cc, Cin, m, 1), m odd, 1 to 31; channels_last is not copied.
        bias_col: (Cc,) or None.
        activation: "relu" or "none". Default "relu".
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, Cr + Cc, H, W), input's dtype (the autocast dtype under autocast), channels_last.

    Raises:
        TypeError: an argument is not a tensor, is not floating-point, or its dtype is not the
        input's. ValueError: a rank, shape, device or option is not one of those above.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        float16 and bfloat16 accumulate in float32. float32 follows
        `torch.backends.cudnn.conv.fp32_precision`: "tf32" rounds operands to nearest, anything else
        is IEEE. On "triton" and "cuda" an image's result is bitwise independent of the batch around
        it. Differentiable, twice.

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015), figure
        7.
    """
    checks.check_tensors(
        NAME,
        input=input,
        weight_row=weight_row,
        bias_row=bias_row,
        weight_col=weight_col,
        bias_col=bias_col,
    )
    checks.check_options(NAME, activation=activation, backend=backend)
    tensors = autocast(input, weight_row, bias_row, weight_col, bias_col)
    call = _SplitConv2d.apply if wants_grad(*tensors) else _operator
    return call(*tensors, activation, backend)
