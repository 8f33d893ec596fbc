"""The modules over the ops, and the folding of BatchNorm into their weights.

Left out: what the ops compute and which inputs they refuse (their own files), and GPUs (a module
adds nothing there but its parameters' device).
"""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fused_inception.folding import channels_last_copy, check_conv2d, fold_batch_norm
from fused_inception.modules import Conv2dAct, FactorizedConv2d, GridReduction, SplitConv2d
from fused_inception.ops import conv2d_act, factorized_conv2d, grid_reduction, split_conv2d

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def conv_bn(shape, *, seed=0, dtype=torch.float64, bias=False, **options):
    """A convolution with weights (K, C, R, S), and a BatchNorm with statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    filters, channels, rows, columns = shape
    conv = nn.Conv2d(channels, filters, (rows, columns), bias=bias, dtype=dtype, **options)
    bn = nn.BatchNorm2d(filters, eps=1e-3, dtype=dtype)
    with torch.no_grad():
        conv.weight.normal_(0, (channels * rows * columns) ** -0.5, generator=generator)
        if bias:
            conv.bias.normal_(generator=generator)
        bn.weight.uniform_(0.5, 1.5, generator=generator)
        bn.bias.normal_(generator=generator)
        bn.running_mean.normal_(generator=generator)
        bn.running_var.uniform_(0.25, 4, generator=generator)
    return conv.eval(), bn.eval()


def images(channels, height=9, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64).to(
        dtype
    )


def assert_close(got, want, tolerance=1e-12):
    """Relative to the largest value; both finite."""
    assert got.shape == want.shape
    assert got.isfinite().all()
    error = (got.double() - want.double()).abs().max()
    assert error <= tolerance * want.double().abs().max()


def has_channels_last_strides(tensor):
    want = torch.empty(tensor.shape, memory_format=torch.channels_last, device="meta").stride()
    return tensor.stride() == want


# Every module, small: (module, its input channels).
def modules(**options):
    return {
        "Conv2dAct": (Conv2dAct(3, 5, (3, 2), stride=2, padding=(1, 0), **options), 3),
        "FactorizedConv2d-row": (FactorizedConv2d(3, 4, 5, (5, 3), **options), 3),
        "FactorizedConv2d-column": (
            FactorizedConv2d(3, 4, 5, 7, order="column_first", **options),
            3,
        ),
        "SplitConv2d": (SplitConv2d(3, 4, 5, (3, 5), **options), 3),
        "GridReduction": (GridReduction(3, 4, pool="avg", **options), 3),
    }


NAMES = list(modules())


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    """Of the input and of the parameters that the module registers."""
    module, channels = modules(dtype=torch.float64)[name]
    names, values = zip(*module.named_parameters(), strict=True)

    def forward(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    x = images(channels, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, *values), check_undefined_grad=False)


# Folding


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 7), (7, 1), (3, 3)])
def test_folding_equals_batch_norm_in_evaluation(kernel, affine, bias):
    conv, bn = conv_bn((6, 4, *kernel), bias=bias)
    if not affine:
        plain = nn.BatchNorm2d(6, eps=1e-3, affine=False, dtype=torch.float64).eval()
        plain.running_mean.copy_(bn.running_mean)
        plain.running_var.copy_(bn.running_var)
        bn = plain
    weight, shift = fold_batch_norm(conv.weight, conv.bias, bn)
    x = images(4)
    assert_close(F.conv2d(x, weight, shift), bn(conv(x)))


def test_folding_at_eps_1e_3_with_gamma_one_and_tiny_variance():
    conv, bn = conv_bn((6, 4, 3, 3))
    with torch.no_grad():
        bn.weight.fill_(1)
        # Denormal, zero and small: eps alone keeps the scale finite, at 1 / sqrt(1e-3).
        bn.running_var.copy_(torch.tensor([0.0, 1e-310, 1e-30, 1e-12, 1e-6, 1e-3]))
    weight, shift = fold_batch_norm(conv.weight, conv.bias, bn)
    x = images(4)
    assert_close(F.conv2d(x, weight, shift), bn(conv(x)))
    assert_close(weight[0], conv.weight[0] / math.sqrt(1e-3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folding_rounds_once_to_the_dtype_of_the_weight(dtype):
    conv, bn = conv_bn((6, 4, 3, 3), bias=True)
    # Statistics stay in float32, as in a network whose convolutions alone were converted.
    conv, bn = conv.to(dtype), bn.float()
    weight, shift = fold_batch_norm(conv.weight, conv.bias, bn)
    assert weight.dtype == shift.dtype == dtype
    exact, exact_shift = fold_batch_norm(conv.weight.double(), conv.bias.double(), bn.double())
    assert torch.equal(weight, exact.to(dtype))
    assert torch.equal(shift, exact_shift.to(dtype))


def test_folding_leaves_new_tensors_in_channels_last():
    conv, bn = conv_bn((6, 4, 1, 1), bias=True)
    for batch_norm in (bn, None):
        weight, shift = fold_batch_norm(conv.weight, conv.bias, batch_norm)
        assert has_channels_last_strides(weight)
        assert not weight.requires_grad
        assert not shift.requires_grad
        assert weight.data_ptr() != conv.weight.data_ptr()
        assert shift.data_ptr() != conv.bias.data_ptr()


def test_without_batch_norm_values_pass_through():
    conv, _ = conv_bn((6, 4, 3, 3), bias=True)
    weight, shift = fold_batch_norm(conv.weight, conv.bias, None)
    assert torch.equal(weight, conv.weight)
    assert torch.equal(shift, conv.bias)
    assert fold_batch_norm(conv.weight, None, None)[1] is None


def test_folding_refuses_what_has_no_statistics_or_does_not_belong():
    conv, bn = conv_bn((6, 4, 3, 3))
    bare = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ValueError, match="bn: has no running statistics"):
        fold_batch_norm(conv.weight, None, bare)
    with pytest.raises(ValueError, match="bn: 6 features, takes 5"):
        fold_batch_norm(conv.weight[:5], None, bn)
    with pytest.raises(ValueError, match=r"bias: shape \(4,\), takes \(6,\)"):
        fold_batch_norm(conv.weight, torch.zeros(4), bn)
    with pytest.raises(ValueError, match=r"weight: shape \(6, 4\), takes \(K, C, R, S\)"):
        fold_batch_norm(torch.zeros(6, 4), None, bn)
    with pytest.raises(TypeError, match=r"weight: torch\.int64, takes a floating-point"):
        fold_batch_norm(torch.zeros(6, 4, 3, 3, dtype=torch.int64), None, bn)
    with pytest.raises(TypeError, match=r"bn: torch\.nn\.\S*GroupNorm, takes torch"):
        fold_batch_norm(conv.weight, None, nn.GroupNorm(2, 6))


@pytest.mark.parametrize("shape", [(6, 4, 1, 1), (6, 1, 3, 3), (1, 1, 1, 1), (6, 4, 1, 7)])
def test_channels_last_copy_has_exact_strides(shape):
    values = torch.randn(shape)
    copied = channels_last_copy(values)
    assert has_channels_last_strides(copied)
    assert torch.equal(copied, values)


# Modules


@pytest.mark.parametrize("name", NAMES)
def test_a_module_computes_its_op(name):
    torch.manual_seed(0)
    module, channels = modules(dtype=torch.float64)[name]
    x = images(channels)
    want = {
        "Conv2dAct": lambda m: conv2d_act(x, m.weight, m.bias, stride=2, padding=(1, 0)),
        "FactorizedConv2d-row": lambda m: factorized_conv2d(
            x, m.weight1, m.bias1, m.weight2, m.bias2
        ),
        "FactorizedConv2d-column": lambda m: factorized_conv2d(
            x, m.weight1, m.bias1, m.weight2, m.bias2
        ),
        "SplitConv2d": lambda m: split_conv2d(
            x, m.weight_row, m.bias_row, m.weight_col, m.bias_col
        ),
        "GridReduction": lambda m: grid_reduction(x, m.weight, m.bias, pool="avg"),
    }[name](module)
    assert torch.equal(module(x), want)


def test_weight_shapes_follow_kernel_size_and_order():
    row = FactorizedConv2d(2, 3, 4, (5, 7))
    assert row.weight1.shape == (3, 2, 1, 7)
    assert row.weight2.shape == (4, 3, 5, 1)
    column = FactorizedConv2d(2, 3, 4, (5, 7), order="column_first")
    assert column.weight1.shape == (3, 2, 5, 1)
    assert column.weight2.shape == (4, 3, 1, 7)
    split = SplitConv2d(2, 3, 4, (5, 7))
    assert split.weight_row.shape == (3, 2, 1, 7)
    assert split.weight_col.shape == (4, 2, 5, 1)


def test_the_same_seed_gives_the_weights_of_conv2d():
    torch.manual_seed(3)
    module = FactorizedConv2d(3, 4, 5, (5, 3))
    torch.manual_seed(3)
    first, second = nn.Conv2d(3, 4, (1, 3)), nn.Conv2d(4, 5, (5, 1))
    pairs = [
        (module.weight1, first.weight),
        (module.bias1, first.bias),
        (module.weight2, second.weight),
        (module.bias2, second.bias),
    ]
    for got, want in pairs:
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_the_op(name):
    torch.manual_seed(0)
    module, channels = modules(activation="none", bias=False)[name]
    assert all("bias" not in key for key in module.state_dict())
    assert (module(images(channels, dtype=torch.float32)) < 0).any()
    module.backend = "cuda"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run here"):
        module(images(channels, dtype=torch.float32))


def test_the_activation_between_the_factors_is_its_own_option():
    torch.manual_seed(0)
    module = FactorizedConv2d(3, 4, 5, 3, mid_activation="none", dtype=torch.float64)
    x = images(3)
    mid = F.conv2d(x, module.weight1, module.bias1, padding=(0, 1))
    assert_close(module(x), F.relu(F.conv2d(mid, module.weight2, module.bias2, padding=(1, 0))))


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_weights_survive_conversion_loading_and_copies(name):
    module, _ = modules()[name]
    assert all(has_channels_last_strides(w) for w in module.parameters() if w.dim() == 4)
    contiguous = {key: value.contiguous() for key, value in module.state_dict().items()}
    changed = [
        copy.deepcopy(module).to(torch.float64),
        copy.deepcopy(module).half(),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
    ]
    changed[-1].load_state_dict(contiguous)
    for other in changed:
        assert all(has_channels_last_strides(w) for w in other.parameters() if w.dim() == 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_trains_and_its_copies_are_independent(name):
    torch.manual_seed(0)
    module, channels = modules(dtype=torch.float64)[name]
    twin = copy.deepcopy(module)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = images(channels)
    before = module(x).detach()

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    optimizer.step()
    assert module(x).square().mean() < before.square().mean()
    assert torch.equal(twin(x), before)
    assert torch.equal(loaded(x), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_compiles_without_a_graph_break(name):
    module, channels = modules()[name]
    x = images(channels, dtype=torch.float32)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)


def test_repr_shows_the_arguments():
    assert repr(Conv2dAct(3, 5, 3, padding=1)) == (
        "Conv2dAct(3, 5, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    )
    assert repr(FactorizedConv2d(2, 3, 4, (5, 7), bias=False, mid_activation="none")) == (
        "FactorizedConv2d(2, 3, 4, kernel_size=(5, 7), order='row_first', bias=False, "
        "mid_activation='none')"
    )
    assert repr(SplitConv2d(2, 3, 4, 3, backend="aten")) == (
        "SplitConv2d(2, 3, 4, kernel_size=(3, 3), backend='aten')"
    )
    assert repr(GridReduction(2, 3, activation="none")) == (
        "GridReduction(2, 3, kernel_size=(3, 3), pool='max', activation='none')"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2dAct(3, 5, 3, activation="gelu"), "activation must be one of .* got 'gelu'"),
        (lambda: Conv2dAct(3, 5, 3, backend="cpu"), "backend must be one of .* got 'cpu'"),
        (lambda: Conv2dAct(3, 5, 0), "kernel_size must be an integer of at least 1"),
        (lambda: Conv2dAct(3, 0, 3), r"weight must have .* got shape \(0, 3, 3, 3\)"),
        (lambda: FactorizedConv2d(3, 4, 5, (3, 4)), "kernel_size must have an odd .* got 4"),
        (lambda: FactorizedConv2d(3, 4, 5, 33), "kernel_size must have an odd .* got 33"),
        (lambda: FactorizedConv2d(3, 4, 5, 3, order="rows"), "order must be .* got 'rows'"),
        (lambda: FactorizedConv2d(3, 4, 5, 3, mid_activation="x"), "mid_activation must be"),
        (lambda: SplitConv2d(3, 4, 5, 2), "kernel_size must have an odd .* got 2"),
        (lambda: GridReduction(3, 4, pool="min"), "pool must be one of .* got 'min'"),
        (lambda: GridReduction(3, 4, (3, 5)), r"kernel_size must be square, got \(3, 5\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# From unfused modules


def same_padding(rows, columns):
    return {"padding": (rows // 2, columns // 2)}


@pytest.mark.parametrize("bn_given", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_conv2d_act_from_unfused(activation, bias, bn_given):
    conv, bn = conv_bn((5, 3, 3, 2), bias=bias, stride=(2, 1), padding=(1, 0))
    module = Conv2dAct.from_unfused(conv, bn if bn_given else None, activation=activation)
    x = images(3)
    want = bn(conv(x)) if bn_given else conv(x)
    assert_close(module(x), F.relu(want) if activation == "relu" else want)


@pytest.mark.parametrize(
    ("kernel1", "kernel2"),
    [((1, 7), (7, 1)), ((7, 1), (1, 7)), ((1, 3), (5, 1)), ((5, 1), (1, 3)), ((1, 1), (3, 1))],
)
@pytest.mark.parametrize("mid_activation", ["relu", "none"])
def test_factorized_conv2d_from_unfused(kernel1, kernel2, mid_activation):
    conv1, bn1 = conv_bn((4, 3, *kernel1), seed=1, **same_padding(*kernel1))
    conv2, bn2 = conv_bn((5, 4, *kernel2), seed=2, bias=True, **same_padding(*kernel2))
    module = FactorizedConv2d.from_unfused(conv1, conv2, bn1, bn2, mid_activation=mid_activation)
    x = images(3)
    mid = bn1(conv1(x))
    want = F.relu(bn2(conv2(F.relu(mid) if mid_activation == "relu" else mid)))
    assert_close(module(x), want)
    # What was built is what the constructor builds.
    same = FactorizedConv2d(
        3,
        4,
        5,
        module.kernel_size,
        order=module.order,
        mid_activation=mid_activation,
        dtype=torch.float64,
    )
    same.load_state_dict(module.state_dict())
    assert repr(same) == repr(module)


def test_a_1x1_before_a_row_filter_is_column_first():
    conv1, bn1 = conv_bn((4, 3, 1, 1), seed=1)
    conv2, bn2 = conv_bn((5, 4, 1, 3), seed=2, padding=(0, 1))
    module = FactorizedConv2d.from_unfused(conv1, conv2, bn1, bn2)
    assert module.order == "column_first"
    assert_close(module(images(3)), F.relu(bn2(conv2(F.relu(bn1(conv1(images(3))))))))


def test_factorized_conv2d_from_unfused_without_batch_norms_and_with_one_bias():
    conv1, _ = conv_bn((4, 3, 1, 3), padding="same")
    conv2, _ = conv_bn((5, 4, 3, 1), bias=True, padding="same")
    module = FactorizedConv2d.from_unfused(conv1, conv2)
    assert module.bias1 is None
    assert "bias=[False, True]" in repr(module)
    assert_close(module(images(3)), F.relu(conv2(F.relu(conv1(images(3))))))


def test_split_conv2d_from_unfused():
    row, bn_row = conv_bn((4, 3, 1, 3), seed=1, padding=(0, 1))
    col, bn_col = conv_bn((5, 3, 5, 1), seed=2, padding=(2, 0), bias=True)
    module = SplitConv2d.from_unfused(row, col, bn_row, bn_col)
    x = images(3)
    assert_close(module(x), F.relu(torch.cat([bn_row(row(x)), bn_col(col(x))], 1)))


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_grid_reduction_from_unfused(pool):
    conv, bn = conv_bn((5, 3, 3, 3), stride=2)
    module = GridReduction.from_unfused(conv, bn, pool=pool)
    x = images(3)
    pooled = {"max": F.max_pool2d, "avg": F.avg_pool2d}[pool](x, 3, stride=2)
    assert_close(module(x), torch.cat([F.relu(bn(conv(x))), pooled], 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_unfused_keeps_dtype_and_makes_trainable_weights_of_its_own(dtype):
    conv, bn = conv_bn((5, 3, 3, 3), dtype=dtype, bias=True, padding=1)
    module = Conv2dAct.from_unfused(conv, bn)
    assert module.weight.dtype == module.bias.dtype == dtype
    assert has_channels_last_strides(module.weight)
    assert module.weight.requires_grad
    before = module.weight.detach().clone()
    with torch.no_grad():
        conv.weight.zero_()
    assert torch.equal(module.weight, before)
    assert module(images(3, dtype=dtype)).isfinite().all()


def test_from_unfused_draws_no_random_numbers():
    conv, bn = conv_bn((5, 3, 3, 3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Conv2dAct.from_unfused(conv, bn)
    assert torch.equal(torch.get_rng_state(), state)


def pair_of(**second):
    conv1, _ = conv_bn((4, 3, 1, 3), padding=(0, 1))
    shape = second.pop("shape", (5, 4, 3, 1))
    conv2, _ = conv_bn(shape, **{"padding": (1, 0), **second})
    return conv1, conv2


class _SubclassedConv2d(nn.Conv2d):
    pass


def parametrized():
    conv, _ = conv_bn((5, 3, 3, 3))
    nn.utils.parametrize.register_parametrization(conv, "weight", nn.Identity())
    return conv


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Conv2dAct.from_unfused(nn.Linear(3, 5)),
            TypeError,
            r"conv: torch\.nn\.modules\.linear\.Linear, takes torch\.nn\.Conv2d",
        ),
        (
            lambda: Conv2dAct.from_unfused(_SubclassedConv2d(3, 5, 3)),
            TypeError,
            r"conv: .*_SubclassedConv2d, takes torch\.nn\.Conv2d",
        ),
        (
            lambda: Conv2dAct.from_unfused(parametrized()),
            TypeError,
            r"conv: .*ParametrizedConv2d, takes torch\.nn\.Conv2d",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5)),
            TypeError,
            r"bn: .*GroupNorm, takes torch\.nn\.BatchNorm2d",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(3, 5, 3, dtype=torch.complex64)),
            TypeError,
            r"conv\.weight: torch\.complex64, takes float64",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(4, 6, 3, groups=2)),
            ValueError,
            "conv: groups 2, takes 1",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(4, 6, 3, dilation=2)),
            ValueError,
            r"conv: dilation \(2, 2\), takes 1",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
            ValueError,
            "conv: padding_mode 'reflect', takes 'zeros'",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(4, 6, 2, padding="same")),
            ValueError,
            r"conv: padding 'same' with kernel \(2, 2\), takes odd kernels",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(4).eval()),
            ValueError,
            "bn: 4 features, takes 5",
        ),
        (
            lambda: Conv2dAct.from_unfused(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)),
            ValueError,
            r"bn: in training mode, takes evaluation mode; call \.eval\(\) first",
        ),
        (
            lambda: Conv2dAct.from_unfused(
                nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False).eval()
            ),
            ValueError,
            "bn: has no running statistics",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(shape=(5, 4, 1, 3))),
            ValueError,
            r"conv2: kernel \(1, 3\), takes nx1, n odd",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(shape=(5, 4, 4, 1))),
            ValueError,
            r"conv2: kernel \(4, 1\), takes nx1, n odd",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(shape=(5, 6, 3, 1))),
            ValueError,
            "conv2: 6 input channels, takes 4",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(stride=2)),
            ValueError,
            r"conv2: stride \(2, 2\), takes 1",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(padding=0)),
            ValueError,
            r"conv2: padding \(0, 0\), takes \(1, 0\)",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(*pair_of(dtype=torch.float32)),
            TypeError,
            r"conv2: torch\.float32, takes conv1's torch\.float64",
        ),
        (
            lambda: FactorizedConv2d.from_unfused(nn.Conv2d(3, 4, 3, padding=1), pair_of()[1]),
            ValueError,
            r"conv1: kernel \(3, 3\), takes 1xn or nx1",
        ),
        (
            lambda: SplitConv2d.from_unfused(*reversed(pair_of())),
            ValueError,
            r"conv_row: kernel \(3, 1\), takes 1xn, n odd",
        ),
        (
            lambda: SplitConv2d.from_unfused(*pair_of()),
            ValueError,
            "conv_col: 4 input channels, takes 3",
        ),
        (
            lambda: GridReduction.from_unfused(nn.Conv2d(3, 4, 3)),
            ValueError,
            r"conv: stride \(1, 1\), takes 2",
        ),
        (
            lambda: GridReduction.from_unfused(nn.Conv2d(3, 4, 3, stride=2, padding=1)),
            ValueError,
            r"conv: padding \(1, 1\), takes \(0, 0\)",
        ),
        (
            lambda: GridReduction.from_unfused(nn.Conv2d(3, 4, (3, 5), stride=2)),
            ValueError,
            r"conv: kernel \(3, 5\), takes a square one",
        ),
    ],
)
def test_from_unfused_refuses_what_the_op_does_not_compute(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_sparse_weight_is_refused():
    conv, _ = conv_bn((5, 3, 1, 1))
    conv.weight = nn.Parameter(conv.weight.detach().to_sparse())
    with pytest.raises(TypeError, match=r"conv\.weight: layout torch\.sparse_coo, takes"):
        check_conv2d("conv", conv)


@pytest.mark.parametrize("module", [m for m, _ in modules().values()], ids=NAMES)
def test_no_method_is_called_fuse(module):
    assert not hasattr(module, "fuse")
