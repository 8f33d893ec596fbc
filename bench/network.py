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

NAME = "network"
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


@functools.cache
def fused_blocks() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of a block that `fuse` replaces -> its kind and the shape of its input, one image.

    A convolution that is replaced by itself is a row of its own bench, a pool or the last layer is
    too small a part for a row.
    """
    model = reference_network()
    found = report(fuse(model)).replaced
    replaced = {name: kind for name, kind in found if kind.startswith("inception_")}
    shapes: dict[str, tuple[int, ...]] = {}
    meta = copy.deepcopy(model).to("meta")
    for name in replaced:
        meta.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: shapes.update({name: tuple(args[0].shape[1:])})
        )
    with torch.no_grad():
        meta(torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    return {name: (kind, shapes[name]) for name, kind in replaced.items()}


def subject(
    block: str, shape: tuple[int, ...], batch: int, dtype: torch.dtype, device: torch.device
) -> Subject:
    """A block by its name, or the network by "", fused against folded."""
    module = reference_network().get_submodule(block)
    plain = copy.deepcopy(module).to(device=device, dtype=dtype)
    images = testing.channels_last(testing.random_tensor((batch, *shape), dtype, device, 1.0, 0))

    def oracle(images: Tensor) -> Tensor:
        exact = copy.deepcopy(plain).to(device="cpu", dtype=torch.float64)
        return exact(images.double().cpu())

    original = cast("Any", copy.deepcopy(module)).to(
        device=device, dtype=torch.float32, memory_format=torch.contiguous_format
    )
    return Subject(images, {"fused": fuse(plain)}, {}, peers.fold(plain), original.eval(), oracle)


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
