"""`fuse` on torch-fidelity's extractor: bytes in, resized as TensorFlow 1 does; float64."""

import torch

from fused_inception.fuse import fuse
from tests.adapter_cases import pixels, torch_fidelity
from tests.adapter_properties import AdapterProperties, assert_agree
from tests.test_fuse import randomize


class TestTorchFidelity(AdapterProperties):
    names = ("torch-fidelity",)
    one = "torch-fidelity"
    converts = False  # it casts its input to a dtype of its own: see below


@torch.no_grad()
def test_float64_stays_float64():
    # torch-fidelity 0.4 takes the name "float64" for float32, so it is set by hand.
    model = torch_fidelity("2048").double()
    model.feature_extractor_internal_dtype = torch.float64
    randomize(model)
    fused = fuse(model)
    seen = []
    for net in (model, fused):
        net.AvgPool.register_forward_hook(lambda module, args, output: seen.append(output))
        net(pixels((32, 32)))
    want, got = seen
    assert want.dtype is torch.float64
    assert_agree([got], [want], 1e-12)
