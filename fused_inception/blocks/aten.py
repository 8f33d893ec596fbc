"""The fused blocks through PyTorch: any device, any dtype. Not batch-invariant.

The same structure as on the other backends: merged 1×1s, moved average pools, every branch written
into its slice of the output. A convolution of PyTorch's has a result of its own; where that belongs
into a slice or is one of several siblings, the pass that applies the ReLU also takes it there, so
no pass is added.

What does not depend on the numbers in a block's input is done once, by `Program`, for inputs of one
shape: on a CPU, looking up sizes and packed weights would take a twentieth of the time of a forward
of one image.

oneDNN's own ReLU costs nothing, but turns NaN into 0. Where a block's maps are many times its input
(the first layers of a network), the input is looked at first: if its largest number is so small
that no sum can leave the range of the dtype, there is no NaN to lose, and oneDNN's ReLU gives the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fused_inception.blocks.plan import (
    INPUT,
    POOL_WINDOW,
    AveragePool,
    Conv,
    ConvWeights,
    HalvingBranches,
    MaxPool,
    Pair,
    Reduction,
    Resolved,
    Split,
    Step,
    links,
)
from fused_inception.ops.common import packed_weights
from fused_inception.ops.common.geometry import conv_output_size, empty_channels_last
from fused_inception.ops.common.relu import rectifier
from fused_inception.ops.conv2d_act.aten import conv2d_act
from fused_inception.ops.factorized_conv2d.aten import same_padding
from fused_inception.ops.pool2d import aten as pools

Maps: TypeAlias = dict[str, Tensor]
# A step: reads one of the maps, and adds others or writes into them.
Call: TypeAlias = Callable[[Maps], None]
Function: TypeAlias = Callable[[Tensor], Tensor]

_HALVING: tuple[tuple[int, int], tuple[int, int]] = ((2, 2), (0, 0))  # stride, padding
_WINDOW = (POOL_WINDOW, POOL_WINDOW)
# So many numbers in all maps for one in the input make looking at the input worth while.
_MUCH = 8


class Program:
    """The steps of a block as calls, for inputs of one shape and the given weights.

    Args:
        resolved: of the shape.
        weights, biases: as the block's op takes them.
        include_pad: of the average pool.

    Attributes:
        may_be_kept: whether all convolutions run from packed copies of the weights, so that this
            holds none of them; it is right as long as `packed_weights.state` of weights and biases,
            and the number of threads, stay what they are.
    """

    def __init__(
        self,
        resolved: Resolved,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        include_pad: bool,
    ) -> None:
        builder = _Builder(resolved, weights, biases, include_pad)
        plan = resolved.plan
        self._parts = plan.parts
        self._channels = [part.stop - part.start for part in resolved.slices.values()]
        self._calls = builder.calls()
        # Inputs of at most this magnitude make no NaN: they have calls of their own.
        self._bound = builder.bound()
        if self._bound is not None:
            builder.makes_nan = False
            self._bounded_calls = builder.calls()
        self.may_be_kept = not builder.holds_weights

    def __call__(self, input: Tensor, output: Tensor) -> Tensor:
        """Writes the block's output, and returns it."""
        if torch.is_grad_enabled():  # a bare operator may be called where autograd records
            with torch.no_grad():
                return self._run(input, output)
        return self._run(input, output)

    def _run(self, input: Tensor, output: Tensor) -> Tensor:
        maps: Maps = dict(zip(self._parts, output.split_with_sizes(self._channels, 1), strict=True))
        x = maps[INPUT] = input.contiguous(memory_format=torch.channels_last)
        calls = self._calls
        if self._bound is not None and _within(x, self._bound):
            calls = self._bounded_calls
        for call, last in calls:
            call(maps)
            for name in last:
                maps.pop(name, None)
        return output


def _within(x: Tensor, bound: float) -> bool:
    # Whether all magnitudes in a dense channels_last map are at most `bound`; not where one is NaN.
    least, most = torch.aminmax(x.permute(0, 2, 3, 1).reshape(-1))
    return -bound <= least.item() and most.item() <= bound


