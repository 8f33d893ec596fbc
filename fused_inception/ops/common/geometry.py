"""Output shapes and allocation, shared by the real implementations and the fakes.

channels_last is the native layout. An output always has the strides that `torch.empty(...,
memory_format= torch.channels_last)` gives, also where a size of 1 or 0 leaves PyTorch's own
operators a choice.
"""

from __future__ import annotations

import torch


def empty_channels_last(shape: tuple[int, int, int, int], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised channels_last tensor (N, C, H, W) with the dtype and device of `like`."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def with_channels_last_strides(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where its strides are exactly channels_last's, a channels_last copy otherwise."""
    n, c, h, w = tensor.shape
    if n and tensor.stride() == (h * w * c, 1, w * c, c):
        return tensor
    return empty_channels_last((n, c, h, w), tensor).copy_(tensor)


def dense_channels_last(tensor: torch.Tensor, alignment: int, channels: int) -> torch.Tensor:
    """`tensor` as a kernel takes it: channels_last strides, `alignment` bytes, `channels` channels.

    A copy is made where any of them fails, so that what a kernel does never depends on the caller's
    strides or alignment. Channels that the tensor does not have are zero.
    """
    n, c, h, w = tensor.shape
    strides = (h * w * channels, 1, w * channels, channels)
    # The stride of a dimension of size 1 is never used, neither by PyTorch nor by a kernel.
    used = zip(tensor.shape, tensor.stride(), strides, strict=True)
    dense = all(size == 1 or have == need for size, have, need in used)
    if dense and c == channels and tensor.data_ptr() % alignment == 0:
        return tensor
    size = (n, channels, h, w)
    copy = torch.empty_strided(size, strides, dtype=tensor.dtype, device=tensor.device)
    copy[:, :c].copy_(tensor)
    copy[:, c:].zero_()
    return copy


def conv_output_size(size: int, taps: int, stride: int, padding: int) -> int:
    """Positions of a filter of `taps` along an axis of `size`."""
    return (size + 2 * padding - taps) // stride + 1
