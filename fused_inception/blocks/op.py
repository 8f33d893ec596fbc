"""From a plan to a registered op and the function around it.

Every block is one functional op, `fused_inception::inception_a` to `inception_e`:

    (Tensor input, Tensor[] weights, Tensor?[] biases, bool count_include_pad, str backend)

with weights as `Plan.pack` gives them, and without `count_include_pad` where there is no average
pool. Where a gradient is wanted, the function is the same steps as single, differentiable ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_inception.blocks.aten import Program
from fused_inception.blocks.launch import backends
from fused_inception.blocks.plan import (
    INPUT,
    POOL_WINDOW,
    AveragePool,
    BlockWeights,
    Conv,
    HalvingBranches,
    MaxPool,
    Pair,
    Plan,
    Reduction,
    Resolved,
    Split,
    resolve,
    resolve_cached,
    sources,
    tensor_arguments,
)
from fused_inception.blocks.prepared import PreparedCall, PreparedCalls
from fused_inception.ops.common import checks
from fused_inception.ops.common.autocast import autocast
from fused_inception.ops.common.autograd import wants_grad
from fused_inception.ops.common.costs import register_cost
from fused_inception.ops.common.dispatch import select
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.common.registration import NAMESPACE, register
from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d
from fused_inception.ops.grid_reduction.op import grid_reduction
from fused_inception.ops.split_conv2d.op import split_conv2d


def _check(
    plan: Plan,
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    resolver: Callable[..., Resolved],
) -> Resolved:
    checks.check_input(plan.kind, input)
    if len(weights) != len(plan.weight_names) or len(biases) != len(plan.bias_names):
        raise ValueError(
            f"{plan.kind}: weights and biases must be {len(plan.weight_names)} "
            f"({', '.join(plan.weight_names)}) and {len(plan.bias_names)}, "
            f"got {len(weights)} and {len(biases)}"
        )
    dtype, device = input.dtype, input.device
    for tensor in (*weights, *biases):
        if tensor is not None and (tensor.dtype != dtype or tensor.device != device):
            checks.check_same_kind(plan.kind, input, **tensor_arguments(plan.weight_names, weights))
            names = [f"bias of {name}" for name in plan.bias_names]
            checks.check_same_kind(plan.kind, input, **tensor_arguments(names, biases))
    return resolver(
        plan,
        input.shape,
        tuple([weight.shape for weight in weights]),
        tuple([None if bias is None else bias.shape for bias in biases]),
        dtype,
        device,
    )


class BlockOp:
    """The registered op of a plan, and the function around it.

    Args:
        plan: of the block.

    Attributes:
        operator: `fused_inception::<kind>`, called with positional arguments.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._pools = bool(plan.raw)
        self._backends = backends(plan)
        self._calls = PreparedCalls()
        option = "bool count_include_pad, " if self._pools else ""
        self.operator = register(
            plan.kind,
            f"(Tensor input, Tensor[] weights, Tensor?[] biases, {option}str backend) -> Tensor",
            self._implementation,
            self._fake,
        )

        register_cost(f"{NAMESPACE}::{plan.kind}", self._macs, self._hidden_bytes)

    def _macs(self, args: Sequence[Any], out: Tensor) -> int:
        """Multiply-accumulates of a call; see `register_cost`."""
        input, given, biases = args[:3]
        resolved = _check(self.plan, input, given, biases, resolve)
        weights = dict(zip(self.plan.weight_names, given, strict=True))
        macs = 0
        for step in self.plan.steps:
            n, _, rows, columns = resolved.shapes[step.maps[0]]
            filters = sum(weights[name].numel() for name in step.weights)
            macs += n * rows * columns * filters
        return macs

    def _hidden_bytes(self, args: Sequence[Any], out: Tensor) -> int:
        """Bytes that steps move beyond the input and the output; see `register_cost`."""
        input, given, biases = args[:3]
        resolved = _check(self.plan, input, given, biases, resolve)
        weights = dict(zip(self.plan.weight_names, given, strict=True))
        elements = 0
        for step in self.plan.steps:
            elements += sum(math.prod(resolved.shapes[name]) for name in sources(step))
            elements += sum(math.prod(resolved.shapes[name]) for name in step.maps)
            if isinstance(step, Pair):  # the tensor between its factors, written and read
                n, _, rows, columns = resolved.shapes[step.second]
                elements += 2 * n * rows * columns * weights[step.first].shape[0]
        return elements * input.element_size() - input.nbytes - out.nbytes

    def __call__(
        self, input: Tensor, weights: BlockWeights, backend: str, include_pad: bool = True
    ) -> Tensor:
        """Checks, autocast, and the op, or its differentiable form where a gradient is wanted."""
        kind = self.plan.kind
        checks.check_options(kind, backend=backend)
        checks.check_tensors(kind, input=input)
        tensors = autocast(input, *weights.weights, *weights.biases)
        count = len(weights.weights) + 1
        x = cast("Tensor", tensors[0])
        packed = BlockWeights(cast("tuple[Tensor, ...]", tensors[1:count]), tensors[count:])
        if wants_grad(*tensors):
            resolved = _check(self.plan, x, *packed, resolve)
            return _differentiable(resolved, x, packed, include_pad, backend)
        options = (include_pad, backend) if self._pools else (backend,)
        return self.operator(x, *packed, *options)

    def _implementation(
        self, input: Tensor, weights: list[Tensor], biases: list[Tensor | None], *options: Any
    ) -> Tensor:
        kept = self._calls.find(input, weights, biases, options)
        if kept is not None:
            return kept(input)
        backend = options[-1]
        checks.check_options(self.plan.kind, backend=backend)
        resolved = _check(self.plan, input, weights, biases, resolve_cached)
        chosen = select(self.plan.kind, backend, self._backends, resolved, resolved.device)
        include_pad = options[0] if self._pools else True
        batch, images = input.shape[0], self._images_at_a_time(input)
        functions = {}
        for count in {min(images, batch - first) for first in range(0, max(batch, 1), images)}:
            part = resolved
            if count < batch:
                part = _check(self.plan, input[:count], weights, biases, resolve_cached)
            functions[count] = chosen.run(part, weights, biases, include_pad)
        call = PreparedCall(resolved.output_shape, images, functions)
        if all(isinstance(f, Program) and f.may_be_kept for f in functions.values()):
            self._calls.keep(call, input, weights, biases, options)
        return call(input)

    def _images_at_a_time(self, input: Tensor) -> int:
        images = self.plan.images_at_a_time
        if images is None:
            return max(input.shape[0], 1)
        return images.cpu if input.device.type == "cpu" else images.gpu

    def _fake(
        self, input: Tensor, weights: list[Tensor], biases: list[Tensor | None], *options: Any
    ) -> Tensor:
        checks.check_options(self.plan.kind, backend=options[-1])
        resolved = _check(self.plan, input, weights, biases, resolve)
        return empty_channels_last(resolved.output_shape, input)


