"""compute-sanitizer over a small set of calls of every kernel.

    python -m bench.sanitize                 memcheck, racecheck, synccheck and initcheck
    python -m bench.sanitize --calls OP      the calls of one op, as a sanitizer runs them

PyTorch's caching allocator is switched off (PYTORCH_NO_CUDA_MEMORY_CACHING=1): inside one of its
large blocks every address is valid. Before anything else memcheck must find a store out of bounds
that is made on purpose; a sanitizer that finds nothing there proves nothing elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.environment import ROOT, BenchError, resolve_device
from fused_inception import (
    available_backends,
    conv2d_act,
    factorized_conv2d,
    grid_reduction,
    split_conv2d,
    testing,
)
from fused_inception.blocks import FUSED_BLOCKS, BlockWeights, ConvWeights
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
OPS = ("factorized_conv2d", "split_conv2d", "grid_reduction", "conv2d_act", "pool2d", "blocks")
PLANTED = "planted"
_FOUND = 86  # the exit code that a sanitizer is asked for when it has found something
_SECONDS = 500.0
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Two blocks whose steps are not all ops: the end of a grid reduction, and the average pool.
# Filters, channels, rows and columns of each convolution.
BLOCKS = {
    "inception_d": {
        "direct_reduce": (40, 48, 1, 1), "direct_last": (72, 40, 3, 3),
        "pair_reduce": (32, 48, 1, 1), "pair_row": (40, 32, 1, 7), "pair_col": (24, 40, 7, 1),
        "pair_last": (33, 24, 3, 3),
    },
    "inception_a": {
        "direct": (64, 48, 1, 1), "wide_reduce": (48, 48, 1, 1), "wide_last": (64, 48, 5, 5),
        "double_reduce": (64, 48, 1, 1), "double_mid": (40, 64, 3, 3),
        "double_last": (37, 40, 3, 3), "pool_project": (29, 48, 1, 1),
    },
}  # fmt: skip


def block_operands(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    """An input, and the weights and biases as the block's op takes them."""
    convs = {}
    for role, size in BLOCKS[kind].items():
        filters, channels, *kernel = size
        shape = testing.ConvShape(2, 17, 17, channels, filters, (kernel[0], kernel[1]))
        _, weight, bias = testing.random_conv(shape, dtype)
        convs[role] = ConvWeights(weight, bias)
    weights, biases = FUSED_BLOCKS[kind].pack(convs)
    return testing.channels_last(torch.randn(2, 48, 17, 17).to(dtype)), *weights, *biases


def run_block(kind: str, input: torch.Tensor, *tensors: Any, backend: str) -> torch.Tensor:
    """A block on operands from `block_operands`."""
    spec = FUSED_BLOCKS[kind]
    count = len(spec.weight_names)
    return spec.forward(input, BlockWeights(tensors[:count], tensors[count:]), backend=backend)


def calls(op: str) -> Iterator[tuple[str, Callable[..., torch.Tensor], Any, dict[str, Any]]]:
    """(name, function, operands on the CPU, keywords): round and ragged shapes in each dtype."""
    for dtype in DTYPES:
        if op == "factorized_conv2d":
            for pair in (
                testing.PairShape(2, 17, 17, 64, 64, 64, 7, 7, True),
                testing.PairShape(3, 11, 13, 37, 41, 29, 5, 3, False),
                # 155 bands of seven columns: enough for the form with one launch.
                testing.PairShape(64, 17, 17, 32, 32, 32, 3, 3, True),
            ):
                yield str(pair), factorized_conv2d, testing.random_pair(pair, dtype), {}
        elif op == "split_conv2d":
            for split in (
                testing.SplitShape(2, 8, 8, 64, 64, 64, 3, 3),
                testing.SplitShape(3, 7, 5, 37, 29, 41, 3, 5),
                # More pixels than a tile of whole images has.
                testing.SplitShape(2, 9, 13, 40, 24, 24, 3, 3),
                # On wgmma: enough images for tiles of several warpgroups, here and below.
                testing.SplitShape(64, 8, 8, 16, 192, 192, 3, 3),
            ):
                yield str(split), split_conv2d, testing.random_split(split, dtype), {}
        elif op == "grid_reduction":
            for reduction in (
                testing.ReductionShape(2, 17, 17, 64, 64, 3),
                testing.ReductionShape(3, 12, 9, 37, 29, 3),
                testing.ReductionShape(32, 35, 35, 8, 192, 3),
            ):
                for pool in ("max", "avg"):
                    operands = testing.random_conv(reduction, dtype)
                    yield f"{reduction}-{pool}", grid_reduction, operands, {"pool": pool}
        elif op == "blocks":
            for kind in BLOCKS:
                yield kind, functools.partial(run_block, kind), block_operands(kind, dtype), {}
        elif op == "pool2d":
            for size in ((2, 64, 17, 17), (3, 37, 9, 12)):
                x = testing.channels_last(torch.randn(size).to(dtype))
                yield f"max-{size}", max_pool2d, (x,), {"kernel": 3, "stride": 2}
                yield (
                    f"padded-max-{size}",
                    max_pool2d,
                    (x,),
                    {"kernel": 3, "stride": 1, "padding": 1},
                )
                yield f"mean-{size}", global_avg_pool2d, (x,), {}
        else:
            for conv in (
                testing.ConvShape(2, 17, 17, 64, 64, (1, 1)),
                testing.ConvShape(2, 17, 17, 64, 64, (3, 3), (2, 2)),
                testing.ConvShape(3, 9, 11, 37, 29, (3, 3), (1, 1), (1, 1)),
                testing.ConvShape(8, 35, 35, 16, 192, (1, 1)),
            ):
                options = {"stride": conv.stride, "padding": conv.padding}
                yield str(conv), conv2d_act, testing.random_conv(conv, dtype), options


