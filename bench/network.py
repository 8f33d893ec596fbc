"""Inception V3 through `fuse`, whole and block by block.

    python -m bench.network --quick

A block that `fuse` learns to replace joins by itself: the rows are the blocks that its report
lists. Weights are random and drawn so that activations keep their scale from layer to layer.
"""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench import harness, peers
from bench.harness import Case, Subject
from fused_inception import fuse, report, testing
from fused_inception.models import inception_v3
from fused_inception.models.inception_v3 import InceptionV3
from fused_inception.stem import STEM, STEM_LAYERS

NAME = "network"
FIRST_LAYERS = "stem"
IMAGE_SIZE = 299
# float32 is measured where its target stands.
OTHER_DTYPES_BATCHES = (32, 64)


@functools.cache
def reference_network() -> InceptionV3:
    """The network in float32 on the CPU, in channels_last; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = inception_v3(aux_logits=False, init_weights=False)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.1)
    # Cast: the annotations of `to` do not know memory formats.
    return cast("Any", model.eval()).to(memory_format=torch.channels_last)


class FirstLayers(nn.Module):
    """The layers in front of a network's first block, which have no module of their own."""

    def __init__(self, network: InceptionV3) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 192, P, Q)."""
        return self.network._stem(images)

    def drop_the_rest(self) -> None:
        """Leave only what runs, so that only its parameters count."""
        for name, _ in list(self.network.named_children()):
            if name not in STEM_LAYERS:
                delattr(self.network, name)


@functools.cache
def fused_blocks() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of a block that `fuse` replaces -> its kind and the shape of its input, one image.

    A convolution that is replaced by itself is a row of its own bench, a pool or the last layer is
    too small a part for a row.
    """
    model = reference_network()
    found = report(fuse(model)).replaced
    replaced = {name: kind for name, kind in found if kind.startswith("inception_") and name}
    shapes: dict[str, tuple[int, ...]] = {}
    meta = copy.deepcopy(model).to("meta")
    for name in replaced:
        meta.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: shapes.update({name: tuple(args[0].shape[1:])})
        )
    with torch.no_grad():
        meta(torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    first = {FIRST_LAYERS: (STEM, (3, IMAGE_SIZE, IMAGE_SIZE))} if ("", STEM) in found else {}
    return first | {name: (kind, shapes[name]) for name, kind in replaced.items()}


def part(name: str) -> nn.Module:
    """A block of the reference network, its first layers, or by "" all of it."""
    network = reference_network()
    return FirstLayers(network) if name == FIRST_LAYERS else network.get_submodule(name)


def subject(
    block: str, shape: tuple[int, ...], batch: int, dtype: torch.dtype, device: torch.device
) -> Subject:
    """A part of the network, fused against folded."""
    module = part(block)
    plain = copy.deepcopy(module).to(device=device, dtype=dtype)
    images = testing.channels_last(testing.random_tensor((batch, *shape), dtype, device, 1.0, 0))

    def oracle(images: Tensor) -> Tensor:
        exact = copy.deepcopy(plain).to(device="cpu", dtype=torch.float64)
        return exact(images.double().cpu())

    original = cast("Any", copy.deepcopy(module)).to(
        device=device, dtype=torch.float32, memory_format=torch.contiguous_format
    )
    folded, fused = peers.fold(plain), fuse(plain)
    if isinstance(folded, FirstLayers):
        folded.drop_the_rest()
    return Subject(images, {"fused": fused}, {}, folded, original.eval(), oracle)


def cases(batch: int, dtype: str, quick: bool) -> list[Case]:
    """The network, and the blocks that are replaced in it; the network alone for `quick`."""

    def case(op: str, label: str, block: str, shape: tuple[int, ...]) -> Case:
        return Case(
            NAME,
            op,
            label,
            batch,
            dtype,
            lambda dtype, device: subject(block, shape, batch, dtype, device),
        )

    found = [case(NAME, f"{IMAGE_SIZE}x{IMAGE_SIZE}", "", (3, IMAGE_SIZE, IMAGE_SIZE))]
    if not quick:
        for name, (kind, shape) in fused_blocks().items():
            channels, rows, columns = shape
            label = f"{name}-{rows}x{columns}-{channels}"
            found.append(case(kind, label, name, shape))
    return found


if __name__ == "__main__":
    sys.exit(harness.main((NAME,)))
