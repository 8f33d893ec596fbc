"""What is open about the kernels on wgmma, measured: how the pair loads, what are rows, how large a
cluster; and how the other ops' tiles on wgmma stand to those on mma.sync and to Triton.

    python -m bench.sm90 --output build/gpu/sm90.json

Needs a device of compute capability 9.0, the extension built for 9.0a, and nvcc or the programs of
`build/emulator` that it has built. Four tables:

- loads: a ring of filters that blocks of all multiprocessors fill and read, by cp.async, by tensor
  copies with rows of 16 and of 64 bytes, by bulk copies of packed filters, by multicast to two;
- products: 64x160x16 with filters or with pixels as rows;
- pairs: every pair of Inception V3 and every configuration that fits, beside what arithmetic
  expects; a row whose configuration is the one chosen says so;
- ops: the shapes of `conv2d_act`, `grid_reduction` and `split_conv2d` that take the most time, by
  every configuration on either engine that fits, and by Triton.

A pair is timed only where all configurations have given the same bits on it, the others where all
candidates are exact on whole numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.environment import BenchError, resolve_device
from bench.harness import EXIT_FAILED, EXIT_MORE
from bench.timers import CudaTimer
from fused_inception import _extension, conv2d_act, grid_reduction, split_conv2d, testing
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.common.cuda_launching import TileConfiguration
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.conv2d_act.op import _check as check_conv
from fused_inception.ops.conv2d_act.segments import Segment
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.factorized_conv2d.op import Problem
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.grid_reduction.op import _check as check_reduction
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from fused_inception.ops.split_conv2d.op import _check as check_split
from tests.emulator import probe, programs

BATCHES = (1, 8, 32, 128, 256)
CHANNELS, REPEATS = 1344, 20  # of the probes: 7 taps of 192 channels, so often
SAMPLES = 5
FLOPS = 2 * 64 * 160 * 32 * 3  # of a step of the product's blocks


def is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def refusal() -> str | None:
    """Why nothing can be measured on Hopper, or None."""
    info = _extension.build_info()
    if info["error"] is not None:
        return f"extension: {info['error']}"
    if not any(a.startswith("9.0a") for a in info["architectures"]):
        return "the extension is not built for 9.0a"
    return programs.device_refusal(probe.PROGRAM)


def probes() -> list[dict[str, Any]]:
    """A row for each way to load and each orientation."""
    binary = programs.build_for_device(probe.PROGRAM)
    rows = []
    for way in (*probe.LOADS, *probe.PRODUCTS):
        with tempfile.TemporaryDirectory() as folder:
            read, report = probe.run_probe(Path(folder), way, binary, CHANNELS, REPEATS)
        row = {"way": way, "error": report.fault, "us": report.nanoseconds / 1e3}
        if not report.fault and way in probe.LOADS:
            wanted = probe.parity(CHANNELS, REPEATS)
            if set(probe.parities(read)) != {wanted}:
                row["error"] = "wrong values"
            loaded = report.blocks * probe.FILTERS * CHANNELS * 2 * REPEATS
            row["GB/s"] = loaded / report.nanoseconds
        elif not report.fault:
            row["error"] = "wrong values" if read.any() else ""
            steps = report.blocks * CHANNELS // probe.STEP * REPEATS
            row["TFLOP/s"] = steps * FLOPS / report.nanoseconds / 1e3
        rows.append(row)
        print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return rows


def medians_of(
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]],
    input: torch.Tensor,
    output: torch.Tensor,
) -> list[float]:
    """Microseconds of each way to make an `output` of an `input`, sampled in turns."""
    timer = CudaTimer(input.device)
    copies = [
        input.clone(memory_format=torch.channels_last)
        for _ in range(min(64, timer.inputs(input.nbytes + output.nbytes)))
    ]
    samplers = [timer.sampler(name, run, copies, "graph") for name, run in ways.items()]
    samples = [[sampler() for sampler in samplers] for _ in range(SAMPLES)]
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def name_of(c: cuda_launch.Configuration) -> str:
    cluster = {"split": c.split, "multicast": c.multicast}
    words = [f"{word}{count}" for word, count in cluster.items() if count > 1]
    return "-".join([f"{c.block_n}x{c.block_m}", *words])


def pair_rows(shape: testing.PairShape, device: torch.device) -> list[dict[str, Any]]:
    """A row for each configuration that fits, or one that says what is wrong."""
    inputs = testing.random_pair(shape, torch.bfloat16, device)
    problem = Problem(
        shape.batch, shape.c_in, shape.c_mid, shape.c_out, shape.height, shape.width,
        shape.taps1, shape.taps2, shape.row_first, torch.bfloat16, device,
    )  # fmt: skip
    p, limits = problem, cuda_launch._device(device)
    table = [
        c
        for c in cuda_launch.sm90_configurations(problem._replace(batch=1))
        if c.shared_bytes <= limits.shared_bytes
    ]
    chosen = cuda_launch.choose_sm90(tuple(table), limits, problem)

    def run(configuration: cuda_launch.Configuration, input: torch.Tensor) -> torch.Tensor:
        output = empty_channels_last((p.batch, p.c_out, p.height, p.width), input)
        operands = (input, inputs.weight1, inputs.bias1, inputs.weight2, inputs.bias2)
        cuda_launch.launch(problem, configuration, 0, *operands, output, "relu", "relu")
        return output

    results = [run(c, inputs.input) for c in table]
    same = all(torch.equal(result, results[0]) for result in results)
    medians: list[float] = []
    if same:
        ways = {name_of(c): functools.partial(run, c) for c in table}
        medians = medians_of(ways, inputs.input, results[0])
    properties: Any = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "clock_rate", 0) * 1e3
    rows = []
    for i, c in enumerate(table):
        clocks = cuda_launch.sm90_clocks(c, limits, problem)
        rows.append(
            {
                "pair": str(shape),
                "configuration": name_of(c),
                "chosen": c == chosen,
                "expected_us": clocks / clock * 1e6 if clock else None,
                "us": medians[i] if same else None,
                "error": "" if same else "the configurations give different bits",
            }
        )
    return rows


class Candidate(NamedTuple):
    """One way to run an op."""

    name: str
    engine: str  # "wgmma", "mma.sync" or "triton"
    chosen: bool  # by the extension's launcher, among those of its engine
    run: Callable[[torch.Tensor], torch.Tensor]


def candidates(op: str, shape: Any, inputs: Any) -> list[Candidate]:
    """Every configuration of the extension that takes `shape`, and Triton; they write anew."""
    input, *operands = inputs
    device = input.device
    limits = cuda_launching.device_limits(device)

    def run_conv(x: torch.Tensor, c: TileConfiguration) -> torch.Tensor:
        out = empty_channels_last(problem.output_shape, x)
        segments = [Segment(out, "relu")]
        conv_launch.launch_segments(problem, x, *operands, segments, configuration=c)
        return out

    def run_reduction(x: torch.Tensor, c: TileConfiguration) -> torch.Tensor:
        out = empty_channels_last(problem.output_shape, x)
        conv, pooled = out[:, : shape.c_out], out[:, shape.c_out :]
        reduction_launch.launch_reduction(
            problem, x, *operands, conv, pooled, "relu", configuration=c
        )
        return out

    def run_split(x: torch.Tensor, c: TileConfiguration) -> torch.Tensor:
        out = empty_channels_last(problem.output_shape, x)
        split_launch.launch_split(problem, x, *operands, out, "relu", configuration=c)
        return out

    def choose(table: tuple[TileConfiguration, ...]) -> TileConfiguration:
        if op == "split_conv2d":
            return split_launch.choose(table, limits, problem)
        pixels = shape.batch * problem.out_height * problem.out_width
        return cuda_launching.choose_tile_configuration(table, limits, pixels, [shape.c_out])

    run: Callable[[torch.Tensor, TileConfiguration], torch.Tensor]
    problem: Any
    if op == "conv2d_act":
        options = {"stride": shape.stride, "padding": shape.padding}
        problem = check_conv(*inputs, shape.stride, shape.padding, "relu", "auto")
        table, run, function = conv_launch.configurations(), run_conv, conv2d_act
    elif op == "grid_reduction":
        options = {}
        problem = check_reduction(*inputs, "max", "relu", "auto")
        table, run, function = reduction_launch.configurations(), run_reduction, grid_reduction
    else:
        options = {}
        problem = check_split(*inputs, "relu", "auto")
        table, run, function = split_launch.table_of(problem), run_split, split_conv2d
        size = shape.height, shape.width
        table = tuple(c for c in table if not c.whole or split_launch.whole_images(c, *size))
    found = []
    for wgmma in (False, True):
        fitting = tuple(
            c for c in table if c.wgmma == wgmma and c.shared_bytes <= limits.shared_bytes
        )
        best = choose(fitting)
        for c in fitting:
            name = f"{'whole-' if c.whole else ''}{c.block_m}x{c.block_n}"
            engine = "wgmma" if wgmma else "mma.sync"
            found.append(Candidate(name, engine, c == best, lambda x, c=c: run(x, c)))
    found.append(
        Candidate(
            "triton", "triton", True,
            lambda x: function(x, *operands, **options, backend="triton"),
        )
    )  # fmt: skip
    return found


def op_shapes(batch: int) -> Iterator[tuple[str, Any]]:
    """(op, shape) of what takes the most time in Inception V3."""
    for shape in (
        testing.ConvShape(batch, 149, 149, 32, 32, (3, 3)),
        testing.ConvShape(batch, 147, 147, 32, 64, (3, 3), (1, 1), (1, 1)),
        testing.ConvShape(batch, 73, 73, 80, 192, (3, 3)),
        testing.ConvShape(batch, 299, 299, 3, 32, (3, 3), (2, 2)),
        testing.ConvShape(batch, 35, 35, 48, 64, (5, 5), (1, 1), (2, 2)),
        testing.ConvShape(batch, 35, 35, 96, 96, (3, 3), (1, 1), (1, 1)),
        testing.ConvShape(batch, 35, 35, 96, 96, (3, 3), (2, 2)),
        testing.ConvShape(batch, 35, 35, 288, 176, (1, 1)),
        testing.ConvShape(batch, 17, 17, 768, 576, (1, 1)),
        testing.ConvShape(batch, 17, 17, 192, 320, (3, 3), (2, 2)),
        testing.ConvShape(batch, 8, 8, 448, 384, (3, 3), (1, 1), (1, 1)),
        testing.ConvShape(batch, 8, 8, 2048, 1152, (1, 1)),
    ):
        yield "conv2d_act", shape
    for reduction in testing.inception_reductions(batch):
        yield "grid_reduction", reduction
    for split in dict.fromkeys(testing.inception_v3_splits(batch)):
        yield "split_conv2d", split


def op_rows(op: str, shape: Any, device: torch.device) -> list[dict[str, Any]]:
    """A row for each candidate, or one that says what is wrong."""
    pair = op == "split_conv2d"
    integers = testing.integer_split if pair else testing.integer_conv
    random = testing.random_split if pair else testing.random_conv
    whole = integers(shape, torch.bfloat16, device)
    results = [c.run(whole.input) for c in candidates(op, shape, whole)]
    inputs = random(shape, torch.bfloat16, device)
    found = candidates(op, shape, inputs)
    right = [torch.equal(result, results[-1]) for result in results]
    medians: list[float | None] = [None] * len(found)
    if all(right):
        ways = {f"{c.engine} {c.name}": c.run for c in found}
        medians = [*medians_of(ways, inputs.input, results[0])]
    return [
        {
            "op": f"{op} {shape}",
            "configuration": c.name,
            "engine": c.engine,
            "chosen": c.chosen,
            "us": us,
            "error": "" if same else "another result than Triton's on whole numbers",
        }
        for c, same, us in zip(found, right, medians, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where something is wrong, 2 after an error, 3 when something is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.sm90")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N")
    parser.add_argument(
        "--output", type=Path, required=True, help="a JSON file; it goes on with it"
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="end within this")
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        device = resolve_device(args.device)
        if not is_hopper(device):
            print("left out: needs a device of compute capability 9.0")
            return 0
        reason = refusal()
        if reason is not None:
            raise BenchError(reason)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    done: dict[str, list[dict[str, Any]]] = {}
    if args.output.exists():
        done = json.loads(args.output.read_text())
    work: dict[str, Callable[[], list[dict[str, Any]]]] = {"probes": probes}
    for batch in BATCHES:
        for shape in dict.fromkeys(testing.inception_v3_pairs(batch)):
            work[f"{shape}"] = functools.partial(pair_rows, shape, device)
    for batch in BATCHES:
        for op, problem in op_shapes(batch):
            work[f"{op} {problem}"] = functools.partial(op_rows, op, problem, device)
    for key, rows_of in work.items():
        if key in done:
            continue
        if args.budget is not None and time.monotonic() - start > args.budget:
            return EXIT_MORE
        done[key] = rows_of()
        for row in done[key] if key != "probes" else ():
            mark = "*" if row["chosen"] else " "
            name = f"{row.get('engine', '')} {row['configuration']}"
            print(f"{mark} {key:<48} {name:<28} {row['us']} us")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(done, indent=1))
    wrong = [row for rows in done.values() for row in rows if row["error"]]
    for row in wrong:
        print(f"wrong: {row}")
    return EXIT_FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
