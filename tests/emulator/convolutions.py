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

from fused_inception.ops.common.geometry import conv_output_size
from fused_inception.testing import (
    ConvInputs,
    ConvShape,
    ReductionShape,
    SplitInputs,
    SplitShape,
)
from tests.emulator import programs
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import HOOKED, Report, Variant

PROGRAM = "convolutions"
OPS = ("conv2d_act", "grid_reduction", "split_conv2d")


class Configuration(NamedTuple):
    """A row of the tables in csrc/<op>/configuration.h, those of sm_90a last."""

    name: str
    threads: int
    min_blocks: int  # resident on a multiprocessor, by registers
    shared_bytes: int

    @property
    def sm90(self) -> bool:
        return self.name.startswith("sm90")


def configurations(op: str, channels: int) -> list[Configuration]:
    """The table of `op`, with the shared memory that `channels` channels take."""
    lines = programs.run_lines(programs.build(PROGRAM), list=channels)
    rows = [line.split() for line in lines]
    return [Configuration(name, *map(int, sizes)) for of, name, *sizes in rows if of == op]


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
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    places: Mapping[str, object],
    channels_needed: int,
    *,
    out_channels: int | None = None,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    batch, channels, height, width = input.shape
    channels = padded(channels)
    out_height, out_width = (
        conv_output_size(size, taps, step, pad)
        for size, taps, step, pad in zip((height, width), kernel, stride, padding, strict=True)
    )
    out_channels = out_channels or channels_needed
    files = {"input": channels_last(input, channels)}
    for name, tensor in operands.items():
        if tensor is not None:
            files[name] = channels_last(tensor, channels) if tensor.dim() == 4 else tensor
    output = folder / "output"
    output.unlink(missing_ok=True)
    report = programs.run(
        binary or programs.build(PROGRAM, variant),
        op=op,
        **{name: programs.save(tensor, folder / name) for name, tensor in files.items()},
        **places,
        batch=batch,
        channels=channels,
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
        output_bytes=2 * batch * out_height * out_width * out_channels,
        dtype=str(input.dtype).removeprefix("torch."),
        **options,
    )
    if not output.exists():
        return torch.empty(0, dtype=input.dtype), report
    result = programs.load(output, input.dtype).view(batch, out_height, out_width, out_channels)
    return result.permute(0, 3, 1, 2), report
