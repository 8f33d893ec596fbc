"""The pair in the compiled extension: what it takes, which configuration it gets, and the launch.

The kernels' configurations are a table of the extension (csrc/factorized_conv2d/configuration.h).
All of one kind (mma.sync from sm_80 on, wgmma on sm_90a) form every sum in the same order, so that
which one runs, which may depend on the batch, changes no bit of the result. The kind, and what the
backend takes, depend on one image alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fused_inception import _extension
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import (
    BLOCK_K,
    CHANNEL_MULTIPLE,
    MAX_CHANNELS,
    SM90_L2_BYTES_PER_CLOCK,
    Device,
    destinations,
)
from fused_inception.ops.common.cuda_launching import device_limits as _device
from fused_inception.ops.common.launching import dense_bias, operand
from fused_inception.ops.common.registration import define_internal

if TYPE_CHECKING:
    from .op import Problem

MAX_TAPS = 15
MAX_SIDE = 71
MAX_SM90_LINE = 160
# Bands are used where they are at least this many to a multiprocessor. Reasoned, not yet measured.
MIN_BANDS_PER_MULTIPROCESSOR = 0.75
# What one block of a cluster gives another: 2.65 TB/s for 114 at 1.6 GHz (arXiv 2402.13499).
CLUSTER_BYTES_PER_CLOCK = 14

_out_operator = define_internal(
    "_factorized_conv2d_cuda_out",
    "(Tensor input, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
    "Tensor(a!)? mid, Tensor(b!) out, int channel_offset, bool mid_relu, bool relu, "
    "int configuration) -> ()",
)
_configurations_operator = define_internal(
    "_factorized_conv2d_cuda_configurations", "(int c_mid) -> int[]"
)
_sm90_configurations_operator = define_internal(
    "_factorized_conv2d_cuda_sm90_configurations",
    "(int c_in, int c_mid, int taps1, int taps2, int cross_size, int line_size) -> int[]",
)


class Configuration(NamedTuple):
    """One row of the extension's table, `number`, for a given number of mid channels.

    With `bands` one launch does both factors; without, each has a launch of its own.
    """

    number: int
    bands: bool
    block_m: int  # pixels of a tile
    block_n: int  # filters of a tile
    shared_bytes: int
    # Of sm_90a: blocks of a cluster that share out the filters of one band, or that have a band
    # each and load filters together.
    split: int = 1
    multicast: int = 1


@functools.cache
def configurations(c_mid: int) -> tuple[Configuration, ...]:
    """The extension's table, with the shared memory that `c_mid` channels take."""
    numbers = _configurations_operator(c_mid)
    rows = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    return tuple(
        Configuration(number, bool(bands), *sizes) for number, (bands, *sizes) in enumerate(rows)
    )


@functools.lru_cache(maxsize=4096)
def sm90_configurations(problem: Problem) -> tuple[Configuration, ...]:
    """The table of sm_90a for `problem`, without the rows whose tile is shorter than a line."""
    p = problem
    c_in, c_mid = padded(p.c_in, CHANNEL_MULTIPLE), padded(p.c_mid, CHANNEL_MULTIPLE)
    numbers = _sm90_configurations_operator(
        c_in, c_mid, p.taps1, p.taps2, p.cross_size, p.line_size
    )
    first = len(configurations(c_mid))
    rows = [numbers[i : i + 6] for i in range(0, len(numbers), 6)]
    return tuple(
        Configuration(first + i, True, *sizes) for i, (lines, *sizes) in enumerate(rows) if lines
    )


def shape_refusal(problem: Problem) -> str | None:
    """Why the kernels do not take the shape of `problem`, or None where they do."""
    p = problem
    if max(p.taps1, p.taps2) > MAX_TAPS:
        return f"filters of length {p.taps1} and {p.taps2}; takes up to {MAX_TAPS}"
    if max(p.height, p.width) > MAX_SIDE:
        return f"a map of {p.height}x{p.width}; takes up to {MAX_SIDE}x{MAX_SIDE}"
    if max(p.c_in, p.c_mid, p.c_out) > MAX_CHANNELS:
        return f"{p.c_in}, {p.c_mid} and {p.c_out} channels; takes up to 2^20"
    return None


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    reason = shape_refusal(problem) or _extension.refusal(problem.dtype, problem.device)
    if reason is None:
        least = min(c.shared_bytes for c in configurations(padded(problem.c_mid, CHANNEL_MULTIPLE)))
        limit = _device(problem.device).shared_bytes
        if least > limit:
            reason = f"{problem.device} has {limit} bytes of shared memory a block; takes {least}"
    return reason


