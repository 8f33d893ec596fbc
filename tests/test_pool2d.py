"""`max_pool2d`, `global_avg_pool2d` and the linear layer of `blocks/layers.py`, as operators.

On the "aten" backend, which is what runs without a GPU; the kernels are in
`interpreter/test_pools.py`. Left out: what the max pool computes (it is PyTorch's own here).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from fused_inception import testing
from fused_inception.blocks import BlockWeights, linear
from fused_inception.ops.pool2d.aten import avg_pool2d_act_
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d

DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
WINDOWS = [(3, 2, 0), (3, 1, 1), (1, 1, 0), ((3, 2), (2, 1), (1, 0))]
SHAPES = [(2, 5, 9, 8), (1, 1, 3, 3), (3, 20, 4, 17)]


def maps(shape=(2, 5, 9, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(dtype)


def weights(dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(7, 20, 1, 1, generator=generator) / 20**0.5).to(dtype)
    shift = torch.randn(7, generator=generator).to(dtype) if bias else None
    return BlockWeights((weight,), (shift,))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool_is_bitwise_pytorchs(dtype, shape, window):
    x = maps(shape, dtype)
    result = max_pool2d(x, window[0], stride=window[1], padding=window[2])
    testing.assert_same_bits(result, F.max_pool2d(x, *window))
    testing.assert_channels_last(result)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2048, 8, 8), (3, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_global_mean_is_pytorchs(dtype, shape):
    x = maps(shape, dtype)
    result = global_avg_pool2d(x)
    oracle = x.double().mean((2, 3), keepdim=True)
    testing.assert_within_budget(result, F.adaptive_avg_pool2d(x, 1), oracle)
    testing.assert_channels_last(result)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_average_bias_and_relu_go_into_a_slice(dtype, bias, include_pad):
    x = testing.channels_last(maps(dtype=dtype))
    b = maps((5, 1, 1, 1), dtype).flatten() if bias else None
    whole = testing.channels_last(torch.full((2, 15, 9, 8), 77.0, dtype=dtype))
    avg_pool2d_act_(x, b, whole[:, 5:10], 3, include_pad)

    def reference(x, b):
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include_pad)
        return F.relu(pooled if b is None else pooled + b.reshape(1, -1, 1, 1))

    oracle = reference(x.double(), None if b is None else b.double())
    testing.assert_within_budget(whole[:, 5:10], reference(x, b), oracle)
    assert (whole[:, :5] == 77).all()
    assert (whole[:, 10:] == 77).all()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_pytorchs(dtype, batch, bias):
    x = maps((batch, 20), dtype)
    (weight,), (shift,) = packed = weights(dtype, bias)
    result = linear(x, packed)
    oracle = F.linear(x.double(), weight.double().flatten(1), None if not bias else shift.double())
    testing.assert_within_budget(result, F.linear(x, weight.flatten(1), shift), oracle)
    assert result.stride() == (7, 1)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_any_layout_is_taken_and_not_written(layout):
    x = maps()
    view = testing.LAYOUTS[layout](x)
    before = view.clone()
    assert torch.equal(max_pool2d(view, 3), max_pool2d(x, 3))
    torch.testing.assert_close(global_avg_pool2d(view), global_avg_pool2d(x))
    assert torch.equal(view, before)


# As operators


def calls(batch=2, dtype=torch.float32, device="cpu"):
    """(operator, arguments) of each."""
    ops = torch.ops.fused_inception
    x = maps((batch, 5, 9, 8), dtype).to(device)
    (weight,), (bias,) = weights(dtype)
    row = maps((batch, 20), dtype).to(device)
    return {
        "max_pool2d": (ops.max_pool2d.default, (x, [3, 3], [2, 2], [1, 1], "auto")),
        "global_avg_pool2d": (ops.global_avg_pool2d.default, (x, "auto")),
        "linear": (ops.linear.default, (row, weight.to(device), bias.to(device), "auto")),
    }


SCHEMAS = {
    "max_pool2d": "Tensor input, int[] kernel, int[] stride, int[] padding, str backend",
    "global_avg_pool2d": "Tensor input, str backend",
    "linear": "Tensor input, Tensor weight, Tensor? bias, str backend",
}
every_op = pytest.mark.parametrize("name", SCHEMAS)


@every_op
def test_schema_is_stable(name):
    operator, _ = calls()[name]
    assert str(operator._schema) == f"fused_inception::{name}({SCHEMAS[name]}) -> Tensor"


@pytest.mark.parametrize("batch", [0, 1, 3])
@every_op
def test_opcheck(name, batch):
    torch.library.opcheck(*calls(batch)[name])


@every_op
def test_meta_tensors(name):
    operator, arguments = calls()[name]
    on_meta, given = calls(device="meta")[name]
    expected, result = operator(*arguments), on_meta(*given)
    assert (result.shape, result.stride()) == (expected.shape, expected.stride())


def test_a_dynamic_batch_compiles_once():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    packed = weights()

    def network(x, row):
        return max_pool2d(x, 3, stride=2), global_avg_pool2d(x), linear(row, packed)

    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for batch in (2, 5, 3):
        x, row = maps((batch, 5, 9, 8)), maps((batch, 20))
        for tensor in (x, row):
            torch._dynamo.mark_dynamic(tensor, 0)
        for result, expected in zip(compiled(x, row), network(x, row), strict=True):
            torch.testing.assert_close(result, expected)
            assert result.stride() == expected.stride()
    assert counter.frame_count == 1


def test_gradients_are_pytorchs():
    x = maps(dtype=torch.float64).requires_grad_()
    row = maps((3, 20), torch.float64).requires_grad_()
    (weight,), (bias,) = packed = weights(torch.float64)
    for result, expected, leaves in (
        (max_pool2d(x, 3, stride=2, padding=1), F.max_pool2d(x, 3, 2, 1), [x]),
        (global_avg_pool2d(x), F.adaptive_avg_pool2d(x, 1), [x]),
        (
            linear(row, BlockWeights((weight.requires_grad_(),), (bias.requires_grad_(),))),
            F.linear(row, weight.flatten(1), bias),
            [row, weight, bias],
        ),
    ):
        got = torch.autograd.grad(result.sin().sum(), leaves)
        want = torch.autograd.grad(expected.sin().sum(), leaves)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert packed.weights[0] is weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_linear_its_dtype(dtype):
    row, packed = maps((3, 20)), weights()
    with torch.autocast("cpu", dtype):
        result = linear(row, packed)
        assert result.dtype == F.linear(row, packed.weights[0].flatten(1)).dtype == dtype


def test_wrong_arguments_are_refused():
    x, row, packed = torch.zeros(1, 2, 4, 4), torch.zeros(3, 20), weights()
    (weight,), (bias,) = packed
    for call, match in (
        (lambda: max_pool2d(x[0], 2), "max_pool2d: input must be 4-D"),
        (lambda: max_pool2d(x, 0), "max_pool2d: kernel must be an integer of at least 1"),
        (lambda: max_pool2d(x, 2, stride=0), "max_pool2d: stride must be an integer of at least 1"),
        (lambda: max_pool2d(x, 2, padding=2), "max_pool2d: padding must be at most half"),
        (lambda: max_pool2d(x, 5), "max_pool2d: input of 4x4 .* as the 5x5 window"),
        (lambda: max_pool2d(x, 2, backend="fastest"), "max_pool2d: backend must be one of"),
        (lambda: global_avg_pool2d(x[0]), "global_avg_pool2d: input must be 4-D"),
        (lambda: global_avg_pool2d(x, backend="fastest"), "global_avg_pool2d: backend must be"),
        (lambda: linear(x, packed), r"linear: input must be 2-D \(N, C\), got 4-D"),
        (lambda: linear(row[:, 1:], packed), "linear: weight must take 19 channels"),
        (lambda: linear(row, packed, backend="fastest"), "linear: backend must be one of"),
        (
            lambda: linear(row, BlockWeights((weight.repeat(1, 1, 2, 1),), (bias,))),
            r"linear: weight must be \(K, C, 1, 1\), got \(7, 20, 2, 1\)",
        ),
        (
            lambda: linear(row, BlockWeights((weight,), (bias[1:],))),
            r"linear: bias must be None or of shape \(7,\)",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="max_pool2d: input must be a Tensor, got list"):
        max_pool2d([1], 2)
    with pytest.raises(TypeError, match="global_avg_pool2d: input must be float64"):
        global_avg_pool2d(x.int())
    with pytest.raises(TypeError, match="linear: weight must have input's dtype"):
        linear(row.double(), packed)
    for call in (
        lambda: max_pool2d(x.double(), 2, backend="triton"),
        lambda: global_avg_pool2d(x.double(), backend="triton"),
        lambda: linear(row.double(), weights(torch.float64), backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"'triton' cannot run here: dtype torch\.float64"):
            call()
