"""Backends of the fused blocks: which can run, what they allocate and how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fused_inception.blocks import aten
from fused_inception.blocks.plan import (
    INPUT,
    AveragePool,
    Conv,
    MaxPool,
    Pair,
    Plan,
    Reduction,
    Resolved,
    Split,
    Step,
)
from fused_inception.ops.common import dispatch
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.common.launching import size_refusal
from fused_inception.ops.conv2d_act.launch import Segment, launch_segments
from fused_inception.ops.factorized_conv2d.launch import launch_pair
from fused_inception.ops.grid_reduction.launch import launch_reduction
from fused_inception.ops.pool2d.launch import launch_avg_pool_act, launch_max_pool
from fused_inception.ops.split_conv2d.launch import launch_split

# The most zeros that a step of a block adds to a map, on both sides together.
_MOST_PADDING = 30


def backends(plan: Plan) -> tuple[dispatch.Backend, ...]:
    """How a block can run, in order of preference."""
    return (
        dispatch.missing(plan.kind, "cuda"),
        dispatch.Backend("triton", _can_run_triton, _run_triton),
        dispatch.aten(aten.run),
    )


def launches(plan: Plan) -> tuple[int, int]:
    """The fewest and the most kernels that one forward of a block launches on "triton".

    A pair is one launch or two, by its shape and batch. On top come copies of operands that a
    kernel cannot take as they are, siblings on up to 8 channels, which are launched one by one,
    batches of more than 2^30 pixels, and pairs in two launches whose map between the factors is
    larger than L2, which go through it in parts. A plan with `images_at_a_time` launches as many
    again for every further so many images.
    """
    pairs = sum(isinstance(step, Pair) for step in plan.steps)
    return len(plan.steps), len(plan.steps) + pairs


def _can_run_triton(resolved: Resolved) -> str | None:
    _, _, height, width = resolved.shapes[INPUT]
    return dispatch.triton_refusal(resolved.dtype, resolved.device) or size_refusal(
        height + _MOST_PADDING, width + _MOST_PADDING
    )


def _run_triton(
    resolved: Resolved,
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    include_pad: bool,
    output: Tensor,
) -> Tensor:
    plan = resolved.plan
    maps = {name: output[:, channels] for name, channels in resolved.slices.items()}
    maps[INPUT] = input
    named = dict(zip(plan.weight_names, zip(weights, biases, strict=False), strict=True))
    pool_biases = dict(zip(plan.raw, biases[len(weights) :], strict=True))
    for step, problem, last in zip(plan.steps, resolved.problems, plan.last_reads, strict=True):
        for name in step.maps:
            if name not in maps:
                maps[name] = empty_channels_last(resolved.shapes[name], input)
        _launch(step, problem, maps, named, pool_biases, plan, include_pad)
        # The memory of a map that nobody reads any more serves the maps to come.
        for name in last:
            del maps[name]
    return output


def _launch(
    step: Step,
    problem: Any,
    maps: dict[str, Tensor],
    weights: dict[str, tuple[Tensor, Tensor | None]],
    pool_biases: dict[str, Tensor | None],
    plan: Plan,
    include_pad: bool,
) -> None:
    x = maps[step.source]
    if isinstance(step, Conv):
        segments = [
            Segment(maps[role], "none" if role in plan.raw else "relu") for role in step.roles
        ]
        launch_segments(problem, x, *weights[step.weights[0]], segments)
    elif isinstance(step, Pair):
        first, second = weights[step.first], weights[step.second]
        launch_pair(problem, x, *first, *second, maps[step.second], "relu", "relu")
    elif isinstance(step, Split):
        row, col = weights[step.row], weights[step.col]
        launch_split(problem, x, *row, *col, maps[step.target], "relu")
    elif isinstance(step, Reduction):
        conv, pool = maps[step.role], maps[step.pool]
        launch_reduction(problem, x, *weights[step.role], conv, pool, "relu")
    elif isinstance(step, MaxPool):
        launch_max_pool(problem, x, maps[step.target])
    else:
        assert isinstance(step, AveragePool)
        bias = pool_biases[step.source]
        launch_avg_pool_act(problem, x, bias, maps[step.target], include_pad)
