"""Convolutions from packed weights: the same results, and copies that are never stale.

Left out: speed, and processors without AVX-512, where the same tests run through `F.conv2d`.
"""

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fused_inception import conv2d_act, factorized_conv2d, grid_reduction, split_conv2d
from fused_inception.folding import channels_last_copy
from fused_inception.ops.common import packed_weights
from fused_inception.ops.common.packed_weights import can_pack, keep_packed
from fused_inception.testing import (
    LAYOUTS,
    ODD_CONV_SHAPES,
    ConvShape,
    PairShape,
    SplitShape,
    assert_channels_last,
    assert_same_bits,
    assert_within_budget,
    conv_oracle,
    inception_v3_convs,
    integer_conv,
    random_conv,
    random_pair,
    random_split,
    unfused_conv,
)

DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
SMALL = ConvShape(2, 6, 5, 16, 32, (3, 2), (2, 1), (1, 2))
needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32), reason="this build of PyTorch has no packed convolutions"
)


def geometry(shape):
    return {"stride": shape.stride, "padding": shape.padding}


def kept(inputs):
    """The same operands, the weight one that is kept packed."""
    weight = channels_last_copy(inputs.weight)
    keep_packed(weight)
    return inputs._replace(weight=weight)


def is_packed(weight):
    entry = packed_weights._kept.get(weight)
    return entry is not None and entry.copy is not None


def warm(inputs, shape=SMALL):
    """Calls until the copy has been made; the next call uses it."""
    for _ in range(2):
        conv2d_act(*inputs, **geometry(shape))


@pytest.fixture
def reorders(monkeypatch):
    """The input shapes that a weight was packed for, in order."""
    shapes = []
    pack = packed_weights.pack

    def recorded(shape, *args, **options):
        shapes.append((*shape,))
        return pack(shape, *args, **options)

    monkeypatch.setattr(packed_weights, "pack", recorded)
    return shapes


# Values


