"""`grid_reduction` against its definition, on the CPU and, marked `gpu`, on a CUDA device.

Left out: speed, and sizes past 2^31 elements (see test_registration.py, which needs no memory).
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from fused_inception import grid_reduction
from fused_inception.testing import (
    LAYOUTS,
    ODD_REDUCTION_SHAPES,
    ConvInputs,
    ReductionShape,
    assert_channels_last,
    assert_same_bits,
    assert_within_budget,
    channels_last,
    fp32_precision,
    inception_reductions,
    integer_conv,
    loop_avg_pool2d,
    loop_conv2d,
    loop_max_pool2d,
    nan_filled_memory,
    random_conv,
    random_tensor,
    reduction_oracle,
    unfused_reduction,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
LOW_DTYPES = DTYPES[2:]
ACTIVATIONS = ["relu", "none"]
POOLS = ["max", "avg"]

SMALL = ReductionShape(2, 8, 7, 5, 4, 3)


def loop(inputs, pool, activation):
    """The op as its definition, on the CPU: a loop over output pixels and taps, in float64."""
    input, weight, bias = (t if t is None else t.detach().cpu().double() for t in inputs)
    conv = loop_conv2d(input, weight, bias, stride=(2, 2))
    conv = conv.clamp(min=0) if activation == "relu" else conv
    loop_pool2d = loop_max_pool2d if pool == "max" else loop_avg_pool2d
    return torch.cat([conv, loop_pool2d(input, weight.shape[2], 2)], 1)


def integers(shape, pool, dtype, device="cpu"):
    """Operands for which the convolution and the pool are exact."""
    return integer_conv(shape, dtype, device, unit=shape.kernel**2 if pool == "avg" else 1)


def recording(inputs):
    """Leaves with the same values and strides that require gradients."""
    return ConvInputs(*(t if t is None else t.detach().clone().requires_grad_() for t in inputs))


def whole_storage(tensor):
    """Every element of the storage behind a view."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


# Values


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", ODD_REDUCTION_SHAPES, ids=str)
def test_oracle_is_the_loop(shape, pool):
    inputs = random_conv(shape, torch.float64)
    oracle = reduction_oracle(inputs, pool, "none")
    torch.testing.assert_close(oracle, loop(inputs, pool, "none"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", ODD_REDUCTION_SHAPES, ids=str)
def test_float64_is_the_loop(device, shape, bias, activation, pool):
    inputs = random_conv(shape, torch.float64, device, bias=bias)
    result = grid_reduction(*inputs, pool=pool, activation=activation)
    expected = loop(inputs, pool, activation)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [*inception_reductions(1), *ODD_REDUCTION_SHAPES], ids=str)
def test_error_is_within_budget(device, dtype, shape, pool):
    inputs = random_conv(shape, dtype, device)
    with fp32_precision("ieee"):
        result = grid_reduction(*inputs, pool=pool)
        reference = unfused_reduction(inputs, pool)
    oracle = reduction_oracle(inputs, pool)
    assert result.dtype == dtype
    for half in (slice(shape.c_out), slice(shape.c_out, None)):
        assert_within_budget(result[:, half], reference[:, half], oracle[:, half])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", ODD_REDUCTION_SHAPES, ids=str)
def test_whole_numbers_are_exact(device, dtype, shape, pool):
    inputs = integers(shape, pool, dtype, device)
    result = grid_reduction(*inputs, pool=pool)
    assert torch.equal(result.cpu(), reduction_oracle(inputs, pool).to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_output_column(device, dtype):
    """There oneDNN's bfloat16 convolutions are wrong at a stride above 1 (pytorch#169688)."""
    shape = ReductionShape(2, 35, 3, 16, 48, 3)
    inputs = recording(integers(shape, "max", dtype, device))
    exact = recording(ConvInputs(*(t.double() for t in inputs)))
    result, expected = grid_reduction(*inputs), unfused_reduction(exact)
    assert torch.equal(result.double(), expected)
    grads = torch.autograd.grad(result.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), exact)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad.to(dtype))


def test_whole_numbers_are_exact_for_any_shape():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")

    @st.composite
    def shapes(draw):
        kernel = draw(st.sampled_from([1, 3, 5]))
        size = st.integers(kernel, kernel + 6)
        channels = st.integers(1, 9)
        return ReductionShape(
            draw(st.integers(0, 3)), draw(size), draw(size), draw(channels), draw(channels), kernel
        )

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(
        shapes(), st.sampled_from(POOLS), st.sampled_from(ACTIVATIONS), st.sampled_from([*LAYOUTS])
    )
    def check(shape, pool, activation, layout):
        inputs = integers(shape, pool, torch.float32)
        expected = loop(inputs, pool, activation)
        inputs = inputs._replace(input=LAYOUTS[layout](inputs.input))
        result = grid_reduction(*inputs, pool=pool, activation=activation)
        assert torch.equal(result.double(), expected)
        assert_channels_last(result)

    check()


