"""Calls of a block with all sizes filled in, and the last of them kept for the next.

A call is kept only where it runs from packed weights, that is where the owner of the weights counts
on writes to them being counted: then everything that a call depends on can be compared in a few
microseconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fused_inception.ops.common import packed_weights
from fused_inception.ops.common.autograd import wants_grad
from fused_inception.ops.common.geometry import empty_channels_last

# Runs the steps on an input and writes an output.
Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_Tensors: TypeAlias = Sequence[Tensor | None]


class PreparedCall:
    """A block on inputs of one shape.

    Args:
        output_shape: of the whole batch.
        images: how many go through all steps at a time.
        functions: for every number of images that this gives.
    """

    def __init__(
        self,
        output_shape: tuple[int, int, int, int],
        images: int,
        functions: Mapping[int, Function],
    ) -> None:
        self._output_shape = output_shape
        self._images = images
        self._functions = functions

    def __call__(self, input: Tensor) -> Tensor:
        output = empty_channels_last(self._output_shape, input)
        if self._images >= input.shape[0]:
            return self._functions[input.shape[0]](input, output)
        parts = zip(input.split(self._images), output.split(self._images), strict=True)
        for x, place in parts:
            self._functions[x.shape[0]](x, place)
        return output


class _Kept:
    def __init__(
        self,
        call: PreparedCall,
        key: tuple[Any, ...],
        weights: tuple[weakref.ref[Tensor], ...],
        biases: _Tensors,
        states: list[tuple[int, int]],
    ) -> None:
        self.call, self.key = call, key
        # The call holds the biases anyway; the weights are let go of with their owner.
        self.weights, self.biases, self.states = weights, tuple(biases), states

    def serves(self, key: tuple[Any, ...], weights: Sequence[Tensor], biases: _Tensors) -> bool:
        return (
            self.key == key
            and len(self.weights) == len(weights)
            and len(self.biases) == len(biases)
            and all(map(is_, [ref() for ref in self.weights], weights))
            and all(map(is_, self.biases, biases))
            and _states(weights, biases) == self.states
        )


def _states(weights: Sequence[Tensor], biases: _Tensors) -> list[tuple[int, int]]:
    return [packed_weights.state(t) for t in (*weights, *biases) if t is not None]


def _key(input: Tensor, options: tuple[Any, ...]) -> tuple[Any, ...]:
    enabled = torch.backends.mkldnn.enabled
    return (input.shape, input.dtype, input.device, options, torch.get_num_threads(), enabled)


class PreparedCalls:
    """The last call of a block with each set of weights, found by the first of them."""

    def __init__(self) -> None:
        # By the identity of a weight that is alive.
        self._kept: dict[int, _Kept] = {}

    def find(
        self, input: Tensor, weights: Sequence[Tensor], biases: _Tensors, options: tuple[Any, ...]
    ) -> PreparedCall | None:
        """The kept call, if this one is the same but for the numbers in the input."""
        kept = self._kept.get(id(weights[0])) if weights else None
        if kept is None or wants_grad(input, *weights, *biases):
            return None
        return kept.call if kept.serves(_key(input, options), weights, biases) else None

    def keep(
        self,
        call: PreparedCall,
        input: Tensor,
        weights: Sequence[Tensor],
        biases: _Tensors,
        options: tuple[Any, ...],
    ) -> None:
        """Keep a call, which does not hold the weights, in place of the last one with them."""
        number = id(weights[0])
        self._kept[number] = _Kept(
            call,
            _key(input, options),
            (
                weakref.ref(weights[0], lambda _: self._kept.pop(number, None)),
                *map(weakref.ref, weights[1:]),
            ),
            biases,
            _states(weights, biases),
        )
