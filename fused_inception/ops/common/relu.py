"""ReLU through PyTorch, with the special values of `F.relu`: NaN stays, -inf becomes 0.

In 16 bits on a CPU, PyTorch widens every number to float32 and back. The bits of a float16 or
bfloat16 as a 16-bit integer are enough: all negative numbers down to -inf lie at or below the
integer of -inf, and between it and 0 there are only NaNs. That reads and writes 32 numbers an
AVX-512 instruction, in a third to a quarter of the time. Zero comes out as +0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Bits of -inf.
_NEGATIVE_INFINITY = {torch.float16: -0x0400, torch.bfloat16: -0x0080}


def _by_bits(tensor: torch.Tensor) -> int | None:
    # The bits of -inf where the integers may be compared; not where the operation is recorded.
    if (
        tensor.device.type != "cpu"
        or torch.compiler.is_compiling()
        or (tensor.requires_grad and torch.is_grad_enabled())
    ):
        return None
    return _NEGATIVE_INFINITY.get(tensor.dtype)


def relu_(tensor: torch.Tensor) -> torch.Tensor:
    """`F.relu_(tensor)`."""
    bits = _by_bits(tensor)
    if bits is None:
        return F.relu_(tensor)
    torch.threshold_(tensor.view(torch.int16), bits, 0)
    return tensor


def relu(tensor: torch.Tensor) -> torch.Tensor:
    """`F.relu(tensor)`: dense, its dimensions in memory in the order of those of `tensor`."""
    bits = _by_bits(tensor)
    if bits is None:
        return F.relu(tensor)
    return torch.threshold(tensor.view(torch.int16), bits, 0).view(tensor.dtype)


def relu_into(tensor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`F.relu(tensor)` written to `out`, of the same shape and any strides; returns `out`."""
    bits = _by_bits(tensor)
    # Gradients are attached outside the operators; a call of a bare one may still be recording.
    with torch.no_grad():
        if bits is None:
            # F.relu has no `out`; it is this clamp, special values included.
            return torch.clamp_min(tensor, 0, out=out)
        torch.threshold(tensor.view(torch.int16), bits, 0, out=out.view(torch.int16))
    return out