class _Builder:
    # Makes a call of each step.

    def __init__(
        self,
        resolved: Resolved,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        include_pad: bool,
    ) -> None:
        plan = self.plan = resolved.plan
        self.shapes, self.dtype = resolved.shapes, resolved.dtype
        self.places = resolved.slices.keys()
        self.weights = dict(zip(plan.weight_names, weights, strict=True))
        self.biases = dict(zip(plan.bias_names, biases, strict=True))
        self.include_pad = include_pad
        self.on_cpu = resolved.device.type == "cpu"
        self.packs = (
            self.on_cpu
            and 0 not in resolved.shapes[INPUT]
            and all(packed_weights.is_packed(weight) for weight in weights)
            and not any(bias is not None and bias.is_inference() for bias in biases)
        )
        # oneDNN sums bfloat16 in float32; weights of float16 could become too small to be exact.
        self.sums_by_convolution = (
            self.packs and include_pad and self.dtype in (torch.float32, torch.bfloat16)
        )
        self.rectifier = rectifier(self.dtype, resolved.device.type)
        self.makes_nan = True
        self.holds_weights = not self.packs

    def calls(self) -> tuple[tuple[Call, tuple[str, ...]], ...]:
        # With the maps that nothing reads after each.
        calls = [self.call(step) for step in self.plan.steps]
        return tuple(zip(calls, self.plan.last_reads, strict=True))

    def bound(self) -> float | None:
        # The largest magnitude of an input of which no sum overflows, if it pays to look for it.
        steps = self.plan.steps
        if not self.packs or not all(isinstance(step, (Conv, MaxPool)) for step in steps):
            return None
        maps = [step.maps[0] for step in steps if isinstance(step, Conv)]
        if sum(math.prod(self.shapes[name]) for name in maps) < _MUCH * math.prod(
            self.shapes[INPUT]
        ):
            return None
        # Of maps: no number is beyond slope * (magnitude of the input) + offset.
        lines = {INPUT: (1.0, 0.0)}
        # Room for rounding at every layer.
        most = torch.finfo(self.dtype).max / 256
        bound = math.inf
        for step in steps:
            slope, offset = lines[step.source]
            if isinstance(step, Conv):
                name = step.weights[0]
                bias = self.biases[name]
                gain = self.weights[name].double().abs().sum((1, 2, 3)).max().item()
                slope, offset = gain * slope, gain * offset
                offset += 0.0 if bias is None else bias.double().abs().max().item()
                if not (math.isfinite(slope) and math.isfinite(offset)):
                    return None
                bound = min(bound, (most - offset) / slope if slope else bound)
            for name in step.maps:
                lines[name] = slope, offset
        return bound if bound > 0 else None

    def call(self, step: Step) -> Call:
        if isinstance(step, Conv):
            return self.siblings(step)
        if isinstance(step, Pair):
            return self.pair(step)
        if isinstance(step, Split):
            return self.split(step)
        if isinstance(step, Reduction):
            return self.reduction(((step.source, step.role),), step.source, step.pool)
        if isinstance(step, HalvingBranches):
            return self.reduction(links(step), step.source, step.pool)
        if isinstance(step, MaxPool):
            return self.max_pool(step.source, step.target, halves=step.halves)
        return self.average_pool(step)

    def conv(
        self,
        shape: Sequence[int],
        name: str,
        *,
        halves: bool = False,
        pads: bool = True,
        instead: ConvWeights | None = None,
        activation: str = "none",
    ) -> Function:
        # The convolution called `name` of maps of a shape, or one of its size.
        kept, bias = self.weights[name], self.biases[name]
        stride, padding = _HALVING
        if not halves:
            stride, padding = (1, 1), same_padding(kept) if pads else (0, 0)
        one_column = halves and conv_output_size(shape[3], kept.shape[3], 2, 0) == 1
        if self.packs and not one_column:
            if instead is None:
                packed = packed_weights.packed_for(shape, kept, stride, padding)
                assert packed is not None
            else:
                packed = packed_weights.pack(shape, instead.weight, stride, padding)
                bias = instead.bias
            return packed_weights.convolution(packed, bias, stride, padding, activation=activation)
        self.holds_weights = True
        return lambda x: conv2d_act(x, kept, bias, stride, padding, activation)

    def rectified(
        self, source: str, name: str, target: str, *, halves: bool = False, pads: bool = True
    ) -> Call:
        # relu(conv(source)) as the map `target`.
        options: dict[str, Any] = {"halves": halves, "pads": pads}
        if target not in self.places and not self.makes_nan:
            conv = self.conv(self.shapes[source], name, activation="relu", **options)
            return lambda maps: maps.update({target: conv(maps[source])})
        conv = self.conv(self.shapes[source], name, **options)
        return self.into(target, lambda maps: conv(maps[source]))

    def into(self, target: str, values: Callable[[Maps], Tensor]) -> Call:
        # relu(values) as the map `target`.
        _, in_place, into = self.rectifier

        def place(maps: Maps) -> None:
            into(values(maps), maps[target])

        def keep(maps: Maps) -> None:
            maps[target] = in_place(values(maps))

        return place if target in self.places else keep

    def siblings(self, step: Conv) -> Call:
        name, source = step.weights[0], step.source
        if len(step.roles) == 1:
            return self.rectified(source, name, step.roles[0], halves=step.halves, pads=step.pads)
        filters = [self.shapes[role][1] for role in step.roles]
        conv = self.conv(self.shapes[source], name, instead=self.ninth_of_raw(step))
        new, _, into = self.rectifier

        def as_it_is(maps: Maps, role: str, part: Tensor) -> None:
            maps[role] = part

        def place(maps: Maps, role: str, part: Tensor) -> None:
            into(part, maps[role])

        def keep(maps: Maps, role: str, part: Tensor) -> None:
            maps[role] = new(part)

        takes = [
            (role, as_it_is if role in self.plan.raw else place if role in self.places else keep)
            for role in step.roles
        ]

        def call(maps: Maps) -> None:
            parts = conv(maps[source]).split_with_sizes(filters, 1)
            for (role, take), part in zip(takes, parts, strict=True):
                take(maps, role, part)

        return call

    def ninth_of_raw(self, step: Conv) -> ConvWeights | None:
        # For an average pool that only adds: what is in front of it, divided by its pixels.
        if not (self.sums_by_convolution and any(role in self.plan.raw for role in step.roles)):
            return None
        name = step.weights[0]
        bias = self.biases[name]
        scaled = ConvWeights(self.weights[name].clone(), None if bias is None else bias.clone())
        filters = [self.shapes[role][1] for role in step.roles]
        for tensor in scaled:
            parts = () if tensor is None else tensor.split(filters)
            for role, part in zip(step.roles, parts, strict=tensor is not None):
                if role in self.plan.raw:
                    part.div_(POOL_WINDOW * POOL_WINDOW)
        return scaled

    def pair(self, step: Pair) -> Call:
        first = self.conv(self.shapes[step.source], step.first)
        n, _, rows, columns = self.shapes[step.source]
        shape = (n, self.weights[step.first].shape[0], rows, columns)
        second = self.conv(shape, step.second)
        source, relu_ = step.source, self.rectifier.in_place
        return self.into(step.second, lambda maps: second(relu_(first(maps[source]))))

    def reduction(self, convs: Sequence[tuple[str, str]], source: str, pool: str) -> Call:
        # Convolutions (map, name) and a max pool, all halving.
        calls = [self.rectified(x, name, name, halves=True) for x, name in convs]
        calls.append(self.max_pool(source, pool, halves=True))

        def call(maps: Maps) -> None:
            for part in calls:
                part(maps)

        return call

    def split(self, step: Split) -> Call:
        shape = self.shapes[step.source]
        row, col = self.conv(shape, step.row), self.conv(shape, step.col)
        filters = [self.weights[name].shape[0] for name in (step.row, step.col)]
        into = self.rectifier.into

        def call(maps: Maps) -> None:
            x = maps[step.source]
            row_place, col_place = maps[step.target].split_with_sizes(filters, 1)
            into(row(x), row_place)
            into(col(x), col_place)

        return call

    def max_pool(self, source: str, target: str, *, halves: bool) -> Call:
        in_place = target in self.places
        # Of what a ReLU leaves no maximum is a zero with a sign.
        if halves and self.on_cpu and source in self.plan.roles:
            return self.halving_max_pool(source, target)
        stride, padding = _HALVING if halves else ((1, 1), (1, 1))

        def call(maps: Maps) -> None:
            pooled = pools.max_pool2d(maps[source], _WINDOW, stride, padding)
            if in_place:
                maps[target].copy_(pooled)
            else:
                maps[target] = pooled

        return call

    def halving_max_pool(self, source: str, target: str) -> Call:
        in_place, shape = target in self.places, self.shapes[target]
        # Without NaN the order of what a ReLU leaves is that of the bits.
        by_bits = not self.makes_nan and self.dtype.itemsize == 2

        def call(maps: Maps) -> None:
            x = maps[source]
            if not in_place:
                maps[target] = empty_channels_last(shape, x)
            place = maps[target]
            if by_bits:
                x, place = x.view(torch.int16), place.view(torch.int16)
            pools.halving_max_pool2d_(x, place)

        return call

    def average_pool(self, step: AveragePool) -> Call:
        source, target = step.source, step.target
        bias, include_pad = self.biases[source], self.include_pad
        if not self.sums_by_convolution:
            return lambda maps: pools.avg_pool2d_act_(
                maps[source], bias, maps[target], POOL_WINDOW, include_pad
            )
        stride, padding, shape = (1, 1), (1, 1), self.shapes[source]
        channels = shape[1]
        ones = self.weights[self.plan.weight_names[0]].new_ones(channels, 1, *_WINDOW)
        packed = packed_weights.pack(shape, ones, stride, padding, groups=channels)
        sums = packed_weights.convolution(packed, bias, stride, padding, groups=channels)
        return self.into(target, lambda maps: sums(maps[source]))