@pytest.fixture
def two_threads():
    """With one, `F.conv2d` leaves a 1x1 of one image to a matrix product of another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# Without packing a shape is conv2d_act's own business: real ones in what is packed most.
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *product((torch.float32, torch.bfloat16), inception_v3_convs(1)),
        *product((torch.float64, torch.float32, torch.float16, torch.bfloat16), ODD_CONV_SHAPES),
    ],
    ids=str,
)
@pytest.mark.usefixtures("two_threads")
def test_error_is_within_budget(dtype, shape):
    inputs = kept(random_conv(shape, dtype))
    warm(inputs, shape)
    assert is_packed(inputs.weight) == (can_pack(dtype) and inputs.input.numel() > 0)
    result = conv2d_act(*inputs, **geometry(shape))
    assert_channels_last(result)
    reference = unfused_conv(inputs, **geometry(shape))
    assert_within_budget(result, reference, conv_oracle(inputs, **geometry(shape)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", ODD_CONV_SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, bias, activation, dtype):
    inputs = kept(integer_conv(shape, dtype))
    if not bias:
        inputs = inputs._replace(bias=None)
    options = geometry(shape) | {"activation": activation}
    for _ in range(3):
        result = conv2d_act(*inputs, **options)
        assert torch.equal(result, conv_oracle(inputs, **options).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    laid_out = inputs._replace(input=LAYOUTS[layout](inputs.input))
    result = conv2d_act(*laid_out, **geometry(SMALL))
    assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())
    assert_channels_last(result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 35, 3, 16, 48), (2, 35, 1, 16, 48)], ids=str)
def test_one_output_column(dtype, shape):
    """There oneDNN's bfloat16 convolutions are wrong at a stride above 1 (pytorch#169688)."""
    padding = (0, 0) if shape[2] == 3 else (1, 1)
    problem = ConvShape(*shape, (3, 3), (2, 2), padding)
    inputs = kept(integer_conv(problem, dtype))
    for _ in range(3):
        result = conv2d_act(*inputs, **geometry(problem))
        assert torch.equal(result, conv_oracle(inputs, **geometry(problem)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_are_those_of_relu(dtype):
    """The convolution's own epilogue would turn NaN into 0."""
    values = [float("nan"), -0.0, 0.0, float("inf"), -float("inf"), -1.0, 2.0, 1e-40]
    # Each value stands alone in its pixel: in one channel of 16, the others 0.
    input = torch.zeros(1, 16, 8, 9, dtype=dtype)
    input[0, 0] = torch.tensor(values, dtype=dtype)[:, None]
    weight = torch.zeros(32, 16, 1, 1, dtype=dtype)
    weight[:, 0] = 1
    weight = channels_last_copy(weight)
    input = channels_last_copy(input)
    keep_packed(weight)
    for _ in range(3):
        result = conv2d_act(input, weight, None)
        assert_same_bits(result, F.relu(F.conv2d(input, weight)))
    assert result[0, 0, 0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_other_ops_use_it(dtype):
    reduction = random_conv(ConvShape(2, 9, 8, 16, 32, (3, 3), (2, 2), (0, 0)), dtype)
    for function, operands in (
        (factorized_conv2d, random_pair(PairShape(2, 9, 8, 16, 32, 16, True, 3, 5), dtype)),
        (split_conv2d, random_split(SplitShape(2, 9, 8, 16, 32, 16, 3, 5), dtype)),
        (grid_reduction, reduction),
    ):
        expected = function(*operands)
        operands = [
            channels_last_copy(t) if t is not None and t.dim() == 4 else t for t in operands
        ]
        for weight in operands[1::2]:
            keep_packed(weight)
        for _ in range(3):
            result = function(*operands)
        assert all(is_packed(weight) for weight in operands[1::2]) == can_pack(dtype)
        assert_channels_last(result)
        torch.testing.assert_close(result, expected)


def test_empty_batch():
    inputs = kept(random_conv(SMALL, torch.float32))
    warm(inputs)
    empty = inputs._replace(input=inputs.input[:0])
    for _ in range(3):
        result = conv2d_act(*empty, **geometry(SMALL))
        assert result.shape == (0, *conv2d_act(*inputs, **geometry(SMALL)).shape[1:])
        assert_channels_last(result)


# Never stale


@needs_packing
def test_counted_writes_are_seen():
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    assert is_packed(inputs.weight)
    inputs.weight.neg_()
    for _ in range(3):
        result = conv2d_act(*inputs, **geometry(SMALL))
        assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())


@needs_packing
def test_other_memory_is_seen():
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    inputs.weight.data = channels_last_copy(-inputs.weight)
    for _ in range(3):
        result = conv2d_act(*inputs, **geometry(SMALL))
        assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())


@needs_packing
def test_packed_at_the_first_use_and_once(reorders):
    inputs = kept(random_conv(SMALL, torch.float32))
    first = conv2d_act(*inputs, **geometry(SMALL))
    assert reorders == [(*inputs.input.shape,)]
    for _ in range(5):
        assert torch.equal(conv2d_act(*inputs, **geometry(SMALL)), first)
    assert reorders == [(*inputs.input.shape,)]


@needs_packing
def test_alternating_sizes_reorder_once_a_call_and_keep_their_bits(reorders):
    inputs = kept(random_conv(SMALL, torch.float32))
    one = inputs._replace(input=inputs.input[:1])
    first = [conv2d_act(*operands, **geometry(SMALL)) for operands in (one, inputs)]
    for _ in range(4):
        again = [conv2d_act(*operands, **geometry(SMALL)) for operands in (one, inputs)]
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    assert reorders == [(*one.input.shape,), (*inputs.input.shape,)] * 5


@needs_packing
@pytest.mark.parametrize("change", ["stride", "padding", "threads"])
def test_another_problem_has_another_copy(change, reorders, monkeypatch):
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    options = geometry(SMALL)
    if change == "threads":
        threads = torch.get_num_threads()
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    else:
        options[change] = (1, 1)
    for _ in range(3):
        result = conv2d_act(*inputs, **options)
        assert torch.equal(result, conv_oracle(inputs, **options).float())
    assert len(reorders) == 2


@needs_packing
def test_only_kept_weights_are_packed(reorders):
    inputs = random_conv(SMALL, torch.float32)
    for _ in range(4):
        conv2d_act(*inputs, **geometry(SMALL))
    assert reorders == []
    assert inputs.weight not in packed_weights._kept


@needs_packing
def test_keeping_again_changes_nothing(reorders):
    inputs = kept(random_conv(SMALL, torch.float32))
    warm(inputs)
    keep_packed(inputs.weight)
    warm(inputs)
    assert len(reorders) == 1


def test_weights_whose_writes_are_not_counted_are_left_alone():
    with torch.inference_mode():
        inputs = random_conv(SMALL, torch.float32)
    keep_packed(inputs.weight)
    keep_packed(torch.empty(4, 3, 1, 1, device="meta"))
    assert inputs.weight not in packed_weights._kept


@needs_packing
def test_goes_with_the_weight():
    gc.collect()
    before = len(packed_weights._kept)
    inputs = kept(random_conv(SMALL, torch.float32))
    warm(inputs)
    assert len(packed_weights._kept) == before + 1
    del inputs
    gc.collect()
    assert len(packed_weights._kept) == before


@needs_packing
def test_made_in_inference_mode_and_used_outside_it(reorders):
    inputs = kept(integer_conv(SMALL, torch.float32))
    with torch.inference_mode():
        warm(inputs)
    result = conv2d_act(*inputs, **geometry(SMALL))
    assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())
    assert len(reorders) == 1


@needs_packing
def test_threads():
    inputs = kept(integer_conv(SMALL, torch.float32))
    batches = [inputs, inputs._replace(input=inputs.input[:1])]
    expected = [conv_oracle(operands, **geometry(SMALL)).float() for operands in batches]

    def all_equal(i):
        results = [conv2d_act(*batches[i % 2], **geometry(SMALL)) for _ in range(50)]
        return all(torch.equal(result, expected[i % 2]) for result in results)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_equal, range(8)))


# Living with others


