"""The arithmetic of a chain of four factors in one cluster, as the table of docs/chain.md.

`python -m tests.chain_table` prints it; `tests/test_chain_table.py` holds the document against it.
A launch takes whole waves, and in each a factor the slower of the matrix units and of what its
blocks read: filters from L2, and pixels from L2 or from their neighbours, at one rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fused_inception.ops.common.cuda_launching import SM90_L2_BYTES_PER_CLOCK
from tests.sm90_table import CLOCK, FLOPS_PER_CLOCK, H100

BATCHES = (1, 2, 4, 8, 16)
CHANNELS = (128, 160, 192)
SIDE, TAPS = 17, 7
FILTERS = 64  # of a wgmma; the least that a block can have without idle rows
# A cluster lies within one of an H100's eight processing clusters and has up to 16 blocks.
CLUSTER, CLUSTERS = 16, 8
HEADER = (
    "channels", "batch", "chain: blocks an image", "waves", "us", "two pairs: pixels", "split",
    "blocks", "waves", "us", "chain / pairs",
)  # fmt: skip


class Factor(NamedTuple):
    """What one block does in one factor, in clocks of the matrix units and of its reads."""

    matrix: float
    reads: float

    @property
    def clocks(self) -> float:
        return max(self.matrix, self.reads)


def factor(channels: int, lines: int, groups: int, across: bool) -> Factor:
    """A block with `groups` times 64 filters and `lines` lines of pixels.

    A factor whose taps go across lines reads three lines more on either side.
    """
    columns = -(-lines * SIDE // 8) * 8
    read_lines = min(SIDE, lines + TAPS - 1) if across else lines
    filter_bytes = 2 * min(groups * FILTERS, channels) * TAPS * channels
    pixel_bytes = 2 * read_lines * SIDE * channels
    flops = 2 * groups * FILTERS * columns * TAPS * channels
    return Factor(flops / FLOPS_PER_CLOCK, (filter_bytes + pixel_bytes) / SM90_L2_BYTES_PER_CLOCK)


class Way(NamedTuple):
    """One way to run the four factors."""

    lines: int
    split: int  # blocks that share the filters of the same pixels
    blocks: int
    waves: int
    clocks: float


def chain(channels: int, batch: int) -> Way:
    """An image a cluster: every block has 64 filters of a part of the lines, in all factors."""
    groups = -(-channels // FILTERS)
    lines = -(-SIDE // (CLUSTER // groups))
    blocks = groups * -(-SIDE // lines)
    waves = -(-batch // CLUSTERS)
    both = factor(channels, lines, 1, True).clocks + factor(channels, lines, 1, False).clocks
    return Way(lines, groups, blocks, waves, 2 * waves * both)


def pairs(channels: int, batch: int) -> Way:
    """Two launches of the pair: bands of four or nine lines, their filters over 1 to 3 blocks."""

    def ways() -> Iterator[Way]:
        groups = -(-channels // FILTERS)
        for lines in (4, 9):
            for split in range(1, groups + 1):
                if groups % split:
                    continue
                blocks = batch * -(-SIDE // lines) * split
                waves = -(-blocks // H100.multiprocessors)
                share = groups // split
                both = (
                    factor(channels, lines, share, True).clocks
                    + factor(channels, lines, share, False).clocks
                )
                yield Way(lines, split, blocks, waves, 2 * waves * both)

    return min(ways(), key=lambda way: way.clocks)


def line_of(channels: int, batch: int) -> list[str]:
    one, two = chain(channels, batch), pairs(channels, batch)
    return [
        str(channels),
        str(batch),
        str(one.blocks),
        str(one.waves),
        f"{one.clocks / CLOCK * 1e6:.1f}",
        f"{two.lines} x {SIDE}",
        str(two.split),
        str(two.blocks),
        str(two.waves),
        f"{two.clocks / CLOCK * 1e6:.1f}",
        f"{one.clocks / two.clocks:.2f}",
    ]


def markdown() -> str:
    lines = [list(HEADER), ["---"] * len(HEADER)]
    lines += [line_of(channels, batch) for channels in CHANNELS for batch in BATCHES]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(markdown(), end="")
