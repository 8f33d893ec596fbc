"""What tests and benches share: shape tables, inputs, float64 oracles and error budgets.

An oracle is the plain definition in float64. `loop_*` spells it out as a Python loop over output
pixels and taps; the faster oracles call PyTorch's float64 operators and are themselves tested
against the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PairShape:
    """A `factorized_conv2d` problem: sizes in pixels and channels, filter lengths and order."""

    batch: int
    height: int
    width: int
    c_in: int
    c_mid: int
    c_out: int
    taps1: int
    taps2: int
    row_first: bool

    def __str__(self) -> str:
        first, second = ("row", "col") if self.row_first else ("col", "row")
        return (
            f"n{self.batch}-{self.height}x{self.width}-{self.c_in}-{self.c_mid}-{self.c_out}"
            f"-{first}{self.taps1}{second}{self.taps2}"
        )

    @property
    def weight1_shape(self) -> tuple[int, int, int, int]:
        kernel = (1, self.taps1) if self.row_first else (self.taps1, 1)
        return (self.c_mid, self.c_in, *kernel)

    @property
    def weight2_shape(self) -> tuple[int, int, int, int]:
        kernel = (self.taps2, 1) if self.row_first else (1, self.taps2)
        return (self.c_out, self.c_mid, *kernel)


def inception_v3_pairs(batch: int) -> list[PairShape]:
    """The distinct `1×7 → 7×1` and `7×1 → 1×7` pairs of Inception V3 on its 17×17 maps.

    Mixed_6b has 128 channels inside, 6c and 6d 160, 6e and the one in 7a 192: 13 pairs, 8 shapes.
    """
    shapes = {}
    for c in (128, 160, 192):
        for c_out, row_first in ((192, True), (c, False), (192, False)):
            shape = PairShape(batch, 17, 17, c, c, c_out, 7, 7, row_first)
            shapes[str(shape)] = shape
    return list(shapes.values())


# Shapes that networks do not have: where indexing errors hide.
ODD_PAIR_SHAPES = (
    PairShape(1, 1, 1, 1, 1, 1, 1, 1, True),
    PairShape(2, 1, 1, 3, 5, 2, 7, 7, True),  # one pixel, a filter larger than the map
    PairShape(1, 1, 9, 8, 8, 8, 3, 5, True),
    PairShape(1, 9, 1, 8, 8, 8, 3, 5, False),
    PairShape(3, 5, 4, 3, 7, 6, 31, 31, True),  # the longest filter on a small map
    PairShape(3, 4, 6, 10, 5, 9, 1, 3, False),
    PairShape(2, 8, 13, 17, 33, 20, 5, 1, True),  # channels that are no multiple of 8
    PairShape(7, 6, 3, 12, 24, 40, 3, 7, False),  # a prime batch
    PairShape(1, 35, 35, 16, 8, 24, 3, 3, True),
    PairShape(1, 71, 5, 8, 16, 8, 5, 3, True),
    PairShape(2, 3, 71, 8, 16, 8, 5, 3, False),
    PairShape(1, 150, 2, 4, 4, 4, 3, 9, True),  # a column taller than a tile
    PairShape(1, 2, 140, 4, 4, 4, 9, 3, False),
)


class PairInputs(NamedTuple):
    """Operands of `factorized_conv2d`, in its order."""

    input: torch.Tensor
    weight1: torch.Tensor
    bias1: torch.Tensor | None
    weight2: torch.Tensor
    bias2: torch.Tensor | None


def random_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, scale: float, seed: int
) -> torch.Tensor:
    """Normal values times `scale`, drawn on the CPU in float64 and rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return values.to(dtype).to(device)


def integer_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, high: int, seed: int
) -> torch.Tensor:
    """Whole numbers from -high to high."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, shape, generator=generator).to(dtype).to(device)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """A channels_last copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def random_pair(
    shape: PairShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    bias: bool = True,
    seed: int = 0,
) -> PairInputs:
    """Random operands in channels_last; weights scaled by 1 / sqrt(fan-in)."""
    fan1, fan2 = shape.c_in * shape.taps1, shape.c_mid * shape.taps2
    size = (shape.batch, shape.c_in, shape.height, shape.width)

    def draw(size: tuple[int, ...], scale: float, offset: int) -> torch.Tensor:
        return random_tensor(size, dtype, device, scale, 10 * seed + offset)

    return PairInputs(
        channels_last(draw(size, 1.0, 0)),
        channels_last(draw(shape.weight1_shape, fan1**-0.5, 1)),
        draw((shape.c_mid,), 0.5, 2) if bias else None,
        channels_last(draw(shape.weight2_shape, fan2**-0.5, 3)),
        draw((shape.c_out,), 0.5, 4) if bias else None,
    )


