"""Where the filters of one product go, on every backend that has kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from fused_inception.ops.common.launching import size_refusal

if TYPE_CHECKING:
    from .op import Problem

MAX_SEGMENTS = 4


class Segment(NamedTuple):
    """Where some of the filters of a product go.

    Attributes:
        output: (N, K, P, Q), channels_last or a slice of the channels of such a tensor; K is the
            number of filters of the segment.
        activation: "relu" or "none".
    """

    output: torch.Tensor
    activation: str


def check_segments(problem: Problem, segments: Sequence[Segment]) -> list[int]:
    """The filters of each segment.

    Raises:
        ValueError: there are not one to four, or they do not add up to the weight.
    """
    sizes = [segment.output.shape[1] for segment in segments]
    if not 1 <= len(segments) <= MAX_SEGMENTS or sum(sizes) != problem.c_out:
        raise ValueError(
            f"segments must be 1 to {MAX_SEGMENTS} that make {problem.c_out} filters, got {sizes}"
        )
    return sizes


def padded_size_refusal(problem: Problem) -> str | None:
    """Why a map with its padding is too large for one launch, or None."""
    p = problem
    counted = "with its padding" if any(p.padding) else ""
    return size_refusal(p.height + 2 * p.padding[0], p.width + 2 * p.padding[1], counted)
