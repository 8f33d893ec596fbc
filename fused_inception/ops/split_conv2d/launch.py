"""Backends of `split_conv2d`: which can run, and how."""

from __future__ import annotations

from typing import Any

import torch

from fused_inception.ops.common import dispatch
from fused_inception.ops.common.geometry import with_channels_last_strides

from . import aten

NAME = "split_conv2d"


def _run_aten(problem: Any, *args: Any) -> torch.Tensor:
    return with_channels_last_strides(aten.split_conv2d(*args))


BACKENDS = (
    dispatch.missing(NAME, "cuda"),
    dispatch.missing(NAME, "triton"),
    dispatch.aten(_run_aten),
)
