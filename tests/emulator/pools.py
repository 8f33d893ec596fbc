"""Runs the CUDA kernels of the pools in the emulator.

`run_pool` returns all channels of the output, NaN where nobody wrote, and the report; `options` are
those of `convolutions.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fused_inception.ops.common.geometry import conv_output_size
from tests.emulator import programs
from tests.emulator.convolutions import Configuration
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import HOOKED, Report, Variant

PROGRAM = "pools"
OP = "pool2d"

Pair = tuple[int, int]


def configurations() -> list[Configuration]:
    """The table of forms."""
    lines = programs.run_lines(programs.build(PROGRAM), list=1)
    return [Configuration(name, *map(int, sizes)) for name, *sizes in map(str.split, lines)]


def run_pool(
    folder: Path,
    form: int,
    input: torch.Tensor,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    *,
    bias: torch.Tensor | None = None,
    include_pad: bool = True,
    relu: bool = False,
    offset: int = 0,
    out_channels: int | None = None,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    batch, channels, height, width = input.shape
    stored = padded(channels)
    out_height, out_width = (
        conv_output_size(size, taps, step, pad)
        for size, taps, step, pad in zip((height, width), kernel, stride, padding, strict=True)
    )
    out_channels = out_channels or offset + stored
    if bias is not None:
        options["bias"] = programs.save(bias, folder / "bias")
    output = folder / "output"
    output.unlink(missing_ok=True)
    report = programs.run(
        binary or programs.build(PROGRAM, variant),
        form=form,
        input=programs.save(channels_last(input, stored), folder / "input"),
        biased=channels,
        include_pad=int(include_pad),
        relu=int(relu),
        offset=offset,
        batch=batch,
        channels=stored,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        rows=kernel[0],
        columns=kernel[1],
        step_h=stride[0],
        step_w=stride[1],
        pad_h=padding[0],
        pad_w=padding[1],
        out_channels=out_channels,
        output=output,
        output_bytes=input.element_size() * batch * out_height * out_width * out_channels,
        dtype=str(input.dtype).removeprefix("torch."),
        **options,
    )
    if not output.exists():
        return torch.empty(0, dtype=input.dtype), report
    result = programs.load(output, input.dtype).view(batch, out_height, out_width, out_channels)
    return result.permute(0, 3, 1, 2), report
