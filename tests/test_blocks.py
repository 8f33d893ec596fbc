"""The fused blocks as functions of folded weights, held against PyTorch's own convolutions.

That `fuse` finds a model's blocks and folds its weights into them is `test_fuse.py`'s; what the ops
compute is in their own files. Left out: real widths, which the whole networks there have.
"""

import pytest
import torch
import torch.nn.functional as F

from fused_inception import blocks
from fused_inception.blocks import FUSED_BLOCKS, ConvWeights
from fused_inception.recognize import CONV_UNIT, KNOWN_BLOCKS, CatPattern, Input

CHANNELS = 5
# Filters, input channels, rows and columns of every convolution; n differs within a block.
SHAPES = {
    "inception_b": {
        "direct": (4, CHANNELS, 3, 3),
        "double_reduce": (3, CHANNELS, 1, 1),
        "double_mid": (6, 3, 3, 3),
        "double_last": (2, 6, 3, 3),
    },
    "inception_c": {
        "direct": (4, CHANNELS, 1, 1),
        "pair_reduce": (3, CHANNELS, 1, 1),
        "pair_row": (2, 3, 1, 7),
        "pair_col": (6, 2, 5, 1),
        "double_reduce": (3, CHANNELS, 1, 1),
        "double_col1": (4, 3, 3, 1),
        "double_row1": (2, 4, 1, 5),
        "double_col2": (3, 2, 7, 1),
        "double_row2": (5, 3, 1, 3),
        "pool_project": (2, CHANNELS, 1, 1),
    },
    "inception_d": {
        "direct_reduce": (3, CHANNELS, 1, 1),
        "direct_last": (4, 3, 3, 3),
        "pair_reduce": (2, CHANNELS, 1, 1),
        "pair_row": (4, 2, 1, 7),
        "pair_col": (3, 4, 5, 1),
        "pair_last": (2, 3, 3, 3),
    },
    "inception_e": {
        "direct": (4, CHANNELS, 1, 1),
        "split_reduce": (3, CHANNELS, 1, 1),
        "split_row": (2, 3, 1, 3),
        "split_col": (4, 3, 5, 1),
        "double_reduce": (2, CHANNELS, 1, 1),
        "double_mid": (3, 2, 3, 3),
        "double_row": (4, 3, 1, 5),
        "double_col": (2, 3, 3, 1),
        "pool_project": (3, CHANNELS, 1, 1),
    },
    "conv2d_act": {"conv": (4, CHANNELS, 3, 2)},
}
REDUCTIONS = ("inception_b", "inception_d")
every_kind = pytest.mark.parametrize("kind", SHAPES)


def make_weights(kind, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def conv(shape):
        fan_in = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        shift = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return ConvWeights(weight.to(dtype), shift.to(dtype) if bias else None)

    convs = {role: conv(shape) for role, shape in SHAPES[kind].items()}
    return FUSED_BLOCKS[kind].weights(**convs)


def images(batch=2, height=9, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, CHANNELS, height, width, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def conv(x, weights, stride=1, padding="same"):
    return F.relu(F.conv2d(x, weights.weight, weights.bias, stride, padding))


def unfused(kind, x, w, include=True):
    """The block in PyTorch's own operators, one line for each branch."""
    if kind == "conv2d_act":
        return F.relu(F.conv2d(x, w.conv.weight, w.conv.bias))
    avg = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include)
    if kind == "inception_b":
        double = conv(conv(x, w.double_reduce), w.double_mid)
        branches = [conv(x, w.direct, 2, 0), conv(double, w.double_last, 2, 0)]
        return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    if kind == "inception_c":
        pair = conv(conv(conv(x, w.pair_reduce), w.pair_row), w.pair_col)
        double = conv(conv(conv(x, w.double_reduce), w.double_col1), w.double_row1)
        double = conv(conv(double, w.double_col2), w.double_row2)
        return torch.cat([conv(x, w.direct), pair, double, conv(avg, w.pool_project)], 1)
    if kind == "inception_d":
        pair = conv(conv(conv(x, w.pair_reduce), w.pair_row), w.pair_col)
        branches = [conv(conv(x, w.direct_reduce), w.direct_last, 2, 0)]
        branches.append(conv(pair, w.pair_last, 2, 0))
        return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    split = conv(x, w.split_reduce)
    double = conv(conv(x, w.double_reduce), w.double_mid)
    branches = [conv(x, w.direct), conv(split, w.split_row), conv(split, w.split_col)]
    branches += [conv(double, w.double_row), conv(double, w.double_col)]
    return torch.cat([*branches, conv(avg, w.pool_project)], 1)


def roles(pattern):
    if isinstance(pattern, CatPattern):
        return set().union(*map(roles, pattern.sources))
    if isinstance(pattern, Input):
        return set()
    return {getattr(pattern, "role", None)} - {None} | roles(pattern.source)


def test_what_recognition_finds_is_what_runs():
    known = {known.kind: roles(known.pattern) for known in (*KNOWN_BLOCKS, CONV_UNIT)}
    assert known == {kind: set(spec.weights._fields) for kind, spec in FUSED_BLOCKS.items()}
    assert known == {kind: set(shapes) for kind, shapes in SHAPES.items()}


@every_kind
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", [(9, 8), (3, 3), (4, 17), (17, 17)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_agrees_with_pytorch(batch, size, bias, kind):
    x, weights = images(batch, *size), make_weights(kind, bias=bias)
    got, want = FUSED_BLOCKS[kind].forward(x, weights), unfused(kind, x, weights)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got.numel() == 0 or got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["inception_c", "inception_e"])
