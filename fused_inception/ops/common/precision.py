"""Arithmetic precision of float32 convolutions.

The switch is PyTorch's own, `torch.backends.cudnn.conv.fp32_precision`, read when an op runs (below
the dispatcher), so that a compiled program follows it too. The older `allow_tf32` flags are not
consulted: reading them raises once the newer switch has been used.
"""

from __future__ import annotations

from typing import Any

import torch


def conv_precision(dtype: torch.dtype) -> str:
    """How products are formed: a dtype's name, or "float32_ieee" or "float32_tf32"."""
    if dtype == torch.float32:
        cudnn: Any = torch.backends.cudnn  # its typing leaves the switch out
        tf32 = cudnn.conv.fp32_precision == "tf32"
        return "float32_tf32" if tf32 else "float32_ieee"
    return str(dtype).removeprefix("torch.")
