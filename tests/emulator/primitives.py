"""Operands of `primitives_program.cpp` and what each primitive makes of them by its definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.emulator import programs
from tests.emulator.programs import HOOKED, Report, Variant

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SPANS = (32, 64, 128)  # bytes of a swizzle


class Case(NamedTuple):
    """One launch of a kernel of the program."""

    first: torch.Tensor
    expected: torch.Tensor  # flat
    second: torch.Tensor | None = None
    third: torch.Tensor | None = None
    threads: int = 32
    blocks: int = 1
    shared_bytes: int = 0
    cluster: int = 1
    tensor_map: dict[str, int] | None = None  # of `first`


def run_primitive(
    folder: Path,
    kernel: str,
    case: Case,
    *,
    variant: Variant = HOOKED,
    binary: Path | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Report]:
    """The output, flat, and the report."""
    operands = {"first": case.first, "second": case.second, "third": case.third}
    report = programs.run(
        binary or programs.build("primitives_program", variant),
        kernel=kernel,
        **{k: programs.save(v, folder / k) for k, v in operands.items() if v is not None},
        output=folder / "output",
        output_bytes=case.expected.numel() * case.expected.element_size(),
        threads=case.threads,
        blocks=case.blocks,
        shared_bytes=case.shared_bytes,
        cluster=case.cluster,
        **case.tensor_map or {},
        **options,
    )
    if report.refused:
        return case.expected.new_zeros(0), report
    return programs.load(folder / "output", case.expected.dtype), report


# Fragments of mma_m16n8k16, by the tables of the PTX ISA; g = lane // 4, q = lane % 4.


def _gather(matrix: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    rows, columns = zip(*places, strict=True)
    return matrix[list(rows), list(columns)].contiguous()


def fragment_a(a: torch.Tensor) -> torch.Tensor:
    """a (16, 16) as elements [lane][register][half]."""
    return _gather(
        a,
        [
            (lane // 4 + 8 * (r % 2), 2 * (lane % 4) + e + 8 * (r // 2))
            for lane in range(32)
            for r in range(4)
            for e in range(2)
        ],
    )


def fragment_b(b: torch.Tensor) -> torch.Tensor:
    """b (16, 8) as elements [lane][register][half]."""
    return _gather(
        b,
        [
            (2 * (lane % 4) + e + 8 * r, lane // 4)
            for lane in range(32)
            for r in range(2)
            for e in range(2)
        ],
    )


def accumulator_of(c: torch.Tensor) -> torch.Tensor:
    """c (16, 8) as elements [lane][register]."""
    return _gather(
        c,
        [
            (lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2)
            for lane in range(32)
            for i in range(4)
        ],
    )


# Cases, by a seed. Values are whole numbers, so that the order of a sum does not matter.


def _integers(size: tuple[int, ...], high: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, size, generator=generator)


def ldmatrix(matrices: int, transposed: bool, seed: int) -> Case:
    """Rows are addressed in a random order, so that a lane's own address counts."""
    memory = _integers((8 * matrices, 8), 30000, seed).to(torch.int16)
    order = torch.randperm(8 * matrices, generator=torch.Generator().manual_seed(seed))
    loaded = memory[order].view(matrices, 8, 8)
    if transposed:
        loaded = loaded.transpose(1, 2)
    # Register j of lane 4 g + q: row g of matrix j, elements 2q and 2q + 1.
    registers = loaded.reshape(matrices, 8, 4, 2).permute(1, 2, 0, 3).contiguous()
    rows = torch.zeros(32, dtype=torch.int32)
    rows[: 8 * matrices] = order
    return Case(memory, registers.view(torch.int32).flatten(), rows, shared_bytes=128 * matrices)


def stmatrix(matrices: int, transposed: bool, seed: int) -> Case:
    """What ldmatrix loads, stored: the same registers and rows, with memory as the result."""
    case = ldmatrix(matrices, transposed, seed)
    return case._replace(first=case.expected, expected=case.first.flatten())


