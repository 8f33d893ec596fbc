"""The pools in the compiled extension: what they take, and the launches.

No pool has a matrix product, so float32 is taken too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fused_inception import _extension
from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.cuda_launching import (
    CHANNEL_MULTIPLE,
    channel_refusal,
    destinations,
)
from fused_inception.ops.common.launching import dense_bias, operand, size_refusal
from fused_inception.ops.common.registration import define_internal

if TYPE_CHECKING:
    from .op import Problem

# The rows of kPool2dForms in csrc/pool2d/configuration.h.
MAX, AVERAGE, GLOBAL_AVERAGE = range(3)
DTYPES = (torch.float32, *_extension.DTYPES)

_out_operator = define_internal(
    "_pool2d_cuda_out",
    "(Tensor input, Tensor? bias, Tensor(a!) out, int[] kernel, int[] stride, int[] padding, "
    "int form, bool include_pad, bool relu) -> ()",
)


def can_run(problem: Problem) -> str | None:
    """Why the extension cannot run `problem`, or None where it can; see `Backend`."""
    p = problem
    if p.dtype not in DTYPES:
        return f"dtype {p.dtype}; takes float32, float16 and bfloat16"
    return (
        size_refusal(p.height + 2 * p.padding[0], p.width + 2 * p.padding[1])
        or channel_refusal(p.channels)
        or _extension.device_refusal(p.device)
    )


def _launch(
    form: int,
    p: Problem,
    input: torch.Tensor,
    output: torch.Tensor,
    bias: torch.Tensor | None = None,
    include_pad: bool = True,
    relu: bool = False,
) -> None:
    if p.batch == 0:
        return
    x = operand(input, padded(p.channels, CHANNEL_MULTIPLE))
    with destinations(output) as (place,):
        _out_operator(
            x, dense_bias(bias), place, p.kernel, p.stride, p.padding, form, include_pad, relu
        )


def launch_max_pool(problem: Problem, input: torch.Tensor, output: torch.Tensor) -> None:
    """Write the largest of every window into `output`, as `launch.launch_max_pool`."""
    _launch(MAX, problem, input, output)


def launch_avg_pool_act(
    problem: Problem,
    input: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    include_pad: bool,
) -> None:
    """Write relu(mean of every window + bias) into `output`, as `launch.launch_avg_pool_act`."""
    _launch(AVERAGE, problem, input, output, bias, include_pad, relu=True)


def launch_global_avg_pool(problem: Problem, input: torch.Tensor, output: torch.Tensor) -> None:
    """Write the mean of every map into `output`, as `launch.launch_global_avg_pool`."""
    _launch(GLOBAL_AVERAGE, problem, input, output)
