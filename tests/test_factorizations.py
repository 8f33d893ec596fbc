"""The paper's factorizations and modules: what they compute, their shapes, costs and gradients."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fused_inception
from fused_inception.analysis import analyze
from fused_inception.fuse import fuse, report
from fused_inception.models import (
    AsymmetricFactors,
    AsymmetricInception,
    BasicConv2d,
    ConvThenPool,
    InceptionA,
    InceptionAux,
    InceptionAuxDropout,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    LinearConv2d,
    OriginalInception,
    ParallelReduction,
    PoolThenConv,
    SymmetricFactors,
    SymmetricInception,
    convolution_cost,
    two_layer_cost,
)

CHANNELS = 6
conv_alone = partial(nn.Conv2d, bias=False)

# Each module on CHANNELS channels, and what it makes of a grid of 9×8.
MODULES = {
    "linear unit": (lambda: LinearConv2d(CHANNELS, 5, kernel_size=3), (5, 7, 6)),
    "symmetric": (lambda: SymmetricFactors(CHANNELS, 8), (8, 9, 8)),
    "symmetric 7": (lambda: SymmetricFactors(CHANNELS, 8, 7), (8, 9, 8)),
    "symmetric, linear": (
        lambda: SymmetricFactors(CHANNELS, 8, mid_block=LinearConv2d),
        (8, 9, 8),
    ),
    "asymmetric": (lambda: AsymmetricFactors(CHANNELS, 8), (8, 9, 8)),
    "asymmetric 3": (lambda: AsymmetricFactors(CHANNELS, 8, 3), (8, 9, 8)),
    "asymmetric, linear": (
        lambda: AsymmetricFactors(CHANNELS, 8, mid_block=LinearConv2d),
        (8, 9, 8),
    ),
    "convolve, pool": (lambda: ConvThenPool(CHANNELS, 12), (12, 4, 3)),
    "pool, convolve": (lambda: PoolThenConv(CHANNELS, 12), (12, 4, 3)),
    "side by side": (lambda: ParallelReduction(CHANNELS, 12), (12, 4, 3)),
    "figure 4": (lambda: OriginalInception(CHANNELS, 32), (256, 9, 8)),
    "figure 5": (lambda: SymmetricInception(CHANNELS, 64), (288, 9, 8)),
    "V3's figure 5": (lambda: InceptionA(CHANNELS, 64), (288, 9, 8)),
    "figure 6, 3": (lambda: AsymmetricInception(CHANNELS, 10, 3), (768, 9, 8)),
    "figure 6, 7": (lambda: AsymmetricInception(CHANNELS, 10), (768, 9, 8)),
    "V3's figure 6": (lambda: InceptionC(CHANNELS, 10), (768, 9, 8)),
    "figure 7": (lambda: InceptionE(CHANNELS), (2048, 9, 8)),
    "figure 10, 35": (lambda: InceptionB(CHANNELS), (480 + CHANNELS, 4, 3)),
    "figure 10, 17": (lambda: InceptionD(CHANNELS), (512 + CHANNELS, 4, 3)),
}


def enliven(module):
    """Weights and statistics that carry the input through, and differ from one another."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (part.bias, part.running_mean):
                tensor.data.uniform_(-0.2, 0.2, generator=generator)
    return module


