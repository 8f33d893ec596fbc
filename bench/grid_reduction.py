"""`grid_reduction` where Inception networks shrink their maps.

python -m bench.grid_reduction --quick
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import grid_reduction, testing
from fused_inception.testing import ConvInputs, ReductionShape

NAME = "grid_reduction"


class Unfused(nn.Module):
    """A stride-2 convolution, a stride-2 max pool and a concatenation."""

    def __init__(self, operands: ConvInputs) -> None:
        super().__init__()
        self.conv = peers.ConvRelu(operands.weight, operands.bias, (2, 2))
        self.kernel = operands.weight.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), F.max_pool2d(x, self.kernel, 2)], 1)


def subject(shape: ReductionShape, dtype: torch.dtype, device: torch.device) -> Subject:
    """The reduction against a convolution, a pool and a concatenation."""
    operands = testing.random_conv(shape, dtype, device)
    ours, refused = harness.ours_by_backend(grid_reduction, operands)
    folded = Unfused(operands)
    return Subject(
        operands.input,
        ours,
        refused,
        folded,
        peers.unfold(folded),
        lambda images: testing.reduction_oracle(operands._replace(input=images)),
    )


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """Every reduction; Inception V3's where it is to be quick."""
    shapes = testing.inception_reductions(batch)[: 1 if quick else None]

    def case(shape: ReductionShape) -> Case:
        return Case(
            NAME,
            NAME,
            str(shape).partition("-")[2],
            batch,
            dtype,
            lambda dtype, device: subject(shape, dtype, device),
        )

    return [case(shape) for shape in shapes]


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
