"""`fuse` on ordinary networks with units and pairs, and what is not understood in them."""

import torch

from fused_inception.fuse import FusionReport, fuse, report
from tests.adapter_cases import Classifier, made
from tests.adapter_properties import AdapterProperties, assert_agree, small
from tests.test_fuse import randomize


class TestUserModel(AdapterProperties):
    names = ("user", "user-block")
    one = "user"
    # What stands beside its fused parts is PyTorch's own.
    test_gpu_features_are_bitwise_those_of_one_image_at_a_time = None


@torch.no_grad()
def test_what_is_not_understood_stays_with_its_reason():
    model = made("user-block")
    fused = fuse(model)
    left = [("0.conv3", "dilation (2, 1), takes 1"), ("0.conv4", "dilation (1, 2), takes 1")]
    assert report(fused) == FusionReport([("0", "conv_graph")], left)
    assert "0.conv3  skipped: dilation (2, 1), takes 1\n" in str(report(fused))


@torch.no_grad()
def test_where_the_pairs_of_an_ordinary_network_run():
    fused = fuse(made("user"))
    assert report(fused).replaced == [
        ("stem", "conv2d_act"),
        ("layers.0", "conv_graph"),
        ("layers.1", "conv_graph"),
        ("branch", "conv_sequence"),
        ("expand", "conv2d_act"),
    ]
    ops = [call.kind for call in fused.layers[0]._match.options["calls"]]
    assert ops.count("factorized_conv2d") == 2
    assert [op for op, _ in fused.branch._match.options["steps"]] == ["factorized_conv2d"]


class Flat(Classifier):
    """All of it in one module, where its forward shows no structure to a trace."""

    def forward(self, x):
        if x.shape[0] == 0:
            return x.new_zeros(0, 10)
        return super().forward(x)


@torch.no_grad()
def test_a_network_that_cannot_be_traced_is_fused_in_its_parts():
    model = randomize(Flat()).eval()
    fused = fuse(model, strict=True)
    assert type(fused) is Flat
    assert report(fused) == report(fuse(made("user")))
    x = small("user")
    assert_agree([fused(x)], [model(x)])
