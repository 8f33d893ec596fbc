"""The arithmetic of the ops on wgmma, as the table of docs/cuda_convolutions.md.

`python -m tests.sm90_ops_table` prints it; `tests/test_sm90_table.py` holds the document against
it. A launch takes whole waves of tiles, one to a multiprocessor, and in each step the slower of the
matrix units and of what the tile reads from L2; and no less than memory takes for all bytes once.
The same is counted for the tile that Triton's tables choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from bench.sm90 import op_shapes
from fused_inception import _extension, testing
from fused_inception.ops.common.configurations import Product, choose_tile, load_table, padded
from fused_inception.ops.common.cuda_launching import (
    BLOCK_K,
    SM90_L2_BYTES_PER_CLOCK,
    SM90_MULTIPLICATIONS_PER_CLOCK,
    TileConfiguration,
    choose_tile_configuration,
)
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.conv2d_act.launch import FEW_CHANNELS
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from fused_inception.ops.split_conv2d.op import Problem
from tests.sm90_table import CLOCK, H100, MEMORY_BYTES_PER_SECOND

BATCHES = (1, 32, 256)
HEADER = (
    "op", "map", "channels", "filter", "batch", "tile", "waves", "matrix us", "L2 us", "memory us",
    "expected us", "Triton's tile", "waves", "expected us", "measured us",
)  # fmt: skip


class Work(NamedTuple):
    """What a launch does, in seconds of each part of the device by itself."""

    tile: str
    waves: int
    matrix: float
    l2: float

    @property
    def seconds(self) -> float:
        return max(self.matrix, self.l2)


def work(name: str, tiles: int, steps: list[tuple[int, int, int, int]]) -> Work:
    """`steps`: (how many, pixels, filters, rows that are loaded) of a tile."""
    waves = -(-tiles // H100.multiprocessors)
    matrix = sum(n * p * f * BLOCK_K for n, p, f, _ in steps) / SM90_MULTIPLICATIONS_PER_CLOCK
    l2 = sum(n * 2 * BLOCK_K * rows for n, _, _, rows in steps) / SM90_L2_BYTES_PER_CLOCK
    return Work(name, waves, waves * matrix / CLOCK, waves * l2 / CLOCK)


def of_wgmma(table: tuple[TileConfiguration, ...]) -> tuple[TileConfiguration, ...]:
    return tuple(c for c in table if c.wgmma)


def product_work(
    op: str, pixels: int, filters: int, taps: int, channels: int
) -> tuple[Work, Work | None]:
    """Of `conv2d_act` or `grid_reduction`: here, and on Triton."""

    def of(p: int, f: int, steps: int) -> Work:
        return work(f"{p} x {f}", -(-pixels // p) * -(-filters // f), [(steps, p, f, p + f)])

    module: Any = conv_launch if op == "conv2d_act" else reduction_launch
    here = choose_tile_configuration(of_wgmma(module.configurations()), H100, pixels, [filters])
    own = padded(channels, 8)
    together = taps * own if op == "conv2d_act" else taps * padded(own, BLOCK_K)
    ours = of(here.block_m, here.block_n, -(-together // BLOCK_K))
    if op == "conv2d_act" and channels <= FEW_CHANNELS:
        return ours, None  # another kernel, whose steps are others
    tile = choose_tile(load_table(op, "sm_90").tiles["bfloat16"], Product(filters, taps, channels))
    steps = taps * padded(channels, tile.block_k) // BLOCK_K
    return ours, of(tile.block_p, tile.block_f, steps)


def split_work(shape: testing.SplitShape) -> tuple[Work, Work | None]:
    s = shape
    problem = Problem(
        s.batch, s.c_in, s.height, s.width, s.c_row, s.c_col, s.taps_row, s.taps_col,
        torch.bfloat16, torch.device("cuda"),
    )  # fmt: skip
    others, blocks = s.taps_row + s.taps_col - 2, padded(s.c_in, BLOCK_K) // BLOCK_K
    here = split_launch.choose(of_wgmma(split_launch.table_of(problem)), H100, problem)
    assert here.whole
    half = here.block_n // 2
    images = split_launch.whole_images(here, s.height, s.width)
    ours = work(
        f"{images} maps x ({half} + {half})",
        -(-s.batch // images) * -(-max(s.c_row, s.c_col) // half),
        [
            (blocks, here.block_m, here.block_n, here.block_m + here.block_n),
            (others * blocks, here.block_m, half, half),
        ],
    )
    products = [Product(s.c_row, s.taps_row, s.c_in), Product(s.c_col, s.taps_col, s.c_in)]
    tile = choose_tile(load_table("split_conv2d", "sm_90").tiles["bfloat16"], *products)
    p, f = tile.block_p, tile.block_f
    tiles = -(-s.batch * s.height * s.width // p) * -(-max(s.c_row, s.c_col) // f)
    steps = [(blocks, p, 2 * f, p + 2 * f), (others * blocks, p, f, p + f)]
    return ours, work(f"{p} x ({f} + {f})", tiles, steps)


def line_of(op: str, shape: Any) -> list[str]:
    s = shape
    input_bytes = 2 * s.batch * s.height * s.width * padded(s.c_in, 8)
    if op == "split_conv2d":
        ours, triton = split_work(s)
        filters, taps, pixels = s.c_row + s.c_col, s.taps_row, s.batch * s.height * s.width
        name, more = f"1x{s.taps_row} + {s.taps_col}x1", 0
    else:
        kernel = s.kernel if op == "conv2d_act" else (s.kernel, s.kernel)
        stride = s.stride if op == "conv2d_act" else (2, 2)
        padding = s.padding if op == "conv2d_act" else (0, 0)
        height, width = (
            (size + 2 * pad - k) // step + 1
            for size, k, step, pad in zip((s.height, s.width), kernel, stride, padding, strict=True)
        )
        filters, taps, pixels = s.c_out, kernel[0] * kernel[1], s.batch * height * width
        ours, triton = product_work(op, pixels, filters, taps, s.c_in)
        name = f"{kernel[0]}x{kernel[1]}" + (f" / {stride[0]}" if stride[0] > 1 else "")
        more = 2 * pixels * s.c_in if op == "grid_reduction" else 0  # what the pool writes
    moved = input_bytes + 2 * filters * taps * s.c_in + 2 * pixels * filters + more
    memory = moved / MEMORY_BYTES_PER_SECOND

    def us(seconds: float) -> str:
        return f"{seconds * 1e6:.1f}"

    return [
        op,
        f"{s.height}x{s.width}",
        f"{s.c_in} {filters}",
        name,
        str(s.batch),
        ours.tile,
        str(ours.waves),
        us(ours.matrix),
        us(ours.l2),
        us(memory),
        us(max(ours.seconds, memory)),
        triton.tile if triton else "",
        str(triton.waves) if triton else "",
        us(max(triton.seconds, memory)) if triton else "",
        "",
    ]


def lines() -> Iterator[list[str]]:
    for many in zip(*(op_shapes(batch) for batch in BATCHES), strict=True):
        for op, shape in many:
            yield line_of(op, shape)


def markdown() -> str:
    rows = [list(HEADER), ["---"] * len(HEADER), *lines()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    info = _extension.build_info()
    print(markdown() if info["loaded"] else f"error: {info['error']}\n", end="")


if __name__ == "__main__":
    main()