def test_defaults_are_max_and_relu():
    inputs = random_conv(SMALL, torch.float32)
    assert torch.equal(grid_reduction(*inputs), unfused_reduction(inputs, "max", "relu"))


# Memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["input", "weight"])
def test_layout_does_not_matter(device, operand, layout, pool):
    inputs = integers(SMALL, pool, torch.float32, device)
    expected = reduction_oracle(inputs, pool).float()
    inputs = inputs._replace(**{operand: LAYOUTS[layout](getattr(inputs, operand))})
    result = grid_reduction(*inputs, pool=pool)
    assert torch.equal(result.cpu(), expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operand", ["input", "weight"])
def test_expanded_operands(device, operand, axis, pool):
    inputs = integers(SMALL, pool, torch.float32, device)
    tensor = getattr(inputs, operand)
    inputs = inputs._replace(**{operand: tensor.narrow(axis, 0, 1).expand(tensor.shape)})
    result = grid_reduction(*inputs, pool=pool)
    assert torch.equal(result.cpu(), reduction_oracle(inputs, pool).float())
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [0, 3], ids=["expanded", "strided"])
def test_bias_with_strides(device, stride):
    inputs = integers(SMALL, "max", torch.float32, device)
    bias = torch.arange(32.0, device=device).as_strided((SMALL.c_out,), (stride,), 5)
    inputs = inputs._replace(bias=bias)
    assert torch.equal(grid_reduction(*inputs).cpu(), reduction_oracle(inputs).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_not_written(device, layout, pool):
    inputs = random_conv(SMALL, torch.float32, device)
    inputs = ConvInputs(LAYOUTS[layout](inputs.input), LAYOUTS[layout](inputs.weight), inputs.bias)
    before = [whole_storage(t).clone() for t in inputs]
    grid_reduction(*inputs, pool=pool)
    for tensor, values in zip(inputs, before, strict=True):
        assert torch.equal(whole_storage(tensor), values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", ODD_REDUCTION_SHAPES, ids=str)
def test_every_output_is_written(device, shape, pool):
    inputs = recording(random_conv(shape, torch.float32, device))
    expected = grid_reduction(*inputs, pool=pool)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    with nan_filled_memory():
        result = grid_reduction(*inputs, pool=pool)
        grads = torch.autograd.grad(result.sum(), inputs)
    assert torch.equal(result, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(3, 3), (3, 8), (7, 4), (8, 9)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_output_strides(device, batch, size, channels, pool):
    shape = ReductionShape(batch, *size, channels, channels, 3)
    for make in LAYOUTS.values():
        inputs = integers(shape, pool, torch.float32, device)
        with nan_filled_memory():
            result = grid_reduction(make(inputs.input), *inputs[1:], pool=pool)
        assert result.shape == (batch, 2 * channels, (size[0] - 1) // 2, (size[1] - 1) // 2)
        assert_channels_last(result)
        assert torch.equal(result.cpu(), reduction_oracle(inputs, pool).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_batch_zero(device, dtype, pool):
    inputs = recording(random_conv(ReductionShape(0, 8, 7, 5, 4, 3), dtype, device))
    result = grid_reduction(*inputs, pool=pool)
    assert result.shape == (0, 9, 3, 3)
    assert result.dtype == dtype
    assert_channels_last(result)
    grad_input, *grads = torch.autograd.grad(result.sum(), inputs)
    assert grad_input.shape == inputs.input.shape
    for grad, tensor in zip(grads, inputs[1:], strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


# Special values


def special_input(device, dtype, values):
    """`values`, each at many places and in many windows."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (2, 19, 13, 15), generator=generator)
    return channels_last(torch.tensor(values, dtype=dtype)[index].to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.5 * i for i in range(-40, 40)], id="finite"),
        pytest.param([0.0, -0.0], id="zeros"),
        pytest.param([0.0, -0.0, -1.0, float("-inf")], id="nonpositive"),
        pytest.param([1.0, -1.0, 0.0, -0.0, float("inf"), float("-inf")], id="infinities"),
        pytest.param([*range(-20, 20), -0.0, float("nan"), float("-inf")], id="nan"),
    ],
)
def test_max_pool_has_the_bits_of_max_pool2d(device, dtype, kernel, values):
    """PyTorch's own NaN payloads differ between memory formats, so that any NaN is right."""
    input = special_input(device, dtype, values)
    weight = torch.ones((3, 19, kernel, kernel), dtype=dtype, device=device)
    result = grid_reduction(input, weight, None)[:, 3:]
    assert_same_bits(result, F.max_pool2d(input, kernel, 2))
    assert_same_bits(result, F.max_pool2d(input.contiguous(), kernel, 2))
    assert_same_bits(result.cpu(), loop_max_pool2d(input.cpu(), kernel, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_non_finite_activations(device, dtype, activation, pool, value):
    inputs = random_conv(SMALL, dtype, device)
    inputs.input[1, 2, 3, 4] = value
    result = grid_reduction(*inputs, pool=pool, activation=activation)
    expected = unfused_reduction(inputs, pool, activation)
    assert result[:, : SMALL.c_out].isfinite().logical_not().any()
    for where in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(where(result), where(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_what_relu_keeps(device, dtype):
    """The convolution's half is activated, the pool's is not."""
    values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 2.0**-9]
    input = special_input(device, dtype, values)[:, :1]
    for sign in (1.0, -1.0):
        weight = torch.full((1, 1, 1, 1), sign, dtype=dtype, device=device)
        conv, pool = grid_reduction(input, weight, None, activation="none").split(1, 1)
        result = grid_reduction(input, weight, None)
        assert_same_bits(result, torch.cat([F.relu(conv), pool], 1))
        assert result[:, :1].isnan().any()


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_is_infinite(device):
    """In the convolution only: an average of large numbers is summed in float32."""
    input = torch.full((1, 2, 3, 3), 3e4, dtype=torch.float16, device=device)
    weight = torch.ones((1, 2, 3, 3), dtype=torch.float16, device=device)
    result = grid_reduction(input, weight, None, pool="avg")
    assert result[:, 0].isposinf().all()
    assert torch.equal(result[:, 1:], input[:, :, :1, :1])


# Gradients


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(layout, bias, activation, pool):
    shape = ReductionShape(2, 5, 4, 3, 2, 3)
    inputs = recording(random_conv(shape, torch.float64, bias=bias))
    inputs = inputs._replace(input=LAYOUTS[layout](inputs.input.detach()).requires_grad_())

    def call(*tensors):
        tensors = tensors if bias else (*tensors, None)
        return grid_reduction(*tensors, pool=pool, activation=activation)

    tensors = [t for t in inputs if t is not None]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ODD_REDUCTION_SHAPES, ids=str)
def test_gradients_are_the_unfused_ones(device, shape, activation, pool):
    inputs = recording(random_conv(shape, torch.float64, device))
    result = grid_reduction(*inputs, pool=pool, activation=activation)
    expected = unfused_reduction(inputs, pool, activation)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, inputs, cotangent)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_ties_is_the_unfused_one(device):
    """Where a window holds its maximum twice, the first takes the whole gradient."""
    inputs = recording(integers(SMALL, "max", torch.float64, device))
    result = grid_reduction(*inputs)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    (grad,) = torch.autograd.grad(result, inputs.input, cotangent)
    (expected,) = torch.autograd.grad(unfused_reduction(inputs), inputs.input, cotangent)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("wants", range(1, 8), ids=lambda wants: f"{wants:03b}")
def test_gradients_only_where_wanted(device, wants, pool):
    def leaves():
        inputs = random_conv(SMALL, torch.float64, device)
        for i, tensor in enumerate(inputs):
            tensor.requires_grad_(bool(wants >> i & 1))
        return inputs

    inputs, expected = leaves(), leaves()
    grid_reduction(*inputs, pool=pool).sum().backward()
    unfused_reduction(expected, pool).sum().backward()
    for tensor, other in zip(inputs, expected, strict=True):
        assert (tensor.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout(device, layout, pool):
    """Operands and the incoming gradient in each layout give the same gradients."""
    plain = random_conv(SMALL, torch.float64, device)
    leaves = recording(plain)
    laid_out = ConvInputs(LAYOUTS[layout](leaves.input), LAYOUTS[layout](leaves.weight), leaves[2])
    result = grid_reduction(*laid_out, pool=pool)
    cotangent = random_tensor((*result.shape,), torch.float64, device, 1.0, 7)
    grads = torch.autograd.grad(result, leaves, LAYOUTS[layout](cotangent))
    expected_leaves = recording(plain)
    expected = unfused_reduction(expected_leaves, pool)
    expected_grads = torch.autograd.grad(expected, expected_leaves, cotangent)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_autograd_is_off(mode):
    inputs = recording(random_conv(SMALL, torch.float32))
    with mode():
        result = grid_reduction(*inputs)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert result.is_inference() == (mode is torch.inference_mode)


def test_no_graph_where_nothing_wants_a_gradient():
    assert grid_reduction(*random_conv(SMALL, torch.float32)).grad_fn is None


# Autocast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_autocast(device, dtype, pool):
    inputs = random_conv(SMALL, torch.float32, device)
    with torch.autocast(device, dtype):
        result = grid_reduction(*inputs, pool=pool)
    expected = grid_reduction(*(t.to(dtype) for t in inputs), pool=pool)
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert_channels_last(result)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_joins_mixed_dtypes(device):
    inputs = random_conv(SMALL, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        result = grid_reduction(inputs.input.bfloat16(), *inputs[1:])
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pool", POOLS)
def test_autocast_leaves_float64_alone(device, pool):
    inputs = random_conv(SMALL, torch.float64, device)
    with torch.autocast(device, torch.bfloat16):
        result = grid_reduction(*inputs, pool=pool)
    assert result.dtype == torch.float64
    assert torch.equal(result, grid_reduction(*inputs, pool=pool))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_autocast_gradients_have_the_parameters_dtype(device, dtype, pool):
    inputs = recording(random_conv(SMALL, torch.float32, device))
    with torch.autocast(device, dtype):
        result = grid_reduction(*inputs, pool=pool)
    grads = torch.autograd.grad(result.float().sum(), inputs)
    low = recording(ConvInputs(*(t.to(dtype) for t in inputs)))
    expected = grid_reduction(*low, pool=pool)
    expected_grads = torch.autograd.grad(expected.float().sum(), low)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad.float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_autocast_around_the_backward_changes_nothing(device, dtype, pool):
    inputs = recording(random_conv(SMALL, torch.float32, device))
    expected_grads = torch.autograd.grad(grid_reduction(*inputs, pool=pool).sum(), inputs)
    result = grid_reduction(*inputs, pool=pool)
    with torch.autocast(device, dtype):
        grads = torch.autograd.grad(result.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_operator_under_autocast_keeps_its_dtype(device, dtype, pool):
    """Compilers call the operator itself, whose fake promises the input's dtype."""
    args = (*random_conv(SMALL, torch.float32, device), pool, "relu", "auto")
    expected = torch.ops.fused_inception.grid_reduction(*args)
    with torch.autocast(device, dtype):
        result = torch.ops.fused_inception.grid_reduction(*args)
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
        r"weight must be a non-empty 4-D \(Cout, Cin, k, k\), got shape \(4, 3, 3\)",
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
    "even_filter": (
        ValueError,
        r"weight must be kxk with k odd, got 2x2",
        {"weight": W[:, :, :2, :2]},
    ),
    "oblong_filter": (
        ValueError,
        r"weight must be kxk with k odd, got 1x3",
        {"weight": W[:, :, :1]},
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
    "rows_below_filter": (
        ValueError,
        r"input must have H and W of at least the filter's 3, got 2x5",
        {"input": X[:, :, :2]},
    ),
    "columns_below_filter": (
        ValueError,
        r"input must have H and W of at least the filter's 3, got 6x2",
        {"input": X[..., :2]},
    ),
    "pool": (ValueError, r"pool must be one of 'max', 'avg', got 'min'", {"pool": "min"}),
    "pool_none": (ValueError, r"pool must be one of 'max', 'avg', got None", {"pool": None}),
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
        with pytest.raises(error, match=f"grid_reduction: .*{message}"):
            grid_reduction(**arguments)


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_devices_must_agree(name, fake):
    arguments = {"input": X, "weight": W, "bias": B}
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {key: mode.from_tensor(value) for key, value in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises(ValueError, match=f"{name} must be on input's device cpu, got meta"):
            grid_reduction(**arguments)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("triton", "input is on cpu; takes CUDA tensors, or CPU tensors where TRITON_INTERPRET=1"),
        ("cuda", "dtype torch.float(32|64); takes float16 and bfloat16"),
    ],
)
def test_backend_that_cannot_run(backend, reason):
    with pytest.raises(RuntimeError, match=f"grid_reduction: backend '{backend}' .*: {reason}"):
        grid_reduction(X, W, B, backend=backend)


def test_aten_by_name():
    assert torch.equal(grid_reduction(X, W, B, backend="aten"), grid_reduction(X, W, B))
