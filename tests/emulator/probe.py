"""Operands of `probe_sm90.cpp`, and its ways to do one thing."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import torch

from tests.emulator import programs
from tests.emulator.programs import Report

PROGRAM = "probe_sm90"
FILTERS, STEP = 192, 32
LOADS = ("cp_async", "rows_of_16", "rows_of_64", "packed", "multicast")
PRODUCTS = ("filters_as_rows", "pixels_as_rows")


def _weight(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    values = torch.randint(-(2**15), 2**15, (FILTERS, channels), generator=generator)
    return values.to(torch.int16)


def run_probe(
    folder: Path, way: str, binary: Path, channels: int, repeats: int
) -> tuple[torch.Tensor, Report]:
    """What the threads have read, (blocks, threads), and the report."""
    weight = _weight(channels)
    pieces = weight.view(FILTERS, channels // STEP, STEP // 8, 8)
    report = programs.run(
        binary,
        way=way,
        weight=programs.save(weight, folder / "weight"),
        packed=programs.save(pieces.permute(1, 2, 0, 3), folder / "packed"),
        output=folder / "output",
        channels=channels,
        repeats=repeats,
    )
    if report.fault:
        return torch.empty(0, dtype=torch.int32), report
    return programs.load(folder / "output", torch.int32).view(report.blocks, -1), report


def parity(channels: int, repeats: int) -> int:
    """All words of the filters by exclusive or, as often as they are loaded."""
    words = _weight(channels).view(torch.int32).flatten().tolist()
    return functools.reduce(operator.xor, words) if repeats % 2 else 0


def parities(read: torch.Tensor) -> list[int]:
    """The same of what each block has read."""
    return [functools.reduce(operator.xor, block) for block in read.tolist()]