def images(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("name", MODULES)
def test_shape(name):
    make, (channels, rows, columns) = MODULES[name]
    module = enliven(make()).eval()
    with torch.no_grad():
        for batch in (2, 0):
            x = images(batch, CHANNELS, 9, 8, dtype=torch.float32)
            assert module(x).shape == (batch, channels, rows, columns)
            x = x.contiguous(memory_format=torch.channels_last)
            assert module(x).shape == (batch, channels, rows, columns)


def narrow_conv(in_channels, out_channels, **options):
    # Widths at which a finite difference for every single weight is cheap.
    narrowed = (
        width if width < 32 else max(1, width // 128) for width in (in_channels, out_channels)
    )
    return BasicConv2d(*narrowed, **options)


def narrow_head(make, **options):
    head = make(1, 2, conv_block=narrow_conv, **options)
    head.fc = nn.Linear(6, 2)
    if isinstance(head.conv1, nn.Conv2d):
        head.conv1 = nn.Conv2d(1, 6, 5)
    return head


# Every module, and the channels and grid of what it is called on.
NARROW = {
    "unit": (lambda: BasicConv2d(2, 3, kernel_size=3), (2, 3, 4)),
    "linear unit": (lambda: LinearConv2d(2, 3, kernel_size=3), (2, 3, 4)),
    "symmetric": (lambda: SymmetricFactors(2, 3), (2, 3, 4)),
    "symmetric 7": (lambda: SymmetricFactors(2, 3, 7), (2, 3, 4)),
    "symmetric, linear": (lambda: SymmetricFactors(2, 3, mid_block=LinearConv2d), (2, 3, 4)),
    "asymmetric": (lambda: AsymmetricFactors(2, 3), (2, 3, 4)),
    "asymmetric 3": (lambda: AsymmetricFactors(2, 3, 3), (2, 3, 4)),
    "asymmetric, linear": (lambda: AsymmetricFactors(2, 3, mid_block=LinearConv2d), (2, 3, 4)),
    "convolve, pool": (lambda: ConvThenPool(2, 3), (2, 5, 4)),
    "pool, convolve": (lambda: PoolThenConv(2, 3), (2, 5, 6)),
    "side by side": (lambda: ParallelReduction(2, 4), (2, 5, 4)),
    "figure 4": (lambda: OriginalInception(2, 32, narrow_conv), (2, 3, 4)),
    "figure 5": (lambda: SymmetricInception(2, 32, narrow_conv), (2, 3, 4)),
    "V3's figure 5": (lambda: InceptionA(2, 32, narrow_conv), (2, 3, 4)),
    "figure 6, 3": (lambda: AsymmetricInception(2, 2, 3, narrow_conv), (2, 3, 4)),
    "figure 6, 7": (lambda: AsymmetricInception(2, 2, 7, narrow_conv), (2, 3, 4)),
    "V3's figure 6": (lambda: InceptionC(2, 2, narrow_conv), (2, 3, 4)),
    "figure 7": (lambda: InceptionE(2, narrow_conv), (2, 3, 2)),
    "figure 10, 35": (lambda: InceptionB(2, narrow_conv), (2, 5, 4)),
    "figure 10, 17": (lambda: InceptionD(2, narrow_conv), (2, 5, 4)),
    "head, batch_norm": (lambda: narrow_head(InceptionAux), (1, 17, 17)),
    "head, dropout": (lambda: narrow_head(InceptionAuxDropout), (1, 17, 17)),
    "head, none": (lambda: narrow_head(InceptionAuxDropout, dropout=0.0), (1, 17, 17)),
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", NARROW)
def test_gradcheck(name, training):
    """Of every element of the input and of every parameter, each by itself."""
    make, size = NARROW[name]
    module = enliven(make()).double().train(training)
    names, values = zip(*module.named_parameters(), strict=True)

    def forward(x, *parameters):
        torch.manual_seed(3)  # the same dropout
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    x = images(2 if training else 1, *size).requires_grad_()
    # That a missing gradient counts as zeros is autograd's business.
    assert torch.autograd.gradcheck(forward, (x, *values), check_undefined_grad=False)


def relu_conv(x, unit, *, linear=False):
    # A unit by its parts, from its state alone.
    conv, bn = unit.conv, unit.bn
    x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=0.001)
    return x if linear else F.relu(x)


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
@pytest.mark.parametrize(
    ("factors", "kernels"),
    [
        (partial(SymmetricFactors, kernel_size=3), [(3, 3)]),
        (partial(SymmetricFactors, kernel_size=5), [(3, 3), (3, 3)]),
        (partial(SymmetricFactors, kernel_size=9), [(3, 3)] * 4),
        (partial(AsymmetricFactors, kernel_size=3), [(1, 3), (3, 1)]),
        (partial(AsymmetricFactors, kernel_size=7), [(1, 7), (7, 1)]),
    ],
)
def test_the_factors_are_a_chain_with_relu_between_them_or_not(factors, kernels, linear):
    mid_block = LinearConv2d if linear else BasicConv2d
    module = enliven(factors(CHANNELS, 8, mid_block=mid_block)).double().eval()
    assert [unit.conv.kernel_size for unit in module] == kernels
    expected = x = images(2, CHANNELS, 9, 8)
    for index, unit in enumerate(module):
        expected = relu_conv(expected, unit, linear=linear and index < len(module) - 1)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("factors", "n"), [(SymmetricFactors, 5), (SymmetricFactors, 7)])
def test_the_chain_sees_as_far_as_what_it_replaces(factors, n):
    """One pixel in reaches n×n pixels out, no more and no fewer."""
    module = factors(1, 1, n, conv_block=conv_alone, mid_block=conv_alone)
    for conv in module:
        nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1
    reached = module(x)[0, 0].nonzero()
    assert reached.min() == 7 - n // 2
    assert reached.max() == 7 + n // 2
    assert len(reached) == n * n


def test_linear_factors_are_one_convolution():
    """Why they cannot be more expressive: 1×n then n×1 is one n×n, of rank one, inside the grid."""
    module = AsymmetricFactors(3, 4, 5, conv_block=conv_alone, mid_block=conv_alone).double()
    row, col = (conv.weight for conv in module)
    square = torch.einsum("kmr,mcs->kcrs", col[..., 0], row[:, :, 0])
    x = images(2, 3, 11, 12)
    torch.testing.assert_close(module(x), F.conv2d(x, square, padding=2))


def cost(module, channels, grid):
    with torch.device("meta"):
        return analyze(nn.Sequential(module().eval()), torch.empty(2, channels, grid, grid)).total


@pytest.mark.parametrize("alpha", [1, 4, 9 / 4, 1 / 4])
@pytest.mark.parametrize("n", [3, 5])
def test_the_closed_forms_are_what_is_counted(alpha, n):
    """At α whose root is a whole number of channels."""
    m, grid = 16, 11
    k = int(alpha * m)
    positions = 2 * grid * grid
    whole = cost(partial(conv_alone, m, k, n, padding=n // 2), m, grid)
    assert whole.macs == convolution_cost(n, m, alpha) * positions
    assert whole.parameters == convolution_cost(n, m, alpha)
    # Two layers of 3×3 see 5×5.
    factors = partial(SymmetricFactors, m, k, 5, conv_block=conv_alone, mid_block=conv_alone)
    found = cost(factors, m, grid)
    assert found.macs == two_layer_cost(3, m, alpha) * positions
    assert found.parameters == two_layer_cost(3, m, alpha)


@pytest.mark.parametrize(
    ("factors", "n", "left"),
    [(SymmetricFactors, 5, 18 / 25), (SymmetricFactors, 7, 27 / 49)]
    + [(AsymmetricFactors, n, 2 / n) for n in (3, 5, 7)],
)
def test_savings_without_expansion(factors, n, left):
    whole = cost(partial(conv_alone, 32, 32, n, padding=n // 2), 32, 17)
    found = cost(partial(factors, 32, 32, n, conv_block=conv_alone, mid_block=conv_alone), 32, 17)
    assert found.macs / whole.macs == pytest.approx(left)
    assert found.parameters / whole.parameters == pytest.approx(left)


def test_the_channels_grow_by_the_same_factor_in_each_layer():
    widths = [unit.conv.out_channels for unit in SymmetricFactors(8, 64, 7)]
    assert widths == [16, 32, 64]
    assert AsymmetricFactors(64, 96)[0].conv.out_channels == round(math.sqrt(64 * 96)) == 78


@pytest.mark.parametrize(
    ("module", "operations"),
    [
        (ConvThenPool, 2 * 17**2),
        (PoolThenConv, 2 * 8**2),
        (ParallelReduction, 8**2),
    ],
)
def test_the_operations_of_a_grid_reduction(module, operations):
    """2d²k², 2(d/2)²k² and (d/2)²k², by nine positions of the filter; d/2 of 17 is 8."""
    k = 10
    found = cost(partial(module, k, 2 * k), k, 17)
    assert found.macs == 2 * 9 * operations * k * k


def test_the_reductions_are_what_they_say():
    x = images(2, CHANNELS, 9, 8)
    first, second, both = (
        enliven(make(CHANNELS, 12)).double().eval()
        for make in (ConvThenPool, PoolThenConv, ParallelReduction)
    )
    torch.testing.assert_close(first(x), F.max_pool2d(relu_conv(x, first.conv), 3, 2))
    torch.testing.assert_close(second(x), relu_conv(F.max_pool2d(x, 3, 2), second.conv))
    output = both(x)
    torch.testing.assert_close(output[:, :CHANNELS], relu_conv(x, both.conv))
    assert torch.equal(output[:, CHANNELS:], F.max_pool2d(x, 3, 2))


def by_branches(module, x):
    """The module's output, branch by branch from its units, in the order of the paper's figure."""
    pool = F.avg_pool2d(x, 3, 1, 1)
    branches = {}
    for name, unit in module.named_children():
        branch, _, step = name.rpartition("_")
        branch = branch if step.isdigit() else name
        start = pool if name == "branch_pool" else x
        branches[branch] = relu_conv(branches.get(branch, start), unit)
    return torch.cat(list(branches.values()), 1), branches


@pytest.mark.parametrize(
    ("make", "filters"),
    [
        (
            lambda: OriginalInception(CHANNELS, 32),
            {"branch3x3": ["1x1", "3x3"], "branch5x5": ["1x1", "5x5"]},
        ),
        (
            lambda: SymmetricInception(CHANNELS, 32),
            {"branch3x3": ["1x1", "3x3"], "branch3x3dbl": ["1x1", "3x3", "3x3"]},
        ),
        (
            lambda: AsymmetricInception(CHANNELS, 10, 5),
            {
                "branch_pair": ["1x1", "1x5", "5x1"],
                "branch_double": ["1x1", "1x5", "5x1", "1x5", "5x1"],
            },
        ),
    ],
    ids=["figure 4", "figure 5", "figure 6"],
)
def test_the_modules_are_those_of_the_figures(make, filters):
    module = enliven(make()).double().eval()
    x = images(2, CHANNELS, 9, 8)
    expected, branches = by_branches(module, x)
    torch.testing.assert_close(module(x), expected)
    found = {branch: [] for branch in branches}
    for name, unit in module.named_children():
        branch, _, step = name.rpartition("_")
        rows, columns = unit.conv.kernel_size
        found[branch if step.isdigit() else name].append(f"{rows}x{columns}")
    assert found == {"branch1x1": ["1x1"], **filters, "branch_pool": ["1x1"]}


def test_figure_5_is_figure_4_with_two_3x3_for_its_5x5():
    four, five = OriginalInception(288, 64), SymmetricInception(288, 64)
    shared = dict(four.named_children()).keys() - {"branch5x5_1", "branch5x5_2"}
    for name in shared:
        assert str(getattr(four, name)) == str(getattr(five, name))
    assert str(four.branch5x5_1) == str(five.branch3x3dbl_1)
    counts = [sum(p.numel() for p in module.parameters()) for module in (four, five)]
    # 64 to 96 channels by 25, and by 9 and then 96 to 96 by 9, with one more BatchNorm.
    assert counts[1] - counts[0] == 96 * (9 * 64 + 9 * 96 - 25 * 64) + 2 * 96


def test_figure_6_with_7_costs_what_the_module_of_v3_costs():
    ours = cost(partial(AsymmetricInception, 768, 160), 768, 17)
    assert ours == cost(partial(InceptionC, 768, 160), 768, 17)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_figure_6_is_fused_as_a_whole(n):
    module = enliven(AsymmetricInception(CHANNELS, 10, n)).double().eval()
    fused = fuse(module)
    assert report(fused).replaced == [("", "inception_c")]
    x = images(2, CHANNELS, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["figure 4", "figure 5", "side by side", "symmetric, linear"])
def test_what_has_no_form_of_its_own_is_fused_unit_by_unit(name):
    module = enliven(MODULES[name][0]()).double().eval()
    fused = fuse(module)
    units = [part for part in module.modules() if isinstance(part, BasicConv2d)]
    assert [kind for _, kind in report(fused).replaced] == ["conv2d_act"] * len(units)
    x = images(2, CHANNELS, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_the_asymmetric_factors_run_as_one_operator(linear):
    mid_block = LinearConv2d if linear else BasicConv2d
    factors = enliven(AsymmetricFactors(CHANNELS, 8, 5, mid_block=mid_block)).double().eval()
    first, second = factors
    one = fused_inception.FactorizedConv2d.from_unfused(
        first.conv,
        second.conv,
        bn1=first.bn,
        bn2=second.bn,
        mid_activation="none" if linear else "relu",
    )
    x = images(2, CHANNELS, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(one(x), factors(x))


def test_the_parallel_reduction_runs_as_one_operator():
    module = enliven(ParallelReduction(CHANNELS, 12)).double().eval()
    one = fused_inception.GridReduction.from_unfused(module.conv.conv, module.conv.bn)
    x = images(2, CHANNELS, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(one(x), module(x))


@pytest.mark.parametrize("n", [-1, 0, 1, 2, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: SymmetricFactors(4, 4, n),
        lambda n: AsymmetricFactors(4, 4, n),
        lambda n: AsymmetricInception(4, 4, n),
    ],
    ids=["symmetric", "asymmetric", "figure 6"],
)
def test_filters_without_a_factorization_are_refused(make, n):
    with pytest.raises(ValueError, match=f"takes an odd number of at least 3, got {n}$"):
        make(n)


def test_a_reduction_without_filters_is_refused():
    with pytest.raises(ValueError, match="takes more than the 4 of the pool, got 4"):
        ParallelReduction(4, 4)
