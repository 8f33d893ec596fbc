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

    Mixed_6b has 128 channels inside, 6c and 6d 160, 6e and the one in 7a 192: 13 pairs, 9 shapes.
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
    buffer = tensor.new_empty(tensor.numel() + 1)
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
