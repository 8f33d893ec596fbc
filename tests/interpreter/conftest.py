"""The interpreter suite: its own process, TRITON_INTERPRET=1 before triton is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from fused_inception import testing
from fused_inception.ops.common import triton_runtime

# name -> (dtype, float32 precision, factor of the error budget). bfloat16's is doubled: its
# operands are upcast, and the interpreter truncates where a device rounds to nearest.
PRECISIONS = {
    "fp32-ieee": (torch.float32, "ieee", 2.0),
    "fp32-tf32": (torch.float32, "tf32", 2.0),
    "fp16": (torch.float16, "ieee", 2.0),
    "bf16": (torch.bfloat16, "ieee", 4.0),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.interpreter)
            if not triton_runtime.INTERPRETING:
                reason = "TRITON_INTERPRET=1 was not set before triton was imported"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[tuple[torch.dtype, float]]:
    """(dtype, budget factor), with the float32 switch set."""
    dtype, fp32, factor = PRECISIONS[request.param]
    with testing.fp32_precision(fp32):
        yield dtype, factor


@pytest.fixture
def sequential_product(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tl.dot` as a sum over K one step at a time.

    The interpreter's own is `numpy.matmul`, whose rounding depends on a row's place in the tile; a
    tensor core's does not. Only with this product can a bitwise comparison of two tilings mean
    anything here.
    """

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        accumulator = d.data.copy()
        for k in range(a.data.shape[1]):
            left = a.data[:, k, None].astype(accumulator.dtype)
            accumulator += left * b.data[None, k, :].astype(accumulator.dtype)
        return interpreter.TensorHandle(accumulator, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    with np.errstate(over="ignore", invalid="ignore"):
        yield
