"""A fused block as a table of steps: what it runs, on which maps, into which part of its output.

A step reads one map, or some, and writes others. A map has the name of the convolution that makes
it (its *role*) or the name that the step gives it; "input" is the block's input. Maps that are
listed in `Plan.parts` are not maps of their own but slices of the block's output, in that order, so
nothing is concatenated. From the same table come the packed weights, the shapes (`resolve`), the
launches on a GPU (`launch.py`), the calls of PyTorch (`aten.py`) and the differentiable form
(`op.py`).

Convolutions of one size that read the same map are one step, one product: the 1×1s on the block's
input, the *siblings*. An average pool in front of a 1×1 is moved behind it, which is exact because
both are linear: the 1×1 is then one more sibling, without bias and ReLU, and the pool adds the bias
and applies the ReLU. A max pool is not linear and stays where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fused_inception.ops.common import checks
from fused_inception.ops.common.geometry import conv_output_size, empty_channels_last
from fused_inception.ops.conv2d_act.op import Problem as ConvProblem
from fused_inception.ops.factorized_conv2d.op import Problem as PairProblem
from fused_inception.ops.grid_reduction.op import Problem as ReductionProblem
from fused_inception.ops.halving_branches.problem import Problem as BranchesProblem
from fused_inception.ops.pool2d.op import Problem as PoolProblem
from fused_inception.ops.split_conv2d.op import Problem as SplitProblem

INPUT = "input"
SIBLINGS = "siblings"
# Window of every pool in a block. With stride 1 it has a padding of 1, with stride 2 none.
POOL_WINDOW = 3


class ConvWeights(NamedTuple):
    """One convolution with its BatchNorm folded in.

    Attributes:
        weight: `(K, C, R, S)`, channels_last.
        bias: `(K,)` or None.
    """

    weight: Tensor
    bias: Tensor | None


class BlockWeights(NamedTuple):
    """The weights of a fused block as its op takes them.

    Attributes:
        weights: `(K, C, R, S)` each, channels_last, in the order of the block's steps; those of
            siblings one below the other in one tensor.
        biases: one for each of `weights`, `(K,)` or None; then those that pools add.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]


class Conv(NamedTuple):
    """Convolutions on one map as one product, each filled with zeros to keep the size, or halving.

    `roles` are also the names of the maps. Several of them have 1×1 filters. With `pads` False
    nothing is filled with zeros and the map loses its rim.
    """

    source: str
    roles: tuple[str, ...]
    halves: bool = False
    pads: bool = True

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.roles[0] if len(self.roles) == 1 else SIBLINGS,)

    @property
    def maps(self) -> tuple[str, ...]:
        return self.roles


class Pair(NamedTuple):
    """`1×n → m×1` or `n×1 → 1×m`; the map has the name of the second."""

    source: str
    first: str
    second: str

    @property
    def weights(self) -> tuple[str, ...]:
        return self.first, self.second

    @property
    def maps(self) -> tuple[str, ...]:
        return (self.second,)


class Split(NamedTuple):
    """`1×n ∥ m×1` on one map, into one map."""

    source: str
    row: str
    col: str
    target: str

    @property
    def weights(self) -> tuple[str, ...]:
        return self.row, self.col

    @property
    def maps(self) -> tuple[str, ...]:
        return (self.target,)


class Reduction(NamedTuple):
    """A halving 3×3 convolution and a halving 3×3 max pool of the same map."""

    source: str
    role: str
    pool: str

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.role,)

    @property
    def maps(self) -> tuple[str, ...]:
        return self.role, self.pool


class HalvingBranches(NamedTuple):
    """Halving 3×3 convolutions, each of a map of its own, and a halving 3×3 max pool of `source`.

    All maps have one size, and there are up to three convolutions.
    """

    inputs: tuple[str, ...]
    roles: tuple[str, ...]
    source: str
    pool: str

    @property
    def weights(self) -> tuple[str, ...]:
        return self.roles

    @property
    def maps(self) -> tuple[str, ...]:
        return (*self.roles, self.pool)


class MaxPool(NamedTuple):
    """A 3×3 max pool, halving or padded to keep the size."""

    source: str
    target: str
    halves: bool = True

    @property
    def weights(self) -> tuple[str, ...]:
        return ()

    @property
    def maps(self) -> tuple[str, ...]:
        return (self.target,)


class AveragePool(NamedTuple):
    """A 3×3 average pool of a sibling's map, then that sibling's bias and ReLU."""

    source: str
    target: str

    @property
    def weights(self) -> tuple[str, ...]:
        return ()

    @property
    def maps(self) -> tuple[str, ...]:
        return (self.target,)


Step: TypeAlias = Conv | Pair | Split | Reduction | HalvingBranches | MaxPool | AveragePool


def sources(step: Step) -> tuple[str, ...]:
    """The maps that a step reads."""
    inputs = step.inputs if isinstance(step, HalvingBranches) else ()
    return (*inputs, step.source)


def links(step: Step) -> list[tuple[str, str]]:
    """(map, weight) of what each convolution of a step reads."""
    if isinstance(step, HalvingBranches):
        return list(zip(step.inputs, step.roles, strict=True))
    if isinstance(step, Pair):
        return [(step.source, step.first), (step.first, step.second)]
    return [(step.source, name) for name in step.weights]


class ImagesAtATime(NamedTuple):
    """How many images go through all steps of a block before the next ones do."""

    cpu: int
    gpu: int


class Plan:
    """A kind of block.

    Args:
        kind: its name, and that of its op.
        steps: in the order in which they run.
        parts: the maps that make up the output.
        images_at_a_time: for a block whose maps are so large that those of a whole batch should not
            be in memory together. Default: all images of a batch.

    Attributes:
        roles: every convolution.
        weight_names, bias_names: of what `pack` returns.
        raw: the roles whose bias and ReLU an average pool applies.
        last_reads: for each step, the maps that nothing reads after it.
    """

    def __init__(
        self,
        kind: str,
        steps: tuple[Step, ...],
        parts: tuple[str, ...],
        images_at_a_time: ImagesAtATime | None = None,
    ) -> None:
        self.kind = kind
        self.steps = steps
        self.parts = parts
        self.images_at_a_time = images_at_a_time
        self.roles = tuple(
            role
            for step in steps
            for role in (step.roles if isinstance(step, Conv) else step.weights)
        )
        self.weight_names = tuple(name for step in steps for name in step.weights)
        self.raw = tuple(step.source for step in steps if isinstance(step, AveragePool))
        self.bias_names = (*self.weight_names, *self.raw)
        readers = {name: index for index, step in enumerate(steps) for name in sources(step)}
        self.last_reads = tuple(
            tuple(name for name, last in readers.items() if last == index and name != INPUT)
            for index in range(len(steps))
        )

    def pack(self, convs: Mapping[str, ConvWeights]) -> BlockWeights:
        """The weights as the op takes them, from those of every role.

        New tensors where convolutions are merged, the given ones elsewhere.

        Raises:
            ValueError: one does not take what the one in front of it gives. The op itself sees
                merged filters and cannot tell where one convolution ends.
        """
        self._check_channels(convs)
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for step in self.steps:
            if isinstance(step, Conv) and len(step.roles) > 1:
                weight, bias = self._merge([(role, convs[role]) for role in step.roles])
                weights.append(weight)
                biases.append(bias)
            else:
                weights += [convs[name].weight for name in step.weights]
                biases += [convs[name].bias for name in step.weights]
        for role in self.raw:
            weight, bias = convs[role]
            biases.append(weight.new_zeros(weight.shape[0]) if bias is None else bias)
        return BlockWeights(tuple(weights), tuple(biases))

    def _check_channels(self, convs: Mapping[str, ConvWeights]) -> None:
        for source, reader in (link for step in self.steps for link in links(step)):
            if source not in convs or reader not in convs:
                continue
            have, takes = convs[source].weight.shape[0], convs[reader].weight.shape[1]
            if have != takes:
                raise ValueError(
                    f"{self.kind}: {reader} must take the {have} channels of {source}, got {takes}"
                )
        for first, *others in (step.roles for step in self.steps if isinstance(step, Conv)):
            for role in others:
                size, wanted = convs[role].weight.shape[1:], convs[first].weight.shape[1:]
                if size != wanted:
                    raise ValueError(
                        f"{self.kind}: {role} must have filters of {tuple(wanted)} as {first}, "
                        f"got {tuple(size)}"
                    )

    def _merge(self, convs: Sequence[tuple[str, ConvWeights]]) -> tuple[Tensor, Tensor | None]:
        first = convs[0][1].weight
        merged = torch.cat([conv.weight for _, conv in convs])
        weight = empty_channels_last((*merged.shape,), first).copy_(merged)
        biases = [None if role in self.raw else conv.bias for role, conv in convs]
        if all(bias is None for bias in biases):
            return weight, None
        shifts = [
            first.new_zeros(conv.weight.shape[0]) if bias is None else bias
            for (_, conv), bias in zip(convs, biases, strict=True)
        ]
        return weight, torch.cat(shifts)


Problem: TypeAlias = (
    ConvProblem | PairProblem | SplitProblem | ReductionProblem | BranchesProblem | PoolProblem
)


