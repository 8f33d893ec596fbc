"""The emulator against a device: the same programs, compiled by nvcc, on the same operands.

Whole numbers must agree bit for bit. The order in which the matrix unit sums is not specified, so
on random numbers device and emulator may differ by what rounding allows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fused_inception import testing
from fused_inception.testing import PairShape
from tests.emulator import programs
from tests.emulator.pair import PROGRAM, configurations, run_pair
from tests.emulator.primitives import (
    DTYPES,
    KERNELS,
    SM90_KERNELS,
    SPANS,
    TENSOR_COPIES,
    accumulator_of,
    fragment_a,
    fragment_b,
    run_primitive,
    tensor_copy,
    wgmma,
)

PROGRAMS = ("primitives_program", "configurations", PROGRAM)
REFUSAL = programs.device_refusal(*PROGRAMS)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REFUSAL is not None, reason=f"emulator: {REFUSAL}"),
]
SEEDS = range(3)


def needs_sm90() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gpu: needs compute capability 9.0")


@pytest.mark.parametrize("columns", [48, 80, 96, 160])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_row_shifts_of_no_swizzle_descriptors(dtype: str, columns: int, tmp_path: Path):
    """Start addresses that are multiples of 16 but not of 128: what the pair on wgmma stands on."""
    needs_sm90()
    device = programs.build_for_device("primitives_program")
    # Each run is a process; operands of all widths are decoded alike.
    for shift_b in (*range(9), 16, 17, 29):
        for shift_a in (0, 1, 37) if columns == 160 else (1,):
            case = wgmma(dtype, columns, shift_b, shift_a=shift_a, shift_b=shift_b)
            kernel = f"wgmma_{dtype}_{columns}"
            output, report = run_primitive(tmp_path, kernel, case, binary=device)
            assert report.fault == ""
            assert torch.equal(output, case.expected), f"shifts {shift_a} and {shift_b}"


@pytest.mark.parametrize("line", [8, 9, 10, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_rows_of_a_no_swizzle_descriptor_are_lines_apart(
    dtype: str, line: int, tmp_path: Path
):
    """Strides that are multiples of 16 but not of 128: what whole images of the split stand on."""
    needs_sm90()
    device = programs.build_for_device("primitives_program")
    for shift in (0, 1, line - 1, line, line + 1):
        case = wgmma(dtype, 96, shift, shift_a=shift, line_a=line)
        output, report = run_primitive(tmp_path, f"wgmma_{dtype}_96", case, binary=device)
        assert report.fault == ""
        assert torch.equal(output, case.expected), f"shift {shift}"


@pytest.mark.parametrize("case", TENSOR_COPIES)
def test_tensor_copies_bring_zeros_from_outside(case: str, tmp_path: Path):
    needs_sm90()
    device = programs.build_for_device("primitives_program")
    wanted = tensor_copy(0, 5, **TENSOR_COPIES[case])
    output, report = run_primitive(tmp_path, "tensor_copy", wanted, binary=device)
    assert report.fault == ""
    assert torch.equal(output, wanted.expected)


@pytest.mark.parametrize("span", SPANS)
def test_tensor_copies_swizzle(span: int, tmp_path: Path):
    needs_sm90()
    device = programs.build_for_device("primitives_program")
    wanted = tensor_copy(span, 6, sizes=(72, 24, 3), start=(8, 2, 0))
    output, report = run_primitive(tmp_path, "tensor_copy", wanted, binary=device)
    assert report.fault == ""
    assert torch.equal(output, wanted.expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_primitives_agree_bit_for_bit(kernel: str, tmp_path: Path):
    if kernel in SM90_KERNELS:
        needs_sm90()
    device = programs.build_for_device("primitives_program")
    for seed in SEEDS:
        case = KERNELS[kernel](seed)
        output, report = run_primitive(tmp_path, kernel, case, binary=device)
        emulated, _ = run_primitive(tmp_path, kernel, case)
        assert report.fault == ""
        assert torch.equal(output, case.expected)
        assert torch.equal(output, emulated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_products_agree_within_rounding(dtype: str, tmp_path: Path):
    device = programs.build_for_device("primitives_program")
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        a, b = (
            torch.randn(size, generator=generator).to(DTYPES[dtype]) for size in ((16, 16), (16, 8))
        )
        c = torch.randn(16, 8, generator=generator)
        case = KERNELS[f"mma_{dtype}"](0)._replace(
            first=fragment_a(a), second=fragment_b(b), third=accumulator_of(c)
        )
        output, _ = run_primitive(tmp_path, f"mma_{dtype}", case, binary=device)
        emulated, _ = run_primitive(tmp_path, f"mma_{dtype}", case)
        # 16 additions, each to the precision of the largest sum that can come up.
        largest = accumulator_of((a.double().abs() @ b.double().abs() + c.double().abs()).float())
        budget = 16 * torch.finfo(torch.float32).eps * largest
        exact = accumulator_of(a.double() @ b.double() + c.double())
        assert ((output - exact).abs() <= budget).all()
        assert ((output - emulated).abs() <= budget).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_pair_agrees(dtype: torch.dtype, tmp_path: Path):
    """Every configuration that fits: whole numbers exactly, random ones within the budget."""
    device = programs.build_for_device(PROGRAM)
    shape = PairShape(3, 9, 5, 24, 40, 104, 3, 5, True)
    table = configurations(shape.c_mid, programs.build_for_device("configurations"))
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    hopper = torch.cuda.get_device_capability() == (9, 0)
    for number, row in enumerate(table):
        if row.shared_bytes > limit or (row.sm90 and not hopper):
            continue
        whole = testing.integer_pair(shape, dtype)
        output, report = run_pair(tmp_path, shape, whole, number, binary=device)
        assert report.fault == ""
        assert torch.equal(output[:, : shape.c_out], testing.pair_oracle(whole).to(dtype))
        inputs = testing.random_pair(shape, dtype)
        output, _ = run_pair(tmp_path, shape, inputs, number, binary=device)
        emulated, _ = run_pair(tmp_path, shape, inputs, number)
        oracle = testing.pair_oracle(inputs)
        for result in (output, emulated):
            testing.assert_within_budget(result, testing.unfused_pair(inputs), oracle)
