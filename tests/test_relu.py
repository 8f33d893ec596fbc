"""The ReLU of PyTorch's backend: all numbers of 16 bits, any strides, and where it must not act."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fused_inception.ops.common.relu import rectifier, relu_, relu_into
from fused_inception.testing import assert_same_bits, channels_last

WIDE = (torch.float32, torch.float64)
DTYPES = (torch.float16, torch.bfloat16, *WIDE)


def relu(x):
    return rectifier(x.dtype, "cpu").new(x)


def every_number(dtype):
    """(1, 256, 16, 16) of all 65536 numbers of a 16-bit dtype; wide ones take float16's."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    numbers = bits.view(torch.float16 if dtype in WIDE else dtype).to(dtype)
    return channels_last(numbers.reshape(1, 256, 16, 16))


def expected(x):
    """`F.relu`, in 16 bits with +0 for -0."""
    result = F.relu(x)
    return torch.where(result == 0, 0, result) if x.dtype not in WIDE else result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_has_the_bits_of_relu(dtype):
    x = every_number(dtype)
    want = expected(x)
    assert_same_bits(relu(x), want)
    assert_same_bits(relu_into(x, torch.empty_like(x)), want)
    assert relu(x).isnan().sum() == x.isnan().sum() > 0
    in_place = x.clone(memory_format=torch.preserve_format)
    assert relu_(in_place) is in_place
    assert_same_bits(in_place, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_channels(dtype):
    x = every_number(dtype)
    part = x[:, 60:190]
    result = relu(part)
    assert_same_bits(result, expected(part))
    assert result.is_contiguous(memory_format=torch.channels_last)
    output = channels_last(torch.full_like(x, 7))
    assert relu_into(part, output[:, 3:133]).data_ptr() == output[:, 3:].data_ptr()
    assert_same_bits(output[:, 3:133], expected(part))
    assert (output[:, :3] == 7).all()
    assert (output[:, 133:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_recorded(dtype):
    x = torch.tensor([-1.0, 2.0], dtype=dtype, requires_grad=True)
    relu_(x * 1).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]
