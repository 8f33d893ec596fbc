"""Backends of `factorized_conv2d`: which can run, what they allocate and how they are launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fused_inception.ops.common import dispatch
from fused_inception.ops.common.geometry import (
    dense_channels_last,
    empty_channels_last,
    with_channels_last_strides,
)
from fused_inception.ops.common.precision import conv_precision

from . import aten
from .configurations import Table, Tile, choose_tile, device_class, load_table

if TYPE_CHECKING:
    from .op import Problem

NAME = "factorized_conv2d"

# Widest vector access of the kernels; also what Triton's pointer specialisation distinguishes.
ALIGNMENT = 16
# Rows of one launch: keeps row numbers, and the last tile's overhang, inside int32.
MAX_ROWS = 2**30


def _run_aten(problem: Problem, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.factorized_conv2d(*args))


def _can_run_triton(problem: Problem) -> str | None:
    reason = dispatch.triton_refusal(problem.dtype, problem.device)
    if reason is None and problem.height * problem.width > MAX_ROWS:
        reason = f"a map of {problem.height}x{problem.width}; takes up to 2^30 pixels"
    return reason


def _run_triton(
    problem: Problem,
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    mid_activation: str,
    activation: str,
) -> torch.Tensor:
    output = empty_channels_last(
        (problem.batch, problem.c_out, problem.height, problem.width), input
    )
    if problem.batch == 0:
        return output
    table = device_table(problem.device)
    tile = choose_tile(
        table.tiles[conv_precision(problem.dtype)],
        problem.c_in,
        problem.c_mid,
        problem.c_out,
        problem.taps1,
        problem.taps2,
    )
    form = launch_bands if use_bands(problem, table, tile) else launch_two
    operands = Operands(
        problem,
        dense_channels_last(input, ALIGNMENT),
        dense_channels_last(weight1, ALIGNMENT),
        None if bias1 is None else bias1.contiguous(),
        dense_channels_last(weight2, ALIGNMENT),
        None if bias2 is None else bias2.contiguous(),
        output,
        mid_activation,
        activation,
    )
    if problem.device.type == "cuda":
        with torch.cuda.device(problem.device):
            form(operands, table, tile)
    else:
        form(operands, table, tile)
    return output


BACKENDS = (
    dispatch.missing(NAME, "cuda"),
    dispatch.Backend("triton", _can_run_triton, _run_triton),
    dispatch.aten(_run_aten),
)


def device_table(device: torch.device) -> Table:
    """The configurations for `device`; the interpreter uses those that fit every device."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return load_table(device_class(capability))


def lines_per_band(problem: Problem, tile: Tile) -> int:
    """Whole lines that fit a tile; 0 where one line is longer than it."""
    return tile.block_p // problem.line_size


