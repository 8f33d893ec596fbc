"""Blocks on weights that their owner keeps packed: prepared once, run many times.

The same steps on plain weights are `test_blocks.py`'s and `test_stem.py`'s.
"""

from __future__ import annotations

import gc
import math
import threading

import pytest
import torch
import torch.nn.functional as F

from fused_inception import fuse, testing
from fused_inception.blocks import FUSED_BLOCKS, ConvWeights, aten
from fused_inception.blocks.prepared import PreparedCalls
from fused_inception.models import inception_v3
from fused_inception.ops.common import packed_weights
from fused_inception.ops.common.packed_weights import can_pack, keep_packed
from fused_inception.ops.pool2d import aten as pools
from tests import test_blocks, test_stem

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32), reason="this build of PyTorch has no packed convolutions"
)
KINDS = (*test_blocks.BLOCKS, "inception_stem")
every_block = pytest.mark.parametrize("kind", KINDS)
every_packed_dtype = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype, id=str(dtype), marks=pytest.mark.skipif(not can_pack(dtype), reason="not packed")
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ],
)


class Block:
    """A block on weights of its own, beside the same as single convolutions of PyTorch's."""

    def __init__(self, kind, dtype=torch.float32, **options):
        self.kind = kind
        self.module = test_stem if kind == "inception_stem" else test_blocks
        make = {} if kind == "inception_stem" else {"kind": kind}
        self.convs = self.module.make_convs(dtype=dtype, **make)
        packed = FUSED_BLOCKS[kind].pack(self.convs)
        self.weights = [testing.channels_last(weight.clone()) for weight in packed.weights]
        self.biases = [None if bias is None else bias.clone() for bias in packed.biases]
        self.options = (
            options.get("include_pad", True),
            "auto",
        )[kind not in test_blocks.AVERAGED :]
        for weight in self.weights:
            keep_packed(weight)

    def images(self, batch=2, dtype=torch.float32):
        return self.module.images(batch, dtype=dtype)

    def __call__(self, x):
        operator = getattr(torch.ops.fused_inception, self.kind).default
        return operator(x, self.weights, self.biases, *self.options)

    def unfused(self, x, convs=None):
        convs = self.convs if convs is None else convs
        if self.kind == "inception_stem":
            return test_stem.unfused(x, convs)
        pads = {"include": self.options[0]} if len(self.options) == 2 else {}
        return test_blocks.unfused(self.kind, x, convs, **pads)


@pytest.fixture
def prepared(monkeypatch):
    """Grows by one where a call is prepared."""
    made = []
    keep = PreparedCalls.keep

    def recorded(self, call, *args):
        made.append(call)
        keep(self, call, *args)

    monkeypatch.setattr(PreparedCalls, "keep", recorded)
    return made


# Values


@every_packed_dtype
@pytest.mark.parametrize(
    ("kind", "include_pad"),
    [*((kind, True) for kind in KINDS), *((kind, False) for kind in test_blocks.AVERAGED)],
)
def test_error_is_at_most_twice_that_of_pytorch(dtype, kind, include_pad, prepared):
    block = Block(kind, dtype, include_pad=include_pad)
    x = block.images(dtype=dtype)
    wide = {r: ConvWeights(w.weight.double(), w.bias.double()) for r, w in block.convs.items()}
    oracle, plain = block.unfused(x.double(), wide), block.unfused(x)
    results = [block(x) for _ in range(3)]
    assert len(prepared) == 1
    for result in results:
        testing.assert_within_budget(result, plain, oracle)
        testing.assert_channels_last(result)
        assert torch.equal(result, results[0])
    assert results[0].data_ptr() != results[1].data_ptr()


@every_block
def test_whole_numbers_are_those_of_plain_weights(kind):
    block = Block(kind)
    for tensor in (*block.weights, *block.biases):
        if tensor is not None:
            tensor.copy_(tensor.mul(3).round())
    x = block.images().mul(2).round()
    plain = [weight.clone() for weight in block.weights]
    operator = getattr(torch.ops.fused_inception, kind).default
    expected = operator(x, plain, block.biases, *block.options)
    for _ in range(2):
        if kind in test_blocks.AVERAGED:  # a ninth is no whole number
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(block(x), expected)


