"""What the project needs to know of the installed Triton and of the device it compiles for."""

from __future__ import annotations

import functools

import torch
import triton

# Whether `triton.jit` makes interpreted functions: Triton reads the switch when a kernel is
# decorated.
INTERPRETING: bool = bool(triton.knobs.runtime.interpret)

# The interpreter has no multiprocessors; a small number makes its persistent loops run more than
# once.
_INTERPRETED_MULTIPROCESSORS = 3


def version_refusal() -> str | None:
    """Why the installed Triton is too old, or None."""
    major, minor = (int(part) for part in triton.__version__.split(".")[:2])
    if (major, minor) < (3, 6):
        return f"triton {triton.__version__} is installed; takes 3.6 and later"
    return None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of `device`."""
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