def use_bands(problem: Problem, table: Table, tile: Tile) -> bool:
    """Whether the one-launch form pays.

    Both forms give bitwise the same result, so this may look at the batch.
    """
    from fused_inception.ops.common.triton_runtime import multiprocessors

    lines = lines_per_band(problem, tile)
    if lines * problem.line_size < table.min_band_fill * tile.block_p:
        return False
    bands = -(-problem.batch * problem.cross_size // lines)
    return bands >= table.min_band_waves * multiprocessors(problem.device)


class Operands:
    """The tensors of one call as the kernels take them, with their strides by axis of the line.

    Attributes:
        x_strides, y_strides: elements between images, between lines of an image and between pixels
        of a line.
    """

    def __init__(
        self,
        problem: Problem,
        x: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor | None,
        weight2: torch.Tensor,
        bias2: torch.Tensor | None,
        y: torch.Tensor,
        mid_activation: str,
        activation: str,
    ) -> None:
        self.problem = problem
        self.x, self.y = x, y
        self.weight1, self.bias1 = weight1, bias1
        self.weight2, self.bias2 = weight2, bias2
        self.mid_relu = mid_activation == "relu"
        self.relu = activation == "relu"
        self.x_strides = self._strides(problem.c_in)
        self.y_strides = self._strides(problem.c_out)

    def _strides(self, channels: int) -> tuple[int, int, int]:
        p = self.problem
        row, pixel = p.width * channels, channels
        cross, line = (pixel, row) if p.row_first else (row, pixel)
        return p.height * row, cross, line


def _arithmetic(problem: Problem, tile: Tile) -> dict[str, Any]:
    """The constants of a kernel that decide how products are formed."""
    from fused_inception.ops.common.triton_runtime import INTERPRETING

    return {
        "BLOCK_P": tile.block_p,
        "BLOCK_F": tile.block_f,
        "BLOCK_K": tile.block_k,
        "TF32": conv_precision(problem.dtype) == "float32_tf32",
        "UPCAST": INTERPRETING and problem.dtype == torch.bfloat16,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def launch_bands(operands: Operands, table: Table, tile: Tile, first_image: int = 0) -> None:
    """One launch: a persistent grid, each program with a scratch band of its own.

    Images before `first_image` are left alone.
    """
    from fused_inception.ops.common.triton_runtime import multiprocessors

    from .triton_kernel import factorized_conv2d_band_kernel

    p = operands.problem
    lines = lines_per_band(p, tile)
    images = max(1, MAX_ROWS // (p.height * p.width))
    resident = multiprocessors(p.device) * table.programs_per_multiprocessor
    programs = min(resident, -(-min(images, p.batch) * p.cross_size // lines))
    scratch = operands.x.new_empty(programs * tile.block_p * p.c_mid)
    for first in range(first_image, p.batch, images):
        num_lines = min(images, p.batch - first) * p.cross_size
        factorized_conv2d_band_kernel[(min(programs, -(-num_lines // lines)),)](
            operands.x,
            operands.weight1,
            operands.bias1,
            operands.weight2,
            operands.bias2,
            operands.y,
            scratch,
            first,
            num_lines,
            p.line_size,
            p.cross_size,
            lines,
            *operands.x_strides,
            *operands.y_strides,
            p.c_in,
            p.c_mid,
            p.c_out,
            TAPS1=p.taps1,
            TAPS2=p.taps2,
            HAS_BIAS1=operands.bias1 is not None,
            HAS_BIAS2=operands.bias2 is not None,
            MID_RELU=operands.mid_relu,
            RELU=operands.relu,
            EVEN_K1=p.c_in % tile.block_k == 0,
            EVEN_K2=p.c_mid % tile.block_k == 0,
            **_arithmetic(p, tile),
        )


def launch_two(operands: Operands, table: Table, tile: Tile, first_image: int = 0) -> None:
    """One launch per factor, over as many images as keep the intermediate tensor in L2.

    Images before `first_image` are left alone.
    """
    from .triton_kernel import shifted_conv_kernel

    p = operands.problem
    pixels = p.height * p.width
    image_bytes = pixels * p.c_mid * operands.x.element_size()
    images = max(1, min(table.l2_bytes // image_bytes, MAX_ROWS // pixels, p.batch))
    mid = operands.x.new_empty(images * pixels * p.c_mid)
    # The intermediate tensor is ordered (image, line, position on the line, channel).
    mid_strides = (pixels * p.c_mid, p.line_size * p.c_mid, p.c_mid)
    arithmetic = _arithmetic(p, tile)

    def factor(
        src: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dst: torch.Tensor,
        src_first: int,
        dst_first: int,
        rows: int,
        src_strides: tuple[int, int, int],
        dst_strides: tuple[int, int, int],
        along_line: bool,
        taps: int,
        relu: bool,
    ) -> None:
        filters, channels = weight.shape[:2]
        tiles = -(-rows // tile.block_p) * -(-filters // tile.block_f)
        shifted_conv_kernel[(tiles,)](
            src,
            weight,
            bias,
            dst,
            src_first,
            dst_first,
            rows,
            p.line_size,
            p.cross_size,
            *src_strides,
            *dst_strides,
            channels,
            filters,
            ALONG_LINE=along_line,
            TAPS=taps,
            HAS_BIAS=bias is not None,
            RELU=relu,
            EVEN_K=channels % tile.block_k == 0,
            **arithmetic,
        )

    o = operands
    for first in range(first_image, p.batch, images):
        rows = min(images, p.batch - first) * pixels
        factor(
            o.x, o.weight1, o.bias1, mid, first, 0, rows,
            o.x_strides, mid_strides, False, p.taps1, o.mid_relu,
        )  # fmt: skip
        factor(
            mid, o.weight2, o.bias2, o.y, 0, first, rows,
            mid_strides, o.y_strides, True, p.taps2, o.relu,
        )  # fmt: skip
