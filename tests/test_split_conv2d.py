"""`split_conv2d` against its definition, on the CPU and, marked `gpu`, on a CUDA device.

Left out: speed, and sizes past 2^31 elements (see test_registration.py, which needs no memory).
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from fused_inception import split_conv2d
from fused_inception.testing import (
    LAYOUTS,
    ODD_SPLIT_SHAPES,
    SplitInputs,
    SplitShape,
    assert_channels_last,
    assert_same_bits,
    assert_within_budget,
    fp32_precision,
    inception_v3_splits,
    integer_split,
    loop_conv2d,
    nan_filled_memory,
    random_split,
    random_tensor,
    split_oracle,
    unfused_split,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
LOW_DTYPES = DTYPES[2:]
ACTIVATIONS = ["relu", "none"]
BIASES = {
    "both": (),
    "row": ("bias_col",),
    "col": ("bias_row",),
    "neither": ("bias_row", "bias_col"),
}

SMALL = SplitShape(2, 5, 4, 3, 7, 6, 3, 5)
WEIGHTS_AND_INPUT = ["input", "weight_row", "weight_col"]


def without(inputs, names):
    return inputs._replace(**dict.fromkeys(names))


def loop(inputs, activation):
    """The op as its definition, on the CPU: a loop over output pixels and taps, in float64."""
    input, *halves = (t if t is None else t.detach().cpu() for t in inputs)
    out = []
    for weight, bias in (halves[:2], halves[2:]):
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        out.append(loop_conv2d(input, weight, bias, padding=padding))
    joined = torch.cat(out, 1)
    return joined.clamp(min=0) if activation == "relu" else joined


def recording(inputs):
    """Leaves with the same values and strides that require gradients."""
    return SplitInputs(*(t if t is None else t.detach().clone().requires_grad_() for t in inputs))


def whole_storage(tensor):
    """Every element of the storage behind a view."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


# Values


