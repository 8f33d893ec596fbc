"""Problems of `halving_branches`, for the emulator, the interpreter and a device alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fused_inception import testing
from fused_inception.ops.common.geometry import conv_output_size
from fused_inception.ops.halving_branches.problem import Problem
from fused_inception.testing import ConvInputs, ReductionShape


@dataclass(frozen=True)
class BranchShape:
    """Sizes in pixels; (channels, filters) of each convolution; channels that are pooled."""

    batch: int
    height: int
    width: int
    convs: tuple[tuple[int, int], ...]
    channels: int
    kernel: int = 3

    def __str__(self) -> str:
        sizes = "+".join(f"{c_in}to{c_out}" for c_in, c_out in self.convs)
        map_ = f"n{self.batch}-{self.height}x{self.width}"
        return f"{map_}-{sizes}+{self.channels}-k{self.kernel}"

    @property
    def sizes(self) -> list[int]:
        """Channels of each part of the output."""
        return [*(c_out for _, c_out in self.convs), self.channels]


class BranchInputs(NamedTuple):
    """Operands of each convolution, and what is pooled."""

    convs: tuple[ConvInputs, ...]
    input: torch.Tensor


SHAPES = (
    # Tiles across images, channels that end inside a K block, more filters than a tile has.
    BranchShape(3, 9, 11, ((40, 136), (17, 33)), 20),
    BranchShape(2, 8, 7, ((24, 40), (3, 9), (72, 136)), 104),
    BranchShape(2, 10, 7, ((3, 1), (9, 5)), 12, 5),
    BranchShape(1, 3, 3, ((8, 8),), 8),
    BranchShape(2, 5, 4, ((1, 17), (16, 16)), 1, 1),
)
# Mixed_7a of Inception V3, and of Inception-ResNet-v2.
MIXED_7A = BranchShape(1, 17, 17, ((192, 320), (192, 192)), 768)
MIXED_7A_RESNET = BranchShape(1, 17, 17, ((256, 384), (256, 288), (288, 320)), 1088)


def make(shape: BranchShape, dtype: torch.dtype, draw: Callable[..., Any]) -> BranchInputs:
    """Operands from `testing.integer_conv` or `testing.random_conv`."""
    size = (shape.batch, shape.height, shape.width)
    convs = tuple(
        draw(ReductionShape(*size, *conv, shape.kernel), dtype, seed=7 * i)
        for i, conv in enumerate(shape.convs)
    )
    pooled = ReductionShape(*size, shape.channels, 1, shape.kernel)
    return BranchInputs(convs, draw(pooled, dtype, seed=99).input)


def images(inputs: BranchInputs, chosen: slice) -> BranchInputs:
    """Some of the images, the same weights."""
    convs = tuple(conv._replace(input=conv.input[chosen]) for conv in inputs.convs)
    return BranchInputs(convs, inputs.input[chosen])


def on(inputs: BranchInputs, device: torch.device | str) -> BranchInputs:
    """The same operands on a device; all convolutions have a bias."""
    convs = tuple(ConvInputs(*(t.to(device) for t in conv)) for conv in inputs.convs)
    return BranchInputs(convs, inputs.input.to(device))


def expected(inputs: BranchInputs) -> torch.Tensor:
    """All parts one behind the other: convolutions in float64, rounded once."""
    kernel = inputs.convs[0].weight.shape[2]
    dtype = inputs.input.dtype
    parts = [testing.conv_oracle(conv, (2, 2)).to(dtype) for conv in inputs.convs]
    return torch.cat([*parts, F.max_pool2d(inputs.input.cpu(), kernel, 2)], 1)


def problem_of(shape: BranchShape, inputs: BranchInputs) -> Problem:
    c_in, c_out = zip(*shape.convs, strict=True)
    out = [conv_output_size(size, shape.kernel, 2, 0) for size in (shape.height, shape.width)]
    x = inputs.input
    return Problem(
        len(x), shape.height, shape.width, c_in, c_out, shape.channels, shape.kernel, *out,
        x.dtype, x.device,
    )  # fmt: skip
