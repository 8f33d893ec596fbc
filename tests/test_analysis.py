"""`analysis`: counts from the modules against counts made another way, by hand or by PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fused_inception
from fused_inception import testing
from fused_inception.analysis import Analysis, Cost, analyze
from fused_inception.models import inception_v3
from fused_inception.models.inception_v3 import BasicConv2d

HALF = torch.bfloat16


def on_meta(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = HALF) -> Analysis:
    module = module.to(dtype).eval()
    return analyze(module, torch.empty(shape, device="meta", dtype=dtype))


@pytest.fixture(scope="module")
def network() -> Analysis:
    with torch.device("meta"):
        return on_meta(inception_v3(init_weights=False), (1, 3, 299, 299))


def test_the_multiply_accumulates_of_inception_v3(network: Analysis):
    convs = [operator for operator in network.operators if operator.name == "convolution"]
    assert len(convs) == 94
    assert round(sum(operator.macs for operator in convs) / 1e6) == 5711
    # The last layer: 2048 x 1000.
    assert network.total.macs - sum(operator.macs for operator in convs) == 2_048_000


@pytest.mark.parametrize(
    ("aux_logits", "parameters"), [(True, 27_161_264), (False, 23_834_568)], ids=["aux", "no aux"]
)
def test_the_parameters_of_inception_v3(aux_logits: bool, parameters: int):
    """The figures that torchvision publishes; an auxiliary head that does not run counts."""
    with torch.device("meta"):
        model = inception_v3(init_weights=False, aux_logits=aux_logits)
    assert on_meta(model, (1, 3, 299, 299)).total.parameters == parameters


def test_pytorch_counts_the_same_multiply_accumulates():
    with torch.device("meta"):
        model = inception_v3(init_weights=False, aux_logits=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(2, 3, 299, 299, device="meta"))
    ours = on_meta(model, (2, 3, 299, 299), torch.float32)
    assert counter.get_total_flops() == ours.total.flops


def test_the_shares_of_pairs_and_stem(network: Analysis):
    total = sum(o.macs for o in network.operators if o.name == "convolution")
    stem = sum(o.macs for o in network.operators if o.block.startswith("Conv2d_"))
    # The thirteen pairs, from their table. 6c and 6d have the same three; of the 192s the one of
    # 7a is that of 6e, and the two in the double branch of 6e are one shape.
    shapes = testing.inception_v3_pairs(1)
    times = {128: 1, 160: 2, 192: 2}
    assert sum(times[shape.c_in] for shape in shapes) == 13
    pairs = sum(times[s.c_in] * 289 * 7 * s.c_mid * (s.c_in + s.c_out) for s in shapes)
    assert pairs / total == pytest.approx(0.261, abs=5e-4)
    assert stem / total == pytest.approx(0.235, abs=5e-4)


def test_the_traffic_of_a_convolution_alone():
    with torch.device("meta"):
        cost = on_meta(BasicConv2d(3, 8, 3), (5, 3, 9, 7)).total
    expected = 2 * (5 * 3 * 9 * 7 + 8 * 3 * 9 + 5 * 8 * 7 * 5)
    assert cost == Cost(5 * 7 * 5 * 8 * 27, 8 * 27 + 16, expected, expected)


def test_the_cost_of_a_pair():
    """Against the unfused pair of the same shape, and by hand."""
    n, c_in, c_mid, c_out, h, w = 3, 16, 24, 40, 5, 7
    with torch.device("meta"):
        fused = on_meta(
            fused_inception.FactorizedConv2d(c_in, c_mid, c_out, (3, 5)), (n, c_in, h, w)
        ).total
        plain = on_meta(
            nn.Sequential(
                nn.Conv2d(c_in, c_mid, (1, 5), padding=(0, 2)),
                nn.ReLU(inplace=True),
                nn.Conv2d(c_mid, c_out, (3, 1), padding=(1, 0)),
                nn.ReLU(),
            ),
            (n, c_in, h, w),
        ).total
    assert fused.macs == plain.macs == n * h * w * (5 * c_in * c_mid + 3 * c_mid * c_out)
    assert fused.parameters == plain.parameters
    assert fused.unfused_bytes == plain.unfused_bytes
    assert plain.unfused_bytes - fused.fused_bytes == 2 * 2 * n * h * w * c_mid


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Conv2d(6, 4, (1, 3), padding=(0, 1))
        self.col = nn.Conv2d(6, 5, (3, 1), padding=(1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.row(x).relu_(), self.col(x).relu_()], 1)


class Reduction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(x).relu_(), F.max_pool2d(x, 3, 2)], 1)


@pytest.mark.parametrize(
    ("fused", "plain", "out_channels"),
    [
        (fused_inception.SplitConv2d(6, 4, 5, 3), Split(), 9),
        (fused_inception.GridReduction(6, 4), Reduction(), 10),
    ],
    ids=["split_conv2d", "grid_reduction"],
)
def test_side_by_side_ops_move_what_their_unfused_forms_move(
    fused: nn.Module, plain: nn.Module, out_channels: int
):
    def cost(module: nn.Module) -> Cost:
        return on_meta(module.to("meta"), (2, 6, 9, 11)).total

    ours, theirs = cost(fused), cost(plain)
    assert ours.macs == theirs.macs
    assert ours.unfused_bytes == theirs.unfused_bytes
    pixels = 2 * (9 * 11 if out_channels == 9 else 4 * 5)
    saved = 2 * (2 * 6 * 9 * 11 + 2 * pixels * out_channels)
    assert ours.unfused_bytes - ours.fused_bytes == saved


def test_a_block_moves_its_boundary_once(network: Analysis):
    """Mixed_6b reads and writes 768 channels of 17x17, and its weights."""
    cost = network.blocks["Mixed_6b"]
    weights = cost.parameters - 2 * sum((192 * 4, 128 * 6))  # without BatchNorm's
    assert cost.fused_bytes == 2 * (2 * 768 * 289 + weights)
    assert cost.unfused_bytes > 2 * cost.fused_bytes


def test_the_total_is_the_sum_of_its_blocks(network: Analysis):
    for name in ("macs", "fused_bytes", "unfused_bytes"):
        parts = sum(getattr(cost, name) for cost in network.blocks.values())
        assert getattr(network.total, name) == parts
    assert {"Mixed_5b", "Mixed_7c", "fc"} <= network.blocks.keys()


def test_a_fused_network_has_the_arithmetic_of_the_unfused_one(network: Analysis):
    """On real tensors: fused blocks leave those of the meta device to the original code."""
    fused = fused_inception.fuse(inception_v3(init_weights=False).eval())
    analysis = analyze(fused, torch.zeros(1, 3, 299, 299))
    blocks = [o for o in analysis.operators if o.name.startswith("inception_")]
    assert len(blocks) == 11
    assert analysis.total.macs == network.total.macs
    # float32 against bfloat16; the folded convolutions read a bias as well.
    assert analysis.total.fused_bytes / 2 == pytest.approx(network.total.fused_bytes, rel=1e-3)


def test_the_floor_is_the_longer_of_arithmetic_and_traffic(network: Analysis):
    cost = Cost(macs=500, parameters=0, fused_bytes=300, unfused_bytes=900)
    assert cost.floor_seconds(1000, 1e9) == 1.0
    assert cost.floor_seconds(1e9, 100) == 3.0
    # Blocks one after the other: some are bound by the one, some by the other.
    rates = (8e14, 4e12)
    whole = network.total.floor_seconds(*rates)
    assert whole < network.floor_seconds(*rates) < 2 * whole
    with pytest.raises(ValueError, match="rates must be above 0, got 0 FLOP/s"):
        cost.floor_seconds(0, 1)


def test_products_that_are_not_known_are_refused():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(x[0], x[0])

    with pytest.raises(ValueError, match="the cost of the operator aten::bmm is not known"):
        analyze(Attention(), torch.empty(1, 2, 3, 3, device="meta"))