def integer_pair(
    shape: PairShape, dtype: torch.dtype, device: torch.device | str = "cpu", *, seed: int = 0
) -> PairInputs:
    """Whole-number operands for which the pair is exact in `dtype`, whatever the order of its sums.

    Weights are sparse (about two ones or minus ones per filter), so that the intermediate values
    and the results stay whole numbers that the dtype holds exactly: up to 256 in bfloat16, 2048 in
    float16.
    """
    generator = torch.Generator().manual_seed(1000 + seed)

    def sparse(size: tuple[int, int, int, int]) -> torch.Tensor:
        filters, channels, rows, columns = size
        weight = torch.zeros(filters, channels * rows * columns)
        for _ in range(2):
            index = torch.randint(weight.shape[1], (filters, 1), generator=generator)
            sign = torch.randint(2, (filters, 1), generator=generator) * 2.0 - 1.0
            weight.scatter_(1, index, sign)
        return channels_last(weight.reshape(size).to(dtype).to(device))

    size = (shape.batch, shape.c_in, shape.height, shape.width)
    return PairInputs(
        channels_last(integer_tensor(size, dtype, device, 8, seed)),
        sparse(shape.weight1_shape),
        integer_tensor((shape.c_mid,), dtype, device, 4, seed + 1),
        sparse(shape.weight2_shape),
        integer_tensor((shape.c_out,), dtype, device, 4, seed + 2),
    )


