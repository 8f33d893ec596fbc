"""The layers around the blocks of a network, in the form of blocks.

They are here for batch invariance end to end: with the pools and the last linear layer as the
project's own, nothing between an image and its logits depends on the batch around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from fused_inception.blocks.plan import BlockWeights
from fused_inception.ops.common import checks
from fused_inception.ops.common.autocast import autocast
from fused_inception.ops.common.autograd import wants_grad
from fused_inception.ops.common.dispatch import aten, kernels, select
from fused_inception.ops.common.registration import register
from fused_inception.ops.conv2d_act.launch import BACKENDS, Segment
from fused_inception.ops.conv2d_act.op import Problem
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d

LINEAR = "linear"


def max_pool(
    input: Tensor,
    weights: BlockWeights,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str = "auto",
) -> Tensor:
    """The op `max_pool2d` in the form of a block; it has no weights."""
    return max_pool2d(input, kernel, stride=stride, padding=padding, backend=backend)


def global_avg_pool(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """The op `global_avg_pool2d` in the form of a block; it has no weights."""
    return global_avg_pool2d(input, backend=backend)


def _run_aten(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(input, weight.flatten(1), bias)


def _runs(launch: Callable[..., None]) -> Callable[..., Tensor]:
    # The layer by a launcher of `conv2d_act`.
    def run(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = input.new_empty(problem.batch, problem.c_out)
        segment = Segment(output[:, :, None, None], "none")
        launch(problem, input[:, :, None, None], weight, bias, [segment])
        return output

    return run


_BACKENDS = (
    *(kernels(b.name, b.can_run, b.launch, _runs) for b in BACKENDS if b.launch is not None),
    aten(_run_aten),
)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Problem:
    checks.check_options(LINEAR, backend=backend)
    if input.dim() != 2:
        raise ValueError(
            f"{LINEAR}: input must be 2-D (N, C), got {input.dim()}-D of shape {tuple(input.shape)}"
        )
    checks.check_input(LINEAR, input[:, :, None, None])
    checks.check_same_kind(LINEAR, input, weight=weight, bias=bias)
    n, channels = input.shape
    checks.check_weight(LINEAR, "weight", weight, channels, "(K, C, 1, 1)")
    filters = weight.shape[0]
    if tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(f"{LINEAR}: weight must be (K, C, 1, 1), got {tuple(weight.shape)}")
    checks.check_bias(LINEAR, "bias", bias, filters)
    return Problem(
        n, channels, 1, 1, filters, (1, 1), (1, 1), (0, 0), 1, 1, input.dtype, input.device
    )


def _implementation(input: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    problem = _check(input, weight, bias, backend)
    return select(LINEAR, backend, _BACKENDS, problem, problem.device).run(
        problem, input, weight, bias
    )


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    problem = _check(input, weight, bias, backend)
    return input.new_empty(problem.batch, problem.c_out)


_operator = register(
    LINEAR,
    "(Tensor input, Tensor weight, Tensor? bias, str backend) -> Tensor",
    _implementation,
    _fake,
)


def linear(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs a linear layer as a 1×1 convolution on maps of one pixel.

    Equivalent to:

        F.linear(input, weight.flatten(1), bias)

    Args:
        input: `(N, C)`.
        weights: one weight `(K, C, 1, 1)` and its bias, in the dtype of `input` unless under
            autocast.
        backend: as in `conv2d_act`. Default "auto".

    Returns:
        `(N, K)`.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        On "triton" and "cuda" a row of the result is bitwise independent of the batch around it;
        the order of its sum is that of `conv2d_act`. Differentiable; then it is `F.linear`.
    """
    checks.check_options(LINEAR, backend=backend)
    checks.check_tensors(LINEAR, input=input)
    tensors = autocast(input, *weights.weights, *weights.biases)
    if wants_grad(*tensors):
        x, weight = cast("tuple[Tensor, Tensor]", tensors[:2])
        return F.linear(x, weight.flatten(1), tensors[2])
    return _operator(*tensors, backend)
