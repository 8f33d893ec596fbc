"""Autocast: resolved once, in the public function, and off below it.

The tensors of a call are cast in the Python wrapper, outside the operator and outside its gradient,
so that gradients arrive in the parameters' own dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; PyTorch refuses the question for meta."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def autocast(input: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors in the autocast dtype of the input's device, where autocast is on there.

    As in PyTorch's own autocast, float64 and integer tensors stay as they are.
    """
    tensors = (input, *others)
    device_type = input.device.type
    if not autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def without_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` with autocast off for the device of its first tensor.

    An operator then returns the dtype that its fake promises, and a backward recomputes in the
    dtype of the forward, also where autocast is on around them.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        first = args[0]  # or a gradient's context, before the gradient
        tensor: torch.Tensor = first if isinstance(first, torch.Tensor) else args[1]
        device_type = tensor.device.type
        if autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return function(*args)
        return function(*args)

    return call
