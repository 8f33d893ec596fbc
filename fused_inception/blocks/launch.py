"""Backends of the fused blocks: which can run, what they allocate and how they are launched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from fused_inception.blocks import aten
from fused_inception.blocks.plan import (
    INPUT,
    AveragePool,
    Conv,
    HalvingBranches,
    MaxPool,
    Pair,
    Plan,
    Problem,
    Reduction,
    Resolved,
    Split,
    Step,
)
from fused_inception.ops.common import dispatch, dispatch_table
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.common.launching import size_refusal
from fused_inception.ops.conv2d_act import launch as conv_launch
from fused_inception.ops.conv2d_act.launch import Segment
from fused_inception.ops.factorized_conv2d import launch as pair_launch
from fused_inception.ops.grid_reduction import launch as reduction_launch
from fused_inception.ops.halving_branches import launch as branches_launch
from fused_inception.ops.halving_branches.problem import Branch
from fused_inception.ops.pool2d import launch as pool_launch
from fused_inception.ops.split_conv2d import launch as split_launch

# The most zeros that a step of a block adds to a map, on both sides together.
_MOST_PADDING = 30


# The op of a step, and its backends.
_OPS: dict[type, tuple[str, tuple[dispatch.Backend, ...]]] = {
    Conv: (conv_launch.NAME, conv_launch.BACKENDS),
    Pair: (pair_launch.NAME, pair_launch.BACKENDS),
    Split: (split_launch.NAME, split_launch.BACKENDS),
    Reduction: (reduction_launch.NAME, reduction_launch.BACKENDS),
    HalvingBranches: (branches_launch.NAME, branches_launch.BACKENDS),
    MaxPool: (pool_launch.MAX_POOL, pool_launch.MAX_POOL_BACKENDS),
    AveragePool: (pool_launch.AVG_POOL_ACT, pool_launch.AVG_POOL_ACT_BACKENDS),
}


def backends(plan: Plan) -> tuple[dispatch.Backend, ...]:
    """How a block can run, in order of preference.

    Their `run` takes what stays the same from call to call, and returns the function of input and
    output. On "auto" each step has the backend that its op would choose.
    """
    return (
        *(
            dispatch.Backend(
                name, functools.partial(_refusal, name), functools.partial(_bind, name)
            )
            for name in ("auto", "cuda", "triton")
        ),
        dispatch.aten(aten.Program),
    )


def launches(plan: Plan) -> tuple[int, int]:
    """The fewest and the most kernels that one forward of a block launches, all backends alike.

    A pair is one launch or two, by its shape and batch. On top come copies of operands that a
    kernel cannot take as they are, siblings on up to 8 channels, which are launched one by one,
    batches of more than 2^30 pixels, and pairs in two launches whose map between the factors is
    larger than L2, which go through it in parts. A plan with `images_at_a_time` launches as many
    again for every further so many images.
    """
    pairs = sum(isinstance(step, Pair) for step in plan.steps)
    return len(plan.steps), len(plan.steps) + pairs


def _refusal(backend: str, resolved: Resolved) -> str | None:
    """Why a step of the block has no kernel of `backend`, or None where all have."""
    return _choices(backend, resolved.plan, resolved.problems, resolved.shapes[INPUT][2:])[1]


Launcher: TypeAlias = Callable[..., None]


@functools.lru_cache(maxsize=4096)
def _choices(
    backend: str, plan: Plan, problems: tuple[Problem, ...], size: tuple[int, int]
) -> tuple[tuple[Launcher, ...], str | None]:
    """The launcher of every step, and why there is none where there is none."""
    height, width = size
    launchers: list[Launcher] = []
    for step, problem in zip(plan.steps, problems, strict=True):
        launcher, reason = _launcher(*_OPS[type(step)], backend, problem)
        if launcher is None:
            return (), reason if backend == "triton" else f"{step.maps[0]}: {reason}"
        launchers.append(launcher)
    padded_map = size_refusal(height + _MOST_PADDING, width + _MOST_PADDING)
    return ((), padded_map) if padded_map is not None else (tuple(launchers), None)


def _launcher(
    op: str, candidates: tuple[dispatch.Backend, ...], backend: str, problem: Problem
) -> tuple[Launcher | None, str | None]:
    """The launcher of `backend` for a step's problem, or why there is none."""
    if backend == "auto":
        names = dispatch_table.order(op, problem, ("cuda", "triton"))
    else:
        names = (backend,)
    reasons = []
    for name in names:
        candidate = next(b for b in candidates if b.name == name)
        reason = candidate.can_run(problem)
        if reason is None:
            return candidate.launch, None
        reasons.append(f"{name}: {reason}" if backend == "auto" else reason)
    return None, "; ".join(reasons)


def _bind(
    backend: str,
    resolved: Resolved,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    include_pad: bool,
) -> Callable[[Tensor, Tensor], Tensor]:
    return functools.partial(_run, backend, resolved, weights, biases, include_pad)


def _run(
    backend: str,
    resolved: Resolved,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    include_pad: bool,
    input: Tensor,
    output: Tensor,
) -> Tensor:
    size = resolved.shapes[INPUT][2:]
    launchers, _ = _choices(backend, resolved.plan, resolved.problems, size)
    plan = resolved.plan
    maps = {name: output[:, channels] for name, channels in resolved.slices.items()}
    maps[INPUT] = input
    named = dict(zip(plan.weight_names, zip(weights, biases, strict=False), strict=True))
    pool_biases = dict(zip(plan.raw, biases[len(weights) :], strict=True))
    for step, problem, launcher, last in zip(
        plan.steps, resolved.problems, launchers, plan.last_reads, strict=True
    ):
        for name in step.maps:
            if name not in maps:
                maps[name] = empty_channels_last(resolved.shapes[name], input)
        _launch(step, problem, launcher, maps, named, pool_biases, plan, include_pad)
        # The memory of a map that nobody reads any more serves the maps to come.
        for name in last:
            del maps[name]
    return output


def _launch(
    step: Step,
    problem: Any,
    launcher: Any,
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
        launcher(problem, x, *weights[step.weights[0]], segments)
    elif isinstance(step, Pair):
        first, second = weights[step.first], weights[step.second]
        launcher(problem, x, *first, *second, maps[step.second], "relu", "relu")
    elif isinstance(step, Split):
        row, col = weights[step.row], weights[step.col]
        launcher(problem, x, *row, *col, maps[step.target], "relu")
    elif isinstance(step, Reduction):
        conv, pool = maps[step.role], maps[step.pool]
        launcher(problem, x, *weights[step.role], conv, pool, "relu")
    elif isinstance(step, HalvingBranches):
        branches = [
            Branch(maps[source], *weights[role], maps[role])
            for source, role in zip(step.inputs, step.roles, strict=True)
        ]
        launcher(problem, branches, x, maps[step.pool])
    elif isinstance(step, MaxPool):
        launcher(problem, x, maps[step.target])
    else:
        assert isinstance(step, AveragePool)
        bias = pool_biases[step.source]
        launcher(problem, x, bias, maps[step.target], include_pad)