def run_calls(op: str, device: torch.device) -> int:
    """Run the calls of `op` on every backend that has kernels; returns how many ran."""
    if op == PLANTED:
        from bench.triton_planted import store_out_of_bounds

        store_out_of_bounds()
        return 1
    backends = [name for name, state in available_backends().items() if state == "available"]
    if device.type == "cuda":
        backends.remove("aten")
    ran = 0
    for name, function, operands, options in calls(op):
        moved = [None if t is None else t.to(device) for t in operands]
        for backend in backends:
            try:
                result = function(*moved, **options, backend=backend)
            except RuntimeError as error:
                if "cannot run here" not in str(error):
                    raise
                continue
            assert torch.isfinite(result).all(), f"{name} on {backend}: not finite"
            ran += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return ran


def find_sanitizer() -> str:
    """The path of compute-sanitizer.

    Raises:
        BenchError: there is none.
    """
    folder = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{folder}/bin{os.pathsep}{folder}/compute-sanitizer"
    )
    if path is None:
        raise BenchError(
            f"compute-sanitizer is neither on PATH nor in {folder}/bin (CUDA_HOME names another)"
        )
    return path


def check(tool: str, op: str, device: torch.device, log: Path) -> tuple[str, str]:
    """Run the calls of one op under one tool.

    Returns:
        "passed", "failed", "nothing" (no kernel of the op runs here) or "broken", and what is known
        about it in one line. On a CPU the calls run without a tool.
    """
    command = [sys.executable, "-m", "bench.sanitize", "--calls", op, "--device", str(device)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if device.type == "cuda":
        command = [find_sanitizer(), "--tool", tool, "--error-exitcode", str(_FOUND), *command]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            timeout=_SECONDS, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "broken", f"did not end within {_SECONDS:.0f} s"
    output = done.stdout + done.stderr
    log.write_text(output, encoding="utf-8")
    summary = re.findall(r"=+ (\w+ SUMMARY: .*)", output)
    line = summary[-1] if summary else (output.strip().splitlines() or ["no output"])[-1]
    if op == PLANTED:
        found = done.returncode == _FOUND
        return ("passed" if found else "failed"), f"{'found' if found else 'NOT found'}: {line}"
    if done.returncode == _FOUND:
        return "failed", line
    ran = re.search(r"^(\d+) calls$", output, re.M)
    if done.returncode or ran is None:
        return "broken", f"exit code {done.returncode}: {line}"
    if ran[1] == "0":
        return "nothing", "no kernel of this op runs here"
    return "passed", f"{ran[1]} calls, {line}"


def run(device: torch.device, folder: Path, budget: float | None) -> dict[str, list[str]]:
    """Run what has no outcome yet, and keep outcomes and logs in `folder`.

    Returns:
        "TOOL OP" -> [state, what is known], for everything that has an outcome.
    """
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sanitize.json"
    outcomes: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    longest = 0.0
    for name, tool, op in everything(device):
        if name in outcomes:
            continue
        begun = time.monotonic()
        if budget is not None and begun - start + longest > budget:
            break
        state, line = check(tool, op, device, folder / f"{tool}-{op}.log")
        outcomes[name] = [state, line]
        path.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {state}: {line}", flush=True)
        longest = max(longest, time.monotonic() - begun)
    return outcomes


def everything(device: torch.device) -> list[tuple[str, str, str]]:
    """(name, tool, op) of all that is to run; on a CPU there are no tools, and no planted fault."""
    if device.type == "cpu":
        return [(f"without a tool {op}", "none", op) for op in OPS]
    planted = [(f"memcheck {PLANTED}", "memcheck", PLANTED)]
    return planted + [(f"{tool} {op}", tool, op) for tool in TOOLS for op in OPS]


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 when something was found, 2 after an error, 3 when the budget was spent."""
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize")
    parser.add_argument("--device", default="auto", help="cpu runs the calls without a sanitizer")
    parser.add_argument("--calls", choices=(*OPS, PLANTED), help="run the calls of one op, here")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize")
    parser.add_argument("--budget", type=float, metavar="SECONDS")
    args = parser.parse_args(argv)
    try:
        device = resolve_device(args.device)
        if args.calls is not None:
            print(f"{run_calls(args.calls, device)} calls")
            return 0
        if device.type == "cpu" and args.device == "auto":
            raise BenchError("there is no GPU here; --device cpu runs the calls without a tool")
        outcomes = run(device, args.folder, args.budget)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states = [state for state, _ in outcomes.values()]
    total = len(everything(device))
    print(
        f"sanitizer: {states.count('passed')} of {total} passed, {states.count('failed')} failed, "
        f"{states.count('broken')} could not run, {states.count('nothing')} without a kernel"
    )
    if device.type == "cpu":
        print("on a CPU no sanitizer ran: this shows that the calls run, and nothing else")
    if "failed" in states or "broken" in states:
        return 1
    return 0 if len(states) == total else 3


if __name__ == "__main__":
    sys.exit(main())
