"""What the launchers of Triton kernels share: operands as kernels take them, and launch options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .configurations import Tile
from .geometry import dense_channels_last

# Bytes to which the kernels' operands are aligned, and the multiple of channels that they take.
# Triton specialises on multiples of 16 of either; with less, loads are narrow and tiles spill.
ALIGNMENT = 16
CHANNEL_MULTIPLE = 16
# Rows (pixels) of one launch: keeps row numbers, and the last tile's overhang, inside int32.
MAX_ROWS = 2**30


def operand(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """`tensor` aligned, dense in channels_last and with `channels` channels; a copy if need be."""
    return dense_channels_last(tensor, ALIGNMENT, channels)


def dense_bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    """`bias` as a kernel takes it."""
    return None if bias is None else bias.contiguous()


def size_refusal(height: int, width: int, counted: str = "") -> str | None:
    """Why a map is too large for one launch to hold an image of it, or None."""
    if height * width <= MAX_ROWS:
        return None
    return " ".join(f"a map of {height}x{width} {counted}".split()) + "; takes up to 2^30 pixels"


def images_per_launch(batch: int, pixels: int, at_most: int = MAX_ROWS) -> int:
    """How many images of `pixels` rows one launch takes, at least one."""
    return max(1, min(batch, at_most, MAX_ROWS // pixels))


def image_ranges(batch: int, images: int, first_image: int = 0) -> Iterator[tuple[int, int]]:
    """(first image, images) of each launch, `images` at a time."""
    for first in range(first_image, batch, images):
        yield first, min(images, batch - first)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` the current one; the interpreter's is the CPU and needs nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def pixel_stride(output: torch.Tensor) -> int:
    """Elements from one pixel to the next of `output`, (N, K, P, Q).

    Raises:
        ValueError: it is not a channels_last tensor, nor a slice of the channels of one.
    """
    p, q = output.shape[2:]
    step = output.stride(3) if q > 1 else output.stride(2) if p > 1 else output.stride(0)
    strides = (p * q * step, 1, q * step, step)
    used = zip(output.shape, output.stride(), strides, strict=True)
    if not all(size == 1 or have == need for size, have, need in used):
        raise ValueError(
            f"an output must be channels_last or a slice of its channels, got strides "
            f"{output.stride()} for shape {tuple(output.shape)}"
        )
    return step


def arithmetic(tile: Tile, precision: str) -> dict[str, Any]:
    """The arguments of a launch that decide how products are formed.

    Args:
        tile: of the op's table.
        precision: as `conv_precision` names it.
    """
    from .triton_runtime import INTERPRETING

    return {
        "BLOCK_P": tile.block_p,
        "BLOCK_F": tile.block_f,
        "BLOCK_K": tile.block_k,
        "TF32": precision == "float32_tf32",
        "UPCAST": INTERPRETING and precision == "bfloat16",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "maxnreg": tile.max_registers,
    }
