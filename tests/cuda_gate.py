"""Compiles every `.cu` × architecture offline, with no GPU.

`python -m tests.cuda_gate` prints a table: registers and spills as ptxas reports them, the matrix
instructions found in the machine code, and the shared memory a launch asks for. Any warning of
nvcc or ptxas fails, and so does a note that it serializes wgmma. `tests/test_cuda_gate.py` asserts
on the same rows.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton

from tests.emulator import branches, convolutions, pools, programs
from tests.emulator.maps import Configuration
from tests.emulator.pair import configurations

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
# Bytes of shared memory that a block may have. The 99 KB devices run the code of sm_80 or of PTX.
SHARED_LIMITS = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90a": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}
REGISTERS = 65536  # 32-bit ones of a multiprocessor
# Warnings, and ptxas's notes on products that wait for each other (C7510, C7511, C7515, C7520), on
# setmaxnreg ignored (C7508) and on fences of its own (C7519).
COMPLAINT = r"\bwarning\b|\(C75\d\d\)"
# Channels between the factors for which the launch's shared memory is judged: Inception's widest.
C_MID = 192
# The same of the input, for ops whose shared memory depends on it.
C_IN = 384
# Of the pools, by form: an average reads eight biases, the mean of a map writes a word.
POOL_NARROW_ACCESSES = (0, 8, 1)

Table = list[Configuration] | list[convolutions.Configuration]


def table_of(op: str) -> Table:
    """The configurations of an op's kernels."""
    if op in convolutions.OPS:
        return convolutions.configurations(op, C_IN)
    for program in (branches, pools):
        if op == program.OP:
            return program.configurations()
    return configurations(C_MID)


