"""Runs the CUDA kernels of `factorized_conv2d` in the emulator on operands of `testing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fused_inception.testing import PairInputs, PairShape
from tests.emulator import maps, programs
from tests.emulator.maps import Configuration
from tests.emulator.programs import HOOKED, Report, Variant

PROGRAM = "factorized_conv2d"
CHANNEL_MULTIPLE = 8


def padded(channels: int) -> int:
    return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def channels_last(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, C, H, W) as a dense (N, H, W, channels), zero past C."""
    out = tensor.new_zeros(tensor.shape[0], *tensor.shape[2:], channels)
    out[..., : tensor.shape[1]] = tensor.permute(0, 2, 3, 1)
    return out


def configurations(c_mid: int, binary: Path | None = None) -> list[Configuration]:
    """The tables, with the shared memory that `c_mid` channels take.

    That of sm_90a is for maps of 17x17, 7 taps and as many input channels.
    """
    lines = programs.run_lines(binary or programs.build("configurations"), c_mid=c_mid)
    return maps.configurations(lines)


def run_pair(
    folder: Path,
    shape: PairShape,
    inputs: PairInputs,
    configuration: int,
    *,
    mid_relu: bool = True,
    relu: bool = True,
    first_image: int = 0,
    channel_offset: int = 0,
    out_channels: int | None = None,
    input_image_stride: int | None = None,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    """One run on the images from `first_image` on.

    The output is (N, out_channels, H, W), by default Cout rounded up to what the kernel may write,
    and NaN where nobody wrote. `options` go to the program: schedule, seed, races, mutate, weaken,
    shared_limit, multiprocessors.
    """
    dtype = inputs.input.dtype
    c_in, c_mid, c_out = (padded(c) for c in (shape.c_in, shape.c_mid, shape.c_out))
    out_channels = out_channels or c_out
    operands = {
        "input": channels_last(inputs.input, c_in),
        "weight1": channels_last(inputs.weight1, c_in),
        "bias1": inputs.bias1,
        "weight2": channels_last(inputs.weight2, c_mid),
        "bias2": inputs.bias2,
    }
    rows, columns = shape.height, shape.width
    strides: dict[str, int] = {}
    for name, channels in (("input", c_in), ("output", out_channels)):
        row, pixel = columns * channels, channels
        strides[f"{name}_image_stride"] = rows * row
        strides[f"{name}_cross_stride"] = pixel if shape.row_first else row
        strides[f"{name}_line_stride"] = row if shape.row_first else pixel
    strides["input_image_stride"] = input_image_stride or strides["input_image_stride"]
    output = folder / "output"
    report = programs.run(
        binary or programs.build(PROGRAM, variant),
        **{k: programs.save(v, folder / k) for k, v in operands.items() if v is not None},
        **strides,
        output=output,
        output_bytes=2 * shape.batch * rows * columns * out_channels,
        channel_offset=channel_offset,
        configuration=configuration,
        dtype=str(dtype).removeprefix("torch."),
        batch=shape.batch,
        first_image=first_image,
        num_images=shape.batch - first_image,
        cross_size=columns if shape.row_first else rows,
        line_size=rows if shape.row_first else columns,
        c_in=c_in,
        filters1=shape.c_mid,
        filters2=shape.c_out,
        taps1=shape.taps1,
        taps2=shape.taps2,
        mid_relu=int(mid_relu),
        relu=int(relu),
        **options,
    )
    if not output.exists():
        return torch.empty(0, dtype=dtype), report
    result = programs.load(output, dtype).view(shape.batch, rows, columns, out_channels)
    return result.permute(0, 3, 1, 2), report
