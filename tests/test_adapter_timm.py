"""`fuse` on timm's Inceptions, whose BatchNorms hold their ReLU."""

import copy
import re

import pytest
import torch
from torch import nn

from fused_inception.fuse import fuse, report
from tests.adapter_cases import floats, kinds, made, module, timm
from tests.adapter_properties import AdapterProperties, assert_agree, running, small
from tests.test_fuse import randomize


class TestInceptionV3(AdapterProperties):
    names = ("timm-v3", "timm-v3-features", "timm-v3-no-classes")
    one = "timm-v3"


class TestInceptionV4(AdapterProperties):
    names = ("timm-v4",)
    one = "timm-v4-short"


class TestInceptionResnetV2(AdapterProperties):
    names = ("timm-resnet-v2",)
    one = "timm-resnet-v2-short"
    # The convolutions in front of its sums are PyTorch's own.
    test_gpu_features_are_bitwise_those_of_one_image_at_a_time = None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"act_layer": "silu"}, "BatchNormAct2d, takes torch.nn.BatchNorm2d, alone or with ReLU"),
        ({"norm_layer": "groupnorm1"}, "group_norm: not part of a known block"),
        ({"act_layer": "leaky_relu"}, "alone or with ReLU"),
    ],
    ids=["silu", "group-norm", "leaky-relu"],
)
@torch.no_grad()
def test_timm_with_other_layers_is_left_alone(options, reason):
    module("timm")
    try:
        model = timm("inception_v3", **options).eval()
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        pytest.skip(f"this timm cannot make it: {error!r}")
    fused = fuse(model)
    found = report(fused)
    assert set(kinds(found)) <= {"max_pool2d", "linear"}
    assert any(reason in text for _, text in found.skipped)
    x = small("timm-v3")
    assert torch.equal(fused(x), model(x))
    with pytest.raises(RuntimeError, match="not every block was understood"):
        fuse(model, strict=True)


def test_norms_with_their_relu_train_fused_with_frozen_statistics(fused_calls):
    """timm's BatchNormAct2d, in evaluation mode while the rest of the network trains."""
    model = copy.deepcopy(made("timm-v3")).double()
    fused = fuse(model, differentiable=True)
    input = small("timm-v3").double()
    for net in (model, fused):
        net.train()
        for norm in net.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.Dropout)):
                norm.eval()
        net(input).square().mean().backward()
    assert fused_calls.took() == running("timm-v3")
    for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * theirs.grad.abs().max()


class Silently(nn.BatchNorm2d):
    """A BatchNorm whose own forward is not only BatchNorm."""

    def forward(self, x):
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.last(x)

    def last(self, x):
        return nn.functional.relu(x) + 1


class OtherEps(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 0.5
        )


class Swapped(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.bias, self.weight, False, 0.1, self.eps
        )


class OfTheBatch(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps
        )


class Twice(Silently):
    def last(self, x):
        return nn.functional.relu(nn.functional.relu(x))


class Rectified(Silently):
    def last(self, x):
        return nn.functional.relu(x)


class Bare(Silently):
    def last(self, x):
        return x


@pytest.mark.parametrize("cls", [Silently, OtherEps, Swapped, OfTheBatch, Twice])
def test_a_batch_norm_that_does_more_is_left_alone(cls):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), cls(4)).eval()
    ((_, reason),) = report(fuse(model)).skipped
    assert re.search(r"takes torch.nn.BatchNorm2d, alone or with ReLU", reason)


@pytest.mark.parametrize("cls", [Rectified, Bare])
@torch.no_grad()
def test_a_batch_norm_with_a_forward_of_its_own_is_understood(cls):
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), cls(4))).eval()
    fused = fuse(model, strict=True)
    x = floats((9, 9))
    assert_agree([fused(x)], [model(x)], 2e-6)
