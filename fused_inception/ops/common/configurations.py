"""Choice of a Triton configuration: static tables, nothing tuned at run time.

Every op has one table per device class. A table lists, per precision, the tiles a kernel may use.
Which of them a problem gets is a function of its channels and filters, never of the batch: the K
block orders a sum, and the tile may decide which matrix instruction is used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import torch

# Compute capability -> device class. A class stands for one shared memory limit and one matrix
# instruction.
DEVICE_CLASSES = {
    (8, 0): "sm_80",
    (8, 6): "sm_86",
    (8, 7): "sm_80",
    (8, 9): "sm_86",
    (9, 0): "sm_90",
    (10, 0): "sm_100",
    (10, 3): "sm_100",
    (12, 0): "sm_120",
    (12, 1): "sm_120",
}
# Capabilities that are not listed: the tiles that fit every device.
DEFAULT_CLASS = "sm_86"

# 32-bit registers of a multiprocessor, on every device that the project takes.
REGISTERS = 65536


@dataclass(frozen=True)
class Tile:
    """One configuration: rows, filters and K of a tile, and how Triton compiles it.

    A `whole` tile takes only channels in whole K blocks and filters in multiples of 16: with the
    masks that others need it would spill registers. `cost` is what one of its multiplications takes
    beside one of the table's best tile.
    """

    block_p: int
    block_f: int
    block_k: int
    num_warps: int
    num_stages: int
    whole: bool = False
    cost: float = 1.0

    @property
    def max_registers(self) -> int:
        """Registers a thread may use; ptxas left to itself aims lower, and spills."""
        return min(255, REGISTERS // (32 * self.num_warps))


@dataclass(frozen=True)
class Table:
    """The configurations of one op on one device class.

    Attributes:
        device_class: as in `DEVICE_CLASSES`.
        shared_memory_bytes: what one program may use.
        settings: numbers that only this op's launcher reads; it says what they mean.
        tiles: by precision, as `conv_precision` names it.
    """

    device_class: str
    shared_memory_bytes: int
    settings: Mapping[str, float]
    tiles: Mapping[str, tuple[Tile, ...]]


@functools.cache
def load_table(op: str, device_class: str) -> Table:
    """The table of an op for one device class, from `ops/<op>/configs/<class>.json`."""
    source = resources.files("fused_inception.ops") / op / "configs" / f"{device_class}.json"
    data = json.loads(source.read_text())
    fields = Tile.__dataclass_fields__
    return Table(
        device_class=device_class,
        shared_memory_bytes=data["shared_memory_bytes"],
        settings=data["settings"],
        tiles={
            precision: tuple(
                Tile(**{name: row[name] for name in fields if name in row}) for row in rows
            )
            for precision, rows in data["tiles"].items()
        },
    )


def device_table(op: str, device: torch.device) -> Table:
    """The configurations of `op` for `device`; the interpreter uses those that fit every device."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return load_table(op, device_class(capability))


def device_class(capability: tuple[int, int]) -> str:
    """The device class whose table a compute capability uses."""
    return DEVICE_CLASSES.get(capability, DEFAULT_CLASS)


def padded(size: int, block: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // block) * block


class Product(NamedTuple):
    """One convolution as a tile sees it: a sum over `taps` × `channels` for each of `filters`."""

    filters: int
    taps: int
    channels: int


def choose_tile(tiles: tuple[Tile, ...], *products: Product) -> Tile:
    """Of the tiles that take all `products`, the one whose multiplications cost the least.

    Those with padding count too. On a tie the first of the table.
    """

    def cost(tile: Tile) -> float:
        multiplications = sum(
            padded(p.filters, tile.block_f) * p.taps * padded(p.channels, tile.block_k)
            for p in products
        )
        return tile.cost * multiplications

    def takes(tile: Tile) -> bool:
        ragged = any(p.channels % tile.block_k or p.filters % 16 for p in products)
        return not (tile.whole and ragged)

    return min(filter(takes, tiles), key=cost)
