"""Registration of the project's operators with PyTorch, in the namespace `fused_inception`.

`Library.define` and `Library.impl` are used rather than `torch.library.custom_op`: a call costs
about a third. One functional operator stands for one public function; gradients are attached
outside it (see `autograd.py`), autocast is resolved in the Python wrapper, and the implementation
runs below both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

NAMESPACE = "fused_inception"
_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    name: str,
    schema: str,
    implementation: Callable[..., torch.Tensor],
    fake: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    """Define `fused_inception::name` with one implementation for every device.

    The tag `needs_exact_strides` keeps compilers from changing the strides of an input between
    tracing and running.

    Returns:
        The operator, called with positional arguments.
    """
    _library.define(
        name + schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
    )
    guarded = _without_autocast(implementation)
    _library.impl(name, guarded, "CompositeExplicitAutograd")  # every device
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    overload: Callable[..., torch.Tensor] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def _without_autocast(implementation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`implementation` with autocast off, so that it returns the dtype which the fake promises."""

    @functools.wraps(implementation)
    def call(input: torch.Tensor, *args: object) -> torch.Tensor:
        device_type = input.device.type
        if autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return implementation(input, *args)
        return implementation(input, *args)

    return call


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
