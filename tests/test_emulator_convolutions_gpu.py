"""Convolutions, splits, reductions, branches and pools: the emulator against a device.

The same programs, compiled by nvcc, on the same operands; see `test_emulator_gpu.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fused_inception import testing
from tests import branch_cases
from tests import test_emulator_branches as branches
from tests import test_emulator_pools as pools
from tests.emulator import programs
from tests.emulator.branches import PROGRAM as BRANCHES
from tests.emulator.branches import run_branches
from tests.emulator.convolutions import OPS, PROGRAM, configurations
from tests.emulator.pools import PROGRAM as POOLS
from tests.emulator.pools import run_pool
from tests.test_emulator_convolutions import DTYPES, SUBJECTS, checked, expected, taken

REFUSAL = programs.device_refusal(PROGRAM, BRANCHES, POOLS)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REFUSAL is not None, reason=f"emulator: {REFUSAL}"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("engine", ["sm80", "sm90"])
def test_an_op_agrees(op: str, dtype: str, engine: str, tmp_path: Path):
    """Every configuration: whole numbers exactly, random ones within the budget."""
    if engine == "sm90" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gpu: needs compute capability 9.0")
    device = programs.build_for_device(PROGRAM)
    subject = SUBJECTS[op]
    for number, row in enumerate(configurations(op, 64)):
        if row.sm90 != (engine == "sm90"):
            continue
        for shape in subject.shapes:
            if not taken(op, number, shape):
                continue
            whole = subject.integers(shape, DTYPES[dtype])
            outcome = subject.run(tmp_path, shape, whole, number, binary=device)
            assert torch.equal(checked(op, shape, outcome), expected(op, shape, whole)), shape
        shape = subject.shapes[0]
        inputs = subject.random(shape, DTYPES[dtype])
        oracle = subject.oracle(shape, inputs)
        for binary in (device, None):
            outcome = subject.run(tmp_path, shape, inputs, number, binary=binary)
            result = checked(op, shape, outcome)
            testing.assert_within_budget(result, subject.unfused(shape, inputs), oracle)


@pytest.mark.parametrize("dtype", DTYPES)
@branches.each_configuration
def test_branches_agree(configuration: int, dtype: str, tmp_path: Path):
    device = programs.build_for_device(BRANCHES)
    for shape in branch_cases.SHAPES:
        whole = branches.whole_numbers(shape, dtype)
        outcome = run_branches(tmp_path, whole, configuration, binary=device)
        assert torch.equal(branches.checked(whole, outcome), branch_cases.expected(whole)), shape
    inputs = branches.random_numbers(branch_cases.SHAPES[0], dtype)
    one, other = (
        branches.checked(inputs, run_branches(tmp_path, inputs, number, binary=device))
        for number in (configuration, 0)
    )
    assert torch.equal(one, other)


@pools.every_dtype
@pools.each_form
def test_a_pool_agrees(form: int, dtype: str, tmp_path: Path):
    """Bit by bit, also where the values are special ones."""
    device = programs.build_for_device(POOLS)
    for x in (*(pools.maps(shape, dtype) for shape in pools.SHAPES), *pools.edges(dtype)):
        options = pools.options_of(form, dtype, x.shape[1])
        windows = pools.WINDOWS if form != pools.GLOBAL else [(x.shape[2:],)]
        for window in windows:
            if len(window) == 3 and not pools.fits(x.shape, window):
                continue
            here, there = (
                pools.checked(
                    run_pool(tmp_path, form, x, *window, binary=binary, **options), x.shape[1]
                )
                for binary in (None, device)
            )
            if form == pools.MAX:
                pools.assert_same_memory(there, here)
            else:
                testing.assert_same_bits(there, here)