def _differentiable(
    resolved: Resolved, input: Tensor, packed: BlockWeights, include_pad: bool, backend: str
) -> Tensor:
    plan = resolved.plan
    named = tensor_arguments(plan.weight_names, packed.weights)
    biases = tensor_arguments(plan.bias_names, packed.biases)
    maps = {INPUT: input.contiguous(memory_format=torch.channels_last)}
    for step in plan.steps:
        x = maps[step.source]
        w = [(named[name], biases[name]) for name in step.weights]
        if isinstance(step, Conv):
            halving: dict[str, Any] = {"stride": 2, "padding": 0}
            same = {"padding": [taps // 2 if step.pads else 0 for taps in w[0][0].shape[2:]]}
            options = halving if step.halves else same
            y = conv2d_act(x, *w[0], activation="none", backend=backend, **options)
            filters = [resolved.shapes[role][1] for role in step.roles]
            for role, part in zip(step.roles, y.split(filters, 1), strict=True):
                maps[role] = part if role in plan.raw else F.relu(part)
        elif isinstance(step, Pair):
            maps[step.second] = factorized_conv2d(x, *w[0], *w[1], backend=backend)
        elif isinstance(step, Split):
            maps[step.target] = split_conv2d(x, *w[0], *w[1], backend=backend)
        elif isinstance(step, Reduction):
            y = grid_reduction(x, *w[0], backend=backend)
            filters = [resolved.shapes[name][1] for name in step.maps]
            maps[step.role], maps[step.pool] = y.split(filters, 1)
        elif isinstance(step, HalvingBranches):
            for source, role, (weight, bias) in zip(step.inputs, step.roles, w, strict=True):
                maps[role] = conv2d_act(maps[source], weight, bias, stride=2, backend=backend)
            maps[step.pool] = F.max_pool2d(x, POOL_WINDOW, 2)
        elif isinstance(step, MaxPool):
            stride, padding = (2, 0) if step.halves else (1, 1)
            maps[step.target] = F.max_pool2d(x, POOL_WINDOW, stride, padding)
        else:
            assert isinstance(step, AveragePool)
            y = F.avg_pool2d(x, POOL_WINDOW, 1, 1, count_include_pad=include_pad)
            bias = cast("Tensor", biases[step.source])
            maps[step.target] = F.relu(y + bias.reshape(1, -1, 1, 1))
    return torch.cat([maps[part] for part in plan.parts], 1)