def refusal() -> str | None:
    """Why nothing can be compiled here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH"
    if not CUOBJDUMP.exists():
        return f"cuobjdump is not at {CUOBJDUMP}"
    return programs.refusal()


# triton brings it; a CUDA toolkit need not have it.
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Case:
    """One source compiled for one architecture."""

    source: Path
    architecture: str

    @property
    def op(self) -> str:
        return self.source.parent.name

    def __str__(self) -> str:
        return f"{self.source.relative_to(ROOT / 'csrc')}-{self.architecture}"


@dataclass(frozen=True)
class Row:
    """What a compilation made of one kernel."""

    kernel: str
    configuration: int | None  # the number in its template, where it has one
    registers: int
    static_shared_bytes: int
    spilled_bytes: int
    matrix_instructions: int
    narrow_accesses: int  # loads and stores of global memory of less than 16 bytes


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def cases() -> Iterator[Case]:
    for source in sources():
        # Kernels on wgmma are a trap on every other architecture; one shows it.
        sm90 = source.name.startswith("sm90")
        for architecture in ARCHITECTURES[:2] if sm90 else ARCHITECTURES:
            yield Case(source, architecture)


def compile_command(source: Path, architecture: str, output: Path) -> list[str]:
    number = architecture.removeprefix("sm_")
    return [
        "nvcc", "-cubin", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}",
        f"-gencode=arch=compute_{number},code={architecture}",
        "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror",
        "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
        str(source), "-o", str(output),
    ]  # fmt: skip


@functools.cache
def measure(case: Case) -> tuple[Row, ...]:
    """One row a kernel. Raises RuntimeError with the compiler's words where it has complaints."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = compile_command(case.source, case.architecture, cubin)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or re.search(COMPLAINT, done.stderr):
            raise RuntimeError(f"{case}: {done.stdout}{done.stderr}")
        sass = subprocess.run(
            [str(CUOBJDUMP), "-sass", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    return tuple(_rows(case.op, done.stderr, sass))


def _unmangled(symbol: str) -> tuple[str, re.Match[str] | None]:
    """The last name of a C++ symbol, and the match of a number as its first template argument."""
    name, rest = symbol, symbol.removeprefix("_ZN").removeprefix("_Z")
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        name, rest = rest[length.end() : end], rest[end:]
    return name, re.match(r"ILi(\d+)E", rest)


def _rows(op: str, report: str, sass: str) -> Iterator[Row]:
    instructions, narrow = {}, {}
    for part in sass.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        wanted = r"\bHGMMA\." if is_sm90(name) else r"\b(?:HMMA|UTCHMMA)\."
        instructions[name.strip()] = len(re.findall(wanted, body))
        accesses = re.findall(r"\b(?:LDG|STG|LD|ST)\.[\w.]+", body)
        narrow[name.strip()] = sum("128" not in access.split(".") for access in accesses)
    for part in report.split("Compiling entry function '")[1:]:
        mangled = part.partition("'")[0]

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        name, template = _unmangled(mangled)
        configuration = int(template[1]) if template else None
        if configuration is not None and is_sm90(name):
            configuration += sum(not row.sm90 for row in table_of(op))
        yield Row(
            kernel=name,
            configuration=configuration,
            registers=number(r"Used (\d+) registers"),
            static_shared_bytes=number(r"(\d+) bytes smem"),
            spilled_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            matrix_instructions=instructions[mangled],
            narrow_accesses=narrow[mangled],
        )


def is_sm90(kernel: str) -> bool:
    """Whether a kernel is for sm_90a alone, and a trap elsewhere."""
    return "sm90" in kernel


def faults(row: Row, architecture: str, table: Table) -> list[str]:
    """What is wrong with a row; empty where it passes."""
    found = []
    if is_sm90(row.kernel) and architecture != "sm_90a":
        return ["has matrix instructions"] if row.matrix_instructions else []
    if row.spilled_bytes:
        found.append(f"spills {row.spilled_bytes} bytes")
    pool = row.kernel.startswith(pools.OP)
    if pool and row.narrow_accesses > POOL_NARROW_ACCESSES[row.configuration or 0]:
        found.append(f"{row.narrow_accesses} accesses of less than 16 bytes")
    # A pool has no product.
    if not row.matrix_instructions and not pool:
        found.append("has no matrix instruction")
    if row.configuration is None:
        found.append("has no row in a table of configurations")
        return found
    configuration = table[row.configuration]
    # Registers are handed out to a warp in units of 256.
    warps = configuration.threads * configuration.min_blocks // 32
    taken = warps * 256 * -(-row.registers * 32 // 256)
    if taken > REGISTERS:
        found.append(f"{configuration.min_blocks} blocks take {taken} registers of {REGISTERS}")
    shared = row.static_shared_bytes + configuration.shared_bytes
    if shared > SHARED_LIMITS[architecture]:
        found.append(f"{shared} bytes of shared memory, limit {SHARED_LIMITS[architecture]}")
    return found


def forms_that_fit(architecture: str, table: list[Configuration]) -> set[bool]:
    """Which forms, bands and not, have a configuration that a block of `architecture` can have."""
    limit = SHARED_LIMITS[architecture]
    return {row.bands for row in table if row.shared_bytes <= limit and not row.sm90}


def main() -> int:
    reason = refusal()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    table = configurations(C_MID)
    failures = 0
    print(f"{'kernel':<76} {'regs':>4} {'smem':>7} {'spill':>6} {'mma':>5}")
    for case in cases():
        rows = table_of(case.op)
        for row in measure(case):
            wrong = faults(row, case.architecture, rows)
            failures += bool(wrong)
            known = row.configuration is not None
            name = rows[row.configuration].name if known else "?"
            shared = row.static_shared_bytes + (
                rows[row.configuration].shared_bytes if known else 0
            )
            print(
                f"{f'{case} {row.kernel} {name}':<76} {row.registers:>4} {shared:>7} "
                f"{row.spilled_bytes:>6} {row.matrix_instructions:>5}"
                f"{'  <- ' + '; '.join(wrong) if wrong else ''}"
            )
    for architecture, limit in SHARED_LIMITS.items():
        fitting = [row.name for row in table if row.shared_bytes <= limit]
        if architecture != "sm_90a":
            fitting = [name for name in fitting if not name.startswith("sm90")]
        print(f"{architecture}: {limit} bytes a block: {', '.join(fitting)}")
        failures += forms_that_fit(architecture, table) != {True, False}
    print(f"{failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
