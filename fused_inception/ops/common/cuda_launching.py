"""What the launchers of the compiled extension share: what it takes, its tiles, and destinations.

The kernels on mma.sync form every sum in the same order whatever the tile, so that the tile may be
chosen by the batch; what the extension takes depends on one image alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fused_inception import _extension

from .configurations import padded
from .geometry import empty_channels_last
from .launching import ALIGNMENT, pixel_stride

# The kernels move 16 bytes at a time.
CHANNEL_MULTIPLE = 8
MAX_CHANNELS = 2**20
# Channels of one step of a sum.
BLOCK_K = 32
# What an A100 does a clock and multiprocessor: multiply-adds of its matrix units, and bytes from L2
# (2,008 for 108 of them; arXiv 2402.13499).
MULTIPLICATIONS_PER_CLOCK = 1024
L2_BYTES_PER_CLOCK = 18.6


class Device(NamedTuple):
    """What the choice of a configuration asks of a device."""

    shared_bytes: int  # that a block may have
    multiprocessors: int
    l2_bytes: int


@functools.cache
def device_limits(device: torch.device) -> Device:
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks some of them
    return Device(
        properties.shared_memory_per_block_optin,
        properties.multi_processor_count,
        properties.L2_cache_size,
    )


class TileConfiguration(NamedTuple):
    """One row of an op's table in the extension, `number`.

    With `whole` a tile holds whole images, and every pixel is loaded once.
    """

    number: int
    whole: bool
    block_m: int  # pixels of a tile
    block_n: int  # filters of a tile
    shared_bytes: int


def tile_table(numbers: Sequence[int]) -> tuple[TileConfiguration, ...]:
    """A table of tiles as the extension returns it: three numbers a row."""
    rows = (numbers[i : i + 3] for i in range(0, len(numbers), 3))
    return tuple(TileConfiguration(number, False, *row) for number, row in enumerate(rows))


def channel_refusal(*channels: int) -> str | None:
    """Why the extension does not take a number of channels, or None where it takes all."""
    most = max(channels)
    return f"{most} channels; takes up to 2^20" if most > MAX_CHANNELS else None


def refusal(
    channels: Iterable[int],
    table: Callable[[], tuple[TileConfiguration, ...]],
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Why the extension does not take a convolution, or None; `table` has what it may run as."""
    reason = channel_refusal(*channels) or _extension.refusal(dtype, device)
    if reason is None:
        least, limit = min(c.shared_bytes for c in table()), device_limits(device).shared_bytes
        if least > limit:
            reason = f"{device} has {limit} bytes of shared memory a block; takes {least}"
    return reason


def step_clocks(block_m: int, block_n: int, loaded_rows: int) -> float:
    """Clocks of a step of a sum: the slower of the matrix units and L2, by arithmetic.

    `loaded_rows` are the pixels and filters that it loads.
    """
    multiplications = block_m * block_n * BLOCK_K
    return max(
        multiplications / MULTIPLICATIONS_PER_CLOCK, 2 * BLOCK_K * loaded_rows / L2_BYTES_PER_CLOCK
    )


def choose_tile_configuration(
    table: tuple[TileConfiguration, ...], device: Device, pixels: int, sizes: Sequence[int]
) -> TileConfiguration:
    """The tile with which a product should be done first; see `step_clocks`.

    Args:
        table: of the op.
        device: to run on.
        pixels: of the whole batch.
        sizes: filters of each segment.
    """

    def clocks(c: TileConfiguration) -> float:
        tiles = -(-pixels // c.block_m) * sum(-(-size // c.block_n) for size in sizes)
        waves = -(-tiles // device.multiprocessors)
        return waves * step_clocks(c.block_m, c.block_n, c.block_m + c.block_n)

    return min((c for c in table if c.shared_bytes <= device.shared_bytes), key=clocks)


@contextmanager
def destinations(*outputs: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Tensors that the kernels can write for each of `outputs`.

    `outputs` are (N, K, P, Q), channels_last or slices of the channels of such tensors. What cannot
    be written 16 bytes at a time is copied from a tensor of its own, with channels in multiples of
    8, when the block ends.
    """
    strides = [pixel_stride(output) for output in outputs]
    writable = all(
        output.shape[1] % CHANNEL_MULTIPLE == 0
        and stride % CHANNEL_MULTIPLE == 0
        and output.data_ptr() % ALIGNMENT == 0
        for output, stride in zip(outputs, strides, strict=True)
    )
    if writable:
        yield list(outputs)
        return
    n, _, p, q = outputs[0].shape
    sizes = [padded(output.shape[1], CHANNEL_MULTIPLE) for output in outputs]
    together = empty_channels_last((n, sum(sizes), p, q), outputs[0])
    places = list(together.split(sizes, 1))
    yield places
    for output, place in zip(outputs, places, strict=True):
        output.copy_(place[:, : output.shape[1]])
