"""Runs the CUDA kernels of `halving_branches` in the emulator.

`run_branches` returns all channels of the output, NaN where nobody wrote, and the report; parts
go to channel offsets, by default one after the other. `options` are those of `convolutions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from fused_inception.ops.common.geometry import conv_output_size
from tests.branch_cases import BranchInputs
from tests.emulator import programs
from tests.emulator.convolutions import Configuration, SegmentPlace
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import HOOKED, Report, Variant

PROGRAM = "branches"
OP = "halving_branches"


def configurations() -> list[Configuration]:
    """The table of configurations."""
    lines = programs.run_lines(programs.build(PROGRAM), list=1)
    return [Configuration(name, *map(int, sizes)) for name, *sizes in map(str.split, lines)]


def run_branches(
    folder: Path,
    inputs: BranchInputs,
    configuration: int,
    *,
    offsets: Sequence[int] = (),
    out_channels: int | None = None,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    sizes = [padded(part) for part in part_sizes(inputs)]
    offsets = offsets or [0, *accumulate(sizes[:-1])]
    out_channels = out_channels or max(o + n for o, n in zip(offsets, sizes, strict=True))
    batch, channels, height, width = inputs.input.shape
    kernel = inputs.convs[0].weight.shape[2]
    out_height, out_width = (conv_output_size(size, kernel, 2, 0) for size in (height, width))
    files = {"input": channels_last(inputs.input, padded(channels))}
    arguments: dict[str, Any] = {"channels": padded(channels), "pooled": offsets[-1]}
    for i, (conv, offset) in enumerate(zip(inputs.convs, offsets, strict=False)):
        stored = padded(conv.input.shape[1])
        files[f"input{i}"] = channels_last(conv.input, stored)
        files[f"weight{i}"] = channels_last(conv.weight, stored)
        if conv.bias is not None:
            files[f"bias{i}"] = conv.bias
        arguments[f"channels{i}"] = stored
        arguments[f"place{i}"] = str(SegmentPlace(conv.weight.shape[0], offset))
    output = folder / "output"
    output.unlink(missing_ok=True)
    report = programs.run(
        binary or programs.build(PROGRAM, variant),
        **{name: programs.save(tensor, folder / name) for name, tensor in files.items()},
        **arguments,
        branches=len(inputs.convs),
        configuration=configuration,
        batch=batch,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        rows=kernel,
        columns=kernel,
        step_h=2,
        step_w=2,
        pad_h=0,
        pad_w=0,
        out_channels=out_channels,
        output=output,
        output_bytes=2 * batch * out_height * out_width * out_channels,
        dtype=str(inputs.input.dtype).removeprefix("torch."),
        **options,
    )
    if not output.exists():
        return torch.empty(0, dtype=inputs.input.dtype), report
    result = programs.load(output, inputs.input.dtype)
    return result.view(batch, out_height, out_width, out_channels).permute(0, 3, 1, 2), report


def part_sizes(inputs: BranchInputs) -> list[int]:
    """Channels of each part of the output."""
    return [*(conv.weight.shape[0] for conv in inputs.convs), inputs.input.shape[1]]
