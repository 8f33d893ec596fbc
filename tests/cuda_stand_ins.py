"""CPU convolutions and pools in the place of the extension's kernels, behind its own checks.

Each function stands for one internal operator: the extension first gets the very operands and may
refuse nothing but their device. Channels past the last filter are filled with
what a kernel may leave there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fused_inception import _extension
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import Device
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.factorized_conv2d import cuda_launch as pair_launch
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.halving_branches import cuda_launch as branches_launch
from fused_inception.ops.pool2d import cuda_launch as pool_launch
from fused_inception.ops.split_conv2d import cuda_launch as split_launch

# The call that is made, with the operator's name, for tests that look at it.
Record = Callable[[str, tuple[Any, ...]], None]
LIMITS = Device(99 * 1024, 84, 6 << 20)


def call(operator: Any, *operands: Any) -> None:
    """The extension's CUDA implementation, whatever the device of the operands."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator.redispatch(keys, *operands)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | None = None,
) -> torch.Tensor:
    """In float64; by default of "same" size."""
    if padding is None:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    operands = (None if t is None else t.double() for t in (input, weight, bias))
    return F.conv2d(*operands, stride=tuple(stride), padding=tuple(padding))


def _fill(place: torch.Tensor, result: torch.Tensor, relu: bool) -> None:
    place[:, : padded(result.shape[1], 8)] = float("nan")
    place[:, : result.shape[1]] = F.relu(result) if relu else result


def _pair(input, weight1, bias1, weight2, bias2, mid, out, offset, mid_relu, relu, number):
    if mid is not None:
        mid.fill_(float("nan"))
    hidden = conv2d(input, weight1, bias1)
    hidden = (F.relu(hidden) if mid_relu else hidden).to(input.dtype)
    result = conv2d(hidden, weight2[:, : weight1.shape[0]], bias2)
    _fill(out[:, offset:], result, relu)


def _split(input, weight_row, bias_row, weight_col, bias_col, row, col, relu, number):
    _fill(row, conv2d(input, weight_row, bias_row), relu)
    _fill(col, conv2d(input, weight_col, bias_col), relu)


def _reduction(input, weight, bias, conv, pooled, max, relu, number):
    _fill(conv, conv2d(input, weight, bias, (2, 2), (0, 0)), relu)
    pool = F.max_pool2d if max else F.avg_pool2d
    _fill(pooled, pool(input.double(), weight.shape[2], 2), False)


def _conv(input, weight, bias, outs, sizes, relus, stride, padding, number):
    parts = conv2d(input, weight, bias, stride, padding).split(list(sizes), 1)
    for i, (out, part) in enumerate(zip(outs, parts, strict=True)):
        _fill(out, part, bool(relus >> i & 1))


def _branches(inputs, weights, biases, outs, input, pooled, number):
    for x, weight, bias, out in zip(inputs, weights, biases, outs, strict=True):
        _fill(out, conv2d(x, weight, bias, (2, 2), (0, 0)), True)
    _fill(pooled, F.max_pool2d(input, weights[0].shape[2], 2), False)


def _pool(input, bias, out, kernel, stride, padding, form, include_pad, relu):
    window = (tuple(kernel), tuple(stride), tuple(padding))
    if form == pool_launch.MAX:
        result = F.max_pool2d(input, *window)
    elif form == pool_launch.AVERAGE:
        result = F.avg_pool2d(input.double(), *window, count_include_pad=include_pad)
    else:
        result = input.double().mean((2, 3), keepdim=True)
    if bias is not None:
        shift = F.pad(bias.double(), (0, input.shape[1] - len(bias)))
        result = result + shift.reshape(1, -1, 1, 1)
    _fill(out, result, relu)


STAND_INS: dict[str, tuple[ModuleType, Callable[..., None]]] = {
    "factorized_conv2d": (pair_launch, _pair),
    "split_conv2d": (split_launch, _split),
    "grid_reduction": (reduction_launch, _reduction),
    "conv2d_act": (conv_launch, _conv),
    "halving_branches": (branches_launch, _branches),
    "pool2d": (pool_launch, _pool),
}


def install(monkeypatch: pytest.MonkeyPatch, record: Record = lambda op, operands: None) -> None:
    """Put the stand-ins in the place of the operators, as on a device with 99 KB a block.

    Skips the test where there is no extension, which has the tables of configurations.
    """
    info = _extension.build_info()
    if not info["loaded"]:
        pytest.skip(f"extension: {info['error']}")

    def checked(op: str, operator: Any, function: Callable[..., None]) -> Callable[..., None]:
        def run(*operands: Any) -> None:
            with pytest.raises(RuntimeError, match="input must be on a CUDA device, got cpu"):
                call(operator, *operands)
            record(op, operands)
            function(*operands)

        return run

    for op, (module, function) in STAND_INS.items():
        stand_in = checked(op, module._out_operator, function)
        monkeypatch.setattr(module, "_out_operator", stand_in)
    monkeypatch.setattr(_extension, "device_refusal", lambda device: None)
    monkeypatch.setattr(pair_launch, "_device", lambda device: LIMITS)
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", False)
    for module in (cuda_launching, split_launch, reduction_launch, conv_launch, branches_launch):
        monkeypatch.setattr(module, "device_limits", lambda device: LIMITS)
