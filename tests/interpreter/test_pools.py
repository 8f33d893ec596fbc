"""The pools and the linear layer on the Triton backend, run by the interpreter.

Left out: float64 (the backend refuses it).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fused_inception import testing
from fused_inception.blocks import BlockWeights, linear
from fused_inception.ops.common import launching
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.pool2d import launch
from fused_inception.ops.pool2d.op import Problem, _check_max, global_avg_pool2d, max_pool2d
from tests import test_emulator_pools
from tests.pool_cases import EDGES, special_maps

# (batch, channels, height, width)
SHAPES = [(1, 1, 3, 3), (3, 20, 9, 8), (2, 64, 17, 17), (2, 130, 4, 7), (1, 16, 71, 5)]
# (window, stride, padding): of Inception V3, of the Fréchet Inception Distance, and odd ones.
WINDOWS = [(3, 2, 0), (3, 1, 1), (1, 1, 0), ((3, 2), (2, 1), (1, 0)), ((2, 3), (1, 3), (1, 1))]


def maps(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return testing.channels_last(torch.randn(shape, generator=generator).to(dtype))


def average(x, bias, include_pad, output=None, first_image=0):
    n, c, h, w = x.shape
    output = empty_channels_last((n, c, h, w), x) if output is None else output
    problem = Problem(n, c, h, w, (3, 3), (1, 1), (1, 1), h, w, x.dtype, x.device)
    launch.launch_avg_pool_act(problem, x, bias, output, include_pad, first_image=first_image)
    return output


def averaged(x, bias, include_pad):
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include_pad)
    return F.relu(pooled if bias is None else pooled + bias.reshape(1, -1, 1, 1))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_maximum_is_bitwise_pytorchs(shape, window, precision):
    dtype, _ = precision
    x = maps(shape, dtype)
    result = max_pool2d(x, window[0], stride=window[1], padding=window[2], backend="triton")
    testing.assert_same_bits(result, F.max_pool2d(x, *window))
    testing.assert_channels_last(result)


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("window", WINDOWS[:3], ids=str)
def test_the_maximum_of_special_values_is_bitwise_pytorchs(window, case, precision):
    dtype, _ = precision
    x = special_maps(dtype)[case]
    result = max_pool2d(x, window[0], stride=window[1], padding=window[2], backend="triton")
    testing.assert_same_bits(result, F.max_pool2d(x, *window))


# The two constants of the kernel have nothing to do with one another: each value once is enough.
@pytest.mark.parametrize(
    ("bias", "include_pad"), [(True, True), (False, False)], ids=["bias-pad", "plain"]
)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 5, 1, 1), (2, 5, 1, 4)], ids=str)
def test_the_average_is_within_pytorchs_error(shape, bias, include_pad, precision):
    dtype, factor = precision
    x = maps(shape, dtype)
    b = maps((1, shape[1], 1, 1), dtype, seed=1).flatten() if bias else None
    oracle = averaged(x.double(), None if b is None else b.double(), include_pad)
    result = average(x, b, include_pad)
    testing.assert_within_budget(result, averaged(x, b, include_pad), oracle, factor)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
def test_an_average_is_the_sum_in_the_order_of_the_window(include_pad, precision):
    """The very bits that the extension is held to."""
    dtype, _ = precision
    if dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts a result to bfloat16 off instead of rounding it")
    x = maps((3, 20, 9, 8), dtype)
    bias = maps((20, 1, 1, 1), dtype, seed=1).flatten()
    want = test_emulator_pools.average(x, (3, 3), (1, 1), (1, 1), bias, include_pad, True)
    testing.assert_same_bits(average(x, bias, include_pad), want)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
def test_averages_of_integers_are_exact(include_pad, precision):
    dtype, _ = precision
    generator = torch.Generator().manual_seed(0)
    # 36 is a multiple of every number of pixels in a window.
    x = 36 * torch.randint(-3, 4, (2, 20, 5, 6), generator=generator).float()
    b = torch.randint(-9, 9, (20,), generator=generator).to(dtype)
    expected = averaged(x.double(), b.double(), include_pad).to(dtype)
    result = average(testing.channels_last(x.to(dtype)), b, include_pad)
    assert expected.max() > 0
    assert torch.equal(result, expected)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2048, 8, 8), (3, 5, 1, 1)], ids=str)
def test_the_global_mean_is_within_pytorchs_error(shape, precision):
    dtype, factor = precision
    x = maps(shape, dtype)
    result = global_avg_pool2d(x, backend="triton")
    oracle = x.double().mean((2, 3), keepdim=True)
    testing.assert_within_budget(result, F.adaptive_avg_pool2d(x, 1), oracle, factor)
    testing.assert_channels_last(result)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_any_layout_gives_the_same_bits_and_is_not_written(layout):
    x = maps((2, 20, 9, 8), torch.float32)
    view = testing.LAYOUTS[layout](x)
    before = view.clone()
    for pool in (
        lambda x: max_pool2d(x, 3, stride=2, backend="triton"),
        lambda x: global_avg_pool2d(x, backend="triton"),
        lambda x: average(x, None, False),
    ):
        testing.assert_same_bits(pool(view), pool(x))
    assert torch.equal(view, before)


def test_a_pool_writes_its_slice_and_nothing_else(precision):
    dtype, _ = precision
    x, bias = maps((2, 20, 6, 5), dtype), maps((20, 1, 1, 1), dtype).flatten()
    whole = testing.channels_last(torch.full((2, 60, 6, 5), 77.0, dtype=dtype))
    whole[:, 20:40] = float("nan")
    average(x, bias, True, whole[:, 20:40])
    assert torch.equal(whole[:, 20:40], average(x, bias, True))
    halved = testing.channels_last(torch.full((2, 60, 2, 2), 77.0, dtype=dtype))
    problem = _check_max(x, (3, 3), (2, 2), (0, 0), "triton")
    launch.launch_max_pool(problem, x, halved[:, 20:40])
    assert torch.equal(halved[:, 20:40], F.max_pool2d(x, 3, 2))
    for map_ in (whole, halved):
        assert (map_[:, :20] == 77).all()
        assert (map_[:, 40:] == 77).all()


@pytest.mark.parametrize("batch", [0, 1])
def test_a_small_batch(batch):
    x = maps((batch, 20, 5, 5), torch.float32)
    assert max_pool2d(x, 3, stride=2, backend="triton").shape == (batch, 20, 2, 2)
    assert global_avg_pool2d(x, backend="triton").shape == (batch, 20, 1, 1)
    assert average(x, None, True).shape == x.shape


def test_an_image_does_not_depend_on_its_batch(precision):
    dtype, _ = precision
    x = maps((7, 20, 9, 8), dtype)
    bias = maps((20, 1, 1, 1), dtype).flatten()
    for pool in (
        lambda x: global_avg_pool2d(x, backend="triton"),
        lambda x: average(x, bias, False),
    ):
        whole = pool(x)
        for i in range(7):
            assert torch.equal(pool(x[i : i + 1]), whole[i : i + 1])
        order = torch.tensor([3, 0, 6, 6, 1])
        assert torch.equal(pool(x[order]), whole[order])


def test_a_large_batch_is_split_into_launches(monkeypatch: pytest.MonkeyPatch):
    x = maps((5, 20, 4, 4), torch.float16)
    pools = (
        lambda: max_pool2d(x, 3, stride=1, padding=1, backend="triton"),
        lambda: average(x, None, True),
        lambda: global_avg_pool2d(x, backend="triton"),
    )
    expected = [pool() for pool in pools]
    launches = []
    ranges = launching.image_ranges

    def counted(batch: int, images: int, first_image: int = 0):
        for part in ranges(batch, images, first_image):
            launches.append(part)
            yield part

    monkeypatch.setattr(launch, "image_ranges", counted)
    monkeypatch.setattr(launch, "size_refusal", lambda *args: None)
    # Two images of 16 pixels; the global mean counts programs, one an image here.
    for rows, pool, want in zip((32, 32, 2), pools, expected, strict=True):
        monkeypatch.setattr(launching, "MAX_ROWS", rows)
        launches.clear()
        assert torch.equal(pool(), want)
        assert launches == [(0, 2), (2, 2), (4, 1)]


def test_offsets_past_two_to_the_31_elements():
    """The last image of a batch of more than 2^31 elements; only its pages are ever touched."""
    x = maps((1, 16, 4, 4), torch.float16)
    last = 2**31 // x.numel() + 1
    many = torch.empty((last + 1, 16, 4, 4), dtype=x.dtype, memory_format=torch.channels_last)
    many[last:] = x
    out = torch.empty_like(many)
    average(many, None, True, out, first_image=last)
    assert torch.equal(out[last:], average(x, None, True))
    problem = _check_max(many, (3, 3), (1, 1), (1, 1), "triton")
    launch.launch_max_pool(problem, many, out, first_image=last)
    assert torch.equal(out[last:], F.max_pool2d(x, 3, 1, 1))
    means = torch.empty((last + 1, 16, 1, 1), dtype=x.dtype, memory_format=torch.channels_last)
    launch.launch_global_avg_pool(problem, many, means, first_image=last)
    assert torch.equal(means[last:], global_avg_pool2d(x, backend="triton"))


# The linear layer: `conv2d_act` on maps of one pixel.


def packed(dtype, channels=70, bias=True):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(33, channels, 1, 1, generator=generator) / channels**0.5
    shift = torch.randn(33, generator=generator).to(dtype) if bias else None
    return BlockWeights((testing.channels_last(weight.to(dtype)),), (shift,))


@pytest.mark.parametrize("channels", [5, 16, 70])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_linear_is_within_pytorchs_error(batch, channels, precision):
    dtype, factor = precision
    if torch.backends.cudnn.conv.fp32_precision == "tf32" and dtype == torch.float32:
        pytest.skip("a CPU has no tf32 to compare with; conv2d_act's tests do it by steps")
    x = maps((batch, channels, 1, 1), dtype).flatten(1)
    (weight,), (bias,) = weights = packed(dtype, channels)
    result = linear(x, weights, backend="triton")
    oracle = F.linear(x.double(), weight.double().flatten(1), bias.double())
    testing.assert_within_budget(result, F.linear(x, weight.flatten(1), bias), oracle, factor)


@pytest.mark.usefixtures("sequential_product")
def test_a_row_does_not_depend_on_its_batch(precision):
    dtype, _ = precision
    x, weights = maps((7, 70, 1, 1), dtype).flatten(1), packed(dtype)
    whole = linear(x, weights, backend="triton")
    for i in range(7):
        assert torch.equal(linear(x[i : i + 1], weights, backend="triton"), whole[i : i + 1])