@every_block
def test_special_values_are_those_of_plain_weights(kind):
    block = Block(kind)
    x = block.images(3)
    x[1, 0, 4, 4], x[2, 1, 5, 3] = float("nan"), float("inf")
    plain = [weight.clone() for weight in block.weights]
    expected = getattr(torch.ops.fused_inception, kind).default(
        x, plain, block.biases, *block.options
    )
    for _ in range(2):
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert expected[1].isnan().any()
    assert not expected[0].isnan().any()


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "expanded"])
def test_takes_any_strides(layout, prepared):
    block = Block("inception_a")
    x = testing.channels_last(block.images(2))
    given = {
        "contiguous": x.contiguous(),
        "sliced": torch.cat([x, x], 1)[:, : x.shape[1]],
        "expanded": x[:1].expand(2, -1, -1, -1),
    }[layout]
    block(x)
    assert torch.equal(block(given), block(testing.channels_last(given)))
    assert len(prepared) == 1


# What a kept call depends on


def _writes(block, x):
    block.weights[-1].mul_(2)


def _merged_writes(block, x):
    block.weights[0][0, 0] += 1


def _other_memory(block, x):
    block.weights[1].data = testing.channels_last(block.weights[1] * 3)


def _another_bias(block, x):
    block.biases[0] = block.biases[0] + 1


def _no_bias(block, x):
    block.biases[1] = None


def _another_weight(block, x):
    block.weights[2] = testing.channels_last(block.weights[2] * 2)


def _another_pool(block, x):
    block.options = (False, "auto")


def _another_backend(block, x):
    block.options = (True, "aten")