def bulk_copy(seed: int) -> Case:
    pieces = _integers((8, 32, 4), 2**30, seed).to(torch.int32)
    return Case(pieces, pieces.flip(1).flatten(), threads=64, shared_bytes=2 * 512 + 32)


# Columns of the products, all that the kernels have.
WGMMA_COLUMNS = (32, 48, 64, 80, 96, 128, 160, 192)


def wgmma(
    dtype: str,
    columns: int,
    seed: int,
    *,
    shift_a: int = 0,
    shift_b: int = 0,
    k: int = 48,
    line_a: int = 8,
) -> Case:
    """Rows from `shift_a` and `shift_b` on of operands that have a few rows more.

    `line_a` rows on from eight rows of the first operand are its next eight.
    """
    rows_a, rows_b = 64 + 37, columns + 29
    a = _integers((rows_a, k), 8, seed).to(DTYPES[dtype])
    b = _integers((rows_b, k), 8, seed + 1).to(DTYPES[dtype])

    def in_memory(operand: torch.Tensor) -> torch.Tensor:  # [k / 8][row][8]
        return operand.view(-1, k // 8, 8).transpose(0, 1).contiguous()

    rows = shift_a + torch.tensor([i // 8 * line_a + i % 8 for i in range(64)])
    product = a[rows].float() @ b[shift_b : shift_b + columns].float().T
    return Case(
        in_memory(a),
        product.flatten(),
        in_memory(b),
        torch.tensor([rows_a, rows_b, shift_a, shift_b, k, line_a], dtype=torch.int32),
        threads=128,
        shared_bytes=2 * k * (rows_a + rows_b),
    )


def swizzled(image: torch.Tensor, span: int) -> torch.Tensor:
    """Rows of `span` bytes as 16-byte pieces that have changed places, from offset 0 on.

    `image` is (rows, span / 2) of 16-bit elements; piece `i` of row `r` goes to the place whose
    bits are those of `i` and the address bits from 128 up, one against the other.
    """
    if span == 0:
        return image
    pieces = image.reshape(-1, 8)
    address = 16 * torch.arange(len(pieces))
    moved = address ^ ((address >> 7 & (span // 16 - 1)) << 4)
    out = torch.empty_like(pieces)
    out[moved // 16] = pieces
    return out.view(image.shape)


def wgmma_swizzled(dtype: str, span: int, seed: int, *, k: int = 128) -> Case:
    columns = 80
    a = _integers((64, k), 8, seed).to(DTYPES[dtype])
    b = _integers((columns, k), 8, seed + 1).to(DTYPES[dtype])

    def in_memory(operand: torch.Tensor) -> torch.Tensor:  # [k / span][row][span]
        spans = operand.view(len(operand), -1, span // 2).transpose(0, 1)
        return swizzled(spans.reshape(-1, span // 2), span)

    return Case(
        in_memory(a),
        (a.float() @ b.float().T).flatten(),
        in_memory(b),
        torch.tensor([k], dtype=torch.int32),
        threads=128,
        shared_bytes=2 * k * (64 + columns),
    )


def tensor_copy(
    span: int,
    seed: int,
    *,
    sizes: tuple[int, int, int] = (40, 5, 7),
    box: tuple[int, int, int] | None = None,
    start: tuple[int, int, int] = (-8, -2, 3),
) -> Case:
    """A box that hangs over the tensor on every side where the start or the sizes make it."""
    width = span // 2 if span else 8
    x, y, z = box or (width, 9, 6)
    tensor = _integers(sizes[::-1], 2**15 - 1, seed).to(torch.int16)
    padded = torch.zeros(z, y, x, dtype=torch.int16)
    at = [torch.arange(s, s + n) for s, n in zip(start, (x, y, z), strict=True)]
    k, j, i = torch.meshgrid(*at[::-1], indexing="ij")
    inside = (i >= 0) & (i < sizes[0]) & (j >= 0) & (j < sizes[1]) & (k >= 0) & (k < sizes[2])
    padded[inside] = tensor[k[inside], j[inside], i[inside]]
    size0, size1, size2 = sizes
    return Case(
        tensor,
        swizzled(padded.view(-1, x), span).flatten(),
        torch.tensor(start, dtype=torch.int32),
        torch.tensor([2 * x * y * z], dtype=torch.int32),
        threads=64,
        shared_bytes=2 * x * y * z + 16,
        tensor_map={
            "size0": size0, "size1": size1, "size2": size2,
            "stride1": 2 * size0, "stride2": 2 * size0 * size1,
            "box0": x, "box1": y, "box2": z, "swizzle": span,
        },
    )  # fmt: skip


# By what hangs over the tensor.
TENSOR_COPIES: dict[str, dict[str, Any]] = {
    "inside": {"start": (16, 1, 2), "box": (8, 3, 4)},
    "before the tensor": {"start": (-8, -3, -2), "box": (16, 9, 5)},
    "past its end": {"start": (32, 3, 5), "box": (24, 4, 7)},
    "outside": {"start": (0, 5, 0), "box": (8, 4, 1)},
    "all of it and more": {"start": (-8, -1, -1), "box": (56, 9, 11)},
}


def remote_memory(seed: int) -> Case:
    values = _integers((2, 4, 128), 2**30, seed).to(torch.int32)
    rank = torch.arange(4, dtype=torch.int32)[None, :, None].expand_as(values)
    return Case(
        values,
        torch.stack([rank, values.roll(-1, 1), ~values.roll(1, 1)], -1).flatten(),
        torch.tensor([4], dtype=torch.int32),
        threads=128,
        blocks=8,
        shared_bytes=1024,
        cluster=4,
    )


def multicast(tensor: bool, seed: int) -> Case:
    pieces = _integers((2, 4, 32, 8), 2**15 - 1, seed).to(torch.int16)  # cluster, piece, chunk
    return Case(
        pieces,
        pieces[:, None].expand(2, 4, 4, 32, 8).flatten(),
        threads=128,
        blocks=8,
        shared_bytes=2 * 512 + 128,
        cluster=4,
        tensor_map={
            "size0": 8, "size1": 32, "size2": 8, "stride1": 16, "stride2": 512,
            "box0": 8, "box1": 8, "box2": 1,
        } if tensor else None,
    )  # fmt: skip


def bulk_push(seed: int) -> Case:
    pieces = _integers((2, 2, 4, 32, 4), 2**30, seed).to(torch.int32)  # cluster, rank, piece, chunk
    return Case(
        pieces,
        pieces.flip(1).flatten(),
        torch.tensor([2], dtype=torch.int32),
        threads=128,
        blocks=4,
        shared_bytes=2 * 512 + 16,
        cluster=2,
    )


def registers(seed: int) -> Case:
    values = _integers((256,), 1000, seed).to(torch.int32)
    return Case(values, values, threads=256)


def grid_size(seed: int) -> Case:
    return Case(torch.zeros(1), torch.full((96,), 3, dtype=torch.int32), blocks=3)


def mma(dtype: str, seed: int) -> Case:
    a, b, c = (
        _integers(size, 8, seed + i).float() for i, size in enumerate(((16, 16), (16, 8), (16, 8)))
    )
    return Case(
        fragment_a(a.to(DTYPES[dtype])),
        accumulator_of(a @ b + c),
        fragment_b(b.to(DTYPES[dtype])),
        accumulator_of(c),
    )


def cp_async(seed: int) -> Case:
    threads = 64
    memory = _integers((threads, 16), 127, seed).to(torch.int8)
    sizes = torch.arange(threads, dtype=torch.int32) % 17
    kept = torch.arange(16) < sizes[:, None]
    return Case(
        memory,
        (memory * kept).roll(-1, 0).flatten(),
        sizes,
        threads=threads,
        shared_bytes=16 * threads,
    )


def cp_async_groups(seed: int) -> Case:
    memory = _integers((4 * 32, 4), 2**30, seed).to(torch.int32)
    return Case(memory, memory.flatten(), shared_bytes=memory.numel() * 4)


def block_sync(seed: int) -> Case:
    values = _integers((256,), 1000, seed).to(torch.int32)
    return Case(values, values.flip(0), threads=256, shared_bytes=1024)


def warp_sync(seed: int) -> Case:
    values = _integers((64,), 1000, seed).to(torch.int32)
    return Case(values, values.view(2, 32).flip(1).flatten(), threads=64, shared_bytes=256)


def named_barrier(seed: int) -> Case:
    values = _integers((128,), 1000, seed).to(torch.int32)
    return Case(values, values.view(4, 32).flip(1).flatten(), threads=128, shared_bytes=128)


def special_floats(dtype: torch.dtype) -> torch.Tensor:
    """Every value of `dtype`, halfway to its neighbour and a bit to either side of that."""
    bits = torch.arange(2**16, dtype=torch.int32)
    exact = bits.to(torch.int16).view(dtype).float()
    exact = exact[exact.isfinite()]
    nearby = exact.view(torch.int32)[:, None] + torch.tensor(
        [0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001]
    )
    extremes = torch.tensor(
        [torch.inf, -torch.inf, 65519.996, 65520.0, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0]
    )
    values = torch.cat([nearby.to(torch.int32).flatten().view(torch.float32), extremes])
    values = values[~values.isnan()]
    return torch.cat([values, values.new_zeros(-len(values) % 64)])


def pack2(dtype: str, seed: int) -> Case:
    values = special_floats(DTYPES[dtype])
    rounded = values.to(DTYPES[dtype]).view(torch.int32)
    return Case(values, rounded, blocks=len(values) // 64)


def to_float(dtype: str, seed: int) -> Case:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    bits = bits[~bits.view(DTYPES[dtype]).isnan()]
    bits = torch.cat([bits, bits.new_zeros(-len(bits) % 32)])
    return Case(bits, bits.view(DTYPES[dtype]).float().view(torch.int32), blocks=len(bits) // 32)


def relu(seed: int) -> Case:
    values = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, torch.inf, torch.nan] * 4)
    return Case(values, torch.where(values < 0, 0.0, values).view(torch.int32))


SM90_KERNELS: dict[str, Callable[[int], Case]] = {
    **{f"stmatrix_x{n}": partial(stmatrix, n, False) for n in (1, 2, 4)},
    **{f"stmatrix_x{n}_transposed": partial(stmatrix, n, True) for n in (1, 2, 4)},
    "bulk_copy": bulk_copy,
    **{f"wgmma_{d}_{n}": partial(wgmma, d, n) for d in DTYPES for n in WGMMA_COLUMNS},
    **{f"wgmma_swizzled_float16_{n}": partial(wgmma_swizzled, "float16", n) for n in SPANS},
    "wgmma_swizzled_bfloat16_64": partial(wgmma_swizzled, "bfloat16", 64),
    "tensor_copy": partial(tensor_copy, 64),
    "remote_memory": remote_memory,
    "bulk_copy_multicast": partial(multicast, False),
    "tensor_copy_multicast": partial(multicast, True),
    "bulk_push": bulk_push,
    "registers": registers,
}
KERNELS: dict[str, Callable[[int], Case]] = {
    **{f"ldmatrix_x{n}": partial(ldmatrix, n, False) for n in (1, 2, 4)},
    **{f"ldmatrix_x{n}_transposed": partial(ldmatrix, n, True) for n in (1, 2, 4)},
    **{f"mma_{dtype}": partial(mma, dtype) for dtype in DTYPES},
    "cp_async": cp_async,
    "cp_async_groups": cp_async_groups,
    "block_sync": block_sync,
    "warp_sync": warp_sync,
    "named_barrier": named_barrier,
    **{f"pack2_{dtype}": partial(pack2, dtype) for dtype in DTYPES},
    **{f"to_float_{dtype}": partial(to_float, dtype) for dtype in DTYPES},
    "relu": relu,
    "grid_size": grid_size,
    **SM90_KERNELS,
}