def test_the_average_pool_counts_as_told(kind):
    x, weights = images(), make_weights(kind)
    results = [
        FUSED_BLOCKS[kind].forward(x, weights, count_include_pad=include)
        for include in (True, False)
    ]
    for got, include in zip(results, (True, False), strict=True):
        want = unfused(kind, x, weights, include)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(*results)


def test_the_unit_passes_its_options_on():
    x, (conv,) = images(), make_weights("conv2d_act")
    got = blocks.conv_unit(
        x, blocks.ConvUnitWeights(conv), stride=(2, 3), padding=(0, 4), activation="none"
    )
    want = F.conv2d(x, conv.weight, conv.bias, (2, 3), (0, 4))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (want < 0).any()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_is_at_most_twice_that_of_pytorch(dtype, kind):
    x, weights = images(dtype=dtype), make_weights(kind, dtype)
    wide = type(weights)(*(ConvWeights(w.weight.double(), w.bias.double()) for w in weights))
    got, theirs = FUSED_BLOCKS[kind].forward(x, weights), unfused(kind, x, weights)
    oracle = unfused(kind, x.double(), wide)
    assert got.dtype == dtype
    limit = (theirs.double() - oracle).abs().max() + torch.finfo(dtype).eps * oracle.abs().max()
    assert (got.double() - oracle).abs().max() <= 2 * limit


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_its_dtype_also_behind_a_pool(dtype, kind):
    x, weights = images(dtype=torch.float32), make_weights(kind, torch.float32)
    with torch.autocast("cpu", dtype):
        got = FUSED_BLOCKS[kind].forward(x, weights)
    assert got.dtype == dtype
    if kind in REDUCTIONS:
        assert torch.equal(got[:, -CHANNELS:], F.max_pool2d(x, 3, 2).to(dtype))
    want = unfused(kind, x, weights)
    assert (got.float() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


@every_kind
def test_gradients_are_those_of_pytorch(kind):
    grads = []
    for forward in (FUSED_BLOCKS[kind].forward, lambda x, w: unfused(kind, x, w)):
        x, weights = images().requires_grad_(), make_weights(kind)
        leaves = [t.requires_grad_() for w in weights for t in w]
        forward(x, weights).sin().sum().backward()
        grads.append([leaf.grad for leaf in (x, *leaves)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_map_without_a_whole_window_is_refused(kind):
    with pytest.raises(ValueError, match="2x8"):
        FUSED_BLOCKS[kind].forward(images(height=2), make_weights(kind))


@every_kind
def test_an_unknown_backend_is_refused(kind):
    with pytest.raises(ValueError, match=r"backend .*'fastest'"):
        FUSED_BLOCKS[kind].forward(images(), make_weights(kind), backend="fastest")
