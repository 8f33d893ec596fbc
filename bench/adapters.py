"""The Inceptions of other packages through `fuse`, each as its package makes it.

    python -m bench.adapters --device cpu

Weights are random and drawn so that activations keep their scale from layer to layer. What a row
gives is the pooled features of images in [-1, 1]. The suite is no part of a run of everything: it
takes packages that the others do not need. One that is missing is named, and its rows left out.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import fuse, testing
from fused_inception.cli import networks

NAME = "adapters"
IMAGE_SIZE = 299
# As `compare --model` calls them, and the package of each.
NETWORKS = {
    "timm:inception_v3": "timm",
    "timm:inception_v4": "timm",
    "timm:inception_resnet_v2": "timm",
    "pytorch-fid": "pytorch_fid",
    "torch-fidelity": "torch_fidelity",
}


@functools.cache
def network(name: str) -> nn.Module:
    """A network in float32 on the CPU, in channels_last; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.build(name, features=True)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.1)
    # Cast: the annotations of `to` do not know memory formats.
    return cast("Any", model.requires_grad_(False)).to(memory_format=torch.channels_last)


def subject(name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Subject:
    """A network, fused against folded and against itself as it is."""
    plain = copy.deepcopy(network(name)).to(device=device, dtype=dtype)
    shape = (batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    images = testing.random_tensor(shape, dtype, device, 1.0, 0).clamp(-1, 1)
    original = cast("Any", copy.deepcopy(network(name))).to(
        device=device, dtype=torch.float32, memory_format=torch.contiguous_format
    )

    def oracle(images: Tensor) -> Tensor:
        exact = copy.deepcopy(plain).to(device="cpu", dtype=torch.float64)
        return exact(images.double().cpu())

    return Subject(
        testing.channels_last(images),
        {"fused": fuse(plain)},
        {},
        peers.fold_units(plain),
        original,
        oracle,
    )


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """A row for each network whose package is installed; the first of them for `quick`."""
    found = []
    for name, package in NETWORKS.items():
        missing = [p for p in (package, "torchvision") if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{NAME}: {name} is left out, {missing[0]} is not installed", file=sys.stderr)
            continue
        found.append(
            Case(
                NAME,
                name,
                f"{IMAGE_SIZE}x{IMAGE_SIZE}",
                batch,
                dtype,
                lambda dtype, device, name=name: subject(name, batch, dtype, device),
            )
        )
    return found[:1] if quick else found


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
