"""Compiles every Triton kernel × configuration × architecture offline, with no GPU.

`python -m tests.compile_gate` prints a table: registers, shared memory and spills as ptxas reports
them, and the matrix instruction that Triton chose. `tests/test_compile_gate.py` asserts on the same
rows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from fused_inception.ops.common import triton_runtime
from fused_inception.ops.factorized_conv2d import triton_kernel as pair
from fused_inception.ops.factorized_conv2d.configurations import DEVICE_CLASSES, Tile, load_table

POINTERS = {
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32_tf32": "*fp32",
    "float32_ieee": "*fp32",
}
# The instruction a kernel must be made of, by device class; float32_ieee has none but FFMA.
MATRIX_INSTRUCTIONS = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "sm_120": "mma.sync",
}
# Arguments that are multiples of 16 by construction, because the launcher pads channels ...
PADDED = {"c_in", "mid_channels", "channels"} | {
    f"stride_{name}" for name in ("xn", "x_cross", "x_line", "src_n", "src_cross", "src_line")
}
# ... and those that are where the filters of a network are.
OF_ANY_SIZE = {"c_mid", "c_out", "filters", "stored"} | {
    f"stride_{name}" for name in ("yn", "y_cross", "y_line", "dst_n", "dst_cross", "dst_line")
}
CLASSES = tuple(dict.fromkeys(DEVICE_CLASSES.values()))


@dataclass(frozen=True)
class Case:
    """One kernel compiled one way."""

    kernel: str
    variant: str
    device_class: str
    precision: str
    tile: Tile
    constants: dict[str, Any] = field(hash=False)
    even: bool

    def __str__(self) -> str:
        t = self.tile
        return (
            f"{self.device_class}-{self.kernel}-{self.variant}-{self.precision}"
            f"-{t.block_p}x{t.block_f}x{t.block_k}-w{t.num_warps}s{t.num_stages}"
        )


@dataclass(frozen=True)
class Row:
    """What a compilation gave: per-thread registers, bytes of shared memory, bytes spilled."""

    registers: int
    shared_memory: int
    spill_stores: int
    spill_loads: int
    instruction: str


def cases() -> Iterator[Case]:
    """Every kernel × variant × tile × precision × device class of the tables.

    "even" has channels in whole K blocks and filters in multiples of 16; "ragged" has neither.
    """
    for device_class in CLASSES:
        for precision, tiles in load_table(device_class).tiles.items():
            for tile in tiles:
                shared = {
                    "BLOCK_P": tile.block_p,
                    "BLOCK_F": tile.block_f,
                    "BLOCK_K": tile.block_k,
                    "TF32": precision == "float32_tf32",
                    "UPCAST": False,
                }
                for variant in ("even",) if tile.whole else ("even", "ragged"):
                    even = variant == "even"
                    yield Case(
                        "factorized_conv2d_band_kernel", variant, device_class, precision, tile,
                        {
                            "TAPS1": 7, "TAPS2": 7, "HAS_BIAS1": True, "HAS_BIAS2": True,
                            "MID_RELU": True, "RELU": True, "EVEN_K1": even, "EVEN_K2": even,
                            **shared,
                        },
                        even,
                    )  # fmt: skip
                    for along_line in (False, True):
                        name = f"{'line' if along_line else 'cross'}-{variant}"
                        yield Case(
                            "shifted_conv_kernel", name, device_class, precision, tile,
                            {
                                "ALONG_LINE": along_line, "TAPS": 7, "HAS_BIAS": True,
                                "RELU": True, "EVEN_K": even, **shared,
                            },
                            even,
                        )  # fmt: skip


def compile_case(case: Case) -> CompiledKernel:
    """The kernel of `case`, specialised as a launch would specialise its arguments."""
    kernel = getattr(pair, case.kernel)
    signature, attributes = {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if name in case.constants:
            signature[name] = "constexpr"
            continue
        is_pointer = name.endswith("_ptr")
        signature[name] = POINTERS[case.precision] if is_pointer else "i32"
        if is_pointer:
            multiple_of_16 = not parameter.do_not_specialize_on_alignment
        else:
            multiple_of_16 = name in PADDED or (case.even and name in OF_ANY_SIZE)
        if multiple_of_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=case.constants, attrs=attributes)
    target = GPUTarget("cuda", int(case.device_class.removeprefix("sm_")), 32)
    options = {
        "num_warps": case.tile.num_warps,
        "num_stages": case.tile.num_stages,
        "maxnreg": case.tile.max_registers,
    }
    return triton.compile(source, target=target, options=options)


INSTRUCTION = re.compile(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma|fma\.rn\.f32)")


def measure(case: Case) -> Row:
    """Compile `case` and read ptxas's report on it."""
    compiled = compile_case(case)
    ptx = compiled.asm["ptx"]
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    assert target is not None
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin"
    ptxas /= "ptxas-blackwell" if int(case.device_class.removeprefix("sm_")) >= 100 else "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [ptxas, "-v", "--gpu-name", target[1], path, "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        match = re.search(pattern, report)
        assert match is not None, report
        return int(match[1])

    found = INSTRUCTION.findall(ptx)
    return Row(
        registers=number(r"Used (\d+) registers"),
        shared_memory=compiled.metadata.shared,
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        instruction=max(set(found), key=found.count) if found else "none",
    )


def faults(case: Case, row: Row) -> list[str]:
    """What is wrong with a row; empty where it passes."""
    found = []
    if row.spill_stores or row.spill_loads:
        found.append(f"spills {row.spill_stores} + {row.spill_loads} bytes")
    limit = load_table(case.device_class).shared_memory_bytes
    if row.shared_memory > limit:
        found.append(f"{row.shared_memory} bytes of shared memory, limit {limit}")
    expected = MATRIX_INSTRUCTIONS[case.device_class]
    if case.precision == "float32_ieee":
        expected = "fma.rn.f32"
    if row.instruction != expected:
        found.append(f"made of {row.instruction}, expected {expected}")
    return found


def main() -> int:
    if triton_runtime.INTERPRETING:
        print("error: the gate compiles; unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    print(f"{'case':<94} {'regs':>4} {'smem':>7} {'spill':>6}  instruction")
    failures = 0
    todo = list(cases())
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for case, row in zip(todo, pool.map(measure, todo, chunksize=4), strict=True):
            wrong = faults(case, row)
            failures += bool(wrong)
            spills = row.spill_stores + row.spill_loads
            print(
                f"{case!s:<94} {row.registers:>4} {row.shared_memory:>7} {spills:>6}  "
                f"{row.instruction}{'  <- ' + '; '.join(wrong) if wrong else ''}"
            )
    print(f"{len(todo)} compiled, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
