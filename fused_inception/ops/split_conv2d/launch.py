"""Backends of `split_conv2d`: which can run, what they allocate and how they are launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fused_inception.ops.common import dispatch, dispatch_table
from fused_inception.ops.common.configurations import Product, choose_tile, padded
from fused_inception.ops.common.geometry import empty_channels_last, with_channels_last_strides
from fused_inception.ops.common.launching import (
    CHANNEL_MULTIPLE,
    arithmetic,
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

NAME = "split_conv2d"


def _run_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.split_conv2d(*args))


def _can_run_triton(problem: Problem) -> str | None:
    return dispatch.triton_refusal(problem.dtype, problem.device) or size_refusal(
        problem.height, problem.width
    )


def launch_split(
    problem: Problem,
    input: torch.Tensor,
    weight_row: torch.Tensor,
    bias_row: torch.Tensor | None,
    weight_col: torch.Tensor,
    bias_col: torch.Tensor | None,
    output: torch.Tensor,
    activation: str,
    *,
    first_image: int = 0,
) -> None:
    """Write both halves into `output`, (N, Cr + Cc, H, W).

    `output` is channels_last or a slice of the channels of such a tensor; `problem` is that of the
    other tensors, which are the op's. Images before `first_image` are left alone.
    """
    from .triton_kernel import split_conv2d_kernel

    p = problem
    if p.batch == 0:
        return
    precision = conv_precision(p.dtype)
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    tile = choose_tile(
        dispatch_table.tiles(NAME, p, precision),
        Product(p.c_row, p.taps_row, p.c_in),
        Product(p.c_col, p.taps_col, p.c_in),
    )
    x = operand(input, channels)
    row, col = operand(weight_row, channels), operand(weight_col, channels)
    f_blocks = -(-max(p.c_row, p.c_col) // tile.block_f)
    pixels = p.height * p.width
    with on_device(p.device):
        for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
            rows = images * pixels
            split_conv2d_kernel[(-(-rows // tile.block_p) * f_blocks,)](
                x,
                row,
                dense_bias(bias_row),
                col,
                dense_bias(bias_col),
                output[:, : p.c_row],
                output[:, p.c_row :],
                first,
                rows,
                p.height,
                p.width,
                pixels * channels,
                p.width * channels,
                channels,
                pixel_stride(output),
                pixel_stride(output),
                channels,
                p.c_row,
                p.c_col,
                TAPS_ROW=p.taps_row,
                TAPS_COL=p.taps_col,
                HAS_BIAS_ROW=bias_row is not None,
                HAS_BIAS_COL=bias_col is not None,
                RELU=activation == "relu",
                EVEN_K=channels % tile.block_k == 0,
                **arithmetic(tile, precision),
            )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # The op by a launcher.
    def run(problem: Problem, input: torch.Tensor, *operands: Any) -> torch.Tensor:
        *weights, activation = operands
        output = empty_channels_last(problem.output_shape, input)
        launch(problem, input, *weights, output, activation)
        return output

    return run


BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_split, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_split, _runs),
    dispatch.aten(_run_aten),
)
