"""Backends of `conv2d_act`: which can run, what they allocate and how they are launched."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fused_inception.ops.common import dispatch, dispatch_table
from fused_inception.ops.common.configurations import Product, choose_tile, padded
from fused_inception.ops.common.geometry import empty_channels_last, with_channels_last_strides
from fused_inception.ops.common.launching import (
    CHANNEL_MULTIPLE,
    MAX_ROWS,
    arithmetic,
    dense_bias,
    image_ranges,
    images_per_launch,
    on_device,
    operand,
    pixel_stride,
)
from fused_inception.ops.common.precision import conv_precision

from . import aten, cuda_launch
from .segments import MAX_SEGMENTS, Segment, check_segments, padded_size_refusal

if TYPE_CHECKING:
    from .op import Problem

NAME = "conv2d_act"


def _run_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.conv2d_act(*args))


# Up to here channels are gathered one by one instead of padded to CHANNEL_MULTIPLE.
FEW_CHANNELS = 8


def _can_run_triton(problem: Problem) -> str | None:
    return dispatch.triton_refusal(problem.dtype, problem.device) or padded_size_refusal(problem)


def launch_segments(
    problem: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    segments: Sequence[Segment],
    *,
    first_image: int = 0,
) -> None:
    """Convolve `input` with all filters of `weight` at once and write each segment to its place.

    Args:
        problem: of all filters together; its `c_out` is the sum of the segments'.
        input: (N, Cin, H, W).
        weight: (Cout, Cin, R, S), the segments' filters one after the other.
        bias: (Cout,) or None.
        segments: one to four.
        first_image: images before it are left alone.

    Raises:
        ValueError: the segments do not add up to the weight, or an output is no slice of a
            channels_last tensor.
    """
    p = problem
    sizes = check_segments(p, segments)
    if p.batch == 0:
        return
    with on_device(p.device):
        if p.c_in > FEW_CHANNELS:
            _launch(p, input, weight, bias, segments, first_image)
            return
        # One launch a segment: such a convolution stands alone in every known network.
        begin = 0
        for segment, size in zip(segments, sizes, strict=True):
            part = slice(begin, begin + size)
            part_bias = None if bias is None else bias[part]
            _launch_few_channels(p, input, weight[part], part_bias, segment, first_image)
            begin += size


def _launch(
    p: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    segments: Sequence[Segment],
    first_image: int,
) -> None:
    from .triton_kernel import conv2d_act_kernel

    precision = conv_precision(p.dtype)
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    sizes = [segment.output.shape[1] for segment in segments]
    taps = p.kernel[0] * p.kernel[1]
    tile = choose_tile(
        dispatch_table.tiles(NAME, p, precision),
        *(Product(size, taps, p.c_in) for size in sizes),
    )
    x, w, b = operand(input, channels), operand(weight, channels), dense_bias(bias)
    f_blocks = sum(-(-size // tile.block_f) for size in sizes)
    # Segments that are not there repeat the last one and are never chosen.
    places = [*segments, *[segments[-1]] * (MAX_SEGMENTS - len(segments))]
    ends = [*itertools.accumulate(sizes), *[p.c_out] * (MAX_SEGMENTS - len(segments))]
    # A larger stride, with which one position fits, would not be an int32.
    steps = [min(step, MAX_ROWS) for step in p.stride]
    pixels = p.out_height * p.out_width
    for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
        rows = images * pixels
        conv2d_act_kernel[(-(-rows // tile.block_p) * f_blocks,)](
            x,
            w,
            b,
            *(place.output for place in places),
            first,
            rows,
            p.height,
            p.width,
            p.out_height,
            p.out_width,
            p.height * p.width * channels,
            p.width * channels,
            channels,
            *(pixel_stride(place.output) for place in places),
            *steps,
            *p.padding,
            channels,
            f_blocks,
            *ends,
            SEGMENTS=len(segments),
            RELUS=sum((s.activation == "relu") << i for i, s in enumerate(segments)),
            HAS_BIAS=b is not None,
            R=p.kernel[0],
            S=p.kernel[1],
            CHECK_H=p.padding[0] > 0,
            CHECK_W=p.padding[1] > 0,
            EVEN_K=channels % tile.block_k == 0,
            **arithmetic(tile, precision),
        )


def _launch_few_channels(
    p: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    segment: Segment,
    first_image: int,
) -> None:
    from .triton_kernel import conv2d_act_few_channels_kernel

    precision = conv_precision(p.dtype)
    filters = weight.shape[0]
    depth = p.kernel[0] * p.kernel[1] * p.c_in
    tiles = dispatch_table.tiles(NAME, p, precision)
    # Elements are masked one by one whatever their number.
    ragged = tuple(tile for tile in tiles if not tile.whole)
    tile = choose_tile(ragged, Product(filters, 1, depth))
    w, b = operand(weight, p.c_in), dense_bias(bias)
    # A larger stride, with which one position fits, would not be an int32.
    steps = [min(step, MAX_ROWS) for step in p.stride]
    pixels = p.out_height * p.out_width
    for first, images in image_ranges(p.batch, images_per_launch(p.batch, pixels), first_image):
        rows = images * pixels
        conv2d_act_few_channels_kernel[(-(-rows // tile.block_p) * -(-filters // tile.block_f),)](
            input,
            w,
            b,
            segment.output,
            first,
            rows,
            p.height,
            p.width,
            p.out_height,
            p.out_width,
            *input.stride(),
            pixel_stride(segment.output),
            *steps,
            *p.padding,
            filters,
            CHANNELS=p.c_in,
            HAS_BIAS=b is not None,
            RELU=segment.activation == "relu",
            R=p.kernel[0],
            S=p.kernel[1],
            CHECK_H=p.padding[0] > 0,
            CHECK_W=p.padding[1] > 0,
            **arithmetic(tile, precision),
        )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # The op by a launcher.
    def run(
        problem: Problem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Any,
        padding: Any,
        activation: str,
    ) -> torch.Tensor:
        output = empty_channels_last(problem.output_shape, input)
        launch(problem, input, weight, bias, [Segment(output, activation)])
        return output

    return run


BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_segments, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_segments, _runs),
    dispatch.aten(_run_aten),
)
