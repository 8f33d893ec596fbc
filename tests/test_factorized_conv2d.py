"""`factorized_conv2d` against its definition, on the CPU and, marked `gpu`, on a CUDA device.

Here stands what every backend has to keep. Left out: what is the Triton kernel's own (its forms,
its configurations, batch invariance, tf32: test_factorized_conv2d_gpu.py and interpreter/), and
sizes past 2^31 elements (see test_registration.py, which needs no memory).
"""

import os
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from fused_inception import factorized_conv2d
from fused_inception.testing import (
    LAYOUTS,
    ODD_PAIR_SHAPES,
    PairInputs,
    PairShape,
    assert_channels_last,
    assert_same_bits,
    assert_within_budget,
    fp32_precision,
    inception_v3_pairs,
    integer_pair,
    loop_conv2d,
    nan_filled_memory,
    pair_oracle,
    random_pair,
    random_tensor,
    unfused_pair,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
LOW_DTYPES = DTYPES[2:]
# (mid_activation, activation)
ACTIVATIONS = [("relu", "relu"), ("relu", "none"), ("none", "relu"), ("none", "none")]
BIASES = {"both": (), "first": ("bias2",), "second": ("bias1",), "neither": ("bias1", "bias2")}

SMALL = PairShape(2, 5, 4, 3, 7, 6, 3, 5, True)
SMALL_COL_FIRST = PairShape(2, 5, 4, 3, 7, 6, 5, 3, False)
WEIGHTS_AND_INPUT = ["input", "weight1", "weight2"]


def without(inputs, names):
    return inputs._replace(**dict.fromkeys(names))


def loop(inputs, mid_activation, activation):
    """The op as its definition, on the CPU: a loop over output pixels and taps, in float64."""
    input, weight1, bias1, weight2, bias2 = (t if t is None else t.detach().cpu() for t in inputs)
    out = input
    for weight, bias, act in (
        (weight1, bias1, mid_activation),
        (weight2, bias2, activation),
    ):
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        out = loop_conv2d(out, weight, bias, padding=padding)
        out = out.clamp(min=0) if act == "relu" else out
    return out


def recording(inputs):
    """Leaves with the same values and strides that require gradients."""
    return PairInputs(*(t if t is None else t.detach().clone().requires_grad_() for t in inputs))


def whole_storage(tensor):
    """Every element of the storage behind a view."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


# Values


@pytest.mark.parametrize("shape", ODD_PAIR_SHAPES, ids=str)
def test_oracle_is_the_loop(shape):
    inputs = random_pair(shape, torch.float64)
    oracle = pair_oracle(inputs, "relu", "none")
    torch.testing.assert_close(oracle, loop(inputs, "relu", "none"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
@pytest.mark.parametrize("shape", ODD_PAIR_SHAPES, ids=str)
def test_float64_is_the_loop(device, shape, activations):
    inputs = random_pair(shape, torch.float64, device)
    mid_activation, activation = activations
    result = factorized_conv2d(*inputs, mid_activation=mid_activation, activation=activation)
    torch.testing.assert_close(result.cpu(), loop(inputs, *activations), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_each_bias_is_optional(device, dtype, biases):
    for shape in (SMALL, SMALL_COL_FIRST):
        inputs = without(integer_pair(shape, dtype, device), BIASES[biases])
        result = factorized_conv2d(*inputs)
        assert torch.equal(result.double().cpu(), loop(inputs, "relu", "relu"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*inception_v3_pairs(2), *ODD_PAIR_SHAPES], ids=str)
def test_error_is_within_budget(device, dtype, shape):
    inputs = random_pair(shape, dtype, device)
    with fp32_precision("ieee"):
        result = factorized_conv2d(*inputs)
        reference = unfused_pair(inputs)
    assert result.dtype == dtype
    assert_within_budget(result, reference, pair_oracle(inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*inception_v3_pairs(1), *ODD_PAIR_SHAPES], ids=str)
def test_whole_numbers_are_exact(device, dtype, shape):
    inputs = integer_pair(shape, dtype, device)
    result = factorized_conv2d(*inputs, activation="none")
    assert torch.equal(result.cpu(), pair_oracle(inputs, "relu", "none").to(dtype))


def test_whole_numbers_are_exact_for_any_shape():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    size, channels = st.integers(1, 9), st.integers(1, 9)
    taps = st.integers(0, 4).map(lambda half: 2 * half + 1)
    shapes = st.builds(
        PairShape, st.integers(0, 3), size, size, channels, channels, channels, taps, taps,
        st.booleans(),
    )  # fmt: skip

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(shapes, st.sampled_from(ACTIVATIONS), st.sampled_from([*LAYOUTS]))
    def check(shape, activations, layout):
        inputs = integer_pair(shape, torch.float32)
        expected = loop(inputs, *activations)
        inputs = inputs._replace(input=LAYOUTS[layout](inputs.input))
        mid_activation, activation = activations
        result = factorized_conv2d(*inputs, mid_activation=mid_activation, activation=activation)
        assert torch.equal(result.double(), expected)
        assert_channels_last(result)

    check()


def test_defaults_are_relu_and_relu():
    inputs = random_pair(SMALL, torch.float32)
    assert torch.equal(factorized_conv2d(*inputs), unfused_pair(inputs, "relu", "relu"))


def test_two_pointwise_factors():
    """1×1 then 1×1 fits both orders, which agree."""
    inputs = integer_pair(PairShape(2, 4, 5, 3, 6, 7, 1, 1, True), torch.float32)
    assert torch.equal(factorized_conv2d(*inputs).double(), loop(inputs, "relu", "relu"))


# Memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", WEIGHTS_AND_INPUT)
@pytest.mark.parametrize("shape", [SMALL, SMALL_COL_FIRST], ids=str)
def test_layout_does_not_matter(device, shape, operand, layout):
    inputs = integer_pair(shape, torch.float32, device)
    expected = pair_oracle(inputs).float()
    inputs = inputs._replace(**{operand: LAYOUTS[layout](getattr(inputs, operand))})
    result = factorized_conv2d(*inputs)
    assert torch.equal(result.cpu(), expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operand", WEIGHTS_AND_INPUT)
def test_expanded_operands(device, operand, axis):
    inputs = integer_pair(SMALL, torch.float32, device)
    tensor = getattr(inputs, operand)
    inputs = inputs._replace(**{operand: tensor.narrow(axis, 0, 1).expand(tensor.shape)})
    result = factorized_conv2d(*inputs)
    assert torch.equal(result.cpu(), pair_oracle(inputs).float())
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [0, 3], ids=["expanded", "strided"])
@pytest.mark.parametrize("name", ["bias1", "bias2"])
def test_bias_with_strides(device, name, stride):
    inputs = integer_pair(SMALL, torch.float32, device)
    values = torch.arange(32.0, device=device)
    inputs = inputs._replace(**{name: values.as_strided(getattr(inputs, name).shape, (stride,), 5)})
    assert torch.equal(factorized_conv2d(*inputs).cpu(), pair_oracle(inputs).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_not_written(device, layout):
    inputs = random_pair(SMALL, torch.float32, device)
    inputs = inputs._replace(
        **{name: LAYOUTS[layout](getattr(inputs, name)) for name in WEIGHTS_AND_INPUT}
    )
    before = [whole_storage(t).clone() for t in inputs]
    factorized_conv2d(*inputs)
    for tensor, values in zip(inputs, before, strict=True):
        assert torch.equal(whole_storage(tensor), values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", ODD_PAIR_SHAPES, ids=str)
def test_every_output_is_written(device, shape):
    inputs = recording(random_pair(shape, torch.float32, device))
    expected = factorized_conv2d(*inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    with nan_filled_memory():
        result = factorized_conv2d(*inputs)
        grads = torch.autograd.grad(result.sum(), inputs)
    assert torch.equal(result, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_output_strides(device, batch, size, channels):
    for taps in (1, 3):
        shape = PairShape(batch, *size, channels, 2, channels, taps, taps, True)
        for make in LAYOUTS.values():
            inputs = integer_pair(shape, torch.float32, device)
            with nan_filled_memory():
                result = factorized_conv2d(make(inputs.input), *inputs[1:])
            assert result.shape == (batch, channels, *size)
            assert_channels_last(result)
            assert torch.equal(result.cpu(), pair_oracle(inputs).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_zero(device, dtype):
    inputs = recording(random_pair(PairShape(0, 5, 4, 3, 7, 6, 3, 5, True), dtype, device))
    result = factorized_conv2d(*inputs)
    assert result.shape == (0, 6, 5, 4)
    assert result.dtype == dtype
    assert_channels_last(result)
    grad_input, *grads = torch.autograd.grad(result.sum(), inputs)
    assert grad_input.shape == inputs.input.shape
    for grad, tensor in zip(grads, inputs[1:], strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


# Special values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_non_finite_activations(device, dtype, activations, value):
    inputs = random_pair(SMALL, dtype, device)
    inputs.input[1, 2, 3, 1] = value
    mid_activation, activation = activations
    result = factorized_conv2d(*inputs, mid_activation=mid_activation, activation=activation)
    expected = unfused_pair(inputs, *activations)
    assert not result.isfinite().all()
    for where in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(where(result), where(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mid_activation", "activation"])
def test_relu_keeps_what_relu_keeps(device, dtype, name):
    values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 2.0**-9, -(2.0**-9)]
    input = torch.tensor(values, dtype=dtype, device=device).reshape(1, 1, 3, 3)
    one = torch.ones((1, 1, 1, 1), dtype=dtype, device=device)
    linear = {"mid_activation": "none", "activation": "none"}
    for sign in (one, -one):
        result = factorized_conv2d(input, sign, None, one, None, **linear | {name: "relu"})
        expected = factorized_conv2d(input, sign, None, one, None, **linear)
        assert_same_bits(result, F.relu(expected))
        assert result.isnan().sum() == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mid_activation", ["relu", "none"])
def test_float16_overflow_between_the_factors_is_infinite(device, mid_activation):
    """The intermediate tensor is rounded to float16, although sums are float32."""
    input = torch.full((1, 2, 3, 3), 3e4, dtype=torch.float16, device=device)
    weight1 = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float16, device=device)
    weight2 = torch.tensor([[2.0**-10, 0.5], [-1.0, 0.0]], dtype=torch.float16, device=device)
    inputs = PairInputs(input, weight1[:, :, None, None], None, weight2[:, :, None, None], None)
    options = {"mid_activation": mid_activation, "activation": "none"}
    result, expected = factorized_conv2d(*inputs, **options), unfused_pair(inputs, **options)
    assert not result.isfinite().any()
    assert_same_bits(result, expected)


# Gradients


def check_gradients(inputs, **options):
    """gradcheck and gradgradcheck of the operands that are there."""
    present = [i for i, t in enumerate(inputs) if t is not None]

    def call(*tensors):
        operands = [None] * len(inputs)
        for i, tensor in zip(present, tensors, strict=True):
            operands[i] = tensor
        return factorized_conv2d(*operands, **options)

    tensors = [inputs[i] for i in present]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
@pytest.mark.parametrize("row_first", [True, False], ids=["row_first", "col_first"])
def test_gradcheck(row_first, activations):
    shape = PairShape(2, 3, 4, 2, 3, 2, 3, 5, row_first)
    mid_activation, activation = activations
    inputs = recording(random_pair(shape, torch.float64))
    check_gradients(inputs, mid_activation=mid_activation, activation=activation)


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_of_optional_biases(layout, biases):
    shape = PairShape(1, 3, 2, 2, 2, 2, 3, 1, True)
    inputs = without(random_pair(shape, torch.float64), BIASES[biases])
    check_gradients(recording(inputs._replace(input=LAYOUTS[layout](inputs.input))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
@pytest.mark.parametrize("shape", ODD_PAIR_SHAPES, ids=str)
def test_gradients_are_the_unfused_ones(device, shape, activations):
    inputs = recording(random_pair(shape, torch.float64, device))
    mid_activation, activation = activations
    result = factorized_conv2d(*inputs, mid_activation=mid_activation, activation=activation)
    expected = unfused_pair(inputs, *activations)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, inputs, cotangent)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wants", range(1, 32), ids=lambda wants: f"{wants:05b}")
def test_gradients_only_where_wanted(device, wants):
    def leaves():
        inputs = random_pair(SMALL, torch.float64, device)
        for i, tensor in enumerate(inputs):
            tensor.requires_grad_(bool(wants >> i & 1))
        return inputs

    inputs, expected = leaves(), leaves()
    factorized_conv2d(*inputs).sum().backward()
    unfused_pair(expected).sum().backward()
    for tensor, other in zip(inputs, expected, strict=True):
        assert (tensor.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout(device, layout):
    """Operands and the incoming gradient in each layout give the same gradients."""
    plain = random_pair(SMALL, torch.float64, device)
    leaves = recording(plain)
    laid_out = leaves._replace(
        **{name: LAYOUTS[layout](getattr(leaves, name)) for name in WEIGHTS_AND_INPUT}
    )
    result = factorized_conv2d(*laid_out)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, leaves, LAYOUTS[layout](cotangent))
    expected_leaves = recording(plain)
    expected_grads = torch.autograd.grad(unfused_pair(expected_leaves), expected_leaves, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_autograd_is_off(mode):
    inputs = recording(random_pair(SMALL, torch.float32))
    with mode():
        result = factorized_conv2d(*inputs)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert result.is_inference() == (mode is torch.inference_mode)


def test_no_graph_where_nothing_wants_a_gradient():
    assert factorized_conv2d(*random_pair(SMALL, torch.float32)).grad_fn is None


# Autocast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast(device, dtype):
    inputs = random_pair(SMALL, torch.float32, device)
    with torch.autocast(device, dtype):
        result = factorized_conv2d(*inputs)
    expected = factorized_conv2d(*(t.to(dtype) for t in inputs))
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_joins_mixed_dtypes(device):
    inputs = random_pair(SMALL, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        result = factorized_conv2d(inputs.input.bfloat16(), *inputs[1:])
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_float64_alone(device):
    inputs = random_pair(SMALL, torch.float64, device)
    with torch.autocast(device, torch.bfloat16):
        result = factorized_conv2d(*inputs)
    assert result.dtype == torch.float64
    assert torch.equal(result, factorized_conv2d(*inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_gradients_have_the_parameters_dtype(device, dtype):
    inputs = recording(random_pair(SMALL, torch.float32, device))
    with torch.autocast(device, dtype):
        result = factorized_conv2d(*inputs)
    grads = torch.autograd.grad(result.float().sum(), inputs)
    low = recording(PairInputs(*(t.to(dtype) for t in inputs)))
    expected_grads = torch.autograd.grad(factorized_conv2d(*low).float().sum(), low)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad.float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_around_the_backward_changes_nothing(device, dtype):
    """The backward recomputes the intermediate tensor: in the dtype of the forward."""
    inputs = recording(random_pair(SMALL, torch.float32, device))
    expected_grads = torch.autograd.grad(factorized_conv2d(*inputs).sum(), inputs)
    result = factorized_conv2d(*inputs)
    with torch.autocast(device, dtype):
        grads = torch.autograd.grad(result.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_operator_under_autocast_keeps_its_dtype(device, dtype):
    """Compilers call the operator itself, whose fake promises the input's dtype."""
    args = (*random_pair(SMALL, torch.float32, device), "relu", "relu", "auto")
    expected = torch.ops.fused_inception.factorized_conv2d(*args)
    with torch.autocast(device, dtype):
        result = torch.ops.fused_inception.factorized_conv2d(*args)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


# Errors

X = torch.ones(2, 3, 6, 5)
W1, B1 = torch.ones(4, 3, 1, 3), torch.ones(4)
W2, B2 = torch.ones(7, 4, 5, 1), torch.ones(7)
OPERANDS = PairInputs(X, W1, B1, W2, B2)._asdict()
REFUSED = {
    "input_list": (TypeError, r"input must be a Tensor, got list", {"input": [1.0]}),
    "weight1_none": (TypeError, r"weight1 must be a Tensor, got NoneType", {"weight1": None}),
    "weight2_none": (TypeError, r"weight2 must be a Tensor, got NoneType", {"weight2": None}),
    "bias1_float": (TypeError, r"bias1 must be a Tensor or None, got float", {"bias1": 1.0}),
    "bias2_float": (TypeError, r"bias2 must be a Tensor or None, got float", {"bias2": 1.0}),
    "integer": (
        TypeError,
        r"input must be float64, float32, float16 or bfloat16, got torch\.int32",
        {name: value.int() for name, value in OPERANDS.items()},
    ),
    "complex": (
        TypeError,
        r"input must be float64, .*, got torch\.complex64",
        {name: value.cfloat() for name, value in OPERANDS.items()},
    ),
    **{
        f"{name}_dtype": (
            TypeError,
            rf"{name} must have input's dtype torch\.float32, got torch\.float16",
            {name: OPERANDS[name].half()},
        )
        for name in ("weight1", "bias1", "weight2", "bias2")
    },
    "input_rank": (
        ValueError,
        r"input must be 4-D \(N, C, H, W\), got 3-D of shape \(3, 6, 5\)",
        {"input": X[0]},
    ),
    "no_channels": (
        ValueError,
        r"input must have C, H and W of at least 1, got shape \(2, 0, 6, 5\)",
        {"input": X[:, :0]},
    ),
    "no_rows": (ValueError, r"at least 1, got shape \(2, 3, 0, 5\)", {"input": X[:, :, :0]}),
    "no_columns": (ValueError, r"at least 1, got shape \(2, 3, 6, 0\)", {"input": X[..., :0]}),
    "weight1_rank": (
        ValueError,
        r"weight1 must be a non-empty 4-D \(Cmid, Cin, 1, n\) or \(Cmid, Cin, n, 1\), "
        r"got shape \(4, 3, 1\)",
        {"weight1": W1[..., 0]},
    ),
    "weight2_rank": (
        ValueError,
        r"weight2 must be a non-empty 4-D \(Cout, Cmid, m, 1\) or \(Cout, Cmid, 1, m\), "
        r"got shape \(7, 4, 5\)",
        {"weight2": W2[..., 0]},
    ),
    "no_filters": (
        ValueError,
        r"weight2 must be a non-empty 4-D .*, got shape \(0, 4, 5, 1\)",
        {"weight2": W2[:0]},
    ),
    "no_mid_channels": (
        ValueError,
        r"weight1 must be a non-empty 4-D .*, got shape \(0, 3, 1, 3\)",
        {"weight1": W1[:0]},
    ),
    "input_channels": (
        ValueError,
        r"weight1 must take 3 channels in dimension 1 .*, got shape \(4, 2, 1, 3\)",
        {"weight1": W1[:, :2]},
    ),
    "mid_channels": (
        ValueError,
        r"weight2 must take 4 channels in dimension 1 .*, got shape \(7, 3, 5, 1\)",
        {"weight2": W2[:, :3]},
    ),
    "bias1_length": (
        ValueError,
        r"bias1 must be None or of shape \(4,\), got shape \(7,\)",
        {"bias1": B2},
    ),
    "bias2_rank": (
        ValueError,
        r"bias2 must be None or of shape \(7,\), got shape \(7, 1\)",
        {"bias2": B2[:, None]},
    ),
    "two_rows": (
        ValueError,
        r"weight1 and weight2 must be a 1xn filter and an mx1 one, or nx1 and 1xm, "
        r"got 1x3 and 1x5",
        {"weight2": W2.mT},
    ),
    "two_columns": (
        ValueError,
        r"weight1 and weight2 must be .*, got 3x1 and 5x1",
        {"weight1": W1.mT},
    ),
    "square_filter": (
        ValueError,
        r"weight1 and weight2 must be .*, got 3x3 and 5x1",
        {"weight1": W1.expand(4, 3, 3, 3)},
    ),
    "even_filter1": (
        ValueError,
        r"weight1 must have an odd filter length, 1 to 31, got 2",
        {"weight1": W1[..., :2]},
    ),
    "even_filter2": (
        ValueError,
        r"weight2 must have an odd filter length, 1 to 31, got 4",
        {"weight2": W2[:, :, :4]},
    ),
    "long_filter1": (
        ValueError,
        r"weight1 must have an odd filter length, 1 to 31, got 33",
        {"weight1": torch.ones(4, 3, 1, 33)},
    ),
    "long_filter2": (
        ValueError,
        r"weight2 must have an odd filter length, 1 to 31, got 33",
        {"weight2": torch.ones(7, 4, 33, 1)},
    ),
    **{
        f"{name}_{value}": (
            ValueError,
            rf"{name} must be one of 'relu', 'none', got {value!r}",
            {name: value},
        )
        for name in ("mid_activation", "activation")
        for value in ("gelu", None)
    },
    "backend": (
        ValueError,
        r"backend must be one of 'auto', 'aten', 'triton', 'cuda', got 'cudnn'",
        {"backend": "cudnn"},
    ),
    "backend_none": (ValueError, r"backend must be one of .*, got None", {"backend": None}),
}


@pytest.mark.parametrize("mode", ["eager", "fake", "meta"])
@pytest.mark.parametrize(("error", "message", "changes"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments(mode, error, message, changes):
    arguments = OPERANDS | changes
    with FakeTensorMode() if mode == "fake" else nullcontext() as fake:
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and mode != "eager":
                arguments[name] = fake.from_tensor(value) if fake else value.to("meta")
        with pytest.raises(error, match=f"factorized_conv2d: .*{message}"):
            factorized_conv2d(**arguments)


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("name", ["weight1", "bias1", "weight2", "bias2"])
def test_devices_must_agree(name, fake):
    arguments = dict(OPERANDS)
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {key: mode.from_tensor(value) for key, value in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises(ValueError, match=f"{name} must be on input's device cpu, got meta"):
            factorized_conv2d(**arguments)


INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@pytest.mark.skipif(INTERPRETING, reason="TRITON_INTERPRET=1 lets triton take CPU tensors")
def test_triton_refuses_cpu_tensors():
    pytest.importorskip("triton")
    message = (
        r"factorized_conv2d: backend 'triton' cannot run here: input is on cpu; takes CUDA "
        r"tensors, or CPU tensors where TRITON_INTERPRET=1 was set before the first import"
    )
    with pytest.raises(RuntimeError, match=message):
        factorized_conv2d(*OPERANDS.values(), backend="triton")


@pytest.mark.parametrize("device", DEVICES)
def test_triton_refuses_float64(device):
    operands = [t.double().to(device) for t in OPERANDS.values()]
    message = r"cannot run here: dtype torch\.float64; takes float32, float16 and bfloat16"
    with pytest.raises(RuntimeError, match=message):
        factorized_conv2d(*operands, backend="triton")


def test_aten_by_name():
    result = factorized_conv2d(*OPERANDS.values(), backend="aten")
    assert torch.equal(result, factorized_conv2d(*OPERANDS.values()))
