"""What the backward of each op computes and moves, as the table of docs/training.md.

`python -m tests.backward_table` prints it; `tests/test_training_docs.py` holds the document against
it. Every kernel reads its operands from memory once, writes its results once, and takes the longer
of its arithmetic and its traffic at the rates of an H100's data sheet; kernels run one after the
other. No kernel reaches that, and what stays in the L2 cache costs less: these are bounds for
comparison, nothing was measured.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from fused_inception.testing import ConvShape, PairShape, ReductionShape, SplitShape
from tests.sm90_table import MEMORY_BYTES_PER_SECOND

BATCH = 128
ELEMENT = 2  # bytes, float16
INDEX = 8  # bytes, of a max pool's argmax
FLOPS_PER_SECOND = 989e12  # H100 SXM, float16, dense
HEADER = (
    "op", "shape", "kept, PyTorch MB", "kept MB", "GFLOP", "MB", "masks and bias sums MB",
    "PyTorch us", "us", "passes fused us",
)  # fmt: skip


class Kernel(NamedTuple):
    """One launch of a backward, or a few that move these bytes."""

    name: str
    flops: int
    bytes: int

    @property
    def seconds(self) -> float:
        return max(self.flops / FLOPS_PER_SECOND, self.bytes / MEMORY_BYTES_PER_SECOND)


class Maps(NamedTuple):
    """A convolution in numbers: bytes of input, result and weight, and its arithmetic."""

    x: int
    y: int
    weight: int
    flops: int


class Backward(NamedTuple):
    """Kernels of the backward and bytes that the forward keeps for it."""

    kernels: list[Kernel]
    kept: int

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)


def conv_maps(pixels_in: int, c_in: int, pixels_out: int, c_out: int, taps: int) -> Maps:
    flops = 2 * BATCH * pixels_out * c_in * c_out * taps
    return Maps(
        BATCH * pixels_in * c_in * ELEMENT,
        BATCH * pixels_out * c_out * ELEMENT,
        c_in * c_out * taps * ELEMENT,
        flops,
    )


def gradients(conv: Maps, folded: bool) -> list[Kernel]:
    """Of a convolution with bias and ReLU; `folded`: both convolutions apply the mask as they load.

    The sum for the bias then comes out of one of them.
    """
    mask = conv.y if folded else 0  # the result, read beside the gradient
    convolutions = [
        Kernel("input", conv.flops, conv.y + mask + conv.weight + conv.x),
        Kernel("weight", conv.flops, conv.y + mask + conv.x + conv.weight),
    ]
    passes = [Kernel("mask", 0, 3 * conv.y), Kernel("bias", 0, conv.y)]
    return convolutions if folded else passes + convolutions


def backward(shape: object, form: str) -> Backward:
    """`form`: "pytorch" for the unfused operators, "ours", or "folded".

    "folded" is ours with the masks and bias sums in the convolutions, and with one kernel that
    finds the maxima of a pool again as it adds the pool's gradient to the convolution's.
    """
    folded = form == "folded"
    if isinstance(shape, PairShape):
        pixels = shape.height * shape.width
        first = conv_maps(pixels, shape.c_in, pixels, shape.c_mid, shape.taps1)
        second = conv_maps(pixels, shape.c_mid, pixels, shape.c_out, shape.taps2)
        kernels = gradients(second, folded) + gradients(first, folded)
        if form == "pytorch":
            return Backward(kernels, first.x + first.y + second.y)
        again = Kernel("recompute", first.flops, first.x + first.weight + first.y)
        return Backward([again, *kernels], first.x + second.y)
    if isinstance(shape, SplitShape):
        pixels = shape.height * shape.width
        row = conv_maps(pixels, shape.c_in, pixels, shape.c_row, shape.taps_row)
        col = conv_maps(pixels, shape.c_in, pixels, shape.c_col, shape.taps_col)
        kernels = [*gradients(row, folded), *gradients(col, folded), Kernel("add", 0, 3 * row.x)]
        return Backward(kernels, row.x + row.y + col.y)
    if isinstance(shape, ReductionShape):
        out = ((shape.height - shape.kernel) // 2 + 1) * ((shape.width - shape.kernel) // 2 + 1)
        pixels = shape.height * shape.width
        conv = conv_maps(pixels, shape.c_in, out, shape.c_out, shape.kernel**2)
        elements = BATCH * out * shape.c_in
        pooled, indices = elements * ELEMENT, elements * INDEX
        kept = conv.x + conv.y
        if folded:
            pool = Kernel("pool", 0, pooled + 3 * conv.x)
            return Backward([*gradients(conv, folded), pool], kept + pooled)
        kernels = [
            *gradients(conv, folded),
            Kernel("pool", 0, pooled + indices + conv.x),
            Kernel("add", 0, 3 * conv.x),
        ]
        if form == "pytorch":
            return Backward(kernels, kept + indices)
        return Backward([Kernel("argmax", 0, conv.x + pooled + indices), *kernels], kept + pooled)
    assert isinstance(shape, ConvShape)
    rows = (shape.height + 2 * shape.padding[0] - shape.kernel[0]) // shape.stride[0] + 1
    columns = (shape.width + 2 * shape.padding[1] - shape.kernel[1]) // shape.stride[1] + 1
    taps = shape.kernel[0] * shape.kernel[1]
    conv = conv_maps(shape.height * shape.width, shape.c_in, rows * columns, shape.c_out, taps)
    return Backward(gradients(conv, folded), conv.x + conv.y)


# Of Inception V3.
ROWS: tuple[tuple[str, object], ...] = (
    ("factorized_conv2d", PairShape(BATCH, 17, 17, 128, 128, 192, 7, 7, True)),
    ("factorized_conv2d", PairShape(BATCH, 17, 17, 160, 160, 192, 7, 7, True)),
    ("factorized_conv2d", PairShape(BATCH, 17, 17, 192, 192, 192, 7, 7, True)),
    ("split_conv2d", SplitShape(BATCH, 8, 8, 384, 384, 384, 3, 3)),
    ("grid_reduction", ReductionShape(BATCH, 35, 35, 288, 384, 3)),
    ("conv2d_act", ConvShape(BATCH, 17, 17, 768, 192, (1, 1))),
    ("conv2d_act", ConvShape(BATCH, 35, 35, 64, 96, (3, 3), (1, 1), (1, 1))),
    ("conv2d_act", ConvShape(BATCH, 147, 147, 32, 64, (3, 3), (1, 1), (1, 1))),
)


def line_of(op: str, shape: object) -> list[str]:
    unfused, ours, folded = (backward(shape, form) for form in ("pytorch", "ours", "folded"))
    passes = sum(k.bytes for k in ours.kernels if k.name in ("mask", "bias"))
    return [
        f"`{op}`",
        str(shape),
        f"{unfused.kept / 1e6:.0f}",
        f"{ours.kept / 1e6:.0f}",
        f"{sum(k.flops for k in ours.kernels) / 1e9:.1f}",
        f"{sum(k.bytes for k in ours.kernels) / 1e6:.0f}",
        f"{passes / 1e6:.0f}",
        *(f"{form.seconds * 1e6:.0f}" for form in (unfused, ours, folded)),
    ]


def markdown() -> str:
    lines = [list(HEADER), ["---"] * len(HEADER)]
    lines += [line_of(op, shape) for op, shape in ROWS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def claims() -> list[str]:
    """What the document's text says of the table."""

    def span(values: list[float]) -> str:
        return f"{100 * min(values):.0f} to {100 * max(values):.0f} %"

    seconds = [
        (op, *(backward(shape, form).seconds for form in ("pytorch", "ours", "folded")))
        for op, shape in ROWS
    ]
    recomputed = [us / pt - 1 for op, pt, us, _ in seconds if op == "factorized_conv2d"]
    masked = [1 - folded / us for op, _, us, folded in seconds if op != "grid_reduction"]
    (pooled,) = (1 - folded / us for op, _, us, folded in seconds if op == "grid_reduction")
    return [
        f"{span(recomputed)} of PyTorch's bound",
        f"would take {span(masked)} off these bounds",
        f"would take {100 * pooled:.0f} % off the grid reduction's bound",
    ]


def main() -> int:
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
