"""Runs the CUDA kernels of `factorized_conv2d` in the emulator on operands of `testing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fused_inception.testing import PairInputs, PairShape
from tests.emulator import programs
from tests.emulator.programs import HOOKED, Report, Variant

PROGRAM = "factorized_conv2d"
CHANNEL_MULTIPLE = 8


def padded(channels: int) -> int:
    return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def _channels_last(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, C, H, W) as a dense (N, H, W, channels), zero past C."""
    out = tensor.new_zeros(tensor.shape[0], *tensor.shape[2:], channels)
    out[..., : tensor.shape[1]] = tensor.permute(0, 2, 3, 1)
    return out


def run_pair(
    folder: Path,
    shape: PairShape,
    inputs: PairInputs,
    configuration: int,
    *,
    mid_relu: bool = True,
    relu: bool = True,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    """One run; the output as (N, Cout, H, W), NaN where nobody wrote.

    `options` go to the program: schedule, seed, races, mutate, weaken, shared_limit.
    """
    dtype = inputs.input.dtype
    c_in, c_mid, c_out = (padded(c) for c in (shape.c_in, shape.c_mid, shape.c_out))
    operands = {
        "input": _channels_last(inputs.input, c_in),
        "weight1": _channels_last(inputs.weight1, c_in),
        "bias1": inputs.bias1,
        "weight2": _channels_last(inputs.weight2, c_mid),
        "bias2": inputs.bias2,
    }
    arguments: dict[str, Any] = {
        name: programs.save(tensor, folder / name)
        for name, tensor in operands.items()
        if tensor is not None
    }
    row, column = shape.height, shape.width
    cross, line = (column, row) if shape.row_first else (row, column)
    for name, channels in (("input", c_in), ("output", c_out)):
        strides = (column * channels, channels)
        arguments[f"{name}_image_stride"] = row * column * channels
        arguments[f"{name}_line_stride"], arguments[f"{name}_cross_stride"] = (
            strides if shape.row_first else strides[::-1]
        )
    output = folder / "output"
    report = programs.run(
        binary or programs.build(PROGRAM, variant),
        **arguments,
        output=output,
        output_bytes=2 * shape.batch * row * column * c_out,
        configuration=configuration,
        dtype=str(dtype).removeprefix("torch."),
        num_images=shape.batch,
        cross_size=cross,
        line_size=line,
        c_in=shape.c_in if shape.c_in % CHANNEL_MULTIPLE == 0 else c_in,
        filters1=shape.c_mid,
        filters2=shape.c_out,
        taps1=shape.taps1,
        taps2=shape.taps2,
        mid_relu=int(mid_relu),
        relu=int(relu),
        **options,
    )
    if report.refused:
        return torch.empty(0, dtype=dtype), report
    result = programs.load(output, dtype).view(shape.batch, row, column, c_out)
    return result[..., : shape.c_out].permute(0, 3, 1, 2), report
