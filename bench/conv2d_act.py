"""`conv2d_act` on every square convolution of Inception V3.

python -m bench.conv2d_act --quick
"""

from __future__ import annotations

import sys

import torch

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import conv2d_act, testing
from fused_inception.testing import ConvShape

NAME = "conv2d_act"
# Where it is to be quick: a 1×1 of the 17×17 maps, and a 3×3 of the stem.
_QUICK = ("17x17-768-192-k1x1", "147x147-32-64-k3x3")


def subject(shape: ConvShape, dtype: torch.dtype, device: torch.device) -> Subject:
    """The convolution with its epilogue against convolution, bias and ReLU."""
    operands = testing.random_conv(shape, dtype, device)
    options = {"stride": shape.stride, "padding": shape.padding}
    ours, refused = harness.ours_by_backend(conv2d_act, operands, options)
    folded = peers.ConvRelu(operands.weight, operands.bias, shape.stride, shape.padding)
    return Subject(
        operands.input,
        ours,
        refused,
        folded,
        peers.unfold(folded),
        lambda images: testing.conv_oracle(
            operands._replace(input=images), shape.stride, shape.padding
        ),
        conv=folded,
    )


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """Every convolution, or the two of `_QUICK`."""
    shapes = testing.inception_v3_convs(batch)
    if quick:
        shapes = [shape for shape in shapes if str(shape).partition("-")[2].startswith(_QUICK)]

    def case(shape: ConvShape) -> Case:
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
