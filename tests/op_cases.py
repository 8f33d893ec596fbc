"""The ops with one kernel each, described so that one test can hold all of them to a property.

`factorized_conv2d` has two forms and its own files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

import fused_inception
from fused_inception import testing
from fused_inception.ops.common.configurations import DEVICE_CLASSES, Tile, load_table
from fused_inception.ops.conv2d_act import launch as conv_launch
from fused_inception.ops.grid_reduction import launch as reduction_launch
from fused_inception.ops.split_conv2d import launch as split_launch
from fused_inception.testing import ConvShape, ReductionShape, SplitShape


class OpCase(NamedTuple):
    """One op, with the option that changes its kernel.

    Attributes:
        name: of the case, for test ids.
        op: name of the op.
        launch: its module of launchers.
        odd_shapes: where indexing errors hide.
        real_shapes: of networks, for a batch size.
        small: a shape that is quick everywhere, of a few images, with nothing in round numbers.
        random: (shape, dtype, device, bias=, seed=) -> operands.
        integers: (shape, dtype, device, seed=) -> operands for which the op is exact.
        run: (shape, operands, **options) -> the op's result.
        unfused: the same by PyTorch, in the operands' dtype.
    """

    name: str
    op: str
    launch: ModuleType
    odd_shapes: tuple[Any, ...]
    real_shapes: Callable[[int], list[Any]]
    small: Any
    random: Callable[..., Any]
    integers: Callable[..., Any]
    run: Callable[..., torch.Tensor]
    unfused: Callable[..., torch.Tensor]

    def __str__(self) -> str:
        return self.name

    def oracle(self, shape: Any, inputs: Any, **options: str) -> torch.Tensor:
        """The result in float64 on the CPU."""
        return self.unfused(shape, testing.to_float64(inputs), **options)

    def precise(self, shape: Any, inputs: Any) -> torch.Tensor:
        """What a kernel's error is measured against: PyTorch's, in the precision asked for.

        Where float32 is to run in tf32 the operands are rounded to it and the products formed in
        float64 (a CPU has no tf32, and PyTorch may choose a kernel without it); a pool is not a
        product and sees the operands as they are.
        """
        cudnn: Any = torch.backends.cudnn
        if inputs.input.dtype != torch.float32 or cudnn.conv.fp32_precision != "tf32":
            return self.unfused(shape, inputs)
        rounded = type(inputs)(
            *(t if t is None or t.dim() == 1 else testing.round_to_tf32(t.cpu()) for t in inputs)
        )
        result = self.oracle(shape, rounded).float()
        if isinstance(shape, ReductionShape):
            result[:, shape.c_out :] = self.unfused(shape, inputs)[:, shape.c_out :].cpu()
        return result


def run_conv(shape: ConvShape, inputs: Any, **options: str) -> torch.Tensor:
    return fused_inception.conv2d_act(
        *inputs, stride=shape.stride, padding=shape.padding, **options
    )


def unfused_conv(shape: ConvShape, inputs: Any, **options: str) -> torch.Tensor:
    return testing.unfused_conv(inputs, shape.stride, shape.padding, **options)


def conv_case(name: str, shapes: tuple[ConvShape, ...], few_channels: bool) -> OpCase:
    def chosen(shapes: Any) -> list[ConvShape]:
        return [s for s in shapes if (s.c_in <= conv_launch.FEW_CHANNELS) == few_channels]

    odd = tuple(chosen(shapes))
    small = ConvShape(5, 7, 6, 3 if few_channels else 10, 12, (3, 5), (2, 1), (1, 2))
    return OpCase(
        name, "conv2d_act", conv_launch, odd,
        lambda batch: chosen(testing.inception_v3_convs(batch)), small,
        testing.random_conv, testing.integer_conv, run_conv, unfused_conv,
    )  # fmt: skip


def reduction_case(pool: str) -> OpCase:
    def integers(shape: ReductionShape, *args: Any, **options: Any) -> Any:
        # Multiples of the window's size keep a mean whole.
        unit = 1 if pool == "max" else shape.kernel**2
        return testing.integer_conv(shape, *args, unit=unit, **options)

    return OpCase(
        f"grid_reduction-{pool}", "grid_reduction", reduction_launch,
        testing.ODD_REDUCTION_SHAPES, testing.inception_reductions,
        ReductionShape(5, 8, 7, 10, 12, 3), testing.random_conv, integers,
        lambda shape, inputs, **options: fused_inception.grid_reduction(
            *inputs, pool=pool, **options
        ),
        lambda shape, inputs, **options: testing.unfused_reduction(inputs, pool, **options),
    )  # fmt: skip


# Shapes that only a Triton kernel finds odd: more channels than a K block, filters in two blocks.
WIDE_CONV_SHAPES = (
    ConvShape(2, 5, 6, 70, 50, (3, 3), (1, 1), (1, 1)),
    ConvShape(1, 3, 3, 300, 17, (1, 1)),
    ConvShape(2, 9, 7, 6, 20, (7, 7), (2, 2), (3, 3)),
    ConvShape(1, 12, 5, 5, 140, (4, 2), (1, 3), (2, 0)),
)
OP_CASES = (
    conv_case("conv2d_act", (*testing.ODD_CONV_SHAPES, *WIDE_CONV_SHAPES), False),
    conv_case("conv2d_act-few", (*testing.ODD_CONV_SHAPES, *WIDE_CONV_SHAPES), True),
    OpCase(
        "split_conv2d", "split_conv2d", split_launch,
        (*testing.ODD_SPLIT_SHAPES, SplitShape(2, 4, 5, 70, 50, 140, 3, 5)),
        testing.inception_v3_splits, SplitShape(5, 7, 6, 10, 9, 12, 5, 3),
        testing.random_split, testing.integer_split,
        lambda shape, inputs, **options: fused_inception.split_conv2d(*inputs, **options),
        lambda shape, inputs, **options: testing.unfused_split(inputs, **options),
    ),
    reduction_case("max"),
    reduction_case("avg"),
)  # fmt: skip


def with_batch(shape: Any, batch: int) -> Any:
    """The same shape with another number of images."""
    return dataclasses.replace(shape, batch=batch)


def all_tiles(op: str) -> list[tuple[str, Tile]]:
    """Every (precision, tile) that some table of an op holds."""
    found = {
        (precision, tile)
        for name in dict.fromkeys(DEVICE_CLASSES.values())
        for precision, row in load_table(op, name).tiles.items()
        for tile in row
    }
    return sorted(found, key=str)
