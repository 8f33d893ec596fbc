"""A kernel with a fault on purpose: a sanitizer must find it before its silence means anything."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _store_far_kernel(y_ptr, distance, BLOCK: tl.constexpr):
    tl.store(y_ptr + distance + tl.arange(0, BLOCK), 1.0)


def store_out_of_bounds() -> None:
    """Stores 64 MB behind an allocation of 512 bytes."""
    target = torch.zeros(128, device="cuda")
    _store_far_kernel[(1,)](target, 2**24, BLOCK=128)
    torch.cuda.synchronize()
