"""The kernels of `conv2d_act`, `grid_reduction` and `split_conv2d`: the emulator against a device.

The same programs, compiled by nvcc, on the same operands; see `test_emulator_gpu.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fused_inception import testing
from tests.emulator import programs
from tests.emulator.convolutions import OPS, PROGRAM, configurations
from tests.test_emulator_convolutions import DTYPES, SUBJECTS, checked, expected, taken

REFUSAL = programs.device_refusal(PROGRAM)
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
