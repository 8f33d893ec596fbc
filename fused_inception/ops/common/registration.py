"""Registration of the project's operators with PyTorch, in the namespace `fused_inception`.

`Library.define` and `Library.impl` are used rather than `torch.library.custom_op`: a call costs
about a third. One functional operator stands for one public function; gradients are attached
outside it (see `autograd.py`), autocast is resolved in the Python wrapper, and the implementation
runs below both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fused_inception.ops.common.autocast import without_autocast

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
    guarded = without_autocast(implementation)
    _library.impl(name, guarded, "CompositeExplicitAutograd")  # every device
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    overload: Callable[..., torch.Tensor] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def define_internal(name: str, schema: str) -> Callable[..., Any]:
    """Define `fused_inception::name`, which the compiled extension implements where it is loaded.

    Compilers never meet it: it is called inside the implementation of an operator from `register`.

    Returns:
        The operator, called with positional arguments.
    """
    _library.define(name + schema)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload
