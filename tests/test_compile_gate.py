"""The offline compile gate: no spills, shared memory that fits, the expected instruction."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re

import pytest
import triton

import fused_inception.ops
from fused_inception.ops.common import triton_runtime
from fused_inception.ops.factorized_conv2d.configurations import (
    DEFAULT_CLASS,
    DEVICE_CLASSES,
    choose_tile,
    device_class,
    load_table,
)
from tests import compile_gate
from tests.compile_gate import Case

pytestmark = pytest.mark.skipif(
    triton_runtime.INTERPRETING, reason="TRITON_INTERPRET=1 is set: kernels cannot be compiled"
)
CASES = () if triton_runtime.INTERPRETING else tuple(compile_gate.cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gate(case: Case):
    assert compile_gate.faults(case, compile_gate.measure(case)) == []


def jit_kernels() -> set[str]:
    """Names of all kernels: what `triton_kernel.py` files define with `triton.jit`."""
    found = set()
    for module in pkgutil.walk_packages(fused_inception.ops.__path__, "fused_inception.ops."):
        if module.name.rpartition(".")[2].startswith("triton_kernel"):
            loaded = importlib.import_module(module.name)
            found |= {
                name
                for name, value in vars(loaded).items()
                if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
            }
    return found


def test_every_kernel_passes_the_gate():
    assert jit_kernels() == {case.kernel for case in CASES}


def test_the_gate_sees_a_spill():
    """A tile far too large for its threads must be reported, or the gate proves nothing."""
    case = next(c for c in CASES if c.precision == "float32_ieee" and c.device_class == "sm_90")
    tile = dataclasses.replace(case.tile, block_p=128, block_f=128, num_warps=4)
    constants = {**case.constants, "BLOCK_P": 128, "BLOCK_F": 128}
    huge = dataclasses.replace(case, tile=tile, constants=constants)
    assert any("spills" in fault for fault in compile_gate.faults(huge, compile_gate.measure(huge)))


def test_the_gate_sees_a_missing_matrix_instruction():
    """float32_ieee has no tensor core: held against bfloat16's rule, its row must fail."""
    case = next(c for c in CASES if c.precision == "float32_ieee" and c.device_class == "sm_90")
    row = compile_gate.measure(case)
    claimed = dataclasses.replace(case, precision="bfloat16")
    assert any("expected wgmma" in fault for fault in compile_gate.faults(claimed, row))


def test_the_band_kernel_keeps_its_two_barriers():
    """One between the scratch's stores and its loads, one before the scratch is used again."""
    case = next(c for c in CASES if c.kernel == "factorized_conv2d_band_kernel")
    ttir = compile_gate.compile_case(case).asm["ttir"]
    body = [line for line in ttir.splitlines() if "tt.store" in line or "barrier" in line]
    kinds = ["store" if "tt.store" in line else "barrier" for line in body]
    assert kinds == ["store", "barrier", "store", "barrier"]


# The tables themselves.


@pytest.mark.parametrize("name", compile_gate.CLASSES)
def test_a_table_is_complete_and_says_where_it_comes_from(name: str):
    table = load_table(name)
    assert table.device_class == name
    assert set(table.tiles) == set(compile_gate.POINTERS)
    assert all(table.tiles.values())


@pytest.mark.parametrize("name", compile_gate.CLASSES)
def test_tiles_of_one_precision_use_one_instruction_family(name: str):
    """On sm_90 a tile gets wgmma from 64 rows and 4 warps up; others would sum differently."""
    for precision, tiles in load_table(name).tiles.items():
        if precision != "float32_ieee":
            assert all(t.block_p >= 64 and t.num_warps % 4 == 0 for t in tiles)


def test_every_capability_has_a_table():
    assert {device_class(c) for c in DEVICE_CLASSES} <= set(compile_gate.CLASSES)
    assert device_class((99, 0)) == DEFAULT_CLASS


def test_the_default_table_fits_the_smallest_shared_memory():
    smallest = min(load_table(name).shared_memory_bytes for name in compile_gate.CLASSES)
    assert load_table(DEFAULT_CLASS).shared_memory_bytes == smallest


@pytest.mark.parametrize(("channels", "block"), [(192, 64), (128, 64), (160, 32), (3, 32), (8, 32)])
def test_a_tile_is_chosen_for_the_least_padding(channels: int, block: int):
    tiles = load_table("sm_90").tiles["bfloat16"]
    assert choose_tile(tiles, channels, channels, channels, 7, 7).block_k == block


@pytest.mark.parametrize("name", compile_gate.CLASSES)
def test_some_tile_takes_any_channels(name: str):
    for tiles in load_table(name).tiles.values():
        assert not choose_tile(tiles, 3, 5, 7, 3, 3).whole
        assert not choose_tile(tiles, 64, 64, 20, 3, 3).whole
        assert not choose_tile(tiles, 64, 72, 64, 3, 3).whole


def test_ieee_products_are_summed_tap_by_tap():
    """Not as one chain of multiply-adds: the sums of the taps stand in the code as additions."""
    case = next(
        c
        for c in CASES
        if c.kernel == "shifted_conv_kernel" and c.precision == "float32_ieee" and c.even
    )
    ptx = compile_gate.compile_case(case).asm["ptx"]
    values_per_thread = case.tile.block_p * case.tile.block_f // (32 * case.tile.num_warps)
    additions = len(re.findall(r"\badd(?:\.rn)?(?:\.ftz)?\.f32", ptx))
    assert additions >= 2 * values_per_thread  # one for the bias, one for the taps
