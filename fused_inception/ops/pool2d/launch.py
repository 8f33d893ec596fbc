"""Backends of the pools: which can run, what they allocate and how they are launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fused_inception.ops.common import dispatch
from fused_inception.ops.common.configurations import Tile, device_table, padded
from fused_inception.ops.common.geometry import empty_channels_last, with_channels_last_strides
from fused_inception.ops.common.launching import (
    CHANNEL_MULTIPLE,
    dense_bias,
    image_ranges,
    images_per_launch,
    on_device,
    operand,
    pixel_stride,
    size_refusal,
)
from fused_inception.ops.common.precision import conv_precision

from . import aten, cuda_launch

if TYPE_CHECKING:
    from .op import Problem

NAME = "pool2d"
MAX_POOL = "max_pool2d"
GLOBAL_AVG_POOL = "global_avg_pool2d"
AVG_POOL_ACT = "avg_pool2d_act"


def _can_run_triton(problem: Problem) -> str | None:
    p = problem
    return dispatch.triton_refusal(p.dtype, p.device) or size_refusal(
        p.height + 2 * p.padding[0], p.width + 2 * p.padding[1]
    )


def _run_max_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.max_pool2d(*args))


def _run_global_aten(problem: Problem, input: torch.Tensor) -> torch.Tensor:
    return with_channels_last_strides(aten.global_avg_pool2d(input))


def _tile(problem: Problem) -> Tile:
    return device_table(NAME, problem.device).tiles[conv_precision(problem.dtype)][0]


def launch_max_pool(
    problem: Problem, input: torch.Tensor, output: torch.Tensor, *, first_image: int = 0
) -> None:
    """Write the largest of every window into `output`.

    Args:
        problem: of the other arguments.
        input: (N, C, H, W).
        output: (N, C, P, Q), channels_last or a slice of the channels of such a tensor.
        first_image: images before it are left alone.
    """
    from fused_inception.ops.common.triton_runtime import INTERPRETING

    from .triton_kernel import max_pool2d_kernel

    p = problem
    if p.batch == 0:
        return
    tile = _tile(p)
    stored = padded(p.channels, CHANNEL_MULTIPLE)
    x = operand(input, stored)
    k_blocks = -(-p.channels // tile.block_k)
    pixels = p.out_height * p.out_width
    with on_device(p.device):
        for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
            rows = images * pixels
            max_pool2d_kernel[(-(-rows // tile.block_p) * k_blocks,)](
                x,
                output,
                first,
                rows,
                p.height,
                p.width,
                p.out_height,
                p.out_width,
                p.height * p.width * stored,
                p.width * stored,
                stored,
                pixel_stride(output),
                p.channels,
                *p.stride,
                *p.padding,
                R=p.kernel[0],
                S=p.kernel[1],
                CHECK_H=p.padding[0] > 0,
                CHECK_W=p.padding[1] > 0,
                BLOCK_P=tile.block_p,
                BLOCK_K=tile.block_k,
                UPCAST=INTERPRETING and p.dtype == torch.bfloat16,
                num_warps=tile.num_warps,
            )


def launch_avg_pool_act(
    problem: Problem,
    input: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    include_pad: bool,
    *,
    first_image: int = 0,
) -> None:
    """Write relu(mean of every window + bias) into `output`.

    Args:
        problem: of the other arguments; its window is square and odd, of stride 1, padded by half.
        input: (N, C, H, W).
        bias: (C,) or None.
        output: (N, C, H, W), channels_last or a slice of the channels of such a tensor.
        include_pad: whether windows at the border are divided by their full size too.
        first_image: images before it are left alone.
    """
    from .triton_kernel import avg_pool2d_act_kernel

    p = problem
    if p.batch == 0:
        return
    tile = _tile(p)
    stored = padded(p.channels, CHANNEL_MULTIPLE)
    x, b = operand(input, stored), dense_bias(bias)
    k_blocks = -(-p.channels // tile.block_k)
    pixels = p.height * p.width
    with on_device(p.device):
        for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
            rows = images * pixels
            avg_pool2d_act_kernel[(-(-rows // tile.block_p) * k_blocks,)](
                x,
                b,
                output,
                first,
                rows,
                p.height,
                p.width,
                pixels * stored,
                p.width * stored,
                stored,
                pixel_stride(output),
                p.channels,
                KERNEL=p.kernel[0],
                INCLUDE_PAD=include_pad,
                HAS_BIAS=b is not None,
                RELU=True,
                BLOCK_P=tile.block_p,
                BLOCK_K=tile.block_k,
                num_warps=tile.num_warps,
            )


def launch_global_avg_pool(
    problem: Problem, input: torch.Tensor, output: torch.Tensor, *, first_image: int = 0
) -> None:
    """Write the mean of every map into `output`, (N, C, 1, 1), dense or a slice of channels.

    Images before `first_image` are left alone.
    """
    from .triton_kernel import global_avg_pool2d_kernel

    p = problem
    if p.batch == 0:
        return
    tile = _tile(p)
    stored = padded(p.channels, CHANNEL_MULTIPLE)
    x = operand(input, stored)
    k_blocks = -(-p.channels // tile.block_k)
    with on_device(p.device):
        at_once = images_per_launch(p.batch, k_blocks)
        for first, images in image_ranges(p.batch, at_once, first_image):
            global_avg_pool2d_kernel[(images * k_blocks,)](
                x,
                output,
                first,
                p.height * p.width,
                p.height * p.width * stored,
                stored,
                output.stride(0),
                p.channels,
                BLOCK_P=tile.block_p,
                BLOCK_K=tile.block_k,
                num_warps=tile.num_warps,
            )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # A pool by a launcher; the problem has the window.
    def run(problem: Problem, input: torch.Tensor, *window: Any) -> torch.Tensor:
        output = empty_channels_last(problem.output_shape, input)
        launch(problem, input, output)
        return output

    return run


def _average_runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    def run(
        problem: Problem, input: torch.Tensor, bias: torch.Tensor | None, include_pad: bool
    ) -> torch.Tensor:
        output = empty_channels_last(problem.output_shape, input)
        launch(problem, input, bias, output, include_pad)
        return output

    return run


MAX_POOL_BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_max_pool, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_max_pool, _runs),
    dispatch.aten(_run_max_aten),
)
GLOBAL_AVG_POOL_BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_global_avg_pool, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_global_avg_pool, _runs),
    dispatch.aten(_run_global_aten),
)
# Of the blocks, which have it behind a 1x1 convolution; aten's is a step of theirs.
AVG_POOL_ACT_BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_avg_pool_act, _average_runs),
    dispatch.kernels("triton", _can_run_triton, launch_avg_pool_act, _average_runs),
)
