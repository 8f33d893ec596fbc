"""Choice of a backend for one call.

Each op lists its backends, aten last, and a table per device class (`dispatch_table`) says which
come first for which problem. A backend's `can_run(problem)` returns None, or the reason why it
cannot run that problem: the same sentence decides what "auto" skips and words the error of a
backend asked for by name. The choice may look at the op, the per-image shape, the dtype and the
device, never at the batch size, strides or alignment (batch invariance).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fused_inception import _extension

from . import dispatch_table

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Backend:
    """One way to run an op: its name, its predicate and its implementation.

    `run` returns the output, or for a block the function that writes it. `launch`, of backends that
    have kernels, writes into outputs that it is given.
    """

    name: str
    can_run: Callable[[Any], str | None]
    run: Callable[..., Any]
    launch: Callable[..., None] | None = None


def kernels(
    name: str,
    can_run: Callable[[Any], str | None],
    launch: Callable[..., None],
    runs: Callable[[Callable[..., None]], Callable[..., torch.Tensor]],
) -> Backend:
    """A backend with kernels; `runs` makes of its launcher a function that allocates."""
    return Backend(name, can_run, runs(launch), launch)


def aten(run: Callable[..., Any]) -> Backend:
    """PyTorch's own convolutions, which take every problem that passes the op's checks."""
    return Backend("aten", lambda problem: None, run)


def select(
    op: str, backend: str, candidates: tuple[Backend, ...], problem: Any, device: torch.device
) -> Backend:
    """The backend that runs `problem`.

    Raises:
        RuntimeError: a backend was asked for by name and cannot run this problem.
    """
    if backend == "auto":
        if device.type != "cuda":
            return candidates[-1]
        named = {c.name: c for c in candidates}
        names = dispatch_table.order(op, problem, tuple(named))
        return next(named[name] for name in names if named[name].can_run(problem) is None)
    candidate = next(c for c in candidates if c.name == backend)
    reason = candidate.can_run(problem)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {backend!r} cannot run here: {reason}")
    return candidate


@functools.cache
def triton_import_error() -> str | None:
    """Why Triton cannot be used at all, or None where it can."""
    try:
        from . import triton_runtime
    except Exception as error:  # a broken installation can fail with anything
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    return triton_runtime.version_refusal()


def triton_refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no Triton kernel can run on `dtype` and `device`, or None where one can."""
    if dtype not in TRITON_DTYPES:
        return f"dtype {dtype}; takes float32, float16 and bfloat16"
    error = triton_import_error()
    if error is not None:
        return error
    from . import triton_runtime

    if torch.version.hip is not None:
        return "torch is built for ROCm; takes CUDA"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < TRITON_CAPABILITY:
            return f"{device} has compute capability {major}.{minor}; takes 8.0 and later"
    elif device.type != "cpu" or not triton_runtime.INTERPRETING:
        return (
            f"input is on {device}; takes CUDA tensors, or CPU tensors "
            "where TRITON_INTERPRET=1 was set before the first import"
        )
    return None


def batch_invariance_refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why backend "auto" gives results that may depend on the batch, or None where it does not."""
    if device.type != "cuda":
        return f"runs on {device.type} through PyTorch's own kernels, as backend aten"
    reason = triton_refusal(dtype, device)
    return None if reason is None else f"runs as backend aten: {reason}"


def available_backends() -> dict[str, str]:
    """Each backend, and "available" or the reason why it is not.

    Returns:
        A dict with the keys "aten", "triton" and "cuda". "available" says that the backend can run
        on this machine at all; a single call may still be refused, in the words of the error that
        it raises.
    """
    no_device = None if torch.cuda.is_available() else "no CUDA device"
    triton = triton_import_error()
    if triton is None:
        device = torch.device("cpu" if no_device else "cuda")
        triton = triton_refusal(torch.float32, device)
        if triton is not None and no_device is not None:
            triton = (
                f"{no_device} (TRITON_INTERPRET=1, set before the first import, runs it on the CPU)"
            )
    cuda = _extension.build_info()["error"] or no_device
    if cuda is None:
        cuda = _extension.refusal(torch.float16, torch.device("cuda"))
    return {"aten": "available", "triton": triton or "available", "cuda": cuda or "available"}
