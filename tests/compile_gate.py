"""Compiles every Triton kernel × configuration × architecture offline, with no GPU.

`python -m tests.compile_gate` prints a table: registers, shared memory and spills as ptxas reports
them, and the matrix instruction that Triton chose. `tests/test_compile_gate.py` asserts on the same
rows.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from fused_inception.ops.common import triton_runtime
from fused_inception.ops.common.configurations import DEVICE_CLASSES, Tile, load_table

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
PADDED = {
    "c_in", "mid_channels", "channels", "channels0", "channels1", "channels2", "stride_pool_x",
    "stride_xn", "stride_xh", "stride_xw", "stride_x_cross",
    "stride_x_line", "stride_src_n", "stride_src_cross", "stride_src_line",
}  # fmt: skip
# ... and those that are where the filters of a network are.
OF_ANY_SIZE = {
    "c_mid", "c_out", "c_row", "c_col", "filters", "stored", "pool_channels", "stride_yn",
    "stride_y_cross", "stride_y_line", "stride_dst_n", "stride_dst_cross", "stride_dst_line",
    "stride_y", "stride_y0", "stride_y1", "stride_y2", "stride_y3", "stride_y_row", "stride_y_col",
    "stride_pool", "end0", "end1", "end2", "end3", "filters0", "filters1", "filters2",
}  # fmt: skip
CLASSES = tuple(dict.fromkeys(DEVICE_CLASSES.values()))
BIASED = {"HAS_BIAS": True, "RELU": True}


@dataclass(frozen=True)
class Variant:
    """One way a launcher may call a kernel.

    Attributes:
        constants: of the kernel; EVEN_K and those of the tile and precision come on top.
        ones: arguments that are 1, which Triton makes constants of.
        evens: the constants that say whether channels come in whole K blocks.
        always_ragged: for kernels that mask every element.
        matrix: whether the kernel is made of a matrix instruction.
    """

    op: str
    kernel: str
    name: str
    constants: dict[str, Any]
    ones: tuple[str, ...] = ()
    evens: tuple[str, ...] = ("EVEN_K",)
    always_ragged: bool = False
    matrix: bool = True


def conv_constants(taps: int, padded: bool, segments: int) -> dict[str, Any]:
    return {
        "R": taps, "S": taps, "CHECK_H": padded, "CHECK_W": padded, "HAS_BIAS": True,
        "SEGMENTS": segments, "RELUS": 2**segments - (1 if segments == 1 else 2),
    }  # fmt: skip


STEPS = ("step_h", "step_w")
PADS = ("pad_h", "pad_w")
VARIANTS = (
    Variant(
        "factorized_conv2d", "factorized_conv2d_band_kernel", "pair",
        {
            "TAPS1": 7, "TAPS2": 7, "HAS_BIAS1": True, "HAS_BIAS2": True, "MID_RELU": True,
            "RELU": True,
        },
        evens=("EVEN_K1", "EVEN_K2"),
    ),
    Variant(
        "factorized_conv2d", "shifted_conv_kernel", "cross",
        {"ALONG_LINE": False, "TAPS": 7, **BIASED},
    ),
    Variant(
        "factorized_conv2d", "shifted_conv_kernel", "line",
        {"ALONG_LINE": True, "TAPS": 7, **BIASED},
    ),
    Variant("conv2d_act", "conv2d_act_kernel", "1x1", conv_constants(1, False, 1), STEPS),
    Variant("conv2d_act", "conv2d_act_kernel", "1x1x4", conv_constants(1, False, 4), STEPS),
    Variant("conv2d_act", "conv2d_act_kernel", "3x3", conv_constants(3, True, 1), (*STEPS, *PADS)),
    Variant("conv2d_act", "conv2d_act_kernel", "3x3s2", conv_constants(3, False, 1)),
    Variant(
        "conv2d_act", "conv2d_act_few_channels_kernel", "3x3s2",
        {"CHANNELS": 3, "R": 3, "S": 3, "CHECK_H": False, "CHECK_W": False, **BIASED},
        evens=(), always_ragged=True,
    ),
    Variant(
        "conv2d_act", "conv2d_act_few_channels_kernel", "7x7s2",
        {"CHANNELS": 8, "R": 7, "S": 7, "CHECK_H": True, "CHECK_W": True, **BIASED},
        evens=(), always_ragged=True,
    ),
    Variant(
        "split_conv2d", "split_conv2d_kernel", "3",
        {"TAPS_ROW": 3, "TAPS_COL": 3, "HAS_BIAS_ROW": True, "HAS_BIAS_COL": True, "RELU": True},
    ),
    Variant("grid_reduction", "grid_reduction_kernel", "max", {"KERNEL": 3, "MAX": True, **BIASED}),
    Variant(
        "grid_reduction", "grid_reduction_kernel", "avg", {"KERNEL": 3, "MAX": False, **BIASED}
    ),
    Variant(
        "halving_branches", "halving_branches_kernel", "3",
        {"KERNEL": 3, "BRANCHES": 3, "BIASES": 7, "POOL_P": 32, "POOL_K": 64},
    ),
    Variant(
        "pool2d", "max_pool2d_kernel", "3x3s2",
        {"R": 3, "S": 3, "CHECK_H": False, "CHECK_W": False}, evens=(), matrix=False,
    ),
    Variant(
        "pool2d", "max_pool2d_kernel", "3x3",
        {"R": 3, "S": 3, "CHECK_H": True, "CHECK_W": True}, STEPS, evens=(), matrix=False,
    ),
    Variant(
        "pool2d", "avg_pool2d_act_kernel", "3x3",
        {"KERNEL": 3, "INCLUDE_PAD": True, **BIASED}, evens=(), matrix=False,
    ),
    Variant(
        "pool2d", "avg_pool2d_act_kernel", "3x3-count",
        {"KERNEL": 3, "INCLUDE_PAD": False, **BIASED}, evens=(), matrix=False,
    ),
    Variant("pool2d", "global_avg_pool2d_kernel", "mean", {}, evens=(), matrix=False),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kernel compiled one way."""

    variant: Variant = field(hash=False)
    device_class: str
    precision: str
    tile: Tile
    constants: dict[str, Any] = field(hash=False)
    even: bool

    @property
    def kernel(self) -> str:
        return self.variant.kernel

    def __str__(self) -> str:
        t = self.tile
        return (
            f"{self.device_class}-{self.kernel}-{self.variant.name}"
            f"-{'even' if self.even else 'ragged'}-{self.precision}"
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


def case_of(variant: Variant, device_class: str, precision: str, tile: Tile, even: bool) -> Case:
    """`variant` with the constants of a tile and a precision."""
    constants = {
        **variant.constants,
        **dict.fromkeys(variant.evens, even),
        "BLOCK_P": tile.block_p,
        "BLOCK_F": tile.block_f,
        "BLOCK_K": tile.block_k,
        "TF32": precision == "float32_tf32",
        "UPCAST": False,
    }
    return Case(variant, device_class, precision, tile, constants, even)


def cases() -> Iterator[Case]:
    """Every kernel × variant × tile × precision × device class of the tables.

    "even" has channels in whole K blocks and filters in multiples of 16; "ragged" has neither.
    """
    for device_class in CLASSES:
        for variant in VARIANTS:
            for precision, tiles in load_table(variant.op, device_class).tiles.items():
                for tile in tiles:
                    if not (variant.always_ragged and tile.whole):
                        if not variant.always_ragged:
                            yield case_of(variant, device_class, precision, tile, True)
                        if not tile.whole:
                            yield case_of(variant, device_class, precision, tile, False)


def compile_case(case: Case) -> CompiledKernel:
    """The kernel of `case`, specialised as a launch would specialise its arguments."""
    module = f"fused_inception.ops.{case.variant.op}.triton_kernel"
    kernel = getattr(importlib.import_module(module), case.kernel)
    constants = {**case.constants, **dict.fromkeys(case.variant.ones, 1)}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if name in constants:
            signature[name] = "constexpr"
            continue
        is_pointer = name.endswith("_ptr")
        signature[name] = POINTERS[case.precision] if is_pointer else "i32"
        if is_pointer:
            multiple_of_16 = not parameter.do_not_specialize_on_alignment
        else:
            multiple_of_16 = not parameter.do_not_specialize and (
                name in PADDED or (case.even and name in OF_ANY_SIZE)
            )
        if multiple_of_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", int(case.device_class.removeprefix("sm_")), 32)
    options = {
        "num_warps": case.tile.num_warps,
        "num_stages": case.tile.num_stages,
        "maxnreg": case.tile.max_registers,
    }
    return triton.compile(source, target=target, options=options)


INSTRUCTION = re.compile(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma|fma\.rn\.f32)")


def measure(case: Case) -> Row:
    """Compile `case` and read ptxas's report on it: that of the very run that Triton makes."""
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # what lies in a cache has no report
        with contextlib.redirect_stdout(log):
            compiled = compile_case(case)
    ptx, report = compiled.asm["ptx"], log.getvalue()

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
    limit = load_table(case.variant.op, case.device_class).shared_memory_bytes
    if row.shared_memory > limit:
        found.append(f"{row.shared_memory} bytes of shared memory, limit {limit}")
    expected = MATRIX_INSTRUCTIONS[case.device_class]
    if case.precision == "float32_ieee":
        expected = "fma.rn.f32"
    if case.variant.matrix and row.instruction != expected:
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
