"""The pools of Inception networks outside their blocks.

    python -m bench.pool2d --quick

The suite is no part of a run of everything: no target is set for a pool.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench import harness
from bench.harness import Case, Subject
from fused_inception import testing
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d

NAME = "pool2d"
HALVING = {"kernel": 3, "stride": 2}
# Channels and side of a map, the op, and its keywords.
SHAPES: dict[str, tuple[int, int, Callable[..., Tensor], dict[str, Any]]] = {
    "max-s2-147x147-64": (64, 147, max_pool2d, HALVING),
    "max-s2-71x71-192": (192, 71, max_pool2d, HALVING),
    "max-s2-17x17-768": (768, 17, max_pool2d, HALVING),
    "max-s1-8x8-2048": (2048, 8, max_pool2d, {"kernel": 3, "stride": 1, "padding": 1}),
    "mean-8x8-2048": (2048, 8, global_avg_pool2d, {}),
}


def subject(shape: str, batch: int, dtype: torch.dtype, device: torch.device) -> Subject:
    """A pool against PyTorch's."""
    channels, side, op, options = SHAPES[shape]
    size = (batch, channels, side, side)
    images = testing.channels_last(testing.random_tensor(size, dtype, device, 1.0, 0))
    ours, refused = harness.ours_by_backend(op, (images,), options)
    # Its first argument is called otherwise.
    window = {"kernel_size" if name == "kernel" else name: n for name, n in options.items()}
    plain = nn.MaxPool2d(**window) if options else nn.AdaptiveAvgPool2d(1)
    return Subject(images, ours, refused, plain, None, lambda x: plain(x.double().cpu()))


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """Every pool; the first one where it is to be quick."""

    def case(shape: str) -> Case:
        return Case(
            NAME,
            NAME,
            shape,
            batch,
            dtype,
            lambda dtype, device: subject(shape, batch, dtype, device),
        )

    return [case(shape) for shape in list(SHAPES)[: 1 if quick else None]]


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
