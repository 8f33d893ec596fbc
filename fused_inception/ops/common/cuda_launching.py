"""What the launchers of the compiled extension share: what it takes, its tiles, and destinations.

All kernels on one engine, mma.sync or wgmma, form every sum in the same order whatever the tile, so
that the tile may be chosen by the batch. What the extension takes, and the engine, depend on one
image alone.

What is on wgmma has not run on a device yet, and some of it stands on start addresses of wgmma's
operands that the PTX ISA allows but no device test has confirmed. Until one has, it runs only where
the environment has FUSED_INCEPTION_SM90=1 when this module is imported.
"""

from __future__ import annotations

import functools
import os
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
# The same of an H100 on wgmma (3,942 bytes for 114; arXiv 2501.12084, an H800 PCIe).
SM90_MULTIPLICATIONS_PER_CLOCK = 2048
SM90_L2_BYTES_PER_CLOCK = 35
SM90_ENABLED = os.environ.get("FUSED_INCEPTION_SM90", "0") == "1"


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


def sm90_refusal(device: torch.device) -> str | None:
    """Why nothing on wgmma runs on `device`, or None where it does."""
    if not SM90_ENABLED:
        return "the environment has no FUSED_INCEPTION_SM90=1"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "takes compute capability 9.0"
    if not any(a.startswith("9.0a") for a in _extension.build_info()["architectures"]):
        return "the extension is not built for 9.0a"
    return None


class TileConfiguration(NamedTuple):
    """One row of an op's table in the extension, `number`.

    With `whole` a tile holds whole images, and every pixel is loaded once.
    """

    number: int
    wgmma: bool
    whole: bool
    block_m: int  # pixels of a tile
    block_n: int  # filters of a tile
    shared_bytes: int


def tile_table(numbers: Sequence[int]) -> tuple[TileConfiguration, ...]:
    """A table of tiles as the extension returns it: four numbers a row."""
    rows = (numbers[i : i + 4] for i in range(0, len(numbers), 4))
    return tuple(
        TileConfiguration(number, bool(wgmma), False, *sizes)
        for number, (wgmma, *sizes) in enumerate(rows)
    )


def of_engine(
    table: tuple[TileConfiguration, ...], device: torch.device
) -> tuple[TileConfiguration, ...]:
    """The rows of `table` that serve on `device`: those of one engine, whatever the batch."""
    wgmma = sm90_refusal(device) is None
    return tuple(c for c in table if c.wgmma == wgmma)


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


def step_clocks(wgmma: bool, block_m: int, block_n: int, loaded_rows: int) -> float:
    """Clocks of a step of a sum: the slower of the matrix units and L2, by arithmetic.

    `loaded_rows` are the pixels and filters that it loads.
    """
    multiplications, loaded_bytes = block_m * block_n * BLOCK_K, 2 * BLOCK_K * loaded_rows
    if wgmma:
        return max(
            multiplications / SM90_MULTIPLICATIONS_PER_CLOCK,
            loaded_bytes / SM90_L2_BYTES_PER_CLOCK,
        )
    return max(multiplications / MULTIPLICATIONS_PER_CLOCK, loaded_bytes / L2_BYTES_PER_CLOCK)


def choose_tile_configuration(
    table: tuple[TileConfiguration, ...], device: Device, pixels: int, sizes: Sequence[int]
) -> TileConfiguration:
    """The tile with which a product should be done first; see `step_clocks`.

    Args:
        table: of the op, of one engine.
        device: to run on.
        pixels: of the whole batch.
        sizes: filters of each segment.
    """

    def clocks(c: TileConfiguration) -> float:
        tiles = -(-pixels // c.block_m) * sum(-(-size // c.block_n) for size in sizes)
        waves = -(-tiles // device.multiprocessors)
        return waves * step_clocks(c.wgmma, c.block_m, c.block_n, c.block_m + c.block_n)

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
