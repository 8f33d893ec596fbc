"""`factorized_conv2d` on every pair of Inception V3, and what its registration costs a call.

python -m bench.factorized_conv2d --quick
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import factorized_conv2d, testing
from fused_inception.ops.factorized_conv2d import op as registered
from fused_inception.testing import PairShape

NAME = "factorized_conv2d"
# One pixel: nothing but the way there.
_SMALLEST = PairShape(1, 1, 1, 16, 16, 16, 1, 1, True)


def subject(shape: PairShape, dtype: torch.dtype, device: torch.device) -> Subject:
    """The pair against two convolutions."""
    operands = testing.random_pair(shape, dtype, device)
    ours, refused = harness.ours_by_backend(factorized_conv2d, operands)
    folded = nn.Sequential(
        peers.same(operands.weight1, operands.bias1), peers.same(operands.weight2, operands.bias2)
    )
    return Subject(
        operands.input,
        ours,
        refused,
        folded,
        peers.unfold(folded),
        lambda images: testing.pair_oracle(operands._replace(input=images)),
    )


class Bare(nn.Module):
    """The chosen backend's own function, called with what the registered operator hands it."""

    def __init__(self, operands: testing.PairInputs) -> None:
        super().__init__()
        options = ("relu", "relu")
        problem = registered._check(*operands, *options, "auto")
        chosen = registered.select(
            NAME, "auto", registered.BACKENDS, problem, operands.input.device
        )
        rest = (*operands[1:], *options)
        self.run = lambda x: chosen.run(problem, x, *rest)

    def __call__(self, x: Tensor) -> Any:  # past nn.Module's own call
        return self.run(x)


def overhead(dtype: torch.dtype, device: torch.device) -> Subject:
    """The public function against the function that it ends in."""
    operands = testing.random_pair(_SMALLEST, dtype, device)
    rest = operands[1:]
    return Subject(
        operands.input,
        {"public": lambda x: factorized_conv2d(x, *rest)},
        {},
        Bare(operands),
        None,
        lambda images: testing.pair_oracle(operands._replace(input=images)),
    )


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """Every pair; the one of 192 channels where it is to be quick."""
    shapes = testing.inception_v3_pairs(batch)
    if quick:
        shapes = [shape for shape in shapes if shape.c_in == 192 and shape.row_first]

    def case(shape: PairShape) -> Case:
        return Case(
            NAME,
            NAME,
            str(shape).partition("-")[2],
            batch,
            dtype,
            lambda dtype, device: subject(shape, dtype, device),
        )

    found = [case(shape) for shape in shapes]
    if batch == 1:
        found.append(Case(NAME, "overhead", NAME, 1, "float32", overhead))
    return found


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
