"""The probe of what the kernel on wgmma could do otherwise, in the emulator: the ways are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator import programs
from tests.emulator.probe import LOADS, PRODUCTS, PROGRAM, parities, parity, run_probe

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)


@pytest.mark.parametrize("way", LOADS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_way_brings_all_filters(way: str, repeats: int, tmp_path: Path):
    read, report = run_probe(tmp_path, way, programs.build(PROGRAM), 128, repeats)
    assert report.fault == ""
    assert parities(read) == [parity(128, repeats)] * 2
    assert parity(128, repeats) != 0


@pytest.mark.parametrize("way", PRODUCTS)
def test_the_products_run(way: str, tmp_path: Path):
    read, report = run_probe(tmp_path, way, programs.build(PROGRAM), 32, 3)
    assert report.fault == ""
    assert not read.any()
