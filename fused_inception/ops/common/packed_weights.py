"""Convolution weights in the layout that oneDNN computes from, kept beside the weights themselves.

oneDNN reads the filters in blocks, of sizes that depend on the whole problem: batch, map, stride,
dtype, number of threads. `F.conv2d` therefore reorders plain weights at every call, which for an
Inception network of one image takes as long as a fifth of the forward. Here the reordered copy is
kept for the problem that a weight was last used with. Another problem, such as another batch size,
makes another, which costs what `F.conv2d` spends on every call. (A copy made for another problem
would be right too, but reordering blocks into other blocks takes 20 to 60 times as long as the
convolution.) A kept weight is always used packed: oneDNN has other kernels for blocks than for
plain weights, and a result whose last bits change between one call and the next would be a
surprise.

Only weights that their owner has passed to `keep_packed` have a copy. It is found by the identity
of the weight, so it is part of no state dict, no deep copy, no pickle and no traced program, and it
goes when the weight goes. It is made again when PyTorch has counted a write to the weight; a write
through `.data` is not seen, which is why nobody's own parameters are kept packed.

The operators behind it, `mkldnn::_reorder_convolution_weight` and
`mkldnn::_convolution_pointwise`, are those that the compiler's generated code calls. They are not
public: whether they are there and do what they did in PyTorch 2.11 to 2.13 is tried once for each
dtype, and without them everything runs through `F.conv2d`. The ReLU of `_convolution_pointwise`
turns NaN into 0, and is used only where there can be none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakIdKeyDictionary

from .autograd import wants_grad

_DILATION = (1, 1)


class _Problem(NamedTuple):
    """What a packed copy is good for."""

    input_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    threads: int
    # Of the weight, which is written in place.
    state: tuple[int, int]


class _Kept:
    """The packed copy of one weight; other threads see it whole or not at all."""

    def __init__(self) -> None:
        self.copy: tuple[_Problem, torch.Tensor] | None = None


# Weight -> _Kept.
_kept: Any = WeakIdKeyDictionary()


def keep_packed(weight: torch.Tensor) -> None:
    """Keep a packed copy of `weight`, (K, C, R, S), from its first use on.

    To be called by the owner of a weight that is written only in ways that PyTorch counts. A weight
    that cannot be packed (device, dtype, layout, made in inference mode, this build of PyTorch) is
    left alone; calling it again changes nothing.
    """
    if (
        type(weight) in (torch.Tensor, torch.nn.Parameter)
        and weight.device.type == "cpu"
        and weight.layout is torch.strided
        and not weight.is_inference()  # its writes are not counted
        and weight not in _kept
        and can_pack(weight.dtype)
    ):
        _kept[weight] = _Kept()


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """`F.conv2d` of a channels_last input, from the packed copy of `weight` where there is one.

    The output is channels_last either way.
    """
    # Compilers trace the gradients of the ops, which are made of this too.
    packed = None
    if not (torch.compiler.is_compiling() or input.numel() == 0 or wants_grad(input, weight, bias)):
        packed = packed_for(input.shape, weight, stride, padding)
    if packed is None:
        channels_last = weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(input, channels_last, bias, tuple(stride), tuple(padding))
    return convolution(packed, bias, stride, padding)(input)


def is_packed(weight: torch.Tensor) -> bool:
    """Whether convolutions with `weight` run from a packed copy."""
    return weight in _kept and bool(torch.backends.mkldnn.enabled)


def packed_for(
    shape: Sequence[int], weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]
) -> torch.Tensor | None:
    """The packed copy of `weight` for inputs of a shape (N, C, H, W) with no 0 in it.

    It is good as long as `state` of the weight and the number of threads stay what they are. None
    where the weight is not kept packed.
    """
    kept = _kept.get(weight) if _kept else None
    if kept is None or not torch.backends.mkldnn.enabled:
        return None
    problem = _Problem(
        tuple(shape),
        tuple(stride),
        tuple(padding),
        torch.get_num_threads(),
        state(weight),
    )
    copy = kept.copy
    if copy is not None and copy[0] == problem:
        return copy[1]
    kept.copy = None  # before the next one is made: one copy at a time
    packed = pack(shape, weight, stride, padding)
    kept.copy = (problem, packed)
    return packed


def state(weight: torch.Tensor) -> tuple[int, int]:
    """What changes when PyTorch counts a write to `weight`, or when its memory is another's."""
    return weight.data_ptr(), weight._version


def pack(
    shape: Sequence[int],
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
) -> torch.Tensor:
    """A packed copy of `weight` for inputs of a shape (N, C, H, W), which the caller keeps.

    Only where `can_pack` says so of its dtype.
    """
    packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight.default(
        weight.detach(), padding, stride, _DILATION, groups, shape
    )
    return packed


def convolution(
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
    activation: str = "none",
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The convolution of inputs of the shape that the weight was packed for, in channels_last.

    `activation` may be "relu" where no sum is NaN: oneDNN's turns NaN into 0.
    """
    operator: Any = torch.ops.mkldnn._convolution_pointwise.default
    scalars: list[float] = []
    return lambda x: operator(
        x, packed, bias, padding, stride, _DILATION, groups, activation, scalars, ""
    )


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch convolves from packed weights of `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    stride, padding = (2, 1), (0, 1)
    # Small whole numbers: every sum is exact in every dtype.
    with torch.device("cpu"), torch.no_grad():
        input = torch.arange(2 * 16 * 5 * 6).reshape(2, 16, 5, 6).remainder(7).sub(3).to(dtype)
        weight = torch.arange(32 * 16 * 3 * 3).reshape(32, 16, 3, 3).remainder(11).eq(0).to(dtype)
        input = input.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias = torch.arange(32).to(dtype)
        one_by_one = weight[:16, :1].contiguous(memory_format=torch.channels_last)

        def is_right(weight: torch.Tensor, groups: int) -> bool:
            shift = bias[: weight.shape[0]]
            expected = F.conv2d(input, weight, shift, stride, padding, groups=groups)
            packed = pack(input.shape, weight, stride, padding, groups)
            for activation, wanted in (("none", expected), ("relu", F.relu(expected))):
                out = convolution(packed, shift, stride, padding, groups, activation)(input)
                if not (
                    out.layout is torch.strided
                    and out.is_contiguous(memory_format=torch.channels_last)
                    and torch.equal(out, wanted)
                ):
                    return False
            return True

        try:
            return is_right(weight, 1) and is_right(one_by_one, 16)
        except Exception:  # an operator that is not there, or takes something else
            return False
