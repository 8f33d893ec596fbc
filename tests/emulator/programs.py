"""Builds the emulator's test programs and runs them: g++ for the host, nvcc for a device.

A program is one source file of this folder. It takes `key=value` arguments and raw files, and
prints what happened, so that nothing that a broken kernel does can harm the test process. Binaries
are kept in `build/emulator/`, under a hash of all sources and flags.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "emulator"
CACHE = ROOT / "build" / "emulator"

RUNTIME = ("fiber", "clocks", "machine", "primitives", "bulk", "warpgroup", "hooks")
COMMON_FLAGS = (
    "-std=c++20", "-I", "csrc", "-I", "tests", "-g1",
    "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
# The runtime's arithmetic must not depend on what the compiler contracts.
RUNTIME_FLAGS = ("-ffp-contract=off",)
# Kernels pun types as nvcc allows, and their pragmas are nvcc's.
KERNEL_FLAGS = ("-fno-strict-aliasing", "-Wno-unknown-pragmas")


@dataclass(frozen=True)
class Variant:
    """One way to compile a program for the host."""

    name: str
    everywhere: tuple[str, ...] = ()  # flags of kernels, runtime and linking
    kernels: tuple[str, ...] = ()


# Every plain access of a kernel calls the runtime, which judges bounds and races.
HOOKED = Variant(
    "hooked",
    everywhere=("-O2",),
    kernels=(
        "-fsanitize=thread",
        "--param=tsan-instrument-func-entry-exit=0",
        "-fno-threadsafe-statics",
    ),
)
SANITIZED = Variant(
    "sanitized", everywhere=("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
)
# The portable way to switch fibers, which other machines than x86-64 and aarch64 use.
UCONTEXT = Variant("ucontext", everywhere=("-O1", "-DEMULATOR_UCONTEXT"), kernels=HOOKED.kernels)


def refusal() -> str | None:
    """Why programs cannot be built for the host, or None."""
    if not sys.platform.startswith("linux"):
        return f"the emulator needs Linux, this is {sys.platform}"
    return None if shutil.which("g++") else "g++ is not on PATH"


@functools.cache
def sanitizer_refusal() -> str | None:
    """Why programs cannot be built with the sanitizers, or None."""
    for library in ("libasan.so", "libubsan.so"):
        command = ["g++", f"-print-file-name={library}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            return f"g++ has no {library}"
    return None


@functools.cache
def _digest(*patterns: str) -> str:
    """A hash of the sources that match, relative to the root."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


HEADERS = ("tests/emulator/*.h", "csrc/common/element.h")
KERNELS = (*HEADERS, "csrc/**/*.h", "csrc/**/*.cuh")


def _folder(name: str, *parts: object) -> Path:
    return CACHE / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


# What did not compile: every test that needs it says so, without compiling it again.
_failures: dict[Path, RuntimeError] = {}


