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

from tests.branch_cases import BranchInputs
from tests.emulator import maps, programs
from tests.emulator.convolutions import SegmentPlace
from tests.emulator.maps import Configuration
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import Report

PROGRAM = "branches"
OP = "halving_branches"


def configurations() -> list[Configuration]:
    """The table of configurations."""
    return maps.configurations(programs.run_lines(programs.build(PROGRAM), list=1))


def run_branches(
    folder: Path,
    inputs: BranchInputs,
    configuration: int,
    *,
    offsets: Sequence[int] = (),
    out_channels: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    sizes = [padded(part) for part in part_sizes(inputs)]
    offsets = offsets or [0, *accumulate(sizes[:-1])]
    out_channels = out_channels or max(o + n for o, n in zip(offsets, sizes, strict=True))
    channels = inputs.input.shape[1]
    kernel = inputs.convs[0].weight.shape[2]
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
    return maps.run_map(
        PROGRAM,
        folder,
        inputs.input,
        files,
        (kernel, kernel),
        (2, 2),
        (0, 0),
        out_channels,
        branches=len(inputs.convs),
        configuration=configuration,
        **arguments,
        **options,
    )


def part_sizes(inputs: BranchInputs) -> list[int]:
    """Channels of each part of the output."""
    return [*(conv.weight.shape[0] for conv in inputs.convs), inputs.input.shape[1]]
