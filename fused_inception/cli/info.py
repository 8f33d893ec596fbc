"""The subcommand `info`: versions, devices, backends, and how the CUDA extension was built."""

import argparse
import importlib.metadata
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from fused_inception import _extension, available_backends
from fused_inception._version import __version__
from fused_inception.cli.main import (
    STDOUT,
    CliError,
    check_writable,
    make_console,
    print_table,
    write_json,
)

_PACKAGES = ("numpy", "torchvision", "triton")


def run(args: argparse.Namespace) -> int:
    """Shows what is installed and what can run here.

    Args:
        args: `json` (None, a path, or "-" for standard output).

    Returns:
        The exit code, 0.

    Raises:
        CliError: the file for the JSON cannot be written.
    """
    if args.json not in (None, STDOUT):
        check_writable(args.json, "--json")
    info = collect()
    if args.json != STDOUT:
        _show(info)
    if args.json is not None:
        write_json(info, args.json)
    return 0


def collect() -> dict[str, Any]:
    """Gathers everything that `info` shows.

    Returns:
        A dict of what JSON can hold, with the keys "versions", "devices", "backends" and
        "extension".
    """
    gpus, refusal = _gpus()
    return {
        "versions": versions(),
        "devices": {"cpu": _cpu(), "gpus": gpus, "no_gpu_because": refusal},
        "backends": available_backends(),
        "extension": _extension.build_info(),
    }


def versions() -> dict[str, str | None]:
    """The versions of everything that results depend on; None for what is not there."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "fused_inception": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else _cudnn_version(cudnn),
        **{package: _installed_version(package) for package in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """The name of the hardware behind a device, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(_cpu()["name"])


def cuda_refusal() -> str | None:
    """Why no CUDA device can be used, or None where one can."""
    with warnings.catch_warnings(record=True) as caught:
        # PyTorch says in a warning what is wrong with the driver.
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if caught:
        return str(caught[0].message).strip().splitlines()[0]
    return "torch finds no CUDA device"


def resolve_device(name: str) -> torch.device:
    """Finds the device that `--device` names.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Returns:
        The device, with an index where it is a GPU.

    Raises:
        CliError: it is none of these, or cannot be used.
    """
    if name != "cpu" and name != "auto" and not re.fullmatch(r"cuda(:\d{1,3})?", name, re.ASCII):
        raise CliError(f"--device takes auto, cpu, cuda or cuda:N, got {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    refusal = cuda_refusal()
    if refusal is not None:
        if name == "auto":
            return torch.device("cpu")
        raise CliError(f"--device {name} cannot be used: {refusal}")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    count = torch.cuda.device_count()
    if device.index >= count:
        raise CliError(f"--device {name} cannot be used: torch finds {count} CUDA device(s)")
    return device


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cudnn_version(number: int) -> str:
    # 9.20.0 is 92000; before version 9, 8.9.7 was 8907.
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _cpu() -> dict[str, Any]:
    return {
        "name": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), "") or platform.processor() or platform.machine() or "unknown"


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    refusal = cuda_refusal()
    if refusal is not None:
        return [], refusal
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory_bytes": properties.total_memory,
            }
        )
    return gpus, None


def _show(info: dict[str, Any]) -> None:
    console = make_console()
    cpu, gpus = info["devices"]["cpu"], info["devices"]["gpus"]
    devices = [("cpu", f"{cpu['name']}, {cpu['instructions']}, {cpu['threads']} threads")]
    devices += [
        (
            gpu["device"],
            f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['multiprocessors']} "
            f"multiprocessors, {gpu['memory_bytes'] / 2**30:.1f} GiB",
        )
        for gpu in gpus
    ]
    if not gpus:
        devices.append(("cuda", f"none: {info['devices']['no_gpu_because']}"))

    versions = [(name, version or "-") for name, version in info["versions"].items()]
    extension = [(key, _plain(value)) for key, value in info["extension"].items()]
    print_table(console, "Versions", ("package", "version"), versions)
    print_table(console, "Devices", ("device", "what it is"), devices)
    print_table(
        console, "Backends", ("backend", "available, or why not"), list(info["backends"].items())
    )
    print_table(console, "CUDA extension", ("property", "value"), extension)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
