"""`conv2d_act` against its definition, on the CPU and, marked `gpu`, on a CUDA device.

Left out: speed, and sizes past 2^31 elements (see test_registration.py, which needs no memory).
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from fused_inception import conv2d_act
from fused_inception.testing import (
    LAYOUTS,
    ODD_CONV_SHAPES,
    ConvInputs,
    ConvShape,
    assert_channels_last,
    assert_same_bits,
    assert_within_budget,
    conv_oracle,
    fp32_precision,
    inception_v3_convs,
    integer_conv,
    loop_conv2d,
    nan_filled_memory,
    random_conv,
    random_tensor,
    unfused_conv,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
LOW_DTYPES = DTYPES[2:]
ACTIVATIONS = ["relu", "none"]

SMALL = ConvShape(2, 7, 6, 5, 4, (3, 2), (2, 1), (1, 2))


def geometry(shape):
    return {"stride": shape.stride, "padding": shape.padding}


def recording(inputs):
    """Leaves with the same values and strides that require gradients."""
    return ConvInputs(*(t if t is None else t.detach().clone().requires_grad_() for t in inputs))


def whole_storage(tensor):
    """Every element of the storage behind a view."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


# Values


@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_oracle_is_the_loop(shape):
    inputs = random_conv(shape, torch.float64)
    loop = loop_conv2d(*inputs, **geometry(shape))
    oracle = conv_oracle(inputs, **geometry(shape), activation="none")
    torch.testing.assert_close(oracle, loop, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_float64_is_the_loop(device, shape, bias, activation):
    inputs = random_conv(shape, torch.float64, device, bias=bias)
    loop = loop_conv2d(*(t if t is None else t.cpu() for t in inputs), **geometry(shape))
    expected = loop.clamp(min=0) if activation == "relu" else loop
    result = conv2d_act(*inputs, **geometry(shape), activation=activation)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*inception_v3_convs(1), *ODD_CONV_SHAPES], ids=str)
def test_error_is_within_budget(device, dtype, shape):
    inputs = random_conv(shape, dtype, device)
    with fp32_precision("ieee"):
        result = conv2d_act(*inputs, **geometry(shape))
        reference = unfused_conv(inputs, **geometry(shape))
    assert result.dtype == dtype
    assert_within_budget(result, reference, conv_oracle(inputs, **geometry(shape)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_whole_numbers_are_exact(device, dtype, shape):
    inputs = integer_conv(shape, dtype, device)
    result = conv2d_act(*inputs, **geometry(shape))
    assert torch.equal(result.cpu(), conv_oracle(inputs, **geometry(shape)).to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "padding"), [(3, (0, 0)), (1, (1, 1))], ids=["bare", "padded"])
def test_one_output_column(device, dtype, width, padding):
    """There oneDNN's bfloat16 convolutions are wrong at a stride above 1 (pytorch#169688)."""
    shape = ConvShape(2, 35, width, 16, 48, (3, 3), (2, 2), padding)
    inputs = recording(integer_conv(shape, dtype, device))
    exact = recording(ConvInputs(*(t.double() for t in inputs)))
    result = conv2d_act(*inputs, **geometry(shape))
    expected = unfused_conv(exact, **geometry(shape))
    assert torch.equal(result.double(), expected)
    grads = torch.autograd.grad(result.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), exact)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_at_one_output_column(device):
    """The weight gradient is wrong there too, if the gradient from above is not uniform."""
    shape = ConvShape(2, 35, 1, 16, 48, (3, 3), (2, 2), (1, 1))
    for seed in range(4):
        inputs = integer_conv(shape, torch.bfloat16, device, seed=seed)
        inputs = recording(inputs._replace(input=inputs.input.sign()))
        exact = recording(ConvInputs(*(t.double() for t in inputs)))
        result = conv2d_act(*inputs, **geometry(shape), activation="none")
        expected = unfused_conv(exact, **geometry(shape), activation="none")
        above = random_tensor(tuple(result.shape), torch.float64, device, 1.0, seed).sign()
        grads = torch.autograd.grad(result, inputs, above.bfloat16())
        expected_grads = torch.autograd.grad(expected, exact, above)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert torch.equal(grad.double(), expected_grad)


