"""The shared Triton pieces, one kernel each, against their definitions."""

from __future__ import annotations

import struct

import pytest
import torch
import triton
import triton.language as tl

from fused_inception.ops.common.triton_math import relu, round_to_tf32

VALUES = 64


@triton.jit
def _relu_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    tl.store(y_ptr + offs, relu(tl.load(x_ptr + offs)))


@triton.jit
def _tf32_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    tl.store(y_ptr + offs, round_to_tf32(tl.load(x_ptr + offs)))


def run(kernel, values: torch.Tensor) -> torch.Tensor:
    padded = torch.zeros(VALUES)
    padded[: len(values)] = values
    out = torch.full((VALUES,), float("nan"))
    kernel[(1,)](padded, out, SIZE=VALUES)
    return out[: len(values)]


def bits(x: torch.Tensor) -> list[int]:
    return x.view(torch.int32).tolist()


def test_relu_is_bitwise_pytorchs_for_everything_but_nan_payloads():
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-42, -1e-42, 2.0, float("inf"), -float("inf")])
    assert bits(run(_relu_kernel, x)) == bits(torch.relu(x))


def test_relu_propagates_nan():
    x = torch.tensor([float("nan"), -float("nan")])
    assert run(_relu_kernel, x).isnan().all()


def nearest_tf32(x: float) -> float:
    """Round to 11 significant bits, ties away from zero, by integer arithmetic on the encoding."""
    (code,) = struct.unpack("<I", struct.pack("<f", x))
    sign, magnitude = code & 0x80000000, code & 0x7FFFFFFF
    kept, dropped = divmod(magnitude, 1 << 13)
    kept += dropped >= 1 << 12
    return struct.unpack("<f", struct.pack("<I", sign | (kept << 13)))[0]


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20])
def test_round_to_tf32_is_to_nearest(scale: float):
    x = torch.randn(VALUES, generator=torch.Generator().manual_seed(0)) * scale
    expected = torch.tensor([nearest_tf32(v) for v in x.tolist()])
    assert bits(run(_tf32_kernel, x)) == bits(expected)


def test_round_to_tf32_rounds_ties_away_from_zero_and_carries():
    tie = 1.0 + 2.0**-11  # halfway between 1 and the next tf32 number
    below = 2.0 - 2.0**-12  # rounds up into the next binade
    x = torch.tensor([tie, -tie, below, -below])
    assert run(_tf32_kernel, x).tolist() == [1 + 2.0**-10, -1 - 2.0**-10, 2.0, -2.0]


def test_round_to_tf32_keeps_infinities_and_nan():
    x = torch.tensor([float("inf"), -float("inf"), float("nan")])
    result = run(_tf32_kernel, x)
    assert result[0] == float("inf")
    assert result[1] == -float("inf")
    assert result[2].isnan()


def test_round_to_tf32_keeps_a_nan_whose_payload_lies_in_the_dropped_bits():
    """A tensor core reads the upper 19 bits; without a bit of the payload in them it sees Inf."""
    codes = [0x7FFFFFFF, 0x7F800001, 0x7F801FFF, -0x7FFFFF, -0x7FE001]
    x = torch.tensor(codes, dtype=torch.int32).view(torch.float32)
    assert x.isnan().all()
    read = (run(_tf32_kernel, x).view(torch.int32) >> 13) << 13
    assert read.view(torch.float32).isnan().all()