@pytest.mark.parametrize("shape", ODD_SPLIT_SHAPES, ids=str)
def test_oracle_is_the_loop(shape):
    inputs = random_split(shape, torch.float64)
    oracle = split_oracle(inputs, "none")
    torch.testing.assert_close(oracle, loop(inputs, "none"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ODD_SPLIT_SHAPES, ids=str)
def test_float64_is_the_loop(device, shape, activation):
    inputs = random_split(shape, torch.float64, device)
    result = split_conv2d(*inputs, activation=activation)
    torch.testing.assert_close(result.cpu(), loop(inputs, activation), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_each_bias_is_optional(device, dtype, biases):
    inputs = without(integer_split(SMALL, dtype, device), BIASES[biases])
    assert torch.equal(split_conv2d(*inputs).double().cpu(), loop(inputs, "relu"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*inception_v3_splits(2), *ODD_SPLIT_SHAPES], ids=str)
def test_error_is_within_budget(device, dtype, shape):
    inputs = random_split(shape, dtype, device)
    with fp32_precision("ieee"):
        result = split_conv2d(*inputs)
        reference = unfused_split(inputs)
    assert result.dtype == dtype
    assert_within_budget(result, reference, split_oracle(inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*inception_v3_splits(1), *ODD_SPLIT_SHAPES], ids=str)
def test_whole_numbers_are_exact(device, dtype, shape):
    inputs = integer_split(shape, dtype, device)
    result = split_conv2d(*inputs, activation="none")
    assert torch.equal(result.cpu(), split_oracle(inputs, "none").to(dtype))


def test_whole_numbers_are_exact_for_any_shape():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    size, channels = st.integers(1, 9), st.integers(1, 9)
    taps = st.integers(0, 4).map(lambda half: 2 * half + 1)
    shapes = st.builds(
        SplitShape, st.integers(0, 3), size, size, channels, channels, channels, taps, taps
    )

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(shapes, st.sampled_from(ACTIVATIONS), st.sampled_from([*LAYOUTS]))
    def check(shape, activation, layout):
        inputs = integer_split(shape, torch.float32)
        expected = loop(inputs, activation)
        inputs = inputs._replace(input=LAYOUTS[layout](inputs.input))
        result = split_conv2d(*inputs, activation=activation)
        assert torch.equal(result.double(), expected)
        assert_channels_last(result)

    check()


def test_default_is_relu():
    inputs = random_split(SMALL, torch.float32)
    assert torch.equal(split_conv2d(*inputs), unfused_split(inputs, "relu"))


# Memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", WEIGHTS_AND_INPUT)
def test_layout_does_not_matter(device, operand, layout):
    inputs = integer_split(SMALL, torch.float32, device)
    expected = split_oracle(inputs).float()
    inputs = inputs._replace(**{operand: LAYOUTS[layout](getattr(inputs, operand))})
    result = split_conv2d(*inputs)
    assert torch.equal(result.cpu(), expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operand", WEIGHTS_AND_INPUT)
def test_expanded_operands(device, operand, axis):
    inputs = integer_split(SMALL, torch.float32, device)
    tensor = getattr(inputs, operand)
    inputs = inputs._replace(**{operand: tensor.narrow(axis, 0, 1).expand(tensor.shape)})
    result = split_conv2d(*inputs)
    assert torch.equal(result.cpu(), split_oracle(inputs).float())
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [0, 3], ids=["expanded", "strided"])
@pytest.mark.parametrize("name", ["bias_row", "bias_col"])
def test_bias_with_strides(device, name, stride):
    inputs = integer_split(SMALL, torch.float32, device)
    values = torch.arange(32.0, device=device)
    inputs = inputs._replace(**{name: values.as_strided(getattr(inputs, name).shape, (stride,), 5)})
    assert torch.equal(split_conv2d(*inputs).cpu(), split_oracle(inputs).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_not_written(device, layout):
    inputs = random_split(SMALL, torch.float32, device)
    inputs = inputs._replace(
        **{name: LAYOUTS[layout](getattr(inputs, name)) for name in WEIGHTS_AND_INPUT}
    )
    before = [whole_storage(t).clone() for t in inputs]
    split_conv2d(*inputs)
    for tensor, values in zip(inputs, before, strict=True):
        assert torch.equal(whole_storage(tensor), values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", ODD_SPLIT_SHAPES, ids=str)
def test_every_output_is_written(device, shape):
    inputs = recording(random_split(shape, torch.float32, device))
    expected = split_conv2d(*inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    with nan_filled_memory():
        result = split_conv2d(*inputs)
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
        shape = SplitShape(batch, *size, channels, 1, channels, taps, taps)
        for make in LAYOUTS.values():
            inputs = integer_split(shape, torch.float32, device)
            with nan_filled_memory():
                result = split_conv2d(make(inputs.input), *inputs[1:])
            assert result.shape == (batch, 1 + channels, *size)
            assert_channels_last(result)
            assert torch.equal(result.cpu(), split_oracle(inputs).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_zero(device, dtype):
    inputs = recording(random_split(SplitShape(0, 5, 4, 3, 7, 6, 3, 5), dtype, device))
    result = split_conv2d(*inputs)
    assert result.shape == (0, 13, 5, 4)
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
    inputs = random_split(SMALL, dtype, device)
    inputs.input[1, 2, 3, 1] = value
    result = split_conv2d(*inputs, activation=activation)
    expected = unfused_split(inputs, activation)
    assert not result.isfinite().all()
    for where in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(where(result), where(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_what_relu_keeps(device, dtype):
    values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 2.0**-9, -(2.0**-9)]
    input = torch.tensor(values, dtype=dtype, device=device).reshape(1, 1, 3, 3)
    one = torch.ones((1, 1, 1, 1), dtype=dtype, device=device)
    result = split_conv2d(input, one, None, -one, None)
    assert_same_bits(result, F.relu(split_conv2d(input, one, None, -one, None, activation="none")))
    assert result.isnan().sum() == 2


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_is_infinite(device):
    input = torch.full((1, 2, 3, 3), 3e4, dtype=torch.float16, device=device)
    ones = torch.full((1, 2, 1, 1), 2.0, dtype=torch.float16, device=device)
    result = split_conv2d(input, ones, None, -ones, None, activation="none")
    assert result[:, 0].isposinf().all()
    assert result[:, 1].isneginf().all()


# Gradients


def check_gradients(inputs, **options):
    """gradcheck and gradgradcheck of the operands that are there."""
    present = [i for i, t in enumerate(inputs) if t is not None]

    def call(*tensors):
        operands = [None] * len(inputs)
        for i, tensor in zip(present, tensors, strict=True):
            operands[i] = tensor
        return split_conv2d(*operands, **options)

    tensors = [inputs[i] for i in present]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(layout, biases, activation):
    shape = SplitShape(2, 3, 4, 2, 3, 2, 3, 5)
    inputs = without(random_split(shape, torch.float64), BIASES[biases])
    inputs = inputs._replace(input=LAYOUTS[layout](inputs.input))
    check_gradients(recording(inputs), activation=activation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ODD_SPLIT_SHAPES, ids=str)
def test_gradients_are_the_unfused_ones(device, shape, activation):
    inputs = recording(random_split(shape, torch.float64, device))
    result = split_conv2d(*inputs, activation=activation)
    expected = unfused_split(inputs, activation)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, inputs, cotangent)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wants", range(1, 32), ids=lambda wants: f"{wants:05b}")
def test_gradients_only_where_wanted(device, wants):
    def leaves():
        inputs = random_split(SMALL, torch.float64, device)
        for i, tensor in enumerate(inputs):
            tensor.requires_grad_(bool(wants >> i & 1))
        return inputs

    inputs, expected = leaves(), leaves()
    split_conv2d(*inputs).sum().backward()
    unfused_split(expected).sum().backward()
    for tensor, other in zip(inputs, expected, strict=True):
        assert (tensor.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout(device, layout):
    """Operands and the incoming gradient in each layout give the same gradients."""
    plain = random_split(SMALL, torch.float64, device)
    leaves = recording(plain)
    laid_out = leaves._replace(
        **{name: LAYOUTS[layout](getattr(leaves, name)) for name in WEIGHTS_AND_INPUT}
    )
    result = split_conv2d(*laid_out)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, leaves, LAYOUTS[layout](cotangent))
    expected_leaves = recording(plain)
    expected_grads = torch.autograd.grad(unfused_split(expected_leaves), expected_leaves, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_autograd_is_off(mode):
    inputs = recording(random_split(SMALL, torch.float32))
    with mode():
        result = split_conv2d(*inputs)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert result.is_inference() == (mode is torch.inference_mode)


def test_no_graph_where_nothing_wants_a_gradient():
    assert split_conv2d(*random_split(SMALL, torch.float32)).grad_fn is None


# Autocast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast(device, dtype):
    inputs = random_split(SMALL, torch.float32, device)
    with torch.autocast(device, dtype):
        result = split_conv2d(*inputs)
    expected = split_conv2d(*(t.to(dtype) for t in inputs))
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_joins_mixed_dtypes(device):
    inputs = random_split(SMALL, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        result = split_conv2d(inputs.input.bfloat16(), *inputs[1:])
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_float64_alone(device):
    inputs = random_split(SMALL, torch.float64, device)
    with torch.autocast(device, torch.bfloat16):
        result = split_conv2d(*inputs)
    assert result.dtype == torch.float64
    assert torch.equal(result, split_conv2d(*inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_gradients_have_the_parameters_dtype(device, dtype):
    inputs = recording(random_split(SMALL, torch.float32, device))
    with torch.autocast(device, dtype):
        result = split_conv2d(*inputs)
    grads = torch.autograd.grad(result.float().sum(), inputs)
    low = recording(SplitInputs(*(t.to(dtype) for t in inputs)))
    expected_grads = torch.autograd.grad(split_conv2d(*low).float().sum(), low)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad.float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_autocast_around_the_backward_changes_nothing(device, dtype):
    inputs = recording(random_split(SMALL, torch.float32, device))
    expected_grads = torch.autograd.grad(split_conv2d(*inputs).sum(), inputs)
    result = split_conv2d(*inputs)
    with torch.autocast(device, dtype):
        grads = torch.autograd.grad(result.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_operator_under_autocast_keeps_its_dtype(device, dtype):
    """Compilers call the operator itself, whose fake promises the input's dtype."""
    args = (*random_split(SMALL, torch.float32, device), "relu", "auto")
    expected = torch.ops.fused_inception.split_conv2d(*args)
    with torch.autocast(device, dtype):
        result = torch.ops.fused_inception.split_conv2d(*args)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


# Errors

X = torch.ones(2, 3, 6, 5)
ROW, ROW_BIAS = torch.ones(4, 3, 1, 3), torch.ones(4)
COL, COL_BIAS = torch.ones(7, 3, 5, 1), torch.ones(7)
OPERANDS = SplitInputs(X, ROW, ROW_BIAS, COL, COL_BIAS)._asdict()
REFUSED = {
    "input_list": (TypeError, r"input must be a Tensor, got list", {"input": [1.0]}),
    "weight_row_none": (
        TypeError,
        r"weight_row must be a Tensor, got NoneType",
        {"weight_row": None},
    ),
    "weight_col_none": (
        TypeError,
        r"weight_col must be a Tensor, got NoneType",
        {"weight_col": None},
    ),
    "bias_row_float": (
        TypeError,
        r"bias_row must be a Tensor or None, got float",
        {"bias_row": 1.0},
    ),
    "bias_col_float": (
        TypeError,
        r"bias_col must be a Tensor or None, got float",
        {"bias_col": 1.0},
    ),
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
        for name in ("weight_row", "bias_row", "weight_col", "bias_col")
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
    "row_rank": (
        ValueError,
        r"weight_row must be a non-empty 4-D \(Cr, Cin, 1, n\), got shape \(4, 3, 1\)",
        {"weight_row": ROW[..., 0]},
    ),
    "col_rank": (
        ValueError,
        r"weight_col must be a non-empty 4-D \(Cc, Cin, m, 1\), got shape \(7, 3, 5\)",
        {"weight_col": COL[..., 0]},
    ),
    "no_row_filters": (
        ValueError,
        r"weight_row must be a non-empty 4-D .*, got shape \(0, 3, 1, 3\)",
        {"weight_row": ROW[:0]},
    ),
    "no_col_filters": (
        ValueError,
        r"weight_col must be a non-empty 4-D .*, got shape \(0, 3, 5, 1\)",
        {"weight_col": COL[:0]},
    ),
    "row_channels": (
        ValueError,
        r"weight_row must take 3 channels in dimension 1 .*, got shape \(4, 2, 1, 3\)",
        {"weight_row": ROW[:, :2]},
    ),
    "col_channels": (
        ValueError,
        r"weight_col must take 3 channels in dimension 1 .*, got shape \(7, 2, 5, 1\)",
        {"weight_col": COL[:, :2]},
    ),
    "bias_row_length": (
        ValueError,
        r"bias_row must be None or of shape \(4,\), got shape \(7,\)",
        {"bias_row": COL_BIAS},
    ),
    "bias_col_rank": (
        ValueError,
        r"bias_col must be None or of shape \(7,\), got shape \(7, 1\)",
        {"bias_col": COL_BIAS[:, None]},
    ),
    "two_columns": (ValueError, r"weight_row must be 1xn, got 3x1", {"weight_row": ROW.mT}),
    "two_rows": (ValueError, r"weight_col must be nx1, got 1x5", {"weight_col": COL.mT}),
    "even_row": (
        ValueError,
        r"weight_row must have an odd filter length, 1 to 31, got 2",
        {"weight_row": ROW[..., :2]},
    ),
    "even_col": (
        ValueError,
        r"weight_col must have an odd filter length, 1 to 31, got 4",
        {"weight_col": COL[:, :, :4]},
    ),
    "long_row": (
        ValueError,
        r"weight_row must have an odd filter length, 1 to 31, got 33",
        {"weight_row": torch.ones(4, 3, 1, 33)},
    ),
    "long_col": (
        ValueError,
        r"weight_col must have an odd filter length, 1 to 31, got 33",
        {"weight_col": torch.ones(7, 3, 33, 1)},
    ),
    **{
        f"activation_{value}": (
            ValueError,
            rf"activation must be one of 'relu', 'none', got {value!r}",
            {"activation": value},
        )
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
        with pytest.raises(error, match=f"split_conv2d: .*{message}"):
            split_conv2d(**arguments)


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("name", ["weight_row", "bias_row", "weight_col", "bias_col"])
def test_devices_must_agree(name, fake):
    arguments = dict(OPERANDS)
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {key: mode.from_tensor(value) for key, value in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises(ValueError, match=f"{name} must be on input's device cpu, got meta"):
            split_conv2d(**arguments)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("triton", "input is on cpu; takes CUDA tensors, or CPU tensors where TRITON_INTERPRET=1"),
        ("cuda", "dtype torch.float(32|64); takes float16 and bfloat16"),
    ],
)
def test_backend_that_cannot_run(backend, reason):
    with pytest.raises(RuntimeError, match=f"split_conv2d: backend '{backend}' .*: {reason}"):
        split_conv2d(*OPERANDS.values(), backend=backend)


def test_aten_by_name():
    result = split_conv2d(*OPERANDS.values(), backend="aten")
    assert torch.equal(result, split_conv2d(*OPERANDS.values()))