CHANGES = [
    _writes, _merged_writes, _other_memory, _another_bias, _no_bias, _another_weight,
    _another_pool, _another_backend,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    block = Block("inception_a")
    x = block.images()
    before = block(x)
    change(block, x)
    plain = [weight.clone() for weight in block.weights]
    operator = torch.ops.fused_inception.inception_a.default
    expected = operator(x, plain, block.biases, *block.options)
    for _ in range(2):
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(before, block(x)) == (change is _another_backend)


def test_a_bias_that_is_written_is_read_anew(prepared):
    block = Block("inception_c")
    x = block.images()
    before = block(x)
    block.biases[0].add_(1)
    assert not torch.equal(block(x), before)
    assert len(prepared) == 2


def test_another_shape_is_prepared_anew_and_both_are_right(prepared):
    block = Block("inception_c")
    for batch in (1, 3, 1):
        x = block.images(batch)
        torch.testing.assert_close(block(x), block.unfused(x), rtol=1e-5, atol=1e-5)
    assert len(prepared) == 3


def test_another_number_of_threads_is_prepared_anew(prepared):
    block = Block("inception_c")
    x, threads = block.images(), torch.get_num_threads()
    block(x)
    try:
        torch.set_num_threads(threads + 1)
        torch.testing.assert_close(block(x), block.unfused(x), rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    assert len(prepared) == 2


def test_stays_away_where_onednn_is_switched_off(prepared, monkeypatch):
    block = Block("inception_c")
    x = block.images()
    expected = block(x)

    def convolution(*args, **options):
        raise AssertionError("a packed convolution")

    with torch.backends.mkldnn.flags(enabled=False), monkeypatch.context() as patch:
        patch.setattr(packed_weights, "convolution", convolution)
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert len(prepared) == 1


def test_plain_weights_are_not_kept(prepared):
    block = Block("inception_a")
    block.weights[3] = block.weights[3].clone()
    block(block.images())
    assert prepared == []


def test_biases_whose_writes_are_not_counted_are_not_kept(prepared):
    block = Block("inception_a")
    with torch.inference_mode():
        block.biases[3] = block.biases[3].clone()
        block(block.images())
    assert prepared == []


def test_goes_with_the_weights():
    from fused_inception.blocks import inception_a  # the function; its module has the op

    calls = inception_a.__globals__["_op"]._calls
    gc.collect()
    before = len(calls._kept)
    block = Block("inception_a")
    block(block.images())
    assert len(calls._kept) == before + 1
    del block
    gc.collect()
    assert len(calls._kept) == before


def test_a_call_with_a_convolution_that_is_not_packed_is_not_kept(prepared):
    """Striding to a single column it runs from the weight, and would hold it."""
    block = Block("inception_b")
    for columns in (4, 5):
        x = block.images()[..., :columns]
        torch.testing.assert_close(block(x), block.unfused(x), rtol=1e-5, atol=1e-5)
    assert len(prepared) == 1


def test_threads():
    block = Block("inception_c")
    inputs = [block.images(batch) for batch in (1, 2, 3)]
    expected = [block(x) for x in inputs]
    wrong = []

    def work(x, want):
        torch.set_num_threads(1)
        results = [block(x) for _ in range(20)]
        wrong.extend(r for r in results if not torch.allclose(r, want, rtol=1e-5, atol=1e-5))

    pairs = zip(inputs, expected, strict=True)
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# oneDNN's own ReLU, where the input is bounded


@pytest.fixture
def activations(monkeypatch):
    """What packed convolutions were asked to apply."""
    seen = []
    convolution = packed_weights.convolution

    def recorded(*args, **options):
        bound = convolution(*args, **options)
        return lambda x: (seen.append(options.get("activation", "none")), bound(x))[1]

    monkeypatch.setattr(packed_weights, "convolution", recorded)
    return seen


@pytest.fixture
def of_any_size(monkeypatch):
    """The small blocks here are looked at as if their maps were many times their input."""
    monkeypatch.setattr(aten, "_MUCH", 0)


@every_packed_dtype
@pytest.mark.usefixtures("of_any_size")
def test_onednns_relu_gives_the_same_bits(dtype, activations):
    block = Block("inception_stem", dtype)
    x = block.images(1, dtype)
    own = block(x)
    assert activations == ["relu"] * 5 or dtype == torch.float16  # whose range is too small
    activations.clear()
    # One image more, which is not bounded: images go through one by one.
    both = block(torch.cat([x, torch.full_like(x, float("inf"))]))
    assert torch.equal(both[:1], own)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
@pytest.mark.usefixtures("of_any_size")
def test_not_where_a_number_is_not_bounded(value, activations):
    block = Block("inception_stem")
    x = block.images(1)
    x[0, 2, 7, 9] = value
    result = block(x)
    assert activations == ["none"] * 5
    torch.testing.assert_close(result, block.unfused(x), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("of_any_size")
def test_the_bound_is_where_a_sum_could_leave_the_range(activations):
    """All filters and inputs positive, so that every sum is as large as it can be."""
    block = Block("inception_stem")
    for weight in block.weights:
        weight.copy_(weight.abs())
    for bias in block.biases:
        bias.zero_()
    gains = [weight.abs().sum((1, 2, 3)).max().item() for weight in block.weights]
    bound = (
        torch.finfo(torch.float32).max
        / 256
        / max(math.prod(gains[: depth + 1]) for depth in range(5))
    )
    shape = block.images(1).shape
    for factor, activation in ((0.99, "relu"), (1.01, "none")):
        activations.clear()
        result = block(torch.full(shape, bound * factor))
        assert activations == [activation] * 5
        assert result.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.usefixtures("of_any_size")
def test_not_with_weights_that_are_not_finite(value, activations):
    block = Block("inception_stem")
    block.weights[2][0, 0, 0, 0] = value
    block(block.images(1))
    assert activations == ["none"] * 5


def test_only_where_maps_are_many_times_the_input(activations):
    network = fuse(inception_v3(aux_logits=False).eval())
    with torch.no_grad():
        network(torch.randn(1, 3, 75, 75))
    assert activations[:5] == ["relu"] * 5
    assert set(activations[5:]) == {"none"}


# The max pool


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(3, 3), (4, 9), (35, 18)], ids=str)
def test_the_halving_max_pool_has_the_bits_of_pytorchs(size, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, 1.0, 2.5, -3.0, float("inf"), -float("inf"), float("nan")])
    for most in range(1, 8):
        x = values.to(dtype)[torch.randint(most, (2, 21, *size), generator=generator)]
        x = testing.channels_last(x)
        want = F.max_pool2d(x, 3, 2)
        output = testing.channels_last(torch.full((2, 30, *want.shape[2:]), 7.0, dtype=dtype))
        pools.halving_max_pool2d_(x, output[:, 4:25])
        testing.assert_same_bits(output[:, 4:25], want)
        assert (output[:, :4] == 7).all()
        assert (output[:, 25:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bits_have_the_order_of_what_a_relu_leaves(dtype):
    numbers = torch.arange(2**15).to(torch.int16).view(dtype)
    numbers = numbers[~numbers.isnan()]
    assert torch.equal(numbers.double().sort().values, numbers.double())
    assert numbers[-1] == float("inf")
