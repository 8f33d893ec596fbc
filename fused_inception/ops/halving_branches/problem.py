"""The branches of a grid reduction as kernels see them, on every backend that has some."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fused_inception.ops.common.launching import size_refusal

MAX_BRANCHES = 3


class Problem(NamedTuple):
    """One call in numbers; filters and pool window are kernel×kernel, all maps of one size.

    Attributes:
        batch, height, width: of every input.
        c_in, c_out: channels and filters of each convolution, one to three.
        channels: of the map that is pooled.
    """

    batch: int
    height: int
    width: int
    c_in: tuple[int, ...]
    c_out: tuple[int, ...]
    channels: int
    kernel: int
    out_height: int
    out_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        channels = sum(self.c_out) + self.channels
        return self.batch, channels, self.out_height, self.out_width


class Branch(NamedTuple):
    """One convolution, with a ReLU behind it.

    Attributes:
        input: (N, Cin, H, W).
        weight: (Cout, Cin, k, k).
        bias: (Cout,) or None.
        output: (N, Cout, P, Q), channels_last or a slice of the channels of such a tensor.
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor


def shape_refusal(problem: Problem) -> str | None:
    """Why no kernel takes a problem, or None."""
    branches = len(problem.c_out)
    if not 1 <= branches <= MAX_BRANCHES:
        return f"{branches} convolutions; takes 1 to {MAX_BRANCHES}"
    return size_refusal(problem.height, problem.width)
