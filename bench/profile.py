"""Nsight Compute over the rows that miss their target: what bounds each kernel of a call.

    python -m bench.profile                          what misses, by the device's result file
    python -m bench.profile --row LABEL              a row by its label
    python -m bench.profile --call LABEL             one call of it, as the profiler runs it

Clocks are left as they are (`--clock-control none`), so times are near those of the benches; they
are not theirs, since each kernel is replayed with its caches flushed. What is kept of a kernel: its
time, grid, registers and shared memory, how full the multiprocessors are, how busy matrix units,
L2 and memory are, and what its warps wait for.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench import harness, results, targets
from bench.environment import RESULTS, ROOT, BenchError, identity, resolve_device, slug
from fused_inception import testing
from fused_inception.ops.common.launching import on_device

SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
)
_SECONDS = 400.0
_WARM_UP = 3
# What is kept of a kernel -> the columns of the profiler's raw page it may come from; of several
# that are there the largest counts.
METRICS = {
    "time": r"gpu__time_duration\.sum",
    "grid": r"launch__grid_size",
    "block": r"launch__block_size",
    "registers": r"launch__registers_per_thread",
    "shared_memory": r"launch__shared_mem_per_block(_allocated)?",
    "waves": r"launch__waves_per_multiprocessor",
    "occupancy_percent": r"sm__warps_active\.avg\.pct_of_peak_sustained_active",
    "compute_percent": r"sm__throughput\.avg\.pct_of_peak_sustained_elapsed",
    "matrix_units_percent": r"sm__(inst_executed_)?pipe_tensor.*pct_of_peak_sustained_active",
    "l2_percent": r"lts__(t_sectors|throughput).*pct_of_peak_sustained_elapsed",
    "memory_percent": r"(gpu__)?dram__?throughput.*pct_of_peak_sustained_elapsed",
}
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
_BYTES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6}

Kernel = dict[str, Any]


def parse(text: str) -> list[Kernel]:
    """The kernels of a raw page in CSV, in the order of their launches.

    Args:
        text: what the profiler printed; lines in front of the table are left out.

    Raises:
        BenchError: there is no table in it.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        raise BenchError("the profiler printed no table")
    names, units, *rows = csv.reader(io.StringIO("\n".join(lines[start:])))
    kernels = []
    for row in rows:
        if len(row) != len(names):  # what the program printed at its end
            continue
        values = dict(zip(names, row, strict=True))
        unit = dict(zip(names, units, strict=True))
        kernel: Kernel = {"name": values["Kernel Name"]}
        for name, pattern in METRICS.items():
            found = [
                _number(values[column]) * _scale(name, unit[column])
                for column in names
                if re.fullmatch(pattern, column) and values[column]
            ]
            kernel["microseconds" if name == "time" else name] = max(found, default=None)
        stalls = {
            match[1]: _number(values[column])
            for column in names
            if (match := _STALL.fullmatch(column)) and values[column]
        }
        kernel["stalls"] = dict(sorted(stalls.items(), key=lambda pair: -pair[1])[:4])
        kernels.append(kernel)
    return kernels


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _scale(name: str, unit: str) -> float:
    if name == "time":
        return _MICROSECONDS[unit]
    return _BYTES.get(unit.partition("/")[0], 1.0) if name == "shared_memory" else 1.0


def describe(label: str, kernels: Iterable[Kernel]) -> list[str]:
    """A row's kernels in lines of text; the longest first."""

    def percent(name: str) -> str:
        value = kernel[f"{name}_percent"]
        return "  –" if value is None else f"{value:3.0f}"

    kernels = sorted(kernels, key=lambda kernel: -(kernel["microseconds"] or 0.0))
    total = sum(kernel["microseconds"] or 0.0 for kernel in kernels)
    lines = [f"{label}: {len(kernels)} launches, {total:.1f} us in kernels"]
    for kernel in kernels:
        stalls = ", ".join(f"{name} {value:.1f}" for name, value in kernel["stalls"].items())
        parts = [
            f"{kernel['microseconds'] or 0:8.1f} us",
            f"occupancy {percent('occupancy')} %",
            f"matrix units {percent('matrix_units')} %",
            f"L2 {percent('l2')} %",
            f"memory {percent('memory')} %",
            re.sub(r"[<(].*", "", kernel["name"]),
            f"waits {stalls}",
        ]
        lines.append("  " + " | ".join(parts))
    return lines


def find_profiler() -> str:
    """The path of ncu.

    Raises:
        BenchError: there is none.
    """
    folder = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("ncu") or shutil.which("ncu", path=f"{folder}/bin")
    if path is None:
        raise BenchError(f"ncu is neither on PATH nor in {folder}/bin (CUDA_HOME names another)")
    return path


