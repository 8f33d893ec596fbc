"""Argument checks of the public ops: a message names the argument, what it got and what it takes.

`TypeError` answers a wrong type or dtype, `ValueError` a wrong rank, shape, device or option. The
checks run in the registered implementation and in its fake alike, so eager, compiled and exported
programs refuse the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

OPTIONS = {
    "activation": ("relu", "none"),
    "mid_activation": ("relu", "none"),
    "pool": ("max", "avg"),
    "order": ("row_first", "column_first"),
    "backend": ("auto", "aten", "triton", "cuda"),
}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_TAPS = 31


def check_tensors(op: str, **tensors: object) -> None:
    """Refuse anything but tensors; an argument whose name starts with "bias" may be None."""
    for name, value in tensors.items():
        optional = name.startswith("bias")
        if not (isinstance(value, torch.Tensor) or (optional and value is None)):
            takes = "a Tensor or None" if optional else "a Tensor"
            raise TypeError(f"{op}: {name} must be {takes}, got {type(value).__name__}")


def check_options(op: str, **options: object) -> None:
    """Refuse an option that is not one of its strings."""
    for name, value in options.items():
        if value not in OPTIONS[name]:
            choices = ", ".join(map(repr, OPTIONS[name]))
            raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")


def check_input(op: str, input: torch.Tensor) -> None:
    """Refuse an input that is not a floating-point (N, C, H, W) with C, H and W at least 1."""
    if input.dtype not in DTYPES:
        raise TypeError(
            f"{op}: input must be float64, float32, float16 or bfloat16, got {input.dtype}"
        )
    if input.dim() != 4:
        raise ValueError(
            f"{op}: input must be 4-D (N, C, H, W), got {input.dim()}-D of shape "
            f"{tuple(input.shape)}"
        )
    if input.shape[1] < 1 or input.shape[2] < 1 or input.shape[3] < 1:
        raise ValueError(
            f"{op}: input must have C, H and W of at least 1, got shape {tuple(input.shape)}"
        )


def check_same_kind(op: str, input: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Refuse a weight or bias whose dtype or device differs from the input's."""
    for name, other in others.items():
        if other is None:
            continue
        if other.dtype != input.dtype:
            raise TypeError(
                f"{op}: {name} must have input's dtype {input.dtype}, got {other.dtype}"
            )
        if other.device != input.device:
            raise ValueError(
                f"{op}: {name} must be on input's device {input.device}, got {other.device}"
            )


def check_weight(op: str, name: str, weight: torch.Tensor, in_channels: int, takes: str) -> None:
    """Refuse a weight that is not 4-D, is empty, or does not take `in_channels` channels."""
    if weight.dim() != 4 or weight.numel() == 0:
        raise ValueError(
            f"{op}: {name} must be a non-empty 4-D {takes}, got shape {tuple(weight.shape)}"
        )
    if weight.shape[1] != in_channels:
        raise ValueError(
            f"{op}: {name} must take {in_channels} channels in dimension 1 ({takes}), "
            f"got shape {tuple(weight.shape)}"
        )


def check_bias(op: str, name: str, bias: torch.Tensor | None, channels: int) -> None:
    """Refuse a bias that is not 1-D with one value per filter."""
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise ValueError(
            f"{op}: {name} must be None or of shape ({channels},), got shape {tuple(bias.shape)}"
        )


def check_taps(op: str, name: str, taps: int) -> None:
    """Refuse a one-dimensional filter whose length is even or above 31."""
    if taps % 2 == 0 or taps > MAX_TAPS:
        raise ValueError(
            f"{op}: {name} must have an odd filter length, 1 to {MAX_TAPS}, got {taps}"
        )


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """`value` as (rows, columns): one integer stands for both."""
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if (
        len(values) != 2
        or any(not isinstance(v, int) or isinstance(v, bool) for v in values)
        or any(v < minimum for v in values)
    ):
        raise ValueError(
            f"{op}: {name} must be an integer of at least {minimum} or a pair of them, "
            f"got {value!r}"
        )
    return values[0], values[1]
