"""`split_conv2d` on the 8×8 maps of Inception V3.

python -m bench.split_conv2d --quick
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import split_conv2d, testing
from fused_inception.testing import SplitInputs, SplitShape

NAME = "split_conv2d"


class Unfused(nn.Module):
    """Two convolutions on one input and a concatenation."""

    def __init__(self, operands: SplitInputs) -> None:
        super().__init__()
        self.row = peers.same(operands.weight_row, operands.bias_row)
        self.col = peers.same(operands.weight_col, operands.bias_col)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.row(x), self.col(x)], 1)


def subject(shape: SplitShape, dtype: torch.dtype, device: torch.device) -> Subject:
    """The split against two convolutions and a concatenation."""
    operands = testing.random_split(shape, dtype, device)
    ours, refused = harness.ours_by_backend(split_conv2d, operands)
    folded = Unfused(operands)
    return Subject(
        operands.input,
        ours,
        refused,
        folded,
        peers.unfold(folded),
        lambda images: testing.split_oracle(operands._replace(input=images)),
    )


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """The one shape."""

    def case(shape: SplitShape) -> Case:
        return Case(
            NAME,
            NAME,
            str(shape).partition("-")[2],
            batch,
            dtype,
            lambda dtype, device: subject(shape, dtype, device),
        )

    return [case(shape) for shape in testing.inception_v3_splits(batch)]


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
