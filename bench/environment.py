"""What a result depends on: the device, the code, the versions, the clocks."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from fused_inception.cli.info import cuda_refusal, device_name, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
# What is run or decides what runs; a change in any of it makes another program.
_SOURCES = ("fused_inception/**/*.py", "fused_inception/**/*.json", "csrc/**/*", "bench/*.py")
_SMI_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "persistence_mode",
)


class BenchError(Exception):
    """What whoever runs a bench is told in one line."""


def resolve_device(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:N"; auto is a GPU where there is one."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name, re.ASCII):
        raise BenchError(f"--device takes auto, cpu, cuda or cuda:N, got {name!r}")
    refusal = cuda_refusal()
    if name == "cpu" or (name == "auto" and refusal is not None):
        return torch.device("cpu")
    if refusal is not None:
        raise BenchError(f"--device {name} cannot be used: {refusal}")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if device.index >= torch.cuda.device_count():
        raise BenchError(
            f"--device {name} cannot be used: torch finds {torch.cuda.device_count()} GPU(s)"
        )
    return device


def slug(name: str) -> str:
    """A device's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device as results record it."""
    name = device_name(device)
    if device.type == "cpu":
        return {
            "kind": "cpu",
            "name": name,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda",
        "name": name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


@functools.cache
def code() -> dict[str, Any]:
    """Which code runs: the commit, whether the checkout differs from it, a digest of the sources.

    The digest is what results are resumed and merged by: a copy of a checkout has no history.
    """
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    commit = _git("rev-parse", "HEAD")
    # Results may be written while the rest of the checkout is clean.
    status = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(status),
        "sources": digest.hexdigest()[:16],
    }


def identity(device: torch.device) -> dict[str, Any]:
    """What two results must share to be parts of one."""
    return {"device": describe_device(device), "code": code(), "versions": versions()}


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks, temperature and power, as nvidia-smi says; None where it does not."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_SMI_FIELDS)}",
        "--format=csv,noheader",
        f"--id={device.index if uuid is None else f'GPU-{uuid}'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_SMI_FIELDS):
        return None
    return dict(zip(_SMI_FIELDS, values, strict=True))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
