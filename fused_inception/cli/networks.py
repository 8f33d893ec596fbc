"""Builds the Inception networks of other packages with random weights, and nothing downloaded.

pytorch-fid and torch-fidelity read a file from PyTorch's hub folder when they are made. Here that
folder is a temporary one, and the file holds random weights under the names and shapes that theirs
has. timm makes random weights itself.
"""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fused_inception._errors import first_line
from fused_inception.cli.main import CliError
from fused_inception.models import inception_v3
from fused_inception.models.torchvision_import import import_torchvision

__all__ = ["FidFeatures", "Fidelity", "build", "random_hub_weights"]

# The network of the Fréchet Inception Distance, and the files that its two packages ask for.
_FID_CLASSES = 1008
_FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
)
_TIMM = "timm:"


@contextlib.contextmanager
def random_hub_weights() -> Iterator[None]:
    """Makes pytorch-fid and torch-fidelity find random weights where they look for their own."""
    old = torch.hub.get_dir()
    state = inception_v3(num_classes=_FID_CLASSES, aux_logits=False).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = os.path.join(folder, "checkpoints")
        os.mkdir(checkpoints)
        for name in _FILES:
            torch.save(state, os.path.join(checkpoints, name))
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(old)


class FidFeatures(nn.Module):
    """pytorch-fid's network on images in [-1, 1]; returns the pooled features `(N, 2048)`."""

    def __init__(self) -> None:
        super().__init__()
        module = importlib.import_module("pytorch_fid.inception")
        with random_hub_weights():
            self.network = module.InceptionV3(resize_input=False, normalize_input=False)

    def forward(self, input: Tensor) -> Tensor:
        """Runs it."""
        (features,) = self.network(input)
        return torch.flatten(features, 1)


class Fidelity(nn.Module):
    """torch-fidelity's extractor on images in [-1, 1], which it gets as bytes."""

    def __init__(self, output: str) -> None:
        super().__init__()
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        with random_hub_weights():
            self.network = module.FeatureExtractorInceptionV3("inception-v3-compat", [output])

    def forward(self, input: Tensor) -> Tensor:
        """Returns the pooled features `(N, 2048)` or the logits `(N, 1008)`, in float32."""
        self.network.feature_extractor_internal_dtype = input.dtype
        pixels = ((input.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        output: Tensor = self.network(pixels)[0]
        return output


def build(name: str, features: bool) -> nn.Module:
    """Builds a network of another package in evaluation mode.

    Args:
        name: "timm:<name>", "pytorch-fid" or "torch-fidelity".
        features: whether it returns the pooled features, not the logits.

    Returns:
        A module from `(N, 3, H, W)` in [-1, 1] to `(N, C)`.

    Raises:
        CliError: timm has no such network, or pytorch-fid is asked for logits.
        ImportError: the package is missing.
    """
    import_torchvision()
    if name == "torch-fidelity":
        return Fidelity("2048" if features else "logits_unbiased").eval()
    if name == "pytorch-fid":
        if not features:
            raise CliError("--model pytorch-fid has no logits, takes --features")
        return FidFeatures().eval()
    timm: Any = importlib.import_module("timm")
    wanted = name.removeprefix(_TIMM)
    options = {"num_classes": 0} if features else {}
    try:
        model: nn.Module = timm.create_model(wanted, pretrained=False, **options)
    except Exception as error:  # timm raises RuntimeError for names, and anything for options
        raise CliError(f"--model {name} cannot be made: {first_line(error)}") from error
    return model.eval()
