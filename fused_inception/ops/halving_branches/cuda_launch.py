"""The branches of a grid reduction in the compiled extension: what it takes, and the launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import (
    CHANNEL_MULTIPLE,
    TileConfiguration,
    choose_tile_configuration,
    destinations,
    device_limits,
    refusal,
    tile_table,
)
from fused_inception.ops.common.launching import dense_bias, operand
from fused_inception.ops.common.registration import define_internal

from .problem import Branch, Problem, shape_refusal

_out_operator = define_internal(
    "_halving_branches_cuda_out",
    "(Tensor[] inputs, Tensor[] weights, Tensor?[] biases, Tensor(a!)[] outs, Tensor input, "
    "Tensor(b!) pooled, int configuration) -> ()",
)
_configurations_operator = define_internal("_halving_branches_cuda_configurations", "() -> int[]")


@functools.cache
def configurations() -> tuple[TileConfiguration, ...]:
    """The extension's table."""
    return tile_table(_configurations_operator())


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem
    channels = (*p.c_in, *p.c_out, p.channels)
    return shape_refusal(p) or refusal(channels, configurations, p.dtype, p.device)


def choose(problem: Problem) -> TileConfiguration:
    p = problem
    pixels = p.batch * p.out_height * p.out_width
    return choose_tile_configuration(configurations(), device_limits(p.device), pixels, p.c_out)


def launch_branches(
    problem: Problem,
    branches: Sequence[Branch],
    input: torch.Tensor,
    pooled: torch.Tensor,
    *,
    configuration: TileConfiguration | None = None,
) -> None:
    """Write the convolutions and the pool into their places, as `launch.launch_branches`.

    `configuration` is one that fits the device; by default the one that should be done first.
    """
    p = problem
    if p.batch == 0:
        return
    channels = [padded(c, CHANNEL_MULTIPLE) for c in p.c_in]
    outputs = [branch.output for branch in branches]
    with destinations(*outputs, pooled) as (*places, pool_place):
        _out_operator(
            [operand(b.input, c) for b, c in zip(branches, channels, strict=True)],
            [operand(b.weight, c) for b, c in zip(branches, channels, strict=True)],
            [dense_bias(branch.bias) for branch in branches],
            places,
            operand(input, padded(p.channels, CHANNEL_MULTIPLE)),
            pool_place,
            (configuration or choose(p)).number,
        )