def _compile(command: Iterable[str], output: Path) -> Path:
    """Runs a compiler unless its output is there; other test processes wait for it."""
    if output in _failures:
        raise _failures[output]
    if output.exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if output.exists():
            return output
        partial = output.with_name(f"partial-{output.name}")
        done = subprocess.run(
            [*command, "-o", str(partial)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        if done.returncode != 0:
            complaint = f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
            _failures[output] = RuntimeError(complaint)
            raise _failures[output]
        partial.replace(output)
    return output


def _runtime_folder(variant: Variant) -> Path:
    sources = _digest(*HEADERS, *(f"tests/emulator/{name}.cpp" for name in RUNTIME))
    flags = (COMMON_FLAGS, variant.everywhere, RUNTIME_FLAGS)
    return _folder(f"runtime-{variant.name}", sources, flags)


def _binary(program: str, variant: Variant) -> Path:
    sources = _digest(*KERNELS, f"tests/emulator/{program}.cpp")
    flags = (COMMON_FLAGS, variant, KERNEL_FLAGS)
    runtime = _runtime_folder(variant).name
    return _folder(f"{program}-{variant.name}", sources, flags, runtime) / program


@functools.cache
def build(program: str, variant: Variant = HOOKED) -> Path:
    """The binary of `program` for the host."""
    binary = _binary(program, variant)
    if binary.exists():
        return binary
    flags = (*COMMON_FLAGS, *variant.everywhere)
    objects = [
        _compile(
            ["g++", *flags, *RUNTIME_FLAGS, "-c", f"tests/emulator/{name}.cpp"],
            _runtime_folder(variant) / f"{name}.o",
        )
        for name in RUNTIME
    ]
    kernels = (*flags, *KERNEL_FLAGS, *variant.kernels)
    main = _compile(
        ["g++", *kernels, "-c", f"tests/emulator/{program}.cpp"], binary.with_suffix(".o")
    )
    # Addresses of code are those of the file, so that addr2line can name a plain access.
    link = ["g++", *variant.everywhere, "-no-pie", str(main), *map(str, objects)]
    return _compile(link, binary)


NVCC_FLAGS = (
    "-std=c++20", "-O3", "-x", "cu", "-I", "csrc", "-I", "tests", "-cudart", "static",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a",
)  # fmt: skip


def _device_binary(program: str) -> Path:
    sources = _digest(*KERNELS, f"tests/emulator/{program}.cpp")
    return _folder(f"{program}-device", sources, NVCC_FLAGS) / program


def build_for_device(program: str) -> Path:
    """The binary of `program` for CUDA devices."""
    source = f"tests/emulator/{program}.cpp"
    return _compile(["nvcc", *NVCC_FLAGS, source], _device_binary(program))


def device_refusal(*programs: str) -> str | None:
    """Why `programs` cannot be built for host and device, or None.

    Where they are built already, also on another machine, no compiler is asked for.
    """
    if all(_device_binary(p).exists() and _binary(p, HOOKED).exists() for p in programs):
        return None
    return refusal() or (None if shutil.which("nvcc") else "nvcc is not on PATH")


@dataclass
class Report:
    """What a program printed.

    Attributes:
        fault: the first thing that went wrong, or an empty string.
        refused: whether the launcher took the problem for one that the configuration cannot run.
        sites: synchronizing calls that ran, "file:line" to the primitive's name.
        matrices, conflicts: loaded by ldmatrix, and the extra times it had to ask a bank.
        blocks, nanoseconds: of a probe's launch; the second on a device only.
    """

    fault: str = ""
    refused: bool = False
    sites: dict[str, str] = field(default_factory=dict)
    matrices: int = 0
    conflicts: int = 0
    blocks: int = 0
    nanoseconds: int = 0


ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}


def _execute(binary: Path, **arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(binary), *(f"{key}={value}" for key, value in arguments.items())]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT}
    )


def run_lines(binary: Path, **arguments: object) -> list[str]:
    """Runs a program for what it prints."""
    return _execute(binary, **arguments).stdout.splitlines()


def run(binary: Path, **arguments: object) -> Report:
    """Runs a program; a sanitizer's complaint or a crash comes back as the fault."""
    done = _execute(binary, **arguments)
    report = Report()
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        if key == "fault":
            report.fault = value
        elif key == "refused":
            report.refused = True
        elif key == "site":
            site, _, primitive = value.partition(" ")
            report.sites[site] = primitive
        else:
            setattr(report, key, int(value))
    if done.returncode == 2:
        raise RuntimeError(f"{' '.join(done.args)}: {done.stderr}")
    if done.returncode != 0 and not (report.fault or report.refused):
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "error" in line]
        report.fault = lines[0] if lines else f"exit status {done.returncode}: {done.stderr[-500:]}"
    return report


def source_line(site: str, op: str) -> str:
    """The code at a site, "file:line", of a kernel of `op` or of what the ops share."""
    name, _, line = site.partition(":")
    folders = (ROOT / "csrc" / op, ROOT / "csrc" / "common")
    path = next(folder / name for folder in folders if (folder / name).exists())
    return path.read_text().splitlines()[int(line) - 1].strip()


def survivors(report: Report, op: str, noticed: Callable[[str, int], bool]) -> set[str]:
    """The synchronizing calls of `report` whose loss is not noticed, by their code.

    `noticed(site, weaken)` runs the kernel without the call, or where `weaken` is 1 with a wait for
    one group less, and says whether anything showed.
    """
    return {
        f"{source_line(site, op)} weakened by {weaken}"
        for site, primitive in report.sites.items()
        for weaken in ((0, 1) if primitive in ("cp_async_wait", "wgmma_wait") else (0,))
        if not noticed(site, weaken)
    }


def save(tensor: torch.Tensor, path: Path) -> Path:
    """Writes the elements of a tensor, in its own memory order if it is dense."""
    flat = tensor.contiguous().flatten().view(torch.uint8)
    path.write_bytes(flat.numpy().tobytes())
    return path


def load(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """The elements of a file, flat."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=dtype)
