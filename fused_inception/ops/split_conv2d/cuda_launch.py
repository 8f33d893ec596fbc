"""The split in the compiled extension: what it takes, its tile, and the launch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import (
    CHANNEL_MULTIPLE,
    Device,
    TileConfiguration,
    destinations,
    device_limits,
    of_engine,
    refusal,
    step_clocks,
)
from fused_inception.ops.common.launching import dense_bias, operand, size_refusal
from fused_inception.ops.common.registration import define_internal

if TYPE_CHECKING:
    from .op import Problem

_out_operator = define_internal(
    "_split_conv2d_cuda_out",
    "(Tensor input, Tensor weight_row, Tensor? bias_row, Tensor weight_col, Tensor? bias_col, "
    "Tensor(a!) row, Tensor(b!) col, bool relu, int configuration) -> ()",
)
_configurations_operator = define_internal(
    "_split_conv2d_cuda_configurations", "(int channels, int taps_row, int taps_col) -> int[]"
)

# Lines, and pixels of a line, that whole images have on wgmma; fewer are padded.
WGMMA_SIDE = 8


@functools.cache
def configurations(channels: int, taps_row: int, taps_col: int) -> tuple[TileConfiguration, ...]:
    """The extension's table, with the shared memory that so many channels and taps take."""
    numbers = _configurations_operator(channels, taps_row, taps_col)
    rows = [numbers[i : i + 5] for i in range(0, len(numbers), 5)]
    return tuple(
        TileConfiguration(number, bool(wgmma), bool(whole), *sizes)
        for number, (wgmma, whole, *sizes) in enumerate(rows)
    )


def table_of(problem: Problem) -> tuple[TileConfiguration, ...]:
    """The extension's table for `problem`."""
    p = problem
    return configurations(padded(p.c_in, CHANNEL_MULTIPLE), p.taps_row, p.taps_col)


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem
    return size_refusal(p.height, p.width) or refusal(
        (p.c_in, p.c_row, p.c_col), lambda: table_of(p), p.dtype, p.device
    )


def whole_images(configuration: TileConfiguration, height: int, width: int) -> int:
    """Images of a tile of whole images; 0 where the map is too large."""
    if not configuration.wgmma:
        return configuration.block_m // (height * width)
    fits = max(height, width) <= WGMMA_SIDE
    return configuration.block_m // WGMMA_SIDE**2 if fits else 0


def choose(
    table: tuple[TileConfiguration, ...], device: Device, problem: Problem
) -> TileConfiguration:
    """The configuration that should be done first, by arithmetic; see `step_clocks`.

    The steps of the centre tap multiply all of a tile's filters, the others half of them. Whole
    images are loaded by the former alone. `table` is of one engine.
    """
    p = problem
    pixels = p.height * p.width
    others = p.taps_row + p.taps_col - 2

    def clocks(c: TileConfiguration) -> float:
        half = c.block_n // 2
        if c.whole:
            tiles = -(-p.batch // whole_images(c, p.height, p.width))
        else:
            tiles = -(-p.batch * pixels // c.block_m)
        tiles *= -(-max(p.c_row, p.c_col) // half)
        centre = step_clocks(c.wgmma, c.block_m, c.block_n, c.block_m + c.block_n)
        other = step_clocks(c.wgmma, c.block_m, half, half + (0 if c.whole else c.block_m))
        return -(-tiles // device.multiprocessors) * (centre + others * other)

    def fits(c: TileConfiguration) -> bool:
        too_large = c.whole and whole_images(c, p.height, p.width) == 0
        return c.shared_bytes <= device.shared_bytes and not too_large

    return min(filter(fits, table), key=clocks)


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
    configuration: TileConfiguration | None = None,
) -> None:
    """Write both halves into `output`, as `launch.launch_split`.

    `configuration` is one that fits the device and the map; by default the one that should be done
    first.
    """
    p = problem
    if p.batch == 0:
        return
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    if configuration is None:
        configuration = choose(of_engine(table_of(p), p.device), device_limits(p.device), p)
    with destinations(output[:, : p.c_row], output[:, p.c_row :]) as (row, col):
        _out_operator(
            operand(input, channels),
            operand(weight_row, channels),
            dense_bias(bias_row),
            operand(weight_col, channels),
            dense_bias(bias_col),
            row,
            col,
            activation == "relu",
            configuration.number,
        )
