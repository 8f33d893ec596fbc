"""`fuse` on pytorch-fid's network: pools without padding, a max pool in its last block."""

import pytest
import torch

from fused_inception.fuse import fuse
from tests.adapter_cases import floats, pytorch_fid
from tests.adapter_properties import AdapterProperties
from tests.test_fuse import randomize


class TestPytorchFid(AdapterProperties):
    names = ("pytorch-fid", "pytorch-fid-resizing")
    one = "pytorch-fid"


def frechet(first, second):
    """The Fréchet distance of two sets of features, (N, C) each, in float64.

    |m1 - m2|² + tr(S1) + tr(S2) - 2 tr((S1 S2)^½) with means and covariances. With N images the
    covariances have a rank of N - 1 at most, so S1 S2 has thousands of eigenvalues that are zero
    but for rounding, and their roots are not: 1e-16 becomes 1e-8. With S = XᵀX the other roots are
    the singular values of X1 X2ᵀ, an N×N matrix, and their sum moves by no more than that does.
    """
    means = [features.double().mean(0) for features in (first, second)]
    centered = [
        (features.double() - mean) / (len(features) - 1) ** 0.5
        for features, mean in zip((first, second), means, strict=True)
    ]
    root = torch.linalg.svdvals(centered[0] @ centered[1].T).sum()
    trace = sum(x.square().sum() for x in centered)
    return (means[0] - means[1]).square().sum() + trace - 2 * root


def test_the_distance_is_that_of_the_covariances():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(64, 5, generator=generator).double() * s for s in (1, 3))
    covariances = [x.T.cov() for x in (first, second)]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    want = (first.mean(0) - second.mean(0)).square().sum() - 2 * root
    want += sum(covariance.trace() for covariance in covariances)
    assert frechet(first, second).item() == pytest.approx(want.item(), rel=1e-9)
    assert frechet(first, first).item() == pytest.approx(0, abs=1e-9)


@torch.no_grad()
def test_statistics_of_256_images():
    """Of the 2048 features that the distance is taken of.

    Images of 75×75 without resizing, the least that the network takes: every convolution and pool
    runs, on maps of 35×35 down to 1×1, a sixteenth of the work of 299×299.
    """
    model = randomize(pytorch_fid(resize_input=False)).eval()
    fused = fuse(model, strict=True)
    images = floats((75, 75), 512)
    images, others = images[:256], images[256:] ** 2

    def features(net, x):
        return torch.cat([net(part)[0].flatten(1) for part in x.split(64)])

    third = features(model, others)
    assert third.shape == (256, 2048)
    want = frechet(features(model, images), third)
    got = frechet(features(fused, images), third)
    assert want > 0
    assert abs(got - want) <= 1e-5 * want
    # That one would be seen: weights off by a thousandth.
    fused.blocks[0][0].conv.weight.mul_(1.001)
    assert abs(frechet(features(fused, images), third) - want) > 1e-5 * want
