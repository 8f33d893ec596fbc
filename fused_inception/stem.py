"""Lets a network run its first layers as one block, `inception_stem`.

The first layers of Inception V3 are children of the network itself, with no module around them that
`fuse` could replace. So `fuse` gives the network a subclass of its class, whose forward runs the
seven of them as one op, on the folded weights that they have as fused units, and goes on as the
class does. Where one of them would not run fused, or has a hook that would not be called, all are
called one by one as ever; and so they are wherever the user calls them.

Known are the networks of this package and of torchvision. That torchvision's forward is the one
that is known, seven calls in a row on the way from the input, is verified by tracing it.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from fused_inception.blocks import FUSED_BLOCKS, BlockWeights
from fused_inception.folding import HOOKS
from fused_inception.models.inception_v3 import InceptionV3
from fused_inception.recognize import StandIn, calls_in_a_row

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STEM", "STEM_LAYERS", "RunsStem", "fuse_stem", "network_class", "stem_parts"]

# The kind of block, in `FUSED_BLOCKS` and in reports.
STEM = "inception_stem"
_UNIT = "conv2d_act"
_HALVING = {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 0)}


def _conv(stride: int, padding: int) -> dict[str, Any]:
    return {"stride": (stride, stride), "padding": (padding, padding), "activation": "relu"}


# The children in the order of their calls, with what they have to be.
_PARTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("Conv2d_1a_3x3", _UNIT, _conv(2, 0)),
    ("Conv2d_2a_3x3", _UNIT, _conv(1, 0)),
    ("Conv2d_2b_3x3", _UNIT, _conv(1, 1)),
    ("maxpool1", "max_pool2d", _HALVING),
    ("Conv2d_3b_1x1", _UNIT, _conv(1, 0)),
    ("Conv2d_4a_3x3", _UNIT, _conv(1, 0)),
    ("maxpool2", "max_pool2d", _HALVING),
)
STEM_LAYERS = tuple(name for name, _, _ in _PARTS)


def stem_parts(network: nn.Module) -> list[StandIn] | None:
    """The first layers of a known network, if they are fused with the options of the block."""
    parts = []
    for name, kind, options in _PARTS:
        part = network._modules.get(name)
        if not isinstance(part, StandIn) or not _is(part, kind, options):
            return None
        convs = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
        if any(conv.kernel_size != _kernel(name) for conv in convs):
            return None
        parts.append(part)
    return parts


def _is(part: StandIn, kind: str, options: Mapping[str, Any]) -> bool:
    match = part.fused_match
    return match is not None and match.kind == kind and match.options == options


def _kernel(name: str) -> tuple[int, int]:
    # The block pads by half the filter, whatever the padding was.
    return (1, 1) if name == "Conv2d_3b_1x1" else (3, 3)


class RunsStem(nn.Module):
    """What the subclasses have that `fuse_stem` gives to networks."""

    network_class: ClassVar[type[nn.Module]]

    def _run_stem(self, input: Any) -> Tensor | None:
        # None: the layers have to be called one by one.
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for name, kind, options in _PARTS:
            part = self._modules.get(name)
            if not isinstance(part, StandIn) or any(getattr(part, hooks) for hooks in HOOKS):
                return None
            # This looks at a layer that was changed anew, so what it is comes after.
            folded = part.fused_weights_for(input)
            if folded is None or not _is(part, kind, options):
                return None
            if any(weight.shape[2:] != _kernel(name) for weight in folded.weights):
                return None
            weights += folded.weights
            biases += folded.biases
        return FUSED_BLOCKS[STEM].forward(input, BlockWeights(tuple(weights), tuple(biases)))


class InceptionV3RunsStem(RunsStem, InceptionV3):
    """This package's network, with its first layers as one op."""

    network_class = InceptionV3

    def _stem(self, x: Tensor) -> Tensor:
        behind = self._run_stem(x)
        return super()._stem(x) if behind is None else behind


class _BehindStem:
    # Stands for a network in its own forward: its first layers pass on what they get.

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return _pass_on if name in STEM_LAYERS else getattr(self._network, name)


def _pass_on(x: Tensor) -> Tensor:
    return x


_TORCHVISION = ("torchvision.models.inception", "Inception3")
_TORCHVISION_SUBCLASS = "Inception3RunsStem"


@functools.cache
def _torchvision_subclass() -> type[RunsStem]:
    # Made when first needed: torchvision is not a requirement.
    module, name = _TORCHVISION
    base: Any = getattr(importlib.import_module(module), name)

    def _forward(self: RunsStem, x: Tensor) -> Any:
        behind = self._run_stem(x)
        if behind is None:
            return base._forward(self, x)
        return base._forward(_BehindStem(self), behind)

    members = {
        "__doc__": "torchvision's network, with its first layers as one op.",
        "__module__": __name__,
        "network_class": base,
        "_forward": _forward,
    }
    return cast("type[RunsStem]", type(_TORCHVISION_SUBCLASS, (RunsStem, base), members))


def __getattr__(name: str) -> Any:
    # By which pickle finds the class again.
    if name == _TORCHVISION_SUBCLASS:
        return _torchvision_subclass()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def network_class(network: nn.Module) -> type[nn.Module]:
    """The class that a network had before `fuse_stem`."""
    return network.network_class if isinstance(network, RunsStem) else type(network)


def fuse_stem(network: nn.Module) -> bool:
    """Gives a known network, whose first layers are fused units, the class that runs them as one.

    Args:
        network: any module; changed in place.

    Returns:
        Whether it has that class now.
    """
    kind = type(network)
    subclass: type[RunsStem]
    if kind is InceptionV3:
        subclass = InceptionV3RunsStem
    elif (kind.__module__, kind.__qualname__) == _TORCHVISION:
        subclass = _torchvision_subclass()
        if not calls_in_a_row(network, STEM_LAYERS):
            return False
    else:
        return False
    replaced = {"forward", "_forward", "_stem"} & vars(network).keys()
    if replaced or stem_parts(network) is None:
        return False
    network.__class__ = subclass
    return True
