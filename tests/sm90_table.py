"""The arithmetic of the pair on wgmma, as the table of docs/cuda_factorized_conv2d.md.

`python -m tests.sm90_table` prints it; `tests/test_sm90_table.py` holds the document against it.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Iterator

import torch

from fused_inception import testing
from fused_inception.ops.factorized_conv2d.cuda_launch import (
    Configuration,
    Device,
    choose_sm90,
    clusters_at_once,
    sm90_cost,
)
from fused_inception.ops.factorized_conv2d.op import Problem
from tests.emulator import pair, programs

BATCHES = (1, 8, 32, 128, 256)
# An H100 SXM: data sheet and Hopper tuning guide.
H100 = Device(shared_bytes=232448, multiprocessors=132, l2_bytes=50 << 20)
FLOPS_PER_CLOCK = 4096  # of a multiprocessor, float16
CLOCK = 989e12 / (132 * FLOPS_PER_CLOCK)  # at which these make the data sheet's rate
MEMORY_BYTES_PER_SECOND = 3.35e12
LETTERS = string.ascii_letters
HEADER = (
    "pair", "batch", "tile", "cluster", "blocks", "waves", "filters in tiles", "pixels in tiles",
    "L2 KB a block", "exchanged KB", "memory KB a band", "shared KB", "registers", "expected us",
    "TFLOP/s", "bound by", "alone us", "measured us",
)  # fmt: skip


def table_of(c_mid: int) -> dict[Configuration, int]:
    """The configurations of sm_90a for 17x17 maps and 7 taps, and the threads of their blocks."""
    rows = {}
    for number, row in enumerate(pair.configurations(c_mid)):
        if row.sm90:
            _, tile, *cluster = row.name.split("-")
            filters, pixels = map(int, tile.split("x"))
            counts = {word.rstrip("0123456789"): int(word.lstrip(LETTERS)) for word in cluster}
            configuration = Configuration(number, True, pixels, filters, row.shared_bytes, **counts)
            rows[configuration] = row.threads
    return rows


def problems() -> Iterator[Problem]:
    """Inception V3's pairs, each set of channels once: the order of the factors changes nothing."""
    seen = set()
    for shape in testing.inception_v3_pairs(1):
        channels = (shape.c_in, shape.c_mid, shape.c_out)
        if channels not in seen:
            seen.add(channels)
            yield Problem(
                1, *channels, shape.height, shape.width, shape.taps1, shape.taps2, True,
                torch.bfloat16, torch.device("cuda"),
            )  # fmt: skip


def seconds_of(configuration: Configuration, problem: Problem) -> dict[str, float]:
    """What each part of the device would take by itself; the exchange comes to either of two."""
    p, cost = problem, sm90_cost(configuration, problem)
    cluster = configuration.split * configuration.multicast
    waves = -(-cost.clusters // clusters_at_once(H100.multiprocessors, cluster))
    weight_bytes = 2 * p.c_mid * (p.taps1 * p.c_in + p.taps2 * p.c_out)
    pixels = p.batch * p.height * p.width
    return {
        "L2": waves * (cost.l2_clocks + cost.exchange_clocks) / CLOCK,
        "matrix units": waves * (cost.matrix_clocks + cost.exchange_clocks) / CLOCK,
        "memory": (2 * pixels * (p.c_in + p.c_out) + weight_bytes) / MEMORY_BYTES_PER_SECOND,
    }


def line_of(problem: Problem) -> list[str]:
    p = problem
    rows = table_of(p.c_mid)
    chosen = choose_sm90(tuple(rows), H100, p)
    alone = choose_sm90(tuple(c for c in rows if c.split * c.multicast == 1), H100, p)
    assert chosen is not None
    assert alone is not None
    cost = sm90_cost(chosen, p)
    cluster = chosen.split * chosen.multicast
    seconds = seconds_of(chosen, p)
    bound = max(seconds, key=lambda key: seconds[key])
    pixels = p.batch * p.height * p.width
    flops = 2 * pixels * p.c_mid * (p.taps1 * p.c_in + p.taps2 * p.c_out)
    blocks = cost.clusters * cluster
    # What the products take, of what they would with neither filters nor pixels of padding.
    busy = flops / (cost.bands * chosen.split * cost.matrix_clocks * FLOPS_PER_CLOCK)
    columns = pixels / (cost.bands * chosen.block_m)
    return [
        f"{p.c_in} {p.c_mid} {p.c_out}",
        str(p.batch),
        f"{chosen.block_n} x {chosen.block_m}",
        f"split {chosen.split}" if chosen.split > 1
        else f"multicast {chosen.multicast}" if chosen.multicast > 1
        else "1",
        str(blocks),
        f"{cost.clusters / clusters_at_once(H100.multiprocessors, cluster):.2f}",
        f"{busy / columns:.0%}",
        f"{columns:.0%}",
        f"{cost.l2_bytes / 1024:.0f}",
        f"{cost.exchanged_bytes / 1024:.0f}",
        f"{seconds['memory'] * MEMORY_BYTES_PER_SECOND / cost.bands / 1024:.0f}",
        f"{chosen.shared_bytes / 1024:.0f}",
        str(min(255, 65536 // rows[chosen] // 8 * 8)),
        f"{seconds[bound] * 1e6:.1f}",
        f"{flops / seconds[bound] / 1e12:.0f}",
        bound,
        f"{max(seconds_of(alone, p).values()) * 1e6:.1f}",
        "",
    ]  # fmt: skip


def markdown() -> str:
    lines = [list(HEADER), ["---"] * len(HEADER)]
    lines += [line_of(p._replace(batch=batch)) for p in problems() for batch in BATCHES]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    reason = programs.refusal()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
