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
    "_split_conv2d_cuda_configurations", "(int channels) -> int[]"
)


@functools.cache
def configurations(channels: int) -> tuple[TileConfiguration, ...]:
    """The extension's table, with the shared memory that `channels` channels take."""
    numbers = _configurations_operator(channels)
    rows = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    return tuple(
        TileConfiguration(number, bool(whole), *sizes)
        for number, (whole, *sizes) in enumerate(rows)
    )


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem

    def table() -> tuple[TileConfiguration, ...]:
        return configurations(padded(p.c_in, CHANNEL_MULTIPLE))

    return size_refusal(p.height, p.width) or refusal(
        (p.c_in, p.c_row, p.c_col), table, p.dtype, p.device
    )


def choose(
    table: tuple[TileConfiguration, ...], device: Device, problem: Problem
) -> TileConfiguration:
    """The configuration that should be done first, by arithmetic; see `step_clocks`.

    The steps of the centre tap multiply all of a tile's filters, the others half of them. Whole
    images are loaded by the former alone.
    """
    p = problem
    pixels = p.height * p.width
    others = p.taps_row + p.taps_col - 2

    def clocks(c: TileConfiguration) -> float:
        half = c.block_n // 2
        if c.whole:
            tiles = -(-p.batch // (c.block_m // pixels))
        else:
            tiles = -(-p.batch * pixels // c.block_m)
        tiles *= -(-max(p.c_row, p.c_col) // half)
        centre = step_clocks(c.block_m, c.block_n, c.block_m + c.block_n)
        other = step_clocks(c.block_m, half, half + (0 if c.whole else c.block_m))
        return -(-tiles // device.multiprocessors) * (centre + others * other)

    def fits(c: TileConfiguration) -> bool:
        return c.shared_bytes <= device.shared_bytes and not (c.whole and pixels > c.block_m)

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
        configuration = choose(configurations(channels), device_limits(p.device), p)
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
