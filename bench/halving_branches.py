"""The end of the last grid reduction: one launch against a launch each.

    python -m bench.halving_branches --quick

The suite is no part of a run of everything, which has the whole block, Mixed_7a. The maps that the
convolutions read are the same in every call; the pooled one is the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import conv2d_act, testing
from fused_inception.ops.halving_branches.launch import BACKENDS
from fused_inception.ops.halving_branches.problem import Problem
from fused_inception.ops.pool2d.op import max_pool2d
from fused_inception.testing import ConvInputs, ConvShape

NAME = "halving_branches"
SIDE, HALF = 17, 8


class Shape(NamedTuple):
    """Channels and filters of each convolution, and channels that are pooled."""

    c_in: tuple[int, ...]
    c_out: tuple[int, ...]
    channels: int

    def __str__(self) -> str:
        convs = "+".join(f"{a}to{b}" for a, b in zip(self.c_in, self.c_out, strict=True))
        return f"{SIDE}x{SIDE}-{convs}+{self.channels}"


# Of Inception V3 and of Inception-ResNet-v2.
SHAPES = (
    Shape((192, 192), (320, 192), 768),
    Shape((256, 256, 288), (384, 288, 320), 1088),
)


class Unfused(nn.Module):
    """The convolutions, the pool and a concatenation."""

    def __init__(self, convs: list[ConvInputs]) -> None:
        super().__init__()
        for i, conv in enumerate(convs):
            self.register_buffer(f"map{i}", conv.input)
        self.convs = nn.ModuleList(peers.ConvRelu(c.weight, c.bias, (2, 2)) for c in convs)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            conv(map_[: len(x)]) for conv, map_ in zip(self.convs, self.buffers(), strict=True)
        ]
        return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)


def subject(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> Subject:
    """One launch, a launch each, and PyTorch."""
    convs = [
        testing.random_conv(ConvShape(batch, SIDE, SIDE, *sizes, (3, 3)), dtype, device, seed=i)
        for i, sizes in enumerate(zip(shape.c_in, shape.c_out, strict=True))
    ]
    size = (batch, shape.channels, SIDE, SIDE)
    images = testing.channels_last(testing.random_tensor(size, dtype, device, 1.0, 99))
    problem = Problem(
        batch, SIDE, SIDE, shape.c_in, shape.c_out, shape.channels, 3, HALF, HALF, dtype,
        images.device,
    )  # fmt: skip
    ours: dict[str, Callable[[Tensor], Tensor]] = {}
    refused: dict[str, str] = {}

    def together(run: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            inputs, weights, biases = zip(*convs, strict=True)
            parts = [map_[: len(x)] for map_ in inputs]
            return run(problem._replace(batch=len(x)), parts, weights, biases, x)

        return call

    def each(backend: str) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            parts = [
                conv2d_act(map_[: len(x)], weight, bias, stride=2, backend=backend)
                for map_, weight, bias in convs
            ]
            return torch.cat([*parts, max_pool2d(x, 3, stride=2, backend=backend)], 1)

        return call

    for backend in BACKENDS:
        reason = backend.can_run(problem)
        if reason is None:
            ours[backend.name] = together(backend.run)
            ours[f"{backend.name}-each"] = each(backend.name)
        else:
            refused[backend.name] = reason
    if not ours:
        ours["aten"] = each("aten")

    def oracle(x: Tensor) -> Tensor:
        parts = [
            testing.conv_oracle(conv._replace(input=conv.input[: len(x)]), (2, 2)) for conv in convs
        ]
        return torch.cat([*parts, F.max_pool2d(x.double().cpu(), 3, 2)], 1)

    return Subject(images, ours, refused, Unfused(convs), None, oracle)


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """Both networks'; Inception V3's where it is to be quick."""

    def case(shape: Shape) -> Case:
        return Case(
            NAME,
            NAME,
            str(shape),
            batch,
            dtype,
            lambda dtype, device: subject(shape, batch, dtype, device),
        )

    return [case(shape) for shape in SHAPES[: 1 if quick else None]]


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
