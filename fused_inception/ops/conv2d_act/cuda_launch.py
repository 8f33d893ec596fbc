"""One convolution in the compiled extension: what it takes, its tile, and the launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from fused_inception.ops.common.launching import dense_bias, operand
from fused_inception.ops.common.registration import define_internal

from .segments import Segment, check_segments, padded_size_refusal

if TYPE_CHECKING:
    from .op import Problem

MAX_FILTER_WEIGHTS = 2**30

_out_operator = define_internal(
    "_conv2d_act_cuda_out",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor(a!)[] outs, int[] sizes, int relus, "
    "int[] stride, int[] padding, int configuration) -> ()",
)
_configurations_operator = define_internal("_conv2d_act_cuda_configurations", "() -> int[]")


@functools.cache
def configurations() -> tuple[TileConfiguration, ...]:
    """The extension's table."""
    return tile_table(_configurations_operator())


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem
    weights = p.kernel[0] * p.kernel[1] * padded(p.c_in, CHANNEL_MULTIPLE)
    if weights > MAX_FILTER_WEIGHTS:
        return f"{weights} weights a filter; takes up to 2^30"
    return padded_size_refusal(p) or refusal((p.c_in, p.c_out), configurations, p.dtype, p.device)


def choose(problem: Problem, sizes: Sequence[int]) -> TileConfiguration:
    p = problem
    pixels = p.batch * p.out_height * p.out_width
    table = of_engine(configurations(), p.device)
    return choose_tile_configuration(table, device_limits(p.device), pixels, sizes)


def launch_segments(
    problem: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    segments: Sequence[Segment],
    *,
    configuration: TileConfiguration | None = None,
) -> None:
    """Convolve and write each segment to its place, as `launch.launch_segments`.

    `configuration` is one that fits the device; by default the one that should be done first.
    """
    p = problem
    sizes = check_segments(p, segments)
    if p.batch == 0:
        return
    channels = padded(p.c_in, CHANNEL_MULTIPLE)
    with destinations(*(segment.output for segment in segments)) as places:
        _out_operator(
            operand(input, channels),
            operand(weight, channels),
            dense_bias(bias),
            places,
            sizes,
            sum((s.activation == "relu") << i for i, s in enumerate(segments)),
            p.stride,
            p.padding,
            (configuration or choose(p, sizes)).number,
        )