def missed(document: results.Document) -> list[str]:
    """The labels of the rows by which targets are missed, each once."""
    rows = {row["label"] for row in document["rows"] if row["status"] == "ok"}
    labels = [s.label for s in targets.standings(document) if s.state == "missed"]
    return [label for label in dict.fromkeys(labels) if label in rows]


def find_case(label: str, device: torch.device) -> harness.Case:
    """The case that a label names.

    Raises:
        BenchError: there is none.
    """
    match = re.fullmatch(r"(\w+)/n(\d+)-.+/(\w+)", label)
    if match is None:
        raise BenchError(f"a label is OP/nBATCH-SHAPE/DTYPE, got {label!r}")
    op, batch, dtype = match[1], int(match[2]), match[3]
    suites = (op,) if op in harness.SUITES else harness.SUITES
    cases = harness.load_cases(
        suites, device, batches=[batch], dtypes=[dtype], only=f"^{re.escape(label)}$"
    )
    return cases[0]


def call(label: str, device: torch.device) -> str:
    """Run one call of ours between the marks that the profiler waits for; returns what ran."""
    case = find_case(label, device)
    dtype, precision = harness.DTYPES[case.dtype]
    with torch.no_grad(), testing.fp32_precision(precision), on_device(device):
        subject = case.build(dtype, device)
        name, function = next(iter(subject.ours.items()))
        for _ in range(_WARM_UP):
            function(subject.input)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.profiler.start()
        function(subject.input)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.profiler.stop()
    return name


def profile(label: str, device: torch.device, log: Path) -> list[Kernel]:
    """The kernels of one call; on a CPU the call runs without a profiler, and there are none.

    Raises:
        BenchError: the profiler or the call failed.
    """
    command = [sys.executable, "-m", "bench.profile", "--call", label, "--device", str(device)]
    if device.type == "cuda":
        sections = [part for name in SECTIONS for part in ("--section", name)]
        command = [
            find_profiler(), "--clock-control", "none", "--profile-from-start", "off",
            "--target-processes", "application-only", "--page", "raw", "--csv", *sections, *command,
        ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
            text=True, check=False, timeout=_SECONDS, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{label}: did not end within {_SECONDS:.0f} s") from error
    output = done.stdout + done.stderr
    log.write_text(output, encoding="utf-8")
    if done.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise BenchError(f"{label}: exit code {done.returncode}: {last}")
    return parse(done.stdout) if device.type == "cuda" else []


def run(
    labels: Iterable[str], device: torch.device, folder: Path, budget: float | None
) -> tuple[dict[str, Any], bool]:
    """Profile what has no entry yet, and keep entries and logs in `folder`.

    Returns:
        label -> {"kernels": ...} or {"error": ...}; whether labels are left.
    """
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "profile.json"
    entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    longest = 0.0
    for label in labels:
        if label in entries:
            continue
        begun = time.monotonic()
        if budget is not None and begun - start + longest > budget:
            return entries, True
        try:
            log = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', label)}.log"
            entries[label] = {"kernels": profile(label, device, log)}
            print("\n".join(describe(label, entries[label]["kernels"])), flush=True)
        except BenchError as error:
            entries[label] = {"error": str(error)}
            print(f"error: {error}", flush=True)
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        longest = max(longest, time.monotonic() - begun)
    return entries, False


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 when a row could not be profiled, 2 after an error, 3 when rows are left."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument("--device", default="auto", help="cpu runs the calls without a profiler")
    parser.add_argument("--call", metavar="LABEL", help="run one call of a row, here")
    parser.add_argument("--row", metavar="LABEL", action="append", help="profile this row")
    parser.add_argument("--result", type=Path, metavar="JSON", help="rows that miss their target")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "profile")
    parser.add_argument("--budget", type=float, metavar="SECONDS")
    args = parser.parse_args(argv)
    try:
        device = resolve_device(args.device)
        if args.call is not None:
            print(f"ran {args.call} as {call(args.call, device)}")
            return 0
        if device.type == "cpu" and args.device == "auto":
            raise BenchError("there is no GPU here; --device cpu runs the calls without a profiler")
        labels = args.row
        if not labels:
            name = slug(identity(device)["device"]["name"])
            labels = missed(results.load(args.result or RESULTS / name / "all.json"))
        entries, left = run(labels, device, args.folder, args.budget)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return harness.EXIT_ERROR
    failed = [label for label in labels if "error" in entries.get(label, {})]
    print(f"profiles: {len(entries)} of {len(labels)} rows, {len(failed)} failed")
    if device.type == "cpu":
        print("on a CPU no profiler ran: this shows that the calls run, and nothing else")
    if failed:
        return harness.EXIT_FAILED
    return harness.EXIT_MORE if left else 0


if __name__ == "__main__":
    sys.exit(main())
