"""Runs the CUDA kernels of `conv2d_act`, `grid_reduction` and `split_conv2d` in the emulator.

Every function returns all channels of the output, NaN where nobody wrote, and the report. An
output's halves or segments go to channel offsets: by default one after the other, each rounded up
to what the kernel may write. `options` go to the program: schedule, seed, races, mutate, weaken,
shared_limit, first_image, input_image_stride; `variant` and `binary` say what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_inception.testing import (
    ConvInputs,
    ConvShape,
    ReductionShape,
    SplitInputs,
    SplitShape,
)
from tests.emulator import maps, programs
from tests.emulator.maps import Configuration, Pair
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import Report

PROGRAM = "convolutions"
OPS = ("conv2d_act", "grid_reduction", "split_conv2d")


def configurations(op: str, channels: int) -> list[Configuration]:
    """The table of `op`, with the shared memory that `channels` channels take."""
    lines = programs.run_lines(programs.build(PROGRAM), list=channels)
    rows = [line.partition(" ") for line in lines]
    return maps.configurations([row for of, _, row in rows if of == op])


class SegmentPlace(NamedTuple):
    """Filters of a product, the output channel where they go, and whether they have a ReLU."""

    size: int
    offset: int
    relu: bool = True

    def __str__(self) -> str:
        return f"{self.size}:{self.offset}:{int(self.relu)}"


def run_conv(
    folder: Path,
    shape: ConvShape,
    inputs: ConvInputs,
    configuration: int,
    *,
    segments: Sequence[SegmentPlace] = (),
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    segments = segments or [SegmentPlace(shape.c_out, 0)]
    return _run(
        folder,
        "conv2d_act",
        inputs.input,
        {"weight": inputs.weight, "bias": inputs.bias},
        shape.kernel,
        shape.stride,
        shape.padding,
        {"segments": ",".join(map(str, segments))},
        max(s.offset + padded(s.size) for s in segments),
        configuration=configuration,
        **options,
    )


def run_reduction(
    folder: Path,
    shape: ReductionShape,
    inputs: ConvInputs,
    configuration: int,
    *,
    pool: str = "max",
    relu: bool = True,
    conv_offset: int = 0,
    pool_offset: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    if pool_offset is None:
        pool_offset = conv_offset + padded(shape.c_out)
    places = {
        "conv": str(SegmentPlace(shape.c_out, conv_offset, relu)),
        "pooled": pool_offset,
        "max": int(pool == "max"),
    }
    return _run(
        folder,
        "grid_reduction",
        inputs.input,
        {"weight": inputs.weight, "bias": inputs.bias},
        (shape.kernel, shape.kernel),
        (2, 2),
        (0, 0),
        places,
        max(conv_offset + padded(shape.c_out), pool_offset + padded(shape.c_in)),
        configuration=configuration,
        **options,
    )


def run_split(
    folder: Path,
    shape: SplitShape,
    inputs: SplitInputs,
    configuration: int,
    *,
    relu: bool = True,
    row_offset: int = 0,
    col_offset: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    if col_offset is None:
        col_offset = row_offset + padded(shape.c_row)
    places = {
        "row": str(SegmentPlace(shape.c_row, row_offset, relu)),
        "col": str(SegmentPlace(shape.c_col, col_offset, relu)),
        "taps_row": shape.taps_row,
        "taps_col": shape.taps_col,
    }
    operands = dict(zip(SplitInputs._fields[1:], inputs[1:], strict=True))
    return _run(
        folder,
        "split_conv2d",
        inputs.input,
        operands,
        (1, 1),
        (1, 1),
        (0, 0),
        places,
        max(row_offset + padded(shape.c_row), col_offset + padded(shape.c_col)),
        configuration=configuration,
        **options,
    )


def _run(
    folder: Path,
    op: str,
    input: torch.Tensor,
    operands: Mapping[str, torch.Tensor | None],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    places: Mapping[str, object],
    channels_needed: int,
    *,
    out_channels: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    channels = padded(input.shape[1])
    files = {"input": channels_last(input, channels)}
    for name, tensor in operands.items():
        if tensor is not None:
            files[name] = channels_last(tensor, channels) if tensor.dim() == 4 else tensor
    return maps.run_map(
        PROGRAM,
        folder,
        input,
        files,
        kernel,
        stride,
        padding,
        out_channels or channels_needed,
        op=op,
        channels=channels,
        **places,
        **options,
    )