def choose(table: tuple[Configuration, ...], device: Device, problem: Problem) -> Configuration:
    """Bands where they fit and fill the device, with the least padding; else two launches.

    Of the configurations for two launches, the one of the largest tile that fills the device, or
    the one of the smallest.
    """
    p = problem
    fitting = [c for c in table if c.shared_bytes <= device.shared_bytes]

    def multiplications(c: Configuration) -> int:
        first = padded(p.c_mid, c.block_n) * p.taps1 * p.c_in
        return first + padded(p.c_out, c.block_n) * p.taps2 * p.c_mid

    bands = [c for c in fitting if c.bands and c.block_m >= p.line_size]
    if bands:
        best = min(bands, key=multiplications)
        number = -(-p.batch * p.cross_size // (best.block_m // p.line_size))
        if number >= MIN_BANDS_PER_MULTIPROCESSOR * device.multiprocessors:
            return best

    def tiles(c: Configuration) -> int:
        pixel_tiles = -(-p.batch * p.height * p.width // c.block_m)
        return pixel_tiles * -(-min(p.c_mid, p.c_out) // c.block_n)

    pairs = sorted((c for c in fitting if not c.bands), key=lambda c: -c.block_m * c.block_n)
    return next((c for c in pairs if tiles(c) >= device.multiprocessors), pairs[-1])


class Sm90Cost(NamedTuple):
    """What a configuration of sm_90a makes of a problem, by arithmetic; of a block, for a band."""

    bands: int
    clusters: int  # that take all bands at once
    matrix_clocks: int  # on the matrix units
    l2_bytes: int  # filters and input that it reads itself
    exchanged_bytes: int  # of the mid band, from the other blocks of its cluster

    @property
    def l2_clocks(self) -> float:
        return self.l2_bytes / SM90_L2_BYTES_PER_CLOCK

    @property
    def exchange_clocks(self) -> float:
        return self.exchanged_bytes / CLUSTER_BYTES_PER_CLOCK

    @property
    def clocks(self) -> float:
        """The slower of matrix units and L2; nothing is computed during the exchange."""
        return max(self.matrix_clocks, self.l2_clocks) + self.exchange_clocks


def sm90_cost(configuration: Configuration, problem: Problem) -> Sm90Cost:
    p, c = problem, configuration
    bands_per_image = -(-p.cross_size // (c.block_m // p.line_size))
    lines = -(-p.cross_size // bands_per_image)
    bands = p.batch * -(-p.cross_size // lines)
    k_steps = padded(p.c_in, BLOCK_K) // BLOCK_K, padded(p.c_mid, BLOCK_K) // BLOCK_K
    stored = padded(p.c_mid, BLOCK_K), padded(p.c_out, CHANNEL_MULTIPLE)
    products = filter_bytes = 0  # of 64 filters, and BLOCK_K channels
    for count, taps, channels, k_step in zip(
        stored, (p.taps1, p.taps2), (p.c_in, p.c_mid), k_steps, strict=True
    ):
        part = padded(-(-count // c.split), CHANNEL_MULTIPLE)
        tiles = -(-part // c.block_n)
        rows = min(padded(part, CHANNEL_MULTIPLE * c.multicast), c.block_n) // c.multicast
        products += -(-part // 64) * taps * k_step
        filter_bytes += 2 * tiles * rows * taps * channels
    input_bytes = 2 * (lines + p.taps1 - 1) * p.line_size * p.c_in
    own_mid = padded(-(-stored[0] // c.split), CHANNEL_MULTIPLE)
    return Sm90Cost(
        bands=bands,
        clusters=-(-bands // c.multicast),
        matrix_clocks=products * (BLOCK_K // 16) * (c.block_m // 2),
        l2_bytes=filter_bytes + input_bytes,
        exchanged_bytes=2 * (stored[0] - own_mid) * lines * p.line_size if c.split > 1 else 0,
    )


def clusters_at_once(multiprocessors: int, cluster: int) -> int:
    """Clusters that a device surely runs at once, counted as the extension does."""
    if cluster <= 2:
        return max(1, multiprocessors // cluster)
    return max(1, multiprocessors // 16 * (16 // cluster))


def sm90_clocks(configuration: Configuration, device: Device, problem: Problem) -> float:
    """Clocks that the whole problem takes, by arithmetic."""
    cost = sm90_cost(configuration, problem)
    cluster = configuration.split * configuration.multicast
    return -(-cost.clusters // clusters_at_once(device.multiprocessors, cluster)) * cost.clocks


def choose_sm90(
    table: tuple[Configuration, ...], device: Device, problem: Problem
) -> Configuration | None:
    """The configuration that should be done first; None where none fits. See `sm90_cost`.

    Of several the one that reads least from L2, and then that of the smaller tile, which leaves
    the ring more steps.
    """

    def order(c: Configuration) -> tuple[float, int, int]:
        return sm90_clocks(c, device, problem), sm90_cost(c, problem).l2_bytes, c.block_n

    fitting = [c for c in table if c.shared_bytes <= device.shared_bytes]
    return min(fitting, key=order, default=None)


def sm90_refusal(problem: Problem) -> str | None:
    """Why the kernels of sm_90a do not run one image of `problem`, or None where they do."""
    reason = cuda_launching.sm90_refusal(problem.device)
    if reason is not None:
        return reason
    p = problem._replace(batch=1)
    table, device = sm90_configurations(p), _device(p.device)
    if not table:
        return f"no band fits: a line of {p.line_size} pixels; takes up to {MAX_SM90_LINE}"
    if choose_sm90(table, device, p) is None:
        least = min(c.shared_bytes for c in table)
        return (
            f"no band fits: {p.c_in} and {p.c_mid} channels with {p.taps1} and {p.taps2} taps take "
            f"{least} bytes of shared memory a block; {p.device} has {device.shared_bytes}"
        )
    return None


def images_of_mid(problem: Problem, l2_bytes: int) -> int:
    """Images whose mid tensor stays in L2 together, at least one and at most the batch."""
    c_mid = padded(problem.c_mid, CHANNEL_MULTIPLE)
    image_bytes = problem.height * problem.width * c_mid * problem.dtype.itemsize
    return max(1, min(problem.batch, l2_bytes // image_bytes))


@functools.lru_cache(maxsize=4096)
def _plan(problem: Problem) -> tuple[Configuration, int]:
    """The configuration for `problem`, and the images of its mid tensor."""
    device = _device(problem.device)
    if sm90_refusal(problem) is None:
        # What fits does not depend on the batch.
        chosen = choose_sm90(sm90_configurations(problem._replace(batch=1)), device, problem)
        assert chosen is not None
        return chosen, 0
    table = configurations(padded(problem.c_mid, CHANNEL_MULTIPLE))
    return choose(table, device, problem), images_of_mid(problem, device.l2_bytes)


def launch(
    problem: Problem,
    configuration: Configuration,
    images: int,
    input: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    output: torch.Tensor,
    mid_activation: str,
    activation: str,
) -> None:
    """Copy what the kernels do not take as it is, and run `configuration`.

    `images` are those of the mid tensor. `output` is as in `launch_pair`.
    """
    p = problem
    if p.batch == 0:
        return
    c_in, c_mid = (padded(c, CHANNEL_MULTIPLE) for c in (p.c_in, p.c_mid))
    mid = None
    if not configuration.bands:
        mid = input.new_empty((images, p.cross_size, p.line_size, c_mid))
    with destinations(output) as (place,):
        _out_operator(
            operand(input, c_in),
            operand(weight1, c_in),
            dense_bias(bias1),
            operand(weight2, c_mid),
            dense_bias(bias2),
            mid,
            place,
            0,
            mid_activation == "relu",
            activation == "relu",
            configuration.number,
        )


def launch_pair(problem: Problem, *arguments: Any) -> None:
    """Write the pair into an output, as `launch.launch_pair`."""
    launch(problem, *_plan(problem), *arguments)
