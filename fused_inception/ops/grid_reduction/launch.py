"""Backends of `grid_reduction`: which can run, what they allocate and how they are launched."""

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

NAME = "grid_reduction"


def _run_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.grid_reduction(*args))


def _can_run_triton(problem: Problem) -> str | None:
    return dispatch.triton_refusal(problem.dtype, problem.device) or size_refusal(
        problem.height, problem.width
    )


def launch_reduction(
    problem: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv: torch.Tensor,
    pooled: torch.Tensor,
    activation: str,
    *,
    first_image: int = 0,
) -> None:
    """Write the convolution into `conv`, (N, Cout, P, Q), and the pool into `pooled`.

    `pooled` is (N, Cin, P, Q). Both are channels_last or slices of the channels of such tensors,
    anywhere in one or in two; `problem` is that of the other tensors, which are the op's. Images
    before `first_image` are left alone.
    """
    from .triton_kernel import grid_reduction_kernel

    p = problem
    if p.batch == 0:
        return
    precision = conv_precision(p.dtype)
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    tile = choose_tile(
        dispatch_table.tiles(NAME, p, precision), Product(p.c_out, p.kernel**2, p.c_in)
    )
    x, w, b = operand(input, channels), operand(weight, channels), dense_bias(bias)
    f_blocks = -(-p.c_out // tile.block_f)
    pixels = p.out_height * p.out_width
    with on_device(p.device):
        for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
            rows = images * pixels
            grid_reduction_kernel[(-(-rows // tile.block_p) * f_blocks,)](
                x,
                w,
                b,
                conv,
                pooled,
                first,
                rows,
                p.out_height,
                p.out_width,
                p.height * p.width * channels,
                p.width * channels,
                channels,
                pixel_stride(conv),
                pixel_stride(pooled),
                channels,
                p.c_in,
                p.c_out,
                KERNEL=p.kernel,
                MAX=p.pool == "max",
                HAS_BIAS=b is not None,
                RELU=activation == "relu",
                EVEN_K=channels % tile.block_k == 0,
                **arithmetic(tile, precision),
            )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # The op by a launcher.
    def run(
        problem: Problem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        pool: str,
        activation: str,
    ) -> torch.Tensor:
        output = empty_channels_last(problem.output_shape, input)
        conv, pooled = output[:, : problem.c_out], output[:, problem.c_out :]
        launch(problem, input, weight, bias, conv, pooled, activation)
        return output

    return run


BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_reduction, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_reduction, _runs),
    dispatch.aten(_run_aten),
)
