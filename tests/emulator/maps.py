"""Runs a program of the emulator that takes maps and writes one: what all but the pair's share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_inception.ops.common.geometry import conv_output_size
from tests.emulator import programs
from tests.emulator.programs import HOOKED, Report, Variant

Pair = tuple[int, int]


class Configuration(NamedTuple):
    """A row of a table in csrc/<op>/configuration.h, those of sm_90a last."""

    name: str
    threads: int
    min_blocks: int  # resident on a multiprocessor, by registers
    shared_bytes: int

    @property
    def bands(self) -> bool:
        """Of the pair: one launch for both factors."""
        return self.name.startswith("bands")

    @property
    def sm90(self) -> bool:
        return self.name.startswith("sm90")


def configurations(lines: list[str]) -> list[Configuration]:
    """The rows that a program has printed."""
    return [Configuration(name, *map(int, sizes)) for name, *sizes in map(str.split, lines)]


def run_map(
    program: str,
    folder: Path,
    input: torch.Tensor,
    files: Mapping[str, torch.Tensor],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    out_channels: int,
    *,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, Report]:
    """All channels of the output, NaN where nobody wrote, and the report.

    Args:
        program: its name.
        folder: for the files.
        input: (N, C, H, W), whose map, dtype and batch count.
        files: every tensor as the program reads it.
        kernel, stride, padding: of what looks at the map.
        out_channels: of the output.
        variant, binary: what runs.
        arguments: to the program, as they are.
    """
    batch, _, height, width = input.shape
    out_height, out_width = (
        conv_output_size(size, taps, step, pad)
        for size, taps, step, pad in zip((height, width), kernel, stride, padding, strict=True)
    )
    output = folder / "output"
    output.unlink(missing_ok=True)
    report = programs.run(
        binary or programs.build(program, variant),
        **{name: programs.save(tensor, folder / name) for name, tensor in files.items()},
        batch=batch,
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
        **arguments,
    )
    if not output.exists():
        return torch.empty(0, dtype=input.dtype), report
    result = programs.load(output, input.dtype).view(batch, out_height, out_width, out_channels)
    return result.permute(0, 3, 1, 2), report