class Holder(nn.Module):
    """Owns a weight that is kept packed, as a fused block does."""

    def __init__(self, inputs):
        super().__init__()
        self.register_buffer("weight", inputs.weight, persistent=False)
        self.register_buffer("bias", inputs.bias)

    def forward(self, input):
        return conv2d_act(input, self.weight, self.bias, **geometry(SMALL))


@needs_packing
def test_modules_do_not_see_it():
    inputs = kept(integer_conv(SMALL, torch.float32))
    module = Holder(inputs)
    for _ in range(2):
        module(inputs.input)
    assert is_packed(module.weight)
    assert list(module.state_dict()) == ["bias"]
    expected = conv_oracle(inputs, **geometry(SMALL))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.weight not in packed_weights._kept
        assert torch.equal(other(inputs.input), expected.float())
    assert torch.equal(module.double()(inputs.input.double()), expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    inputs = kept(integer_conv(SMALL, torch.float32))
    module = Holder(inputs)
    module(inputs.input)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        for _ in range(3):
            assert torch.equal(
                compiled(inputs.input), conv_oracle(inputs, **geometry(SMALL)).float()
            )
        inputs.weight.neg_()
        for _ in range(3):
            assert torch.equal(
                compiled(inputs.input), conv_oracle(inputs, **geometry(SMALL)).float()
            )


def test_exported():
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    exported = torch.export.export(Holder(inputs), (inputs.input,)).module()
    for _ in range(3):
        assert torch.equal(exported(inputs.input), conv_oracle(inputs, **geometry(SMALL)).float())


def test_gradients():
    inputs = kept(random_conv(SMALL, torch.float32))
    warm(inputs)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    recording = inputs._replace(input=leaves[0], weight=inputs.weight.requires_grad_())
    grads = torch.autograd.grad(conv2d_act(*recording, **geometry(SMALL)).sum(), recording[:2])
    expected = torch.autograd.grad(
        unfused_conv(type(inputs)(*leaves), **geometry(SMALL)).sum(), leaves[:2]
    )
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_second_gradients():
    """The backward runs the first factor again, and records that."""
    shape = PairShape(2, 9, 8, 16, 32, 16, True, 3, 5)
    plain = [t if t is None else t.requires_grad_() for t in random_pair(shape, torch.float32)]
    operands = [t.detach().clone().requires_grad_() for t in plain]
    for weight in (operands[1], operands[3]):
        keep_packed(weight)
        assert not can_pack(torch.float32) or weight in packed_weights._kept

    def second(operands):
        total = factorized_conv2d(*operands, mid_activation="none").square().sum()
        grads = torch.autograd.grad(total, operands, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), operands)

    for _ in range(3):
        result = second(operands)
    for grad, expected in zip(result, second(plain), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_bare_operators_run_where_autograd_is_on(activation):
    """Exported programs call them on parameters."""
    row, column = (
        random_conv(ConvShape(2, 9, 8, 16, 32, kernel, (1, 1), (0, 0)), torch.float32)
        for kernel in ((1, 3), (3, 1))
    )
    input = row.input.requires_grad_()
    ops = torch.ops.fused_inception
    result = ops.split_conv2d(input, row.weight, None, column.weight, None, activation, "auto")
    expected = split_conv2d(input, row.weight, None, column.weight, None, activation=activation)
    assert torch.equal(result, expected)
    square = random_conv(ConvShape(2, 9, 8, 16, 32, (3, 3), (2, 2), (0, 0)), torch.float32)
    result = ops.grid_reduction(input, square.weight, None, "max", activation, "auto")
    assert torch.equal(result, grid_reduction(input, square.weight, None, activation=activation))


# Without it


def fails(*args, **options):
    raise RuntimeError("an operator of another signature")


def is_wrong(*args, **options):
    return lambda x: torch.zeros(2, 32, 2, 6).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "replacement"),
    [("pack", fails), ("convolution", fails), ("convolution", is_wrong)],
    ids=["no_reorder", "no_convolution", "wrong_convolution"],
)
def test_runs_without_the_operators(name, replacement, monkeypatch):
    monkeypatch.setattr(packed_weights, name, replacement)
    monkeypatch.setattr(packed_weights, "can_pack", can_pack.__wrapped__)
    assert not packed_weights.can_pack(torch.float32)
    inputs = kept(integer_conv(SMALL, torch.float32))
    assert inputs.weight not in packed_weights._kept
    for _ in range(3):
        result = conv2d_act(*inputs, **geometry(SMALL))
        assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())


@needs_packing
def test_the_trial_depends_on_nothing_around_it():
    with torch.device("meta"), torch.inference_mode():
        assert can_pack.__wrapped__(torch.float32)


@needs_packing
def test_stays_away_where_onednn_is_switched_off(monkeypatch):
    inputs = kept(integer_conv(SMALL, torch.float32))
    warm(inputs)
    monkeypatch.setattr(packed_weights, "convolution", fails)
    with torch.backends.mkldnn.flags(enabled=False):
        result = conv2d_act(*inputs, **geometry(SMALL))
    assert torch.equal(result, conv_oracle(inputs, **geometry(SMALL)).float())
    with pytest.raises(RuntimeError, match="another signature"):  # it was packed
        conv2d_act(*inputs, **geometry(SMALL))
