"""The offline compile gate: no spills, shared memory that fits, the expected instruction."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
import triton

import fused_inception.ops
from fused_inception.ops.common import triton_runtime
from fused_inception.ops.common.configurations import (
    DEFAULT_CLASS,
    DEVICE_CLASSES,
    Product,
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


def near_a_limit() -> Iterator[Case]:
    """What comes nearest to a limit; `make gate` compiles all.

    float16 has bfloat16's tiles and nearly its code, sm_86 has sm_80's tiles, and IEEE float32 is
    far from every limit but on sm_90. Where channels come in whole blocks, a tile that is as small
    as another in every respect takes no more registers and no more shared memory. Of masked ones
    that holds for the memory alone, so all of them are compiled, but on the classes other than
    sm_90 in bfloat16 only.
    """
    for case in CASES:
        if case.precision == "float16" or case.device_class == "sm_86":
            continue
        if case.device_class != "sm_90" and case.precision == "float32_ieee":
            continue
        every_ragged = case.device_class == "sm_90" or case.precision == "bfloat16"
        if (every_ragged and not case.even) or not any(is_below(case, other) for other in CASES):
            yield case


def is_below(case: Case, other: Case) -> bool:
    def same(c: Case) -> tuple[object, ...]:
        kind = (c.variant.op, c.kernel, c.variant.name, c.device_class, c.precision, c.even)
        return (*kind, c.tile.num_warps, c.tile.max_registers)

    def size(c: Case) -> tuple[int, ...]:
        return (c.tile.block_p, c.tile.block_f, c.tile.block_k, c.tile.num_stages)

    smaller = all(a <= b for a, b in zip(size(case), size(other), strict=True))
    return same(case) == same(other) and smaller and size(case) != size(other)


@pytest.mark.parametrize("case", near_a_limit(), ids=str)
def test_gate(case: Case):
    row = compile_gate.measure(case)
    assert compile_gate.faults(case, row) == []
    if case.device_class == "sm_80":  # whose tiles sm_86 has too
        assert row.shared_memory <= load_table(case.variant.op, "sm_86").shared_memory_bytes


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


@pytest.mark.parametrize("name", compile_gate.CLASSES)
def test_float16_has_the_tiles_of_bfloat16(name: str):
    for op in dict.fromkeys(variant.op for variant in compile_gate.VARIANTS):
        tiles = load_table(op, name).tiles
        assert tiles["float16"] == tiles["bfloat16"]


def test_sm_86_has_the_tiles_of_sm_80():
    for op in dict.fromkeys(variant.op for variant in compile_gate.VARIANTS):
        assert load_table(op, "sm_86").tiles == load_table(op, "sm_80").tiles


def test_every_kernel_passes_the_gate():
    assert jit_kernels() == {case.kernel for case in CASES}


def test_the_gate_sees_a_spill():
    """A tile far too large for its threads must be reported, or the gate proves nothing."""
    case = next(c for c in CASES if c.precision == "float32_ieee" and c.device_class == "sm_90")
    tile = dataclasses.replace(case.tile, block_p=128, block_f=128, num_warps=4)
    constants = {**case.constants, "BLOCK_P": 128, "BLOCK_F": 128}
    huge = dataclasses.replace(case, tile=tile, constants=constants)
    assert any("spills" in fault for fault in compile_gate.faults(huge, compile_gate.measure(huge)))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32_ieee"])
def test_pools_move_16_bytes_at_a_time(precision: str):
    pools = [
        case
        for case in CASES
        if case.variant.op == "pool2d"
        and (case.even, case.precision, case.device_class) == (True, precision, "sm_90")
    ]
    assert len(pools) == 5
    for case in pools:
        ptx = compile_gate.compile_case(case).asm["ptx"]
        assert re.search(r"ld\.global\S*\.v4\.b32", ptx), str(case)


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


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_the_pool_loads_nothing_of_its_own(pool: str):
    """The tile that is pooled is the tile that feeds the matrix unit, loaded ahead once."""
    case = next(
        c
        for c in CASES
        if c.kernel == "grid_reduction_kernel"
        and (c.variant.name, c.device_class, c.precision) == (pool, "sm_90", "bfloat16")
        and c.even
    )
    compiled = compile_gate.compile_case(case)
    ttir = compiled.asm["ttir"]
    assert len(re.findall(r"= tt\.load ", ttir)) == 3  # pixels, filters, bias
    assert len(re.findall(r"= tt\.dot ", ttir)) == 1
    # Two stages of copies in flight: the pool has not broken the pipeline.
    assert "cp.async.wait_group 2" in re.sub(r"\s+", " ", compiled.asm["ptx"])


def test_the_centre_tap_of_a_split_is_loaded_once():
    case = next(c for c in CASES if c.kernel == "split_conv2d_kernel" and c.even)
    ttir = compile_gate.compile_case(case).asm["ttir"]
    # Centre: pixels, two filters. Then pixels and filters of each half, and two biases.
    assert len(re.findall(r"= tt\.load ", ttir)) == 3 + 2 + 2 + 2
    assert len(re.findall(r"= tt\.dot ", ttir)) == 4


# The global pool stores one row a program, a vanishing part of what it reads.
TILE_KERNELS = sorted({case.kernel for case in CASES} - {"global_avg_pool2d_kernel"})


@pytest.mark.parametrize("kernel", TILE_KERNELS)
def test_results_leave_in_whole_vectors(kernel: str):
    """16 bytes at a time where filters come in multiples of 16: masks are known to be constant."""
    many = [c for c in CASES if c.kernel == kernel and c.precision == "bfloat16"]
    case = next((c for c in many if c.even and c.device_class == "sm_90"), None)
    if case is None:  # masked element by element on the way in; results are not
        case = dataclasses.replace(many[0], even=True)
    ptx = compile_gate.compile_case(case).asm["ptx"]
    stores = set(re.findall(r"st\.global\S*", ptx))
    assert stores == {"st.global.v4.b32"}, stores


# The tables themselves.

OPS = tuple(dict.fromkeys(variant.op for variant in compile_gate.VARIANTS))
PRODUCTS = tuple(dict.fromkeys(v.op for v in compile_gate.VARIANTS if v.matrix))
every_table = pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in OPS for name in compile_gate.CLASSES]
)


@every_table
def test_a_table_is_complete_and_says_where_it_comes_from(op: str, name: str):
    table = load_table(op, name)
    assert table.device_class == name
    assert set(table.tiles) == set(compile_gate.POINTERS)
    assert all(table.tiles.values())


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in PRODUCTS for name in compile_gate.CLASSES]
)
def test_tiles_of_one_precision_use_one_instruction_family(op: str, name: str):
    """On sm_90 a tile gets wgmma from 64 rows and 4 warps up; others would sum differently."""
    for precision, tiles in load_table(op, name).tiles.items():
        if precision != "float32_ieee":
            assert all(t.block_p >= 64 and t.num_warps % 4 == 0 for t in tiles)


def test_every_capability_has_a_table():
    assert {device_class(c) for c in DEVICE_CLASSES} <= set(compile_gate.CLASSES)
    assert device_class((99, 0)) == DEFAULT_CLASS


@pytest.mark.parametrize("op", OPS)
def test_the_default_table_fits_the_smallest_shared_memory(op: str):
    smallest = min(load_table(op, name).shared_memory_bytes for name in compile_gate.CLASSES)
    assert load_table(op, DEFAULT_CLASS).shared_memory_bytes == smallest


@pytest.mark.parametrize(("channels", "block"), [(192, 64), (128, 64), (160, 32), (3, 32), (8, 32)])
def test_a_tile_is_chosen_for_the_least_padding(channels: int, block: int):
    tiles = load_table("factorized_conv2d", "sm_90").tiles["bfloat16"]
    product = Product(channels, 7, channels)
    assert choose_tile(tiles, product, product).block_k == block


@pytest.mark.parametrize(
    ("filters", "channels", "tile"),
    [
        (384, 2048, (128, 128, 64)),
        (192, 768, (128, 64, 64)),
        (384, 288, (128, 128, 32)),
        (96, 64, (128, 128, 64)),  # padded to 128, which costs less than three tiles of 32
        (32, 288, (128, 32, 32)),
        (192, 80, (128, 64, 32)),
    ],
)
def test_a_small_tile_must_save_more_than_it_costs(filters: int, channels: int, tile):
    tiles = load_table("conv2d_act", "sm_90").tiles["bfloat16"]
    chosen = choose_tile(tiles, Product(filters, 1, channels))
    assert (chosen.block_p, chosen.block_f, chosen.block_k) == tile


@every_table
def test_some_tile_takes_any_channels(op: str, name: str):
    for tiles in load_table(op, name).tiles.values():
        for product in (Product(5, 3, 3), Product(20, 3, 64), Product(64, 3, 72)):
            assert not choose_tile(tiles, product).whole


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
