"""Choice of a Triton configuration: static tables, one per device class, nothing tuned at run time.

A table lists, per precision, the tiles a kernel may use. Which of them a problem gets is a function
of its channels and filters, never of the batch: the K block orders a sum, and the tile may decide
which matrix instruction is used.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

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
    masks that others need it would spill registers.
    """

    block_p: int
    block_f: int
    block_k: int
    num_warps: int
    num_stages: int
    whole: bool = False

    @property
    def max_registers(self) -> int:
        """Registers a thread may use; ptxas left to itself aims lower, and spills."""
        return min(255, REGISTERS // (32 * self.num_warps))


@dataclass(frozen=True)
class Table:
    """The configurations of one device class.

    `programs_per_multiprocessor` sizes the persistent grid; `l2_bytes` bounds the intermediate
    tensor of the two-launch form; the band form runs where bands fill at least `min_band_waves` of
    the multiprocessors and their lines at least `min_band_fill` of the rows of a tile.
    """

    device_class: str
    shared_memory_bytes: int
    programs_per_multiprocessor: int
    l2_bytes: int
    min_band_waves: float
    min_band_fill: float
    tiles: dict[str, tuple[Tile, ...]]


@functools.cache
def load_table(device_class: str) -> Table:
    """The table of one device class, from `configs/<class>.json`."""
    source = resources.files(__package__) / "configs" / f"{device_class}.json"
    data = json.loads(source.read_text())
    fields = Tile.__dataclass_fields__
    return Table(
        device_class=device_class,
        shared_memory_bytes=data["shared_memory_bytes"],
        programs_per_multiprocessor=data["programs_per_multiprocessor"],
        l2_bytes=data["l2_bytes"],
        min_band_waves=data["min_band_waves"],
        min_band_fill=data["min_band_fill"],
        tiles={
            precision: tuple(Tile(**{name: row[name] for name in fields}) for row in rows)
            for precision, rows in data["tiles"].items()
        },
    )


def device_class(capability: tuple[int, int]) -> str:
    """The device class whose table a compute capability uses."""
    return DEVICE_CLASSES.get(capability, DEFAULT_CLASS)


def padded(size: int, block: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // block) * block


def choose_tile(
    tiles: tuple[Tile, ...], c_in: int, c_mid: int, c_out: int, taps1: int, taps2: int
) -> Tile:
    """Of the tiles that take the problem, the one that multiplies the least padding.

    On a tie the first of the table.
    """

    def multiplications(tile: Tile) -> int:
        first = padded(c_mid, tile.block_f) * taps1 * padded(c_in, tile.block_k)
        second = padded(c_out, tile.block_f) * taps2 * padded(c_mid, tile.block_k)
        return first + second

    def takes(tile: Tile) -> bool:
        ragged = c_in % tile.block_k or c_mid % tile.block_k or c_mid % 16 or c_out % 16
        return not (tile.whole and ragged)

    return min(filter(takes, tiles), key=multiplications)
