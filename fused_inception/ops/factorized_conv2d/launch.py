"""Backends of `factorized_conv2d`: which can run, what they allocate and how they are launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fused_inception.ops.common import dispatch, dispatch_table
from fused_inception.ops.common.configurations import (
    Product,
    Table,
    Tile,
    choose_tile,
    device_table,
    padded,
)
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

NAME = "factorized_conv2d"


def _run_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.factorized_conv2d(*args))


def _can_run_triton(problem: Problem) -> str | None:
    return dispatch.triton_refusal(problem.dtype, problem.device) or size_refusal(
        problem.height, problem.width
    )


def launch_pair(
    problem: Problem,
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    output: torch.Tensor,
    mid_activation: str,
    activation: str,
) -> None:
    """Write both factors' result into `output`, in one launch or two.

    `output` is (N, Cout, H, W), channels_last or a slice of the channels of such a tensor;
    `problem` is that of the other tensors, which are the op's.
    """
    if problem.batch == 0:
        return
    call = Call(problem, input, weight1, bias1, weight2, bias2, output, mid_activation, activation)
    launch = launch_bands if use_bands(problem, call.table, call.tile) else launch_two
    with on_device(problem.device):
        launch(call)


def lines_per_band(problem: Problem, tile: Tile) -> int:
    """Whole lines that fit a tile; 0 where one line is longer than it."""
    return tile.block_p // problem.line_size


def use_bands(problem: Problem, table: Table, tile: Tile) -> bool:
    """Whether the one-launch form pays.

    Both forms give bitwise the same result, so this may look at the batch. Bands run where their
    lines fill at least `min_band_fill` of the rows of a tile, and they at least `min_band_waves` of
    the multiprocessors.
    """
    from fused_inception.ops.common.triton_runtime import multiprocessors

    lines = lines_per_band(problem, tile)
    if lines * problem.line_size < table.settings["min_band_fill"] * tile.block_p:
        return False
    bands = -(-problem.batch * problem.cross_size // lines)
    return bands >= table.settings["min_band_waves"] * multiprocessors(problem.device)


class Strides(NamedTuple):
    """Elements between images, between lines of an image and between pixels of a line."""

    image: int
    cross: int
    line: int


class Call:
    """One call as the kernels take it: dense, aligned tensors with padded channels, and a tile.

    Attributes:
        c_in, c_mid: stored channels of the input and of the intermediate tensor, rounded up.
        out_stride: elements from one pixel of the output to the next.
    """

    def __init__(
        self,
        problem: Problem,
        input: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor | None,
        weight2: torch.Tensor,
        bias2: torch.Tensor | None,
        output: torch.Tensor,
        mid_activation: str,
        activation: str,
    ) -> None:
        p = self.problem = problem
        self.precision = conv_precision(p.dtype)
        self.table = device_table(NAME, p.device)
        self.tile = choose_tile(
            dispatch_table.tiles(NAME, p, self.precision),
            Product(p.c_mid, p.taps1, p.c_in),
            Product(p.c_out, p.taps2, p.c_mid),
        )
        self.c_in = padded(p.c_in, CHANNEL_MULTIPLE)
        self.c_mid = padded(p.c_mid, CHANNEL_MULTIPLE)
        self.input = operand(input, self.c_in)
        self.weight1 = operand(weight1, self.c_in)
        self.weight2 = operand(weight2, self.c_mid)
        self.bias1 = dense_bias(bias1)
        self.bias2 = dense_bias(bias2)
        self.output = output
        self.out_stride = pixel_stride(output)
        self.mid_relu = mid_activation == "relu"
        self.relu = activation == "relu"

    def strides(self, pixel: int) -> Strides:
        """Strides of a map whose pixels are `pixel` elements apart, by the axis of the line."""
        p = self.problem
        row = p.width * pixel
        cross, line = (pixel, row) if p.row_first else (row, pixel)
        return Strides(p.height * row, cross, line)


def launch_bands(call: Call, first_image: int = 0) -> None:
    """One launch: a persistent grid, each program with a scratch band of its own.

    Images before `first_image` are left alone.
    """
    from fused_inception.ops.common.triton_runtime import multiprocessors

    from .triton_kernel import factorized_conv2d_band_kernel

    p, tile = call.problem, call.tile
    lines = lines_per_band(p, tile)
    resident = multiprocessors(p.device) * int(call.table.settings["programs_per_multiprocessor"])
    programs = min(resident, -(-p.batch * p.cross_size // lines))
    scratch = call.input.new_empty(programs * tile.block_p * call.c_mid)
    at_once = images_per_launch(p.batch, p.height * p.width)
    for first, images in image_ranges(p.batch, at_once, first_image):
        num_lines = images * p.cross_size
        factorized_conv2d_band_kernel[(min(programs, -(-num_lines // lines)),)](
            call.input,
            call.weight1,
            call.bias1,
            call.weight2,
            call.bias2,
            call.output,
            scratch,
            first,
            num_lines,
            p.line_size,
            p.cross_size,
            lines,
            *call.strides(call.c_in),
            *call.strides(call.out_stride),
            call.c_in,
            p.c_mid,
            call.c_mid,
            p.c_out,
            TAPS1=p.taps1,
            TAPS2=p.taps2,
            HAS_BIAS1=call.bias1 is not None,
            HAS_BIAS2=call.bias2 is not None,
            MID_RELU=call.mid_relu,
            RELU=call.relu,
            EVEN_K1=call.c_in % tile.block_k == 0,
            EVEN_K2=call.c_mid % tile.block_k == 0,
            **arithmetic(tile, call.precision),
        )


def launch_two(call: Call, first_image: int = 0) -> None:
    """One launch per factor, over as many images as keep the intermediate tensor in L2.

    Images before `first_image` are left alone.
    """
    from .triton_kernel import shifted_conv_kernel

    p, tile = call.problem, call.tile
    pixels = p.height * p.width
    image_bytes = pixels * call.c_mid * call.input.element_size()
    in_l2 = int(call.table.settings["l2_bytes"]) // image_bytes
    at_once = images_per_launch(p.batch, pixels, in_l2)
    mid = call.input.new_empty(at_once * pixels * call.c_mid)
    # The intermediate tensor is ordered (image, line, position on the line, channel).
    mid_strides = Strides(pixels * call.c_mid, p.line_size * call.c_mid, call.c_mid)
    options = arithmetic(tile, call.precision)
    for first, images in image_ranges(p.batch, at_once, first_image):
        rows = images * pixels
        row_tiles = -(-rows // tile.block_p)
        shifted_conv_kernel[(row_tiles * -(-call.c_mid // tile.block_f),)](
            call.input,
            call.weight1,
            call.bias1,
            mid,
            first,
            0,
            rows,
            p.line_size,
            p.cross_size,
            *call.strides(call.c_in),
            *mid_strides,
            call.c_in,
            p.c_mid,
            call.c_mid,
            ALONG_LINE=False,
            TAPS=p.taps1,
            HAS_BIAS=call.bias1 is not None,
            RELU=call.mid_relu,
            EVEN_K=call.c_in % tile.block_k == 0,
            **options,
        )
        shifted_conv_kernel[(row_tiles * -(-p.c_out // tile.block_f),)](
            mid,
            call.weight2,
            call.bias2,
            call.output,
            0,
            first,
            rows,
            p.line_size,
            p.cross_size,
            *mid_strides,
            *call.strides(call.out_stride),
            call.c_mid,
            p.c_out,
            p.c_out,
            ALONG_LINE=True,
            TAPS=p.taps2,
            HAS_BIAS=call.bias2 is not None,
            RELU=call.relu,
            EVEN_K=call.c_mid % tile.block_k == 0,
            **options,
        )


def _runs(launch: Callable[..., None]) -> Callable[..., torch.Tensor]:
    # The op by a launcher.
    def run(problem: Problem, input: torch.Tensor, *operands: Any) -> torch.Tensor:
        *weights, mid_activation, activation = operands
        output = empty_channels_last(problem.output_shape, input)
        launch(problem, input, *weights, output, mid_activation, activation)
        return output

    return run


BACKENDS = (
    dispatch.kernels("cuda", cuda_launch.can_run, cuda_launch.launch_pair, _runs),
    dispatch.kernels("triton", _can_run_triton, launch_pair, _runs),
    dispatch.aten(_run_aten),
)
