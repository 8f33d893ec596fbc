"""`factorized_conv2d`: a `1×n → m×1` or `n×1 → 1×m` pair of convolutions as one operator."""

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
from fused_inception.ops.conv2d_act.op import conv2d_act

from .aten import same_padding
from .launch import BACKENDS, NAME


class Problem(NamedTuple):
    """One call in numbers.

    A *line* is the pixels of one image along the axis on which the second factor moves: a column
    where the row filter comes first. `line_size` is its length, `cross_size` the number of lines of
    an image.
    """

    batch: int
    c_in: int
    c_mid: int
    c_out: int
    height: int
    width: int
    taps1: int
    taps2: int
    row_first: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.c_out, self.height, self.width

    @property
    def line_size(self) -> int:
        return self.height if self.row_first else self.width

    @property
    def cross_size(self) -> int:
        return self.width if self.row_first else self.height


def _check(
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    mid_activation: str,
    activation: str,
    backend: str,
) -> Problem:
    checks.check_options(
        NAME, mid_activation=mid_activation, activation=activation, backend=backend
    )
    checks.check_input(NAME, input)
    checks.check_same_kind(NAME, input, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    n, c_in, height, width = input.shape
    checks.check_weight(NAME, "weight1", weight1, c_in, "(Cmid, Cin, 1, n) or (Cmid, Cin, n, 1)")
    c_mid = weight1.shape[0]
    checks.check_weight(NAME, "weight2", weight2, c_mid, "(Cout, Cmid, m, 1) or (Cout, Cmid, 1, m)")
    checks.check_bias(NAME, "bias1", bias1, c_mid)
    checks.check_bias(NAME, "bias2", bias2, weight2.shape[0])
    filter1, filter2 = tuple(weight1.shape[2:]), tuple(weight2.shape[2:])
    if filter1[0] == 1 and filter2[1] == 1:
        row_first, taps1, taps2 = True, filter1[1], filter2[0]
    elif filter1[1] == 1 and filter2[0] == 1:
        row_first, taps1, taps2 = False, filter1[0], filter2[1]
    else:
        raise ValueError(
            f"{NAME}: weight1 and weight2 must be a 1xn filter and an mx1 one, or nx1 and 1xm, "
            f"got {filter1[0]}x{filter1[1]} and {filter2[0]}x{filter2[1]}"
        )
    checks.check_taps(NAME, "weight1", taps1)
    checks.check_taps(NAME, "weight2", taps2)
    return Problem(
        n, c_in, c_mid, weight2.shape[0], height, width, taps1, taps2, row_first,
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
    "(Tensor input, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
    "str mid_activation, str activation, str backend) -> Tensor",
    _implementation,
    _fake,
)


class _FactorizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        return _operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight1, bias1, weight2, _, ctx.mid_activation, activation, backend = inputs
        ctx.mid_backend = "auto" if backend == "cuda" else backend  # there is no cuda conv2d_act
        result = kept_result(output, activation)
        ctx.save_for_backward(input, weight1, bias1, weight2, result)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight1, bias1, weight2, result = ctx.saved_tensors
        wants = ctx.needs_input_grad
        mid = conv2d_act(
            input,
            weight1,
            bias1,
            padding=same_padding(weight1),
            activation=ctx.mid_activation,
            backend=ctx.mid_backend,
        )
        first_wants = (wants[0], wants[1], wants[2])
        grad_mid, grad_weight2, grad_bias2 = conv_backward(
            activation_backward(grad, result),
            mid,
            weight2,
            (1, 1),
            same_padding(weight2),
            (any(first_wants), wants[3], wants[4]),
        )
        grad_input = grad_weight1 = grad_bias1 = None
        if grad_mid is not None:
            grad_input, grad_weight1, grad_bias1 = conv_backward(
                activation_backward(grad_mid, kept_result(mid, ctx.mid_activation)),
                input,
                weight1,
                (1, 1),
                same_padding(weight1),
                first_wants,
            )
        return grad_input, grad_weight1, grad_bias1, grad_weight2, grad_bias2, None, None, None


def factorized_conv2d(
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    *,
    mid_activation: str = "relu",
    activation: str = "relu",
    backend: str = "auto",
) -> torch.Tensor:
    """Apply two one-dimensional convolutions in a row, `1×n → m×1` or `n×1 → 1×m`.

    Equivalent to::

        mid = act_mid(F.conv2d(input, weight1, bias1, padding="same"))
        out = act(F.conv2d(mid, weight2, bias2, padding="same"))

    Stride 1, dilation 1, groups 1, zero padding. The filters may be larger than the map.

    Args:
        input: (N, Cin, H, W), float64, float32, float16 or bfloat16, any strides (channels_last is
            not copied).
        weight1: (Cmid, Cin, 1, n) or (Cmid, Cin, n, 1), n odd, 1 to 31; channels_last is not
            copied.
        bias1: (Cmid,) or None.
        weight2: (Cout, Cmid, m, 1) after a 1×n filter, (Cout, Cmid, 1, m) after an n×1 one; m odd,
            1 to 31.
        bias2: (Cout,) or None.
        mid_activation: "relu" or "none", between the factors. Default "relu".
        activation: "relu" or "none", after them. Default "relu".
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, Cout, H, W), input's dtype (the autocast dtype under autocast), channels_last.

    Raises:
        TypeError: an argument is not a tensor, is not floating-point, or its dtype is not the
        input's. ValueError: a rank, shape, device or option is not one of those above.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        float16 and bfloat16 accumulate in float32, and the intermediate tensor is rounded to the
        input's dtype as the unfused pair rounds it. float32 follows
        `torch.backends.cudnn.conv.fp32_precision`: "tf32" rounds operands to nearest, anything else
        is IEEE. On "triton" and "cuda" an image's result is bitwise independent of the batch around
        it. Differentiable, twice; the backward recomputes the intermediate tensor.

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015), section
        3.2.
    """
    checks.check_tensors(
        NAME, input=input, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2
    )
    checks.check_options(
        NAME, mid_activation=mid_activation, activation=activation, backend=backend
    )
    tensors = autocast(input, weight1, bias1, weight2, bias2)
    call = _FactorizedConv2d.apply if wants_grad(*tensors) else _operator
    return call(*tensors, mid_activation, activation, backend)
