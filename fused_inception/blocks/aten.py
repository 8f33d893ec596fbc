"""The fused blocks through PyTorch: any device, any dtype. Not batch-invariant.

The same structure as on the other backends: merged 1×1s, moved average pools, every branch written
into its slice of the output. A convolution of PyTorch's has a result of its own; where that belongs
into a slice or is one of several siblings, the pass that applies the ReLU also takes it there, so
no pass is added. Every convolution goes through `conv2d_act` of `ops/conv2d_act/aten.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_inception.blocks.plan import (
    INPUT,
    POOL_WINDOW,
    AveragePool,
    Conv,
    HalvingBranches,
    MaxPool,
    Pair,
    Reduction,
    Resolved,
    Split,
    Step,
)
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.conv2d_act.aten import conv2d_act
from fused_inception.ops.factorized_conv2d.aten import same_padding
from fused_inception.ops.pool2d.aten import avg_pool2d_act_, max_pool2d


class _Run:
    # One call: the maps that are alive, and the slices of the output.

    def __init__(
        self,
        resolved: Resolved,
        input: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        output: Tensor,
    ) -> None:
        plan = self.plan = resolved.plan
        self.resolved = resolved
        self.slices = {name: output[:, part] for name, part in resolved.slices.items()}
        self.maps = {INPUT: input.contiguous(memory_format=torch.channels_last)}
        self.weights = dict(zip(plan.weight_names, weights, strict=True))
        self.biases = dict(zip(plan.bias_names, biases, strict=True))

    def conv(
        self,
        x: Tensor,
        name: str,
        activation: str = "relu",
        *,
        halves: bool = False,
        pads: bool = True,
    ) -> Tensor:
        weight = self.weights[name]
        stride = (2, 2) if halves else (1, 1)
        padding = same_padding(weight) if pads and not halves else (0, 0)
        return conv2d_act(x, weight, self.biases[name], stride, padding, activation)

    def rectify(self, values: Tensor, name: str) -> None:
        # What F.relu does, into the map's place.
        place = self.slices.get(name)
        if place is None:
            place = empty_channels_last((*values.shape,), values)
            self.maps[name] = place
        torch.clamp_min(values, 0, out=place)

    def conv_into(self, x: Tensor, name: str, place: Tensor, *, halves: bool = False) -> None:
        torch.clamp_min(self.conv(x, name, "none", halves=halves), 0, out=place)

    def step(self, step: Step, include_pad: bool) -> None:
        x = self.maps[step.source]
        if isinstance(step, Conv):
            self.siblings(x, step)
        elif isinstance(step, Pair):
            mid = self.conv(x, step.first)
            if step.second in self.slices:
                self.conv_into(mid, step.second, self.slices[step.second])
            else:
                self.maps[step.second] = self.conv(mid, step.second)
        elif isinstance(step, Split):
            filters = self.weights[step.row].shape[0]
            place = self.slices[step.target]
            self.conv_into(x, step.row, place[:, :filters])
            self.conv_into(x, step.col, place[:, filters:])
        elif isinstance(step, Reduction):
            self.conv_into(x, step.role, self.slices[step.role], halves=True)
            self.max_pool(x, step.pool, halves=True)
        elif isinstance(step, HalvingBranches):
            for source, role in zip(step.inputs, step.roles, strict=True):
                self.conv_into(self.maps[source], role, self.slices[role], halves=True)
            self.max_pool(x, step.pool, halves=True)
        elif isinstance(step, MaxPool):
            self.max_pool(x, step.target, halves=step.halves)
        else:
            assert isinstance(step, AveragePool)
            bias, place = self.biases[step.source], self.slices[step.target]
            avg_pool2d_act_(x, bias, place, POOL_WINDOW, include_pad)

    def siblings(self, x: Tensor, step: Conv) -> None:
        name, role = step.weights[0], step.roles[0]
        if len(step.roles) == 1 and role not in self.slices:
            self.maps[role] = self.conv(x, name, halves=step.halves, pads=step.pads)
            return
        values = self.conv(x, name, "none", halves=step.halves, pads=step.pads)
        filters = [self.resolved.shapes[role][1] for role in step.roles]
        for role, part in zip(step.roles, values.split(filters, 1), strict=True):
            if role in self.plan.raw:
                self.maps[role] = part
            else:
                self.rectify(part, role)

    def max_pool(self, x: Tensor, name: str, *, halves: bool) -> None:
        stride, padding = ((2, 2), (0, 0)) if halves else ((1, 1), (1, 1))
        pooled = max_pool2d(x, (POOL_WINDOW, POOL_WINDOW), stride, padding)
        if name in self.slices:
            self.slices[name].copy_(pooled)
        else:
            self.maps[name] = pooled


def run(
    resolved: Resolved,
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    include_pad: bool,
    output: Tensor,
) -> Tensor:
    """Writes the block's output, and returns it."""
    call = _Run(resolved, input, weights, biases, output)
    for step, last in zip(resolved.plan.steps, resolved.plan.last_reads, strict=True):
        call.step(step, include_pad)
        for name in last:
            call.maps.pop(name, None)
    return output
