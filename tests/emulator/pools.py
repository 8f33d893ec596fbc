"""Runs the CUDA kernels of the pools in the emulator.

`run_pool` returns all channels of the output, NaN where nobody wrote, and the report; `options` are
those of `convolutions.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.emulator import maps, programs
from tests.emulator.maps import Configuration, Pair
from tests.emulator.pair import channels_last, padded
from tests.emulator.programs import Report

PROGRAM = "pools"
OP = "pool2d"


def configurations() -> list[Configuration]:
    """The table of forms."""
    return maps.configurations(programs.run_lines(programs.build(PROGRAM), list=1))


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
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    channels = input.shape[1]
    stored = padded(channels)
    files = {"input": channels_last(input, stored)}
    if bias is not None:
        files["bias"] = bias
    return maps.run_map(
        PROGRAM,
        folder,
        input,
        files,
        kernel,
        stride,
        padding,
        out_channels or offset + stored,
        form=form,
        channels=stored,
        biased=channels,
        include_pad=int(include_pad),
        relu=int(relu),
        offset=offset,
        **options,
    )
