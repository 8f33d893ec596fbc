"""`max_pool2d` and `global_avg_pool2d`: the pools of a network outside its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fused_inception.ops.common import checks
from fused_inception.ops.common.autograd import wants_grad
from fused_inception.ops.common.dispatch import select
from fused_inception.ops.common.geometry import conv_output_size, empty_channels_last
from fused_inception.ops.common.registration import register

from .launch import GLOBAL_AVG_POOL, GLOBAL_AVG_POOL_BACKENDS, MAX_POOL, MAX_POOL_BACKENDS


class Problem(NamedTuple):
    """One call in numbers: a map of `channels`, a window, and what is left of the map."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    out_height: int
    out_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.out_height, self.out_width


def _check_max(
    input: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str,
) -> Problem:
    checks.check_options(MAX_POOL, backend=backend)
    checks.check_input(MAX_POOL, input)
    windows = checks.pair(MAX_POOL, "kernel", kernel, 1)
    strides = checks.pair(MAX_POOL, "stride", stride, 1)
    paddings = checks.pair(MAX_POOL, "padding", padding, 0)
    if any(2 * zeros > size for zeros, size in zip(paddings, windows, strict=True)):
        raise ValueError(
            f"{MAX_POOL}: padding must be at most half of the window {windows}, got {paddings}"
        )
    n, channels, height, width = input.shape
    out_height = conv_output_size(height, windows[0], strides[0], paddings[0])
    out_width = conv_output_size(width, windows[1], strides[1], paddings[1])
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"{MAX_POOL}: input of {height}x{width} with padding {paddings} must be at least as "
            f"large as the {windows[0]}x{windows[1]} window"
        )
    return Problem(
        n, channels, height, width, windows, strides, paddings, out_height, out_width,
        input.dtype, input.device,
    )  # fmt: skip


def _check_global(input: torch.Tensor, backend: str) -> Problem:
    checks.check_options(GLOBAL_AVG_POOL, backend=backend)
    checks.check_input(GLOBAL_AVG_POOL, input)
    n, channels, height, width = input.shape
    return Problem(
        n, channels, height, width, (height, width), (1, 1), (0, 0), 1, 1,
        input.dtype, input.device,
    )  # fmt: skip


def _max_implementation(*args: Any) -> torch.Tensor:
    *operands, backend = args
    problem = _check_max(*args)
    chosen = select(MAX_POOL, backend, MAX_POOL_BACKENDS, problem, problem.device)
    return chosen.run(problem, *operands)


def _max_fake(*args: Any) -> torch.Tensor:
    return empty_channels_last(_check_max(*args).output_shape, args[0])


def _global_implementation(input: torch.Tensor, backend: str) -> torch.Tensor:
    problem = _check_global(input, backend)
    chosen = select(GLOBAL_AVG_POOL, backend, GLOBAL_AVG_POOL_BACKENDS, problem, problem.device)
    return chosen.run(problem, input)


def _global_fake(input: torch.Tensor, backend: str) -> torch.Tensor:
    return empty_channels_last(_check_global(input, backend).output_shape, input)


_max_operator = register(
    MAX_POOL,
    "(Tensor input, int[] kernel, int[] stride, int[] padding, str backend) -> Tensor",
    _max_implementation,
    _max_fake,
)
_global_operator = register(
    GLOBAL_AVG_POOL,
    "(Tensor input, str backend) -> Tensor",
    _global_implementation,
    _global_fake,
)


def max_pool2d(
    input: torch.Tensor,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    backend: str = "auto",
) -> torch.Tensor:
    """Take the largest of every window.

    Equivalent to::

        out = F.max_pool2d(input, kernel, stride, padding)

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16, any strides (channels_last is
            not copied).
        kernel: rows and columns of the window, one integer or a pair.
        stride: pixels, one integer or a pair. Default: the window.
        padding: pixels on each side, at most half of the window. Default 0.
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, C, P, Q) with P = (H + 2·padding − R) // stride + 1 and Q alike, input's dtype,
        channels_last.

    Raises:
        TypeError: input is not a floating-point tensor. ValueError: a shape or option is not one of
        those above. RuntimeError: `backend` was named and cannot run here.

    Note:
        Bitwise `F.max_pool2d`. Where a gradient is wanted, it is `F.max_pool2d`.
    """
    checks.check_tensors(MAX_POOL, input=input)
    checks.check_options(MAX_POOL, backend=backend)
    windows = checks.pair(MAX_POOL, "kernel", kernel, 1)
    strides = windows if stride is None else checks.pair(MAX_POOL, "stride", stride, 1)
    paddings = checks.pair(MAX_POOL, "padding", padding, 0)
    if wants_grad(input):
        _check_max(input, windows, strides, paddings, backend)
        dense = input.contiguous(memory_format=torch.channels_last)
        return F.max_pool2d(dense, windows, strides, paddings)
    return _max_operator(input, windows, strides, paddings, backend)


def global_avg_pool2d(input: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Take the mean of every map.

    Equivalent to::

        out = F.adaptive_avg_pool2d(input, 1)

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16, any strides (channels_last is
            not copied).
        backend: "auto", "aten", "triton" or "cuda". Default "auto": the first of cuda, triton and
            aten that can run.

    Returns:
        (N, C, 1, 1), input's dtype, channels_last.

    Raises:
        TypeError: input is not a floating-point tensor. ValueError: a shape or option is not one of
        those above. RuntimeError: `backend` was named and cannot run here.

    Note:
        Sums are float32 on "triton" and "cuda", in an order that depends on the size of the map
        alone and is each backend's own, so an image's result is bitwise independent of the batch
        around it. Where a gradient is wanted, it is `F.adaptive_avg_pool2d`.
    """
    checks.check_tensors(GLOBAL_AVG_POOL, input=input)
    checks.check_options(GLOBAL_AVG_POOL, backend=backend)
    if wants_grad(input):
        _check_global(input, backend)
        return F.adaptive_avg_pool2d(input, 1)
    return _global_operator(input, backend)