class Resolved(NamedTuple):
    """A plan with all sizes filled in.

    Attributes:
        plan: which.
        problems: of each step.
        shapes: of every map, by its name.
        output_shape: of the block's output.
        slices: the channels of the output that each part takes.
        dtype, device: of the input.
    """

    plan: Plan
    problems: tuple[Problem, ...]
    shapes: Mapping[str, tuple[int, int, int, int]]
    output_shape: tuple[int, int, int, int]
    slices: Mapping[str, slice]
    dtype: torch.dtype
    device: torch.device


Shape: TypeAlias = tuple[int, ...]


def resolve(
    plan: Plan,
    shape: Shape,
    weights: tuple[Shape, ...],
    biases: tuple[Shape | None, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Resolved:
    """Check the shapes of a block's arguments against each other, and fill in all others.

    Raises:
        ValueError: one does not fit; it is named by its role.
    """
    return _Resolver(plan, shape, weights, biases, dtype, device).resolve()


# For shapes in numbers. A block of a network sees few.
resolve_cached = functools.lru_cache(maxsize=4096)(resolve)


class _Resolver:
    def __init__(
        self,
        plan: Plan,
        shape: Shape,
        weights: tuple[Shape, ...],
        biases: tuple[Shape | None, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self.dtype, self.device = dtype, device
        self.weights = dict(zip(plan.weight_names, weights, strict=True))
        self.biases = dict(zip(plan.bias_names, biases, strict=True))
        n, c, h, w = shape
        self.shapes: dict[str, tuple[int, int, int, int]] = {INPUT: (n, c, h, w)}

    def fail(self, text: str) -> ValueError:
        return ValueError(f"{self.plan.kind}: {text}")

    def resolve(self) -> Resolved:
        for name, weight in self.weights.items():
            if len(weight) != 4 or 0 in weight:
                raise self.fail(f"{name} must be a non-empty 4-D weight, got {tuple(weight)}")
        problems = tuple(self.problem(step) for step in self.plan.steps)
        slices: dict[str, slice] = {}
        channels = 0
        for part in self.plan.parts:
            slices[part] = slice(channels, channels + self.shapes[part][1])
            channels += self.shapes[part][1]
        n, _, h, w = self.shapes[self.plan.parts[0]]
        return Resolved(
            self.plan, problems, self.shapes, (n, channels, h, w), slices, self.dtype, self.device
        )

    def problem(self, step: Step) -> Problem:
        if isinstance(step, Conv):
            return self.conv(step)
        if isinstance(step, Pair):
            return self.pair(step)
        if isinstance(step, Split):
            return self.split(step)
        if isinstance(step, Reduction):
            return self.reduction(step)
        if isinstance(step, HalvingBranches):
            return self.branches(step)
        return self.pool(step)

    def weight(self, name: str, source: str, *kernel: int | None) -> tuple[int, int, int]:
        """(filters, rows, columns); None stands for an odd number of taps."""
        shape = self.weights[name]
        channels = self.shapes[source][1]
        if shape[1] != channels:
            raise self.fail(f"{name} must take {channels} channels, got shape {tuple(shape)}")
        filters, _, rows, columns = shape
        for taps, wanted in zip((rows, columns), kernel, strict=True):
            if wanted is None:
                checks.check_taps(self.plan.kind, name, taps)
            elif taps != wanted:
                takes = "x".join("n" if t is None else str(t) for t in kernel)
                raise self.fail(f"{name} must be {takes}, got {rows}x{columns}")
        bias = self.biases[name]
        if bias is not None and tuple(bias) != (filters,):
            raise self.fail(f"the bias of {name} must be of shape ({filters},), got {tuple(bias)}")
        return filters, rows, columns

    def holds(self, source: str, rows: int, columns: int) -> tuple[int, int]:
        """The size of a map, which a window must fit into."""
        _, _, h, w = self.shapes[source]
        if h < rows or w < columns:
            small = "" if source == INPUT else "; input is too small"
            raise self.fail(
                f"{source} must have H and W of at least {rows} and {columns}, got {h}x{w}{small}"
            )
        return h, w

    def halved(self, source: str, window: int) -> tuple[int, int]:
        h, w = self.holds(source, window, window)
        return conv_output_size(h, window, 2, 0), conv_output_size(w, window, 2, 0)

    def conv(self, step: Conv) -> Problem:
        n, c, h, w = self.shapes[step.source]
        merged = len(step.roles) > 1
        taps = 1 if merged else 3 if step.halves else None
        filters, rows, columns = self.weight(step.weights[0], step.source, taps, taps)
        stride, padding, out = (1, 1), (rows // 2, columns // 2), (h, w)
        if step.halves:
            stride, padding, out = (2, 2), (0, 0), self.halved(step.source, rows)
        elif not step.pads:
            self.holds(step.source, rows, columns)
            padding, out = (0, 0), (h - rows + 1, w - columns + 1)
        sizes = self.siblings(step.roles, filters) if merged else {step.roles[0]: filters}
        for role, size in sizes.items():
            self.shapes[role] = (n, size, *out)
        return ConvProblem(
            n, c, h, w, filters, (rows, columns), stride, padding, *out, self.dtype, self.device
        )

    def siblings(self, roles: tuple[str, ...], filters: int) -> dict[str, int]:
        """Filters of each: what its reader takes, and the rest for the one that nobody reads."""
        # Of several readers of one map the first.
        readers = dict(reversed([link for step in self.plan.steps for link in links(step)]))
        sizes: dict[str, int] = {}
        rest = None
        for role in roles:
            reader = readers.get(role)
            if role in self.plan.raw:
                bias = self.biases[role]
                if bias is None or len(bias) != 1:
                    raise self.fail(f"the bias of {role} must be 1-D, got {bias}")
                sizes[role] = bias[0]
            elif reader is None:
                rest = role
                sizes[role] = 0
            else:
                sizes[role] = self.weights[reader][1]
        left = filters - sum(sizes.values())
        if rest is not None:
            sizes[rest] = left
        if (left < 1) if rest is not None else (left != 0):
            raise self.fail(
                f"{SIBLINGS} must have filters for {', '.join(roles)}, got {filters} "
                f"where those behind take {sum(sizes.values()) - (left if rest else 0)}"
            )
        return sizes

    def pair(self, step: Pair) -> Problem:
        n, c, h, w = self.shapes[step.source]
        row_first = self.weights[step.first][2:3] == (1,)
        kernels = ((1, None), (None, 1))
        first, second = kernels if row_first else kernels[::-1]
        mid, rows1, columns1 = self.weight(step.first, step.source, *first)
        self.shapes[step.first] = (n, mid, h, w)
        out, rows2, columns2 = self.weight(step.second, step.first, *second)
        del self.shapes[step.first]
        self.shapes[step.second] = (n, out, h, w)
        return PairProblem(
            n, c, mid, out, h, w, rows1 * columns1, rows2 * columns2, row_first,
            self.dtype, self.device,
        )  # fmt: skip

    def split(self, step: Split) -> Problem:
        n, c, h, w = self.shapes[step.source]
        row, _, taps_row = self.weight(step.row, step.source, 1, None)
        col, taps_col, _ = self.weight(step.col, step.source, None, 1)
        self.shapes[step.target] = (n, row + col, h, w)
        return SplitProblem(n, c, h, w, row, col, taps_row, taps_col, self.dtype, self.device)

    def reduction(self, step: Reduction) -> Problem:
        n, c, h, w = self.shapes[step.source]
        filters, kernel, _ = self.weight(step.role, step.source, POOL_WINDOW, POOL_WINDOW)
        out = self.halved(step.source, kernel)
        self.shapes[step.role] = (n, filters, *out)
        self.shapes[step.pool] = (n, c, *out)
        return ReductionProblem(n, c, h, w, filters, kernel, *out, "max", self.dtype, self.device)

    def branches(self, step: HalvingBranches) -> Problem:
        n, c, h, w = self.shapes[step.source]
        out = self.halved(step.source, POOL_WINDOW)
        c_in, c_out = [], []
        for source, role in links(step):
            filters, _, _ = self.weight(role, source, POOL_WINDOW, POOL_WINDOW)
            self.shapes[role] = (n, filters, *out)
            c_in.append(self.shapes[source][1])
            c_out.append(filters)
        self.shapes[step.pool] = (n, c, *out)
        return BranchesProblem(
            n, h, w, tuple(c_in), tuple(c_out), c, POOL_WINDOW, *out, self.dtype, self.device
        )

    def pool(self, step: MaxPool | AveragePool) -> Problem:
        n, c, h, w = self.shapes[step.source]
        window = (POOL_WINDOW, POOL_WINDOW)
        stride, padding, out = (1, 1), (1, 1), (h, w)
        if isinstance(step, MaxPool) and step.halves:
            stride, padding, out = (2, 2), (0, 0), self.halved(step.source, POOL_WINDOW)
        self.shapes[step.target] = (n, c, *out)
        return PoolProblem(n, c, h, w, window, stride, padding, *out, self.dtype, self.device)


def tensor_arguments(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, Any]:
    """Tensors under the names that messages give them."""
    return dict(zip(names, tensors, strict=True))
