"""Backends of `grid_reduction`: which can run, and how."""

from __future__ import annotations

from typing import Any

import torch

from fused_inception.ops.common import dispatch
from fused_inception.ops.common.geometry import with_channels_last_strides

from . import aten

NAME = "grid_reduction"


def _run_aten(problem: Any, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.grid_reduction(*args))


BACKENDS = (
    dispatch.missing(NAME, "cuda"),
    dispatch.missing(NAME, "triton"),
    dispatch.aten(_run_aten),
)