def test_whole_numbers_are_exact_for_any_shape():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    pairs = st.tuples
    shapes = st.builds(
        ConvShape,
        batch=st.integers(0, 3),
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        c_in=st.integers(1, 9),
        c_out=st.integers(1, 9),
        kernel=pairs(st.integers(1, 5), st.integers(1, 5)),
        stride=pairs(st.integers(1, 4), st.integers(1, 4)),
        padding=pairs(st.integers(0, 3), st.integers(0, 3)),
    ).filter(
        lambda s: (
            s.height + 2 * s.padding[0] >= s.kernel[0] and s.width + 2 * s.padding[1] >= s.kernel[1]
        )
    )

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(shapes, st.sampled_from(ACTIVATIONS), st.sampled_from(list(LAYOUTS)))
    def check(shape, activation, layout):
        inputs = integer_conv(shape, torch.float32)
        expected = loop_conv2d(*inputs, **geometry(shape))
        expected = expected.clamp(min=0) if activation == "relu" else expected
        inputs = inputs._replace(input=LAYOUTS[layout](inputs.input))
        result = conv2d_act(*inputs, **geometry(shape), activation=activation)
        assert torch.equal(result.double(), expected)
        assert_channels_last(result)

    check()


def test_one_integer_stands_for_both_axes():
    shape = ConvShape(1, 9, 8, 3, 4, (3, 3), (2, 2), (1, 1))
    inputs = random_conv(shape, torch.float32)
    expected = conv2d_act(*inputs, stride=(2, 2), padding=(1, 1))
    assert torch.equal(conv2d_act(*inputs, stride=2, padding=1), expected)
    assert torch.equal(conv2d_act(*inputs, stride=[2, 2], padding=[1, 1]), expected)


def test_defaults_are_stride_1_no_padding_relu():
    inputs = random_conv(ConvShape(1, 5, 6, 3, 4, (3, 3)), torch.float32)
    assert torch.equal(conv2d_act(*inputs), unfused_conv(inputs))


# Memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["input", "weight"])
def test_layout_does_not_matter(device, operand, layout):
    inputs = integer_conv(SMALL, torch.float32, device)
    expected = conv_oracle(inputs, **geometry(SMALL)).float()
    inputs = inputs._replace(**{operand: LAYOUTS[layout](getattr(inputs, operand))})
    result = conv2d_act(*inputs, **geometry(SMALL))
    assert torch.equal(result.cpu(), expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operand", ["input", "weight"])
def test_expanded_operands(device, operand, axis):
    inputs = integer_conv(SMALL, torch.float32, device)
    tensor = getattr(inputs, operand)
    inputs = inputs._replace(**{operand: tensor.narrow(axis, 0, 1).expand(tensor.shape)})
    result = conv2d_act(*inputs, **geometry(SMALL))
    assert torch.equal(result.cpu(), conv_oracle(inputs, **geometry(SMALL)).float())
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [0, 3], ids=["expanded", "strided"])
def test_bias_with_strides(device, stride):
    inputs = integer_conv(SMALL, torch.float32, device)
    bias = torch.arange(32.0, device=device).as_strided((SMALL.c_out,), (stride,), 5)
    inputs = inputs._replace(bias=bias)
    result = conv2d_act(*inputs, **geometry(SMALL))
    assert torch.equal(result.cpu(), conv_oracle(inputs, **geometry(SMALL)).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_not_written(device, layout):
    inputs = random_conv(SMALL, torch.float32, device)
    inputs = ConvInputs(LAYOUTS[layout](inputs.input), LAYOUTS[layout](inputs.weight), inputs.bias)
    before = [whole_storage(t).clone() for t in inputs]
    conv2d_act(*inputs, **geometry(SMALL))
    for tensor, values in zip(inputs, before, strict=True):
        assert torch.equal(whole_storage(tensor), values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_every_output_is_written(device, shape):
    inputs = recording(random_conv(shape, torch.float32, device))
    expected = conv2d_act(*inputs, **geometry(shape))
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    with nan_filled_memory():
        result = conv2d_act(*inputs, **geometry(shape))
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
    for kernel, padding in (((1, 1), (0, 0)), ((3, 3), (1, 1))):
        shape = ConvShape(batch, *size, channels, channels, kernel, (1, 1), padding)
        for make in LAYOUTS.values():
            inputs = integer_conv(shape, torch.float32, device)
            with nan_filled_memory():
                result = conv2d_act(make(inputs.input), *inputs[1:], padding=padding)
            assert result.shape == (batch, channels, *size)
            assert_channels_last(result)
            assert torch.equal(result.cpu(), conv_oracle(inputs, padding=padding).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_zero(device, dtype):
    inputs = recording(random_conv(ConvShape(0, 7, 6, 5, 4, (3, 3)), dtype, device))
    result = conv2d_act(*inputs)
    assert result.shape == (0, 4, 5, 4)
    assert result.dtype == dtype
    assert_channels_last(result)
    grad_input, *grads = torch.autograd.grad(result.sum(), inputs)
    assert grad_input.shape == inputs.input.shape
    for grad, tensor in zip(grads, inputs[1:], strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


# Special values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_non_finite_activations(device, dtype, activation, value):
    inputs = random_conv(SMALL, dtype, device)
    inputs.input[1, 2, 3, 4] = value
    result = conv2d_act(*inputs, **geometry(SMALL), activation=activation)
    expected = unfused_conv(inputs, **geometry(SMALL), activation=activation)
    assert not result.isfinite().all()
    for where in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(where(result), where(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_what_relu_keeps(device, dtype):
    values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 2.0**-20, -(2.0**-9)]
    input = torch.tensor(values, dtype=dtype, device=device).reshape(1, 1, 3, 3)
    for sign in (1.0, -1.0):
        weight = torch.full((1, 1, 1, 1), sign, dtype=dtype, device=device)
        result = conv2d_act(input, weight, None)
        assert_same_bits(result, F.relu(conv2d_act(input, weight, None, activation="none")))
        assert result.isnan().sum() == 1


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_is_infinite(device):
    input = torch.full((1, 2, 3, 3), 3e4, dtype=torch.float16, device=device)
    weight = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float16, device=device)
    result = conv2d_act(input, weight[:, :, None, None], None, activation="none")
    assert result[:, 0].isposinf().all()
    assert result[:, 1].isneginf().all()


# Gradients


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(layout, bias, activation):
    shape = ConvShape(2, 4, 3, 3, 2, (3, 2), (2, 1), (1, 0))
    inputs = recording(random_conv(shape, torch.float64, bias=bias))
    inputs = inputs._replace(input=LAYOUTS[layout](inputs.input.detach()).requires_grad_())

    def call(*tensors):
        tensors = tensors if bias else (*tensors, None)
        return conv2d_act(*tensors, **geometry(shape), activation=activation)

    tensors = [t for t in inputs if t is not None]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_gradients_are_the_unfused_ones(device, shape, activation):
    inputs = recording(random_conv(shape, torch.float64, device))
    result = conv2d_act(*inputs, **geometry(shape), activation=activation)
    expected = unfused_conv(inputs, **geometry(shape), activation=activation)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, inputs, cotangent)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wants", range(1, 8), ids=lambda wants: f"{wants:03b}")
def test_gradients_only_where_wanted(device, wants):
    def leaves():
        inputs = random_conv(SMALL, torch.float64, device)
        for i, tensor in enumerate(inputs):
            tensor.requires_grad_(bool(wants >> i & 1))
        return inputs

    inputs, expected = leaves(), leaves()
    conv2d_act(*inputs, **geometry(SMALL)).sum().backward()
    unfused_conv(expected, **geometry(SMALL)).sum().backward()
    for tensor, other in zip(inputs, expected, strict=True):
        assert (tensor.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout(device, layout):
    """Operands and the incoming gradient in each layout give the same gradients."""
    plain = random_conv(SMALL, torch.float64, device)
    leaves = recording(plain)
    laid_out = ConvInputs(LAYOUTS[layout](leaves.input), LAYOUTS[layout](leaves.weight), leaves[2])
    result = conv2d_act(*laid_out, **geometry(SMALL))
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, leaves, LAYOUTS[layout](cotangent))
    expected_leaves = recording(plain)
    expected = unfused_conv(expected_leaves, **geometry(SMALL))
    expected_grads = torch.autograd.grad(expected, expected_leaves, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_autograd_is_off(mode):
    inputs = recording(random_conv(SMALL, torch.float32))
    with mode():
        result = conv2d_act(*inputs, **geometry(SMALL))
    assert not result.requires_grad
    assert result.grad_fn is None
    assert result.is_inference() == (mode is torch.inference_mode)


def test_no_graph_where_nothing_wants_a_gradient():
    assert conv2d_act(*random_conv(SMALL, torch.float32), **geometry(SMALL)).grad_fn is None


# Autocast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast(device, dtype):
    inputs = random_conv(SMALL, torch.float32, device)
    with torch.autocast(device, dtype):
        result = conv2d_act(*inputs, **geometry(SMALL))
    expected = conv2d_act(*(t.to(dtype) for t in inputs), **geometry(SMALL))
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_joins_mixed_dtypes(device):
    inputs = random_conv(SMALL, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        result = conv2d_act(inputs.input.bfloat16(), *inputs[1:], **geometry(SMALL))
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_float64_alone(device):
    inputs = random_conv(SMALL, torch.float64, device)
    with torch.autocast(device, torch.bfloat16):
        result = conv2d_act(*inputs, **geometry(SMALL))
    assert result.dtype == torch.float64
    assert torch.equal(result, conv2d_act(*inputs, **geometry(SMALL)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_gradients_have_the_parameters_dtype(device, dtype):
    inputs = recording(random_conv(SMALL, torch.float32, device))
    with torch.autocast(device, dtype):
        result = conv2d_act(*inputs, **geometry(SMALL))
    grads = torch.autograd.grad(result.float().sum(), inputs)
    low = recording(ConvInputs(*(t.to(dtype) for t in inputs)))
    expected = conv2d_act(*low, **geometry(SMALL))
    expected_grads = torch.autograd.grad(expected.float().sum(), low)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad.float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_around_the_backward_changes_nothing(device, dtype):
    inputs = recording(random_conv(SMALL, torch.float32, device))
    expected_grads = torch.autograd.grad(conv2d_act(*inputs, **geometry(SMALL)).sum(), inputs)
    result = conv2d_act(*inputs, **geometry(SMALL))
    with torch.autocast(device, dtype):
        grads = torch.autograd.grad(result.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_operator_under_autocast_keeps_its_dtype(device, dtype):
    """Compilers call the operator itself, whose fake promises the input's dtype."""
    inputs = random_conv(SMALL, torch.float32, device)
    args = (*inputs, SMALL.stride, SMALL.padding, "relu", "auto")
    expected = torch.ops.fused_inception.conv2d_act(*args)
    with torch.autocast(device, dtype):
        result = torch.ops.fused_inception.conv2d_act(*args)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


# Errors

X, W, B = torch.ones(2, 3, 6, 5), torch.ones(4, 3, 3, 3), torch.ones(4)
REFUSED = {
    "input_list": (TypeError, r"input must be a Tensor, got list", {"input": [1.0]}),
    "weight_none": (TypeError, r"weight must be a Tensor, got NoneType", {"weight": None}),
    "bias_float": (TypeError, r"bias must be a Tensor or None, got float", {"bias": 1.0}),
    "integer": (
        TypeError,
        r"input must be float64, float32, float16 or bfloat16, got torch\.int32",
        {"input": X.int(), "weight": W.int(), "bias": B.int()},
    ),
    "complex": (
        TypeError,
        r"input must be float64, .*, got torch\.complex64",
        {"input": X.cfloat(), "weight": W.cfloat(), "bias": B.cfloat()},
    ),
    "weight_dtype": (
        TypeError,
        r"weight must have input's dtype torch\.float32, got torch\.float16",
        {"weight": W.half()},
    ),
    "bias_dtype": (
        TypeError,
        r"bias must have input's dtype torch\.float32, got torch\.float64",
        {"bias": B.double()},
    ),
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
    "weight_rank": (
        ValueError,
        r"weight must be a non-empty 4-D \(Cout, Cin, R, S\), got shape \(4, 3, 3\)",
        {"weight": W[..., 0]},
    ),
    "no_filters": (
        ValueError,
        r"weight must be a non-empty 4-D .*, got shape \(0, 3, 3, 3\)",
        {"weight": W[:0]},
    ),
    "channels": (
        ValueError,
        r"weight must take 3 channels in dimension 1 .*, got shape \(4, 2, 3, 3\)",
        {"weight": W[:, :2]},
    ),
    "bias_length": (
        ValueError,
        r"bias must be None or of shape \(4,\), got shape \(3,\)",
        {"bias": B[:3]},
    ),
    "bias_rank": (
        ValueError,
        r"bias must be None or of shape \(4,\), got shape \(4, 1\)",
        {"bias": B[:, None]},
    ),
    "filter_exceeds_map": (
        ValueError,
        r"input of 6x5 with padding \(0, 0\) must be at least as large as the 7x1 filter",
        {"weight": torch.ones(4, 3, 7, 1)},
    ),
    "filter_exceeds_padded_map": (
        ValueError,
        r"input of 6x5 with padding \(0, 1\) must be at least as large as the 1x8 filter",
        {"weight": torch.ones(4, 3, 1, 8), "padding": (0, 1)},
    ),
    "stride_0": (
        ValueError,
        r"stride must be an integer of at least 1 or a pair of them, got 0",
        {"stride": 0},
    ),
    "stride_of_one_axis": (ValueError, r"stride must be .*, got \(2, 0\)", {"stride": (2, 0)}),
    "stride_float": (ValueError, r"stride must be an integer .*, got 2\.0", {"stride": 2.0}),
    "stride_bool": (ValueError, r"stride must be an integer .*, got True", {"stride": True}),
    "stride_triple": (ValueError, r"stride must be .*, got \(1, 1, 1\)", {"stride": (1, 1, 1)}),
    "padding_negative": (
        ValueError,
        r"padding must be an integer of at least 0 or a pair of them, got -1",
        {"padding": -1},
    ),
    "padding_word": (ValueError, r"padding must be .*, got 'same'", {"padding": "same"}),
    "activation": (
        ValueError,
        r"activation must be one of 'relu', 'none', got 'gelu'",
        {"activation": "gelu"},
    ),
    "activation_none": (
        ValueError,
        r"activation must be one of 'relu', 'none', got None",
        {"activation": None},
    ),
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
    arguments = {"input": X, "weight": W, "bias": B} | changes
    with FakeTensorMode() if mode == "fake" else nullcontext() as fake:
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and mode != "eager":
                arguments[name] = fake.from_tensor(value) if fake else value.to("meta")
        with pytest.raises(error, match=f"conv2d_act: .*{message}"):
            conv2d_act(**arguments)


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_devices_must_agree(name, fake):
    arguments = {"input": X, "weight": W, "bias": B}
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {name: mode.from_tensor(value) for name, value in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises(ValueError, match=f"{name} must be on input's device cpu, got meta"):
            conv2d_act(**arguments)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("triton", "input is on cpu; takes CUDA tensors, or CPU tensors where TRITON_INTERPRET=1"),
        ("cuda", "dtype torch.float(32|64); takes float16 and bfloat16"),
    ],
)
def test_backend_that_cannot_run(backend, reason):
    with pytest.raises(RuntimeError, match=f"conv2d_act: backend '{backend}' .*: {reason}"):
        conv2d_act(X, W, B, backend=backend)


def test_aten_by_name():
    assert torch.equal(conv2d_act(X, W, B, backend="aten"), conv2d_act(X, W, B))