def unfused_pair(
    inputs: PairInputs, mid_activation: str = "relu", activation: str = "relu"
) -> torch.Tensor:
    """The pair as PyTorch runs it, in the dtype and on the device of `inputs`."""
    out = inputs.input
    for weight, bias, act in (
        (inputs.weight1, inputs.bias1, mid_activation),
        (inputs.weight2, inputs.bias2, activation),
    ):
        out = F.conv2d(out, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
        out = F.relu(out) if act == "relu" else out
    return out


def round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the 10 mantissa bits of tf32, to nearest, ties away from zero."""
    bits = tensor.contiguous().view(torch.int32)
    return (((bits + 0x1000) >> 13) << 13).view(torch.float32)


def precise_pair(inputs: PairInputs) -> torch.Tensor:
    """The pair that a kernel's error is measured against: PyTorch's, in the precision asked for.

    Where float32 is to run in tf32, PyTorch may still choose a kernel that does not, and on a CPU
    has none. There the operands of both factors are rounded to tf32, the products formed in
    float64.
    """
    cudnn: Any = torch.backends.cudnn
    if inputs.input.dtype != torch.float32 or cudnn.conv.fp32_precision != "tf32":
        return unfused_pair(inputs)

    def factor(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x, weight = (round_to_tf32(t.cpu()).double() for t in (x, weight))
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        bias = None if bias is None else bias.double().cpu()
        return F.relu(F.conv2d(x, weight, bias, padding=padding)).float()

    mid = factor(inputs.input, inputs.weight1, inputs.bias1)
    return factor(mid, inputs.weight2, inputs.bias2)


def to_float64(inputs: tuple[torch.Tensor | None, ...]) -> Any:
    """The same named tuple, promoted to float64 on the CPU."""
    promoted: Any = [None if t is None else t.detach().double().cpu() for t in inputs]
    return type(inputs)(*promoted) if hasattr(inputs, "_fields") else tuple(promoted)


def pair_oracle(
    inputs: PairInputs, mid_activation: str = "relu", activation: str = "relu"
) -> torch.Tensor:
    """The pair in float64 on the CPU."""
    return unfused_pair(to_float64(inputs), mid_activation, activation)


def loop_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """A convolution as its definition: a loop over output pixels and taps, in float64."""
    n, _, height, width = input.shape
    filters, _, taps_r, taps_s = weight.shape
    rows = (height + 2 * padding[0] - taps_r) // stride[0] + 1
    columns = (width + 2 * padding[1] - taps_s) // stride[1] + 1
    out = torch.zeros(n, filters, rows, columns, dtype=torch.float64)
    for p in range(rows):
        for q in range(columns):
            for r in range(taps_r):
                for s in range(taps_s):
                    h, w = p * stride[0] + r - padding[0], q * stride[1] + s - padding[1]
                    if 0 <= h < height and 0 <= w < width:
                        out[:, :, p, q] += (
                            input[:, :, h, w].double() @ weight[:, :, r, s].double().T
                        )
    return out if bias is None else out + bias.double()[None, :, None, None]


def error_budget(
    reference: torch.Tensor, oracle: torch.Tensor, dtype: torch.dtype, factor: float = 2.0
) -> float:
    """The largest absolute error allowed: `factor` times (PyTorch's own error + eps·max|oracle|).

    Args:
        reference: PyTorch's result in the dtype under test.
        oracle: the float64 result.
        dtype: the dtype whose machine epsilon counts.
        factor: 2 by default; 4 for tf32.
    """
    if oracle.numel() == 0:
        return 0.0
    error = (reference.double().cpu() - oracle).abs().max().item()
    return factor * (error + torch.finfo(dtype).eps * oracle.abs().max().item())


def assert_within_budget(
    result: torch.Tensor, reference: torch.Tensor, oracle: torch.Tensor, factor: float = 2.0
) -> None:
    """Assert that `result` is finite, has the oracle's shape and keeps within `error_budget`."""
    assert result.shape == oracle.shape
    assert torch.isfinite(result).all(), "a result is not finite"
    budget = error_budget(reference, oracle, result.dtype, factor)
    error = (result.double().cpu() - oracle).abs().max().item() if oracle.numel() else 0.0
    assert error <= budget, f"error {error:.3e} exceeds the budget {budget:.3e}"


def assert_channels_last(tensor: torch.Tensor) -> None:
    """Assert exactly the strides of `torch.empty(shape, memory_format=torch.channels_last)`."""
    expected = torch.empty(tensor.shape, memory_format=torch.channels_last, device="meta").stride()
    assert tensor.stride() == expected, f"strides {tensor.stride()}, expected {expected}"


def _at_odd_offset(tensor: torch.Tensor) -> torch.Tensor:
    """A channels_last copy whose storage starts one element late, so that it is misaligned."""
    buffer = tensor.new_zeros(tensor.numel() + 1)
    _, c, h, w = tensor.shape
    view = buffer[1:].as_strided(tensor.shape, (h * w * c, 1, w * c, c), 1)
    return view.copy_(tensor)


# Ways a caller may hold a tensor, each with the same values.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": channels_last,
    "channel_slice": lambda t: channels_last(torch.cat([t, t, t], 1))[
        :, t.shape[1] : 2 * t.shape[1]
    ],
    "row_slice": lambda t: channels_last(torch.cat([t, t], 2))[:, :, t.shape[2] :],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "odd_offset": _at_odd_offset,
}


@contextmanager
def fp32_precision(precision: str) -> Iterator[None]:
    """Run float32 convolutions in "ieee" or "tf32" inside the block."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that an unwritten value shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # its typing leaves the switch out
    fill = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill


@dataclass(frozen=True)
class SplitShape:
    """A `split_conv2d` problem: sizes in pixels and channels, filter lengths."""

    batch: int
    height: int
    width: int
    c_in: int
    c_row: int
    c_col: int
    taps_row: int
    taps_col: int

    def __str__(self) -> str:
        return (
            f"n{self.batch}-{self.height}x{self.width}-{self.c_in}-{self.c_row}+{self.c_col}"
            f"-row{self.taps_row}col{self.taps_col}"
        )


def inception_v3_splits(batch: int) -> list[SplitShape]:
    """The `1×3 ∥ 3×1` splits of Inception V3 on its 8×8 maps: one shape in all four places."""
    return [SplitShape(batch, 8, 8, 384, 384, 384, 3, 3)]


ODD_SPLIT_SHAPES = (
    SplitShape(1, 1, 1, 1, 1, 1, 1, 1),
    SplitShape(2, 1, 1, 3, 5, 2, 7, 7),  # one pixel, filters larger than the map
    SplitShape(1, 1, 9, 8, 8, 8, 3, 5),
    SplitShape(1, 9, 1, 8, 8, 8, 5, 3),
    SplitShape(3, 5, 4, 3, 7, 6, 31, 31),  # the longest filters on a small map
    SplitShape(3, 4, 6, 10, 5, 9, 1, 3),
    SplitShape(2, 8, 13, 17, 33, 20, 5, 1),  # channels that are no multiple of 8
    SplitShape(7, 6, 3, 12, 24, 40, 3, 7),  # a prime batch
    SplitShape(1, 35, 17, 16, 1, 24, 3, 3),
)


class SplitInputs(NamedTuple):
    """Operands of `split_conv2d`, in its order."""

    input: torch.Tensor
    weight_row: torch.Tensor
    bias_row: torch.Tensor | None
    weight_col: torch.Tensor
    bias_col: torch.Tensor | None


@dataclass(frozen=True)
class ReductionShape:
    """A `grid_reduction` problem: sizes in pixels and channels, filter and window kernel×kernel."""

    batch: int
    height: int
    width: int
    c_in: int
    c_out: int
    kernel: int

    def __str__(self) -> str:
        return (
            f"n{self.batch}-{self.height}x{self.width}-{self.c_in}-{self.c_out}+{self.c_in}"
            f"-k{self.kernel}"
        )


def inception_reductions(batch: int) -> list[ReductionShape]:
    """Where Inception networks convolve and pool one map at stride 2.

    Mixed_6a of Inception V3, and Mixed_3a and Mixed_5a of Inception-v4's stem.
    """
    return [
        ReductionShape(batch, 35, 35, 288, 384, 3),
        ReductionShape(batch, 147, 147, 64, 96, 3),
        ReductionShape(batch, 71, 71, 192, 192, 3),
    ]


ODD_REDUCTION_SHAPES = (
    ReductionShape(1, 1, 1, 1, 1, 1),
    ReductionShape(2, 1, 7, 3, 5, 1),
    ReductionShape(1, 3, 3, 8, 8, 3),  # one window
    ReductionShape(2, 4, 4, 5, 3, 3),  # even sizes: the last row and column are not used
    ReductionShape(3, 8, 6, 10, 7, 3),
    ReductionShape(1, 5, 5, 4, 4, 5),
    ReductionShape(2, 10, 7, 3, 9, 5),
    ReductionShape(1, 6, 9, 12, 8, 1),
    ReductionShape(7, 3, 8, 17, 33, 3),  # a prime batch, channels that are no multiple of 8
    ReductionShape(1, 3, 71, 48, 16, 3),
    ReductionShape(1, 71, 5, 16, 48, 3),
    ReductionShape(1, 9, 13, 2, 1, 7),
)


@dataclass(frozen=True)
class ConvShape:
    """A `conv2d_act` problem: sizes in pixels and channels; pairs are (rows, columns)."""

    batch: int
    height: int
    width: int
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        kernel, stride, padding = (f"{a}x{b}" for a, b in (self.kernel, self.stride, self.padding))
        return (
            f"n{self.batch}-{self.height}x{self.width}-{self.c_in}-{self.c_out}"
            f"-k{kernel}-s{stride}-p{padding}"
        )


def inception_v3_convs(batch: int) -> list[ConvShape]:
    """The distinct square convolutions of Inception V3 for an image of 299×299."""

    def conv(size: int, c_in: int, c_out: int, k: int, stride: int = 1, pad: int = 0) -> ConvShape:
        return ConvShape(batch, size, size, c_in, c_out, (k, k), (stride, stride), (pad, pad))

    stem = [
        conv(299, 3, 32, 3, 2),
        conv(149, 32, 32, 3),
        conv(147, 32, 64, 3, 1, 1),
        conv(73, 64, 80, 1),
        conv(73, 80, 192, 3),
    ]
    ones = [
        conv(size, c_in, c_out, 1)
        for size, c_ins, c_outs in (
            (35, (192,), (32, 48, 64)),
            (35, (256, 288), (48, 64)),
            (17, (768,), (128, 160, 192)),
            (8, (1280, 2048), (192, 320, 384, 448)),
        )
        for c_in in c_ins
        for c_out in c_outs
    ]
    squares = [
        conv(35, 48, 64, 5, 1, 2),
        conv(35, 64, 96, 3, 1, 1),
        conv(35, 96, 96, 3, 1, 1),
        conv(35, 288, 384, 3, 2),
        conv(35, 96, 96, 3, 2),
        conv(17, 192, 320, 3, 2),
        conv(17, 192, 192, 3, 2),
        conv(8, 448, 384, 3, 1, 1),
    ]
    return stem + ones + squares


ODD_CONV_SHAPES = (
    ConvShape(1, 1, 1, 1, 1, (1, 1)),
    ConvShape(2, 1, 1, 3, 5, (7, 7), (1, 1), (3, 3)),  # one pixel, a filter larger than the map
    ConvShape(1, 5, 4, 3, 7, (31, 1), (1, 1), (15, 0)),
    ConvShape(3, 9, 1, 8, 8, (1, 3), (1, 1), (0, 1)),
    ConvShape(2, 6, 8, 5, 3, (2, 4), (2, 2), (1, 1)),  # even filters at stride 2
    ConvShape(1, 10, 7, 10, 9, (3, 2), (1, 3), (0, 2)),
    ConvShape(2, 8, 13, 17, 33, (5, 3), (3, 1), (2, 0)),  # channels that are no multiple of 8
    ConvShape(7, 6, 3, 12, 24, (3, 3), (2, 2), (1, 1)),  # a prime batch
    ConvShape(1, 4, 4, 3, 4, (1, 1), (2, 3), (1, 2)),  # padding beyond the filter
    ConvShape(1, 3, 3, 2, 2, (3, 3), (5, 7), (0, 0)),  # a stride beyond the map
    ConvShape(1, 71, 5, 8, 16, (3, 3), (2, 1), (0, 1)),
)


class ConvInputs(NamedTuple):
    """Operands of `conv2d_act` and `grid_reduction`, in their order."""

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def random_conv(
    shape: ConvShape | ReductionShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    bias: bool = True,
    seed: int = 0,
) -> ConvInputs:
    """Random operands in channels_last; weights scaled by 1 / sqrt(fan-in)."""
    rows, columns = _kernel(shape)

    def draw(size: tuple[int, ...], scale: float, offset: int) -> torch.Tensor:
        return random_tensor(size, dtype, device, scale, 10 * seed + offset)

    size = (shape.c_out, shape.c_in, rows, columns)
    return ConvInputs(
        channels_last(draw((shape.batch, shape.c_in, shape.height, shape.width), 1.0, 0)),
        channels_last(draw(size, (shape.c_in * rows * columns) ** -0.5, 1)),
        draw((shape.c_out,), 0.5, 2) if bias else None,
    )


def random_split(
    shape: SplitShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    bias: bool = True,
    seed: int = 0,
) -> SplitInputs:
    """Random operands in channels_last; weights scaled by 1 / sqrt(fan-in)."""
    row, col = _split_halves(shape)
    input, weight_row, bias_row = random_conv(row, dtype, device, bias=bias, seed=seed)
    _, weight_col, bias_col = random_conv(col, dtype, device, bias=bias, seed=seed + 500)
    return SplitInputs(input, weight_row, bias_row, weight_col, bias_col)


def integer_conv(
    shape: ConvShape | ReductionShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
    unit: int = 1,
) -> ConvInputs:
    """Whole-number operands for which a convolution is exact in `dtype`, in any order of its sums.

    Weights are sparse, as in `integer_pair`: the result stays within 2·max|input| + 4.

    Args:
        shape: the problem.
        dtype: of all operands.
        device: of all operands.
        seed: of the random generator.
        unit: the input's values are multiples of it; k² keeps an average over k×k pixels exact.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    weight = torch.zeros(shape.c_out, shape.c_in * _kernel(shape)[0] * _kernel(shape)[1])
    for _ in range(2):
        index = torch.randint(weight.shape[1], (shape.c_out, 1), generator=generator)
        sign = torch.randint(2, (shape.c_out, 1), generator=generator) * 2.0 - 1.0
        weight.scatter_(1, index, sign)
    weight = weight.reshape(shape.c_out, shape.c_in, *_kernel(shape)).to(dtype).to(device)
    size = (shape.batch, shape.c_in, shape.height, shape.width)
    input = integer_tensor(size, dtype, device, 8 if unit == 1 else 2, seed) * unit
    bias = integer_tensor((shape.c_out,), dtype, device, 4, seed + 1)
    return ConvInputs(channels_last(input), channels_last(weight), bias)


def integer_split(
    shape: SplitShape, dtype: torch.dtype, device: torch.device | str = "cpu", *, seed: int = 0
) -> SplitInputs:
    """Whole-number operands for which the split is exact in `dtype`; see `integer_conv`."""
    row, col = _split_halves(shape)
    input, weight_row, bias_row = integer_conv(row, dtype, device, seed=seed)
    _, weight_col, bias_col = integer_conv(col, dtype, device, seed=seed + 500)
    return SplitInputs(input, weight_row, bias_row, weight_col, bias_col)


def _kernel(shape: ConvShape | ReductionShape) -> tuple[int, int]:
    if isinstance(shape, ReductionShape):
        return shape.kernel, shape.kernel
    return shape.kernel


def _split_halves(shape: SplitShape) -> tuple[ConvShape, ConvShape]:
    """The two convolutions of a split."""
    s = shape
    size = (s.batch, s.height, s.width, s.c_in)
    return (
        ConvShape(*size, s.c_row, (1, s.taps_row), (1, 1), (0, s.taps_row // 2)),
        ConvShape(*size, s.c_col, (s.taps_col, 1), (1, 1), (s.taps_col // 2, 0)),
    )


def unfused_conv(
    inputs: ConvInputs,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    activation: str = "relu",
) -> torch.Tensor:
    """The convolution as PyTorch runs it, in the dtype and on the device of `inputs`."""
    out = F.conv2d(*inputs, stride=stride, padding=padding)
    return F.relu(out) if activation == "relu" else out


def unfused_split(inputs: SplitInputs, activation: str = "relu") -> torch.Tensor:
    """The split as PyTorch runs it, in the dtype and on the device of `inputs`."""
    halves = (
        ConvInputs(inputs.input, inputs.weight_row, inputs.bias_row),
        ConvInputs(inputs.input, inputs.weight_col, inputs.bias_col),
    )
    return torch.cat(
        [
            unfused_conv(
                half,
                padding=(half.weight.shape[2] // 2, half.weight.shape[3] // 2),
                activation=activation,
            )
            for half in halves
        ],
        1,
    )


def unfused_reduction(
    inputs: ConvInputs, pool: str = "max", activation: str = "relu"
) -> torch.Tensor:
    """The grid reduction as PyTorch runs it, in the dtype and on the device of `inputs`."""
    pool2d = F.max_pool2d if pool == "max" else F.avg_pool2d
    conv = unfused_conv(inputs, stride=(2, 2), activation=activation)
    return torch.cat([conv, pool2d(inputs.input, inputs.weight.shape[2], 2)], 1)


def conv_oracle(
    inputs: ConvInputs,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    activation: str = "relu",
) -> torch.Tensor:
    """The convolution in float64 on the CPU."""
    return unfused_conv(to_float64(inputs), stride, padding, activation)


def split_oracle(inputs: SplitInputs, activation: str = "relu") -> torch.Tensor:
    """The split in float64 on the CPU."""
    return unfused_split(to_float64(inputs), activation)


def reduction_oracle(
    inputs: ConvInputs, pool: str = "max", activation: str = "relu"
) -> torch.Tensor:
    """The grid reduction in float64 on the CPU."""
    return unfused_reduction(to_float64(inputs), pool, activation)


def loop_max_pool2d(input: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """A max pool as PyTorch defines it: row-major, replaced when greater or NaN, in any dtype."""

    def greatest(window: list[torch.Tensor]) -> torch.Tensor:
        best = window[0]
        for value in window[1:]:
            best = torch.where((value > best) | value.isnan(), value, best)
        return best

    return _loop_pool2d(input, kernel, stride, greatest)


def loop_avg_pool2d(input: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """An average pool as its definition: the sum of a window over its pixels, in float64."""
    return _loop_pool2d(input.double(), kernel, stride, lambda window: sum(window) / len(window))


def _loop_pool2d(
    input: torch.Tensor,
    kernel: int,
    stride: int,
    reduce: Callable[[list[torch.Tensor]], Any],
) -> torch.Tensor:
    rows = (input.shape[2] - kernel) // stride + 1
    columns = (input.shape[3] - kernel) // stride + 1
    out = input.new_zeros((*input.shape[:2], rows, columns))
    for p in range(rows):
        for q in range(columns):
            taps = [(r, s) for r in range(kernel) for s in range(kernel)]
            out[:, :, p, q] = reduce([input[:, :, p * stride + r, q * stride + s] for r, s in taps])
    return out


def assert_same_bits(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert bitwise equality, signs of zeros included; any NaN stands for any other."""
    assert result.dtype == expected.dtype
    assert torch.equal(result.isnan(), expected.isnan()), "NaN elsewhere than expected"
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[result.element_size()]
    bits, expected_bits = (
        t.masked_fill(t.isnan(), 0).contiguous().view(integers) for t in (result, expected)
    )
    assert torch.equal(bits, expected_bits), "bits differ"
