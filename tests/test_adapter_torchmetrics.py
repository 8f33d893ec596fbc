"""`fuse` on torchmetrics' metrics, which hold torch-fidelity's extractor."""

import copy

import torch

from fused_inception.fuse import fuse
from tests.adapter_cases import made, pixels, torchmetrics
from tests.adapter_properties import AdapterProperties, assert_agree
from tests.test_fuse import randomize


class TestTorchmetrics(AdapterProperties):
    names = ("torchmetrics-fid", "torchmetrics-is", "torchmetrics-kid")
    one = "torchmetrics-fid"
    converts = False  # a metric converts its states alone
    trains = False  # its network stays in evaluation mode

    def test_half_folds_anew(self, name):
        # A metric converts its states only, and never on half().
        fused = fuse(made(name)).half()
        assert all(b.dtype is torch.float32 for k, b in fused.named_buffers() if ".folded_" in k)


@torch.no_grad()
def test_a_metric_in_float64():
    model = copy.deepcopy(made("torchmetrics-fid"))
    fused = fuse(model)
    for net in (model, fused):
        net.set_dtype(torch.float64)
    got, want = (net.inception(pixels((32, 32))) for net in (fused, model))
    assert got.dtype is torch.float64
    assert_agree([got], [want], 1e-12)


@torch.no_grad()
def test_a_metric_computes_the_same_distance():
    def distance(metric):
        metric.update(pixels((32, 32), 12), real=True)
        metric.update(255 - pixels((32, 32), 12), real=False)
        return metric.compute()

    model = randomize(torchmetrics("FrechetInceptionDistance", feature=64))
    want = distance(copy.deepcopy(model))
    got = distance(fuse(model))
    assert want > 0
    assert (got - want).abs() <= 1e-4 * want
