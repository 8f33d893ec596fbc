"""What is open about the pair on wgmma, measured: how it loads, what are rows, how large a cluster.

    python -m bench.sm90 --output build/gpu/sm90.json

Needs a device of compute capability 9.0, the extension built for 9.0a, and nvcc or the programs of
`build/emulator` that it has built. Three tables:

- loads: a ring of filters that blocks of all multiprocessors fill and read, by cp.async, by tensor
  copies with rows of 16 and of 64 bytes, by bulk copies of packed filters, by multicast to two;
- products: 64x160x16 with filters or with pixels as rows;
- pairs: every pair of Inception V3 and every configuration that fits, beside what arithmetic
  expects; a row whose configuration is the one chosen says so.

A pair is timed only where all configurations have given the same bits on it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.environment import BenchError, resolve_device
from bench.harness import EXIT_FAILED, EXIT_MORE
from bench.timers import CudaTimer
from fused_inception import _extension, testing
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.factorized_conv2d.op import Problem
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
    limits = cuda_launch._device(device)
    table = [
        c
        for c in cuda_launch.sm90_configurations(problem._replace(batch=1))
        if c.shared_bytes <= limits.shared_bytes
    ]
    chosen = cuda_launch.choose_sm90(tuple(table), limits, problem)

    def run(configuration: cuda_launch.Configuration, input: torch.Tensor) -> torch.Tensor:
        operands = (input, inputs.weight1, inputs.bias1, inputs.weight2, inputs.bias2)
        return cuda_launch.launch(problem, configuration, 0, *operands, "relu", "relu")

    results = [run(c, inputs.input) for c in table]
    same = all(torch.equal(result, results[0]) for result in results)
    timer = CudaTimer(device)
    copies = [
        inputs.input.clone(memory_format=torch.channels_last)
        for _ in range(min(64, timer.inputs(inputs.input.nbytes + results[0].nbytes)))
    ]
    samplers = {}
    for c in table if same else ():
        samplers[c] = timer.sampler(name_of(c), lambda x, c=c: run(c, x), copies, "graph")
    samples: dict[cuda_launch.Configuration, list[float]] = {c: [] for c in samplers}
    for _ in range(SAMPLES):
        for c, sampler in samplers.items():
            samples[c].append(sampler())
    properties: Any = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "clock_rate", 0) * 1e3
    rows = []
    for c in table:
        clocks = cuda_launch.sm90_clocks(c, limits, problem)
        rows.append(
            {
                "pair": str(shape),
                "configuration": name_of(c),
                "chosen": c == chosen,
                "expected_us": clocks / clock * 1e6 if clock else None,
                "us": statistics.median(samples[c]) if same else None,
                "error": "" if same else "the configurations give different bits",
            }
        )
    return rows


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
    shapes = {
        f"{shape}": shape
        for batch in BATCHES
        for shape in dict.fromkeys(testing.inception_v3_pairs(batch))
    }
    for key in ("probes", *shapes):
        if key in done:
            continue
        if args.budget is not None and time.monotonic() - start > args.budget:
            return EXIT_MORE
        done[key] = probes() if key == "probes" else pair_rows(shapes[key], device)
        for row in done[key] if key != "probes" else ():
            mark = "*" if row["chosen"] else " "
            print(f"{mark} {row['pair']:<34} {row['configuration']:<22} {row['us']} us")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(done, indent=1))
    wrong = [row for rows in done.values() for row in rows if row["error"]]
    for row in wrong:
        print(f"wrong: {row}")
    return EXIT_FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
