"""The grid reduction in the compiled extension: what it takes, its tile, and the launch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import (
    CHANNEL_MULTIPLE,
    TileConfiguration,
    choose_tile_configuration,
    destinations,
    device_limits,
    of_engine,
    refusal,
    tile_table,
)
from fused_inception.ops.common.launching import dense_bias, operand, size_refusal
from fused_inception.ops.common.registration import define_internal

if TYPE_CHECKING:
    from .op import Problem

_out_operator = define_internal(
    "_grid_reduction_cuda_out",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor(a!) conv, Tensor(b!) pooled, bool max, "
    "bool relu, int configuration) -> ()",
)
_configurations_operator = define_internal("_grid_reduction_cuda_configurations", "() -> int[]")


@functools.cache
def configurations() -> tuple[TileConfiguration, ...]:
    """The extension's table."""
    return tile_table(_configurations_operator())


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem
    return size_refusal(p.height, p.width) or refusal(
        (p.c_in, p.c_out), configurations, p.dtype, p.device
    )


def choose(problem: Problem) -> TileConfiguration:
    p = problem
    pixels = p.batch * p.out_height * p.out_width
    table = of_engine(configurations(), p.device)
    return choose_tile_configuration(table, device_limits(p.device), pixels, [p.c_out])


def launch_reduction(
    problem: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv: torch.Tensor,
    pooled: torch.Tensor,
    activation: str,
    *,
    configuration: TileConfiguration | None = None,
) -> None:
    """Write the convolution into `conv` and the pool into `pooled`, as `launch.launch_reduction`.

    `configuration` is one that fits the device; by default the one that should be done first.
    """
    p = problem
    if p.batch == 0:
        return
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    with destinations(conv, pooled) as (conv_place, pooled_place):
        _out_operator(
            operand(input, channels),
            operand(weight, channels),
            dense_bias(bias),
            conv_place,
            pooled_place,
            p.pool == "max",
            activation == "relu",
            (configuration or choose(p)).number,
        )
