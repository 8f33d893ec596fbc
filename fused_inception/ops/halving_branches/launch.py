"""Backends of `halving_branches`: which can run, and how they are launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fused_inception.ops.common import dispatch, dispatch_table
from fused_inception.ops.common.configurations import (
    Product,
    choose_tile,
    device_table,
    padded,
)
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.common.launching import (
    CHANNEL_MULTIPLE,
    arithmetic,
    dense_bias,
    image_ranges,
    images_per_launch,
    on_device,
    operand,
    pixel_stride,
)
from fused_inception.ops.common.precision import conv_precision

from . import cuda_launch
from .problem import MAX_BRANCHES, Branch, Problem, shape_refusal

NAME = "halving_branches"


def _can_run_triton(problem: Problem) -> str | None:
    return dispatch.triton_refusal(problem.dtype, problem.device) or shape_refusal(problem)


def launch_branches(
    problem: Problem,
    branches: Sequence[Branch],
    input: torch.Tensor,
    pooled: torch.Tensor,
    *,
    first_image: int = 0,
) -> None:
    """Write every convolution into its place, and the max pool of `input` into `pooled`.

    Args:
        problem: of the other arguments.
        branches: one to three convolutions.
        input: (N, C, H, W), what is pooled.
        pooled: (N, C, P, Q), channels_last or a slice of the channels of such a tensor.
        first_image: images before it are left alone.
    """
    from .triton_kernel import halving_branches_kernel

    p = problem
    if p.batch == 0:
        return
    precision = conv_precision(p.dtype)
    products = [
        Product(filters, p.kernel**2, channels)
        for channels, filters in zip(p.c_in, p.c_out, strict=True)
    ]
    tile = choose_tile(dispatch_table.tiles(NAME, p, precision), *products)
    pool = device_table(NAME, p.device).settings
    pool_p, pool_k = int(pool["pool_p"]), int(pool["pool_k"])
    channels = [padded(c, CHANNEL_MULTIPLE) for c in p.c_in]
    stored = padded(p.channels, CHANNEL_MULTIPLE)
    x = [operand(b.input, c) for b, c in zip(branches, channels, strict=True)]
    w = [operand(b.weight, c) for b, c in zip(branches, channels, strict=True)]
    biases = [dense_bias(branch.bias) for branch in branches]
    pool_x = operand(input, stored)
    # A pointer is needed where there is no bias too.
    b = [weight if bias is None else bias for bias, weight in zip(biases, w, strict=True)]
    strides = [pixel_stride(branch.output) for branch in branches]
    outputs = [branch.output for branch in branches]
    arguments = (x, w, b, outputs, channels, p.c_out, strides)
    missing = MAX_BRANCHES - len(branches)
    pixels = p.out_height * p.out_width
    with on_device(p.device):
        for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
            rows = images * pixels
            tiles = -(-rows // tile.block_p) * sum(-(-f // tile.block_f) for f in p.c_out)
            tiles += -(-rows // pool_p) * -(-p.channels // pool_k)
            halving_branches_kernel[(tiles,)](
                *(value for part in arguments for value in (*part, *[part[-1]] * missing)),
                pool_x,
                pooled,
                stored,
                pixel_stride(pooled),
                p.channels,
                first,
                rows,
                p.height,
                p.width,
                p.out_height,
                p.out_width,
                BRANCHES=len(branches),
                BIASES=sum((bias is not None) << i for i, bias in enumerate(biases)),
                KERNEL=p.kernel,
                EVEN_K=all(c % tile.block_k == 0 for c in channels),
                POOL_P=pool_p,
                POOL_K=pool_k,
                **arithmetic(tile, precision),
            )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # Everything into one output, the pool behind the convolutions.
    def run(
        problem: Problem,
        inputs: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        input: torch.Tensor,
    ) -> torch.Tensor:
        output = empty_channels_last(problem.output_shape, input)
        *places, pooled = output.split([*problem.c_out, problem.channels], 1)
        branches = list(map(Branch, inputs, weights, biases, places))
        launch(problem, branches, input, pooled)
        return output

    return run


BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_branches, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_branches, _runs),
)
