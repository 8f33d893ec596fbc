"""The emulator itself: every primitive against its definition, every broken kernel caught by name.

What is compared here is integer-exact or bitwise. `test_emulator_gpu.py` holds the same programs
against a device.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emulator import programs
from tests.emulator.primitives import (
    DTYPES,
    KERNELS,
    SPANS,
    TENSOR_COPIES,
    accumulator_of,
    fragment_a,
    fragment_b,
    run_primitive,
    tensor_copy,
    wgmma,
)
from tests.emulator.programs import HOOKED, SANITIZED, UCONTEXT, Variant

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)
needs_sanitizers = pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
SWARM_SEEDS = range(20)


# Primitives.


@pytest.mark.parametrize("kernel", KERNELS)
def test_primitive_does_what_it_is_defined_to(kernel: str, tmp_path: Path):
    case = KERNELS[kernel](0)
    output, report = run_primitive(tmp_path, kernel, case)
    assert report.fault == ""
    assert torch.equal(output, case.expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fragments_multiply_as_matrices(dtype: str, tmp_path: Path):
    """mma_m16n8k16 by way of its fragment tables, against a plain matrix product."""
    generator = torch.Generator().manual_seed(1)
    a, b, c = (
        torch.randint(-8, 9, size, generator=generator).float()
        for size in ((16, 16), (16, 8), (16, 8))
    )
    case = KERNELS[f"mma_{dtype}"](0)._replace(
        first=fragment_a(a.to(DTYPES[dtype])),
        second=fragment_b(b.to(DTYPES[dtype])),
        third=accumulator_of(c),
        expected=accumulator_of(a @ b + c),
    )
    output, report = run_primitive(tmp_path, f"mma_{dtype}", case)
    assert report.fault == ""
    assert torch.equal(output, case.expected)


@pytest.mark.parametrize("line", [8, 9, 11])
def test_eight_rows_of_wgmma_are_lines_apart(line: int, tmp_path: Path):
    """What whole images of `split_conv2d` stand on."""
    case = wgmma("bfloat16", 64, 4, shift_a=line + 1, line_a=line)
    output, report = run_primitive(tmp_path, "wgmma_bfloat16_64", case)
    assert report.fault == ""
    assert torch.equal(output, case.expected)


@pytest.mark.parametrize("shifts", [(0, 1), (1, 0), (7, 17), (8, 16), (37, 29)], ids=str)
def test_a_start_address_shifts_the_rows_of_wgmma(shifts: tuple[int, int], tmp_path: Path):
    case = wgmma("float16", 80, 3, shift_a=shifts[0], shift_b=shifts[1])
    output, report = run_primitive(tmp_path, "wgmma_float16_80", case)
    assert report.fault == ""
    assert torch.equal(output, case.expected)


@pytest.mark.parametrize("case", TENSOR_COPIES)
def test_a_tensor_copy_brings_zeros_from_outside(case: str, tmp_path: Path):
    wanted = tensor_copy(0, 5, **TENSOR_COPIES[case])
    output, report = run_primitive(tmp_path, "tensor_copy", wanted)
    assert report.fault == ""
    assert torch.equal(output, wanted.expected)


@pytest.mark.parametrize("span", SPANS)
def test_a_tensor_copy_swizzles(span: int, tmp_path: Path):
    wanted = tensor_copy(span, 6, sizes=(72, 24, 3), start=(8, 2, 0))
    output, report = run_primitive(tmp_path, "tensor_copy", wanted)
    assert report.fault == ""
    assert torch.equal(output, wanted.expected)


@pytest.mark.parametrize(
    "wrong",
    [{"stride1": 72}, {"box0": 24, "swizzle": 64}, {"box0": 4}, {"box1": 257}, {"size2": 0}],
    ids=str,
)
def test_a_tensor_map_that_the_driver_would_refuse(wrong: dict[str, int], tmp_path: Path):
    case = tensor_copy(0, 0)
    assert case.tensor_map is not None
    case = case._replace(tensor_map={**case.tensor_map, **wrong})
    assert run_primitive(tmp_path, "tensor_copy", case)[1].refused


@pytest.mark.parametrize(
    "kernel", ["bulk_copy", "wgmma_bfloat16_160", "tensor_copy_multicast", "bulk_push"]
)
def test_every_synchronizing_call_of_a_primitives_kernel_matters(kernel: str, tmp_path: Path):
    case = KERNELS[kernel](0)
    _, report = run_primitive(tmp_path, kernel, case)
    survivors = []
    for site, primitive in report.sites.items():
        runs = [
            run_primitive(tmp_path, kernel, case, mutate=site, schedule=schedule)
            for schedule in ("lazy", "eager")
        ]
        if all(torch.equal(output, case.expected) and not r.fault for output, r in runs):
            survivors.append(primitive)
    # Nothing overwrites the operands of the one, so that a wait before the last is not needed.
    assert survivors == (["wgmma_wait"] if kernel.startswith("wgmma") else [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_through_a_product(dtype: str, tmp_path: Path):
    a, b, c = torch.ones(16, 16), torch.ones(16, 8), torch.zeros(16, 8)
    a[0, 0], a[1, 1], b[2, 3] = math.nan, math.inf, -math.inf
    case = KERNELS[f"mma_{dtype}"](0)._replace(
        first=fragment_a(a.to(DTYPES[dtype])),
        second=fragment_b(b.to(DTYPES[dtype])),
        third=accumulator_of(c),
    )
    output, _ = run_primitive(tmp_path, f"mma_{dtype}", case)
    assert torch.equal(output.isnan(), accumulator_of(a @ b).isnan())
    assert torch.equal(output.isinf(), accumulator_of(a @ b).isinf())


@pytest.mark.parametrize("schedule", ["lazy", "eager", "swarm"])
@pytest.mark.parametrize(
    "kernel",
    [
        "cp_async", "cp_async_groups", "named_barrier", "warp_sync", "bulk_copy",
        "wgmma_float16_80", "remote_memory", "bulk_copy_multicast", "bulk_push",
    ],
)  # fmt: skip
def test_primitive_in_every_schedule(kernel: str, schedule: str, tmp_path: Path):
    case = KERNELS[kernel](0)
    for seed in range(10 if schedule == "swarm" else 1):
        output, report = run_primitive(tmp_path, kernel, case, schedule=schedule, seed=seed)
        assert report.fault == ""
        assert torch.equal(output, case.expected)


@pytest.mark.parametrize(
    "variant",
    [pytest.param(SANITIZED, marks=needs_sanitizers), UCONTEXT],
    ids=["sanitized", "ucontext"],
)
@pytest.mark.parametrize("kernel", ["cp_async_groups", "named_barrier", "ldmatrix_x4"])
def test_primitive_in_every_build(kernel: str, variant: Variant, tmp_path: Path):
    case = KERNELS[kernel](0)
    output, report = run_primitive(tmp_path, kernel, case, variant=variant)
    assert report.fault == ""
    assert torch.equal(output, case.expected)


# The rules that let one source be compiled for the host and for a device.

CSRC = programs.ROOT / "csrc"
KERNEL_SOURCES = [
    path for path in sorted(CSRC.rglob("*.cuh")) if not path.name.startswith("device")
]


def code_of(path: Path) -> str:
    """The source without its comments."""
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("path", KERNEL_SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_kernels_use_the_primitives_of_device_cuh_only(path: Path):
    forbidden = r"\basm\b|<<<|\b__\w+_sync\b|\b__syncthreads\b|\bthreadIdx\b|\bblockIdx\b"
    forbidden += r"|__shared__|\bmemcpy\b|\bcuda::|__cvta|<torch/"
    assert re.findall(forbidden, code_of(path)) == []


def test_assembly_is_in_the_device_headers_only():
    holding = {
        path.name
        for path in CSRC.rglob("*.*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh") and re.search(r"\basm\b", code_of(path))
    }
    assert holding == {"device_ptx.cuh"}


def test_host_and_device_have_the_same_primitives():
    device = set(
        re.findall(r"__forceinline__ [\w*]+ (\w+)\(", code_of(CSRC / "common/device_ptx.cuh"))
    )
    header = code_of(programs.SOURCES / "device_host.h").partition("using emulator::Site;")[2]
    host = set(
        re.findall(r"^(?:inline )?(?:void|int|T\*|uint32_t|float) (\w+)\(", header, re.MULTILINE)
    )
    assert device == host != set()
    tested = code_of(programs.SOURCES / "primitives_program.cpp")
    assert {name for name in device if not re.search(rf"device::{name}\b", tested)} == set()


# Broken kernels: one small pipeline, and what the emulator says of each way to break it. Of a
# fragment that is wrong it can only say the wrong values.
VALUES = "values"
UNWRITTEN = r"reads shared memory at offset \d+ .*, which nobody has written"  # yet
COPY_RACE = (
    r"reads shared memory .* ordered after an asynchronous copy of thread \d+, which writes it"
)
FAULTS = {
    "no_copy_wait": COPY_RACE,
    "weak_copy_wait": COPY_RACE,
    "no_copy_commit": COPY_RACE,
    "no_sync_after_wait": UNWRITTEN,
    "no_sync_at_loop_end": r"race: an asynchronous copy of thread \d+ writes .* which reads it",
    "no_sync_in_epilogue": UNWRITTEN,
    "no_warp_sync": UNWRITTEN,
    "swapped_fragment": VALUES,
    "transposed_fragment": VALUES,
    "write_race": r"race: thread 3 writes .* ordered after thread 0, which writes it",
    "shared_write_out_of_bounds": r"out of bounds: writes 4 bytes at offset \d+ of shared memory",
    "shared_read_out_of_bounds": r"out of bounds: reads 4 bytes at offset \d+ of shared memory",
    "ldmatrix_out_of_bounds": r"out of bounds: ldmatrix of 16 bytes at offset \d+ of shared memory",
    "copy_out_of_bounds": r"out of bounds: cp_async_16 of 16 bytes at offset \d+ of shared memory",
    "copy_from_out_of_bounds": r"out of bounds: reads 16 bytes of global memory .* of a, which has",
    "copy_from_host_memory": r"the source of cp_async_16 is not in global memory",
    "global_write_out_of_bounds": r"out of bounds: writes 16 bytes of global .* of output",
    "global_read_out_of_bounds": r"out of bounds: reads 2 bytes of global .* of b",
    "misaligned_ldmatrix": r"misaligned: ldmatrix at shared address \d+, takes multiples of 16",
    "misaligned_copy": r"misaligned: the source of cp_async_16",
    "uninitialised_read": UNWRITTEN,
    "diverged_warp": r"warp diverged: in \w+ .* while other lanes of the warp are in \w+",
    "diverged_ldmatrix": r"warp diverged: in ldmatrix .* while other lanes .* are in ldmatrix",
    "barrier_in_a_branch": r"deadlock: 32 threads in block_sync .*, 32 threads in named_bar",
    "early_exit": r"deadlock: 62 threads in warp_sync \(.*\), 2 exited",
    "wrong_barrier_count": r"deadlock: .*32 threads in named_barrier_sync",
    "disagreeing_barrier_count": r"barrier 1 is used for \d+ threads while it waits for \d+",
    "named_barrier_missing": r"race: thread 32 reads .* ordered after thread 0, which writes it",
    "copies_in_flight_at_exit": r"exits with copies in flight",
    "written_twice": r"writes 16 bytes of global .* of output, which this grid has already written",
    "reads_another_block": r"reads 4 bytes of global .* of output, .* already written",
    "writes_an_input": r"writes 2 bytes of global .* of a, which is for the other use only",
    "too_much_shared_memory": r"a block asks for 262144 bytes of shared memory, the limit is",
}  # fmt: skip


def run_faulty(folder: Path, fault: str, variant: Variant = HOOKED, **options: Any):
    """The small kernel broken one way: (whether the values are right, the report)."""
    generator = torch.Generator().manual_seed(2)
    steps = 4
    a = torch.randint(-4, 5, (32, 16 * steps), generator=generator).half()
    b = torch.randint(-4, 5, (8, 16 * steps), generator=generator).half()
    report = programs.run(
        programs.build("faults", variant),
        a=programs.save(a, folder / "a"),
        b=programs.save(b, folder / "b"),
        output=folder / "output",
        steps=steps,
        fault=fault,
        **options,
    )
    expected = (a.float() @ b.float().T + 1).expand(2, 32, 8)
    right = (folder / "output").exists() and torch.equal(
        programs.load(folder / "output", torch.float32), expected.flatten()
    )
    return right, report


@pytest.mark.parametrize("schedule", ["lazy", "eager", "swarm"])
def test_the_kernel_that_is_not_broken_passes(schedule: str, tmp_path: Path):
    for seed in SWARM_SEEDS if schedule == "swarm" else (0,):
        right, report = run_faulty(tmp_path, "none", schedule=schedule, seed=seed)
        assert (right, report.fault) == (True, "")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_caught_by_name(fault: str, tmp_path: Path):
    right, report = run_faulty(tmp_path, fault, schedule="lazy")
    if FAULTS[fault] is VALUES:
        assert (right, report.fault) == (False, "")
    else:
        assert re.search(FAULTS[fault], report.fault), report.fault


def test_every_fault_is_in_the_table():
    listed = programs.run_lines(programs.build("faults"), list=1)
    assert {line.removeprefix("fault ") for line in listed} == {"none", *FAULTS}


@needs_sanitizers
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("none", ""),
        ("shared_write_out_of_bounds", r"AddressSanitizer: use-after-poison"),
        ("global_write_out_of_bounds", r"AddressSanitizer: use-after-poison"),
        ("global_read_out_of_bounds", r"AddressSanitizer: use-after-poison"),
    ],
)
def test_the_sanitizers_see_a_plain_access_out_of_bounds(
    fault: str, complaint: str, tmp_path: Path
):
    _, report = run_faulty(tmp_path, fault, SANITIZED)
    assert re.search(complaint, report.fault) if complaint else report.fault == ""


@pytest.mark.parametrize(
    "fault", ["no_copy_wait", "weak_copy_wait", "no_sync_after_wait", "no_sync_at_loop_end"]
)
def test_some_schedule_shows_a_fault_in_the_values(fault: str, tmp_path: Path):
    """Without the race detector, wrong values must come of it in one of the seeds."""
    runs = (
        run_faulty(tmp_path, fault, schedule="swarm", seed=seed, races=0) for seed in SWARM_SEEDS
    )
    assert any(not right for right, _ in runs)


def test_a_fault_names_its_lines(tmp_path: Path):
    _, report = run_faulty(tmp_path, "write_race")
    lines = (programs.SOURCES / "faults.cpp").read_text().splitlines()
    named = [int(n) for n in re.findall(r"faults\.cpp:(\d+)", report.fault)]
    assert [lines[n - 1].strip() for n in named] == [
        "if (p.fault == Fault::write_race && lane == 3) s.row_sum[0] = one;",
        "s.row_sum[lane] = one;",
    ]


def test_every_synchronizing_call_of_the_kernel_matters(tmp_path: Path):
    """The mutation run: each call left out in turn, and each wait weakened."""
    _, report = run_faulty(tmp_path, "none")
    assert len(report.sites) == 9
    survivors = []
    for site, primitive in report.sites.items():
        for weaken in (0, 1) if primitive == "cp_async_wait" else (0,):
            runs = [
                run_faulty(tmp_path, "none", mutate=site, weaken=weaken, schedule=schedule)
                for schedule in ("lazy", "eager")
            ]
            if all(right and not mutant.fault for right, mutant in runs):
                survivors.append((primitive, weaken))
    assert survivors == []
