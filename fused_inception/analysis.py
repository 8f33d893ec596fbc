"""Arithmetic, parameters and memory traffic of a module, and the time that they take at the least.

`analyze` runs a module once and writes down every operator that the dispatcher sees; on the `meta`
device this computes nothing. From that come, for each operator, for each block (direct child) and
for the whole:

- multiply-accumulates of convolutions and matrix products;
- bytes moved unfused: every operator reads its operands from memory and writes its result to it
  once. BatchNorm and ReLU ride along with the operator in front of them, as a compiler leaves them;
- bytes moved fused: what crosses the boundary of a block crosses it once, and nothing else moves.

Limits. A tensor that is read in part counts as what is read, one that is written in part as a whole
(nothing here does). The indices that a max pool writes beside its values are not counted. Weights
count once per operator or block, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fused_inception.ops.common import costs
from fused_inception.ops.common.costs import Count

__all__ = ["Analysis", "Cost", "Operator", "analyze"]


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products.
        parameters: elements of the module's parameters, BatchNorm's included.
        fused_bytes: bytes moved where only the boundary of the piece goes through memory.
        unfused_bytes: bytes moved where every operator goes through memory.
    """

    macs: int
    parameters: int
    fused_bytes: int
    unfused_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: the longer of the arithmetic and the fused traffic at the given rates.

        Args:
            flops_per_second: of the matrix units, two operations a multiply-accumulate.
            bytes_per_second: of the memory, bytes read plus bytes written.

        Returns:
            Seconds below which the work cannot take.

        Raises:
            ValueError: a rate is not above 0.
        """
        if flops_per_second <= 0 or bytes_per_second <= 0:
            raise ValueError(
                f"rates must be above 0, got {flops_per_second} FLOP/s and {bytes_per_second} B/s"
            )
        return max(self.flops / flops_per_second, self.fused_bytes / bytes_per_second)


@dataclass(frozen=True)
class Operator:
    """One operator that ran.

    Attributes:
        name: as the dispatcher calls it, without its overload.
        block: the direct child of the module in which it ran, "" outside of them.
        macs: multiply-accumulates.
        reads: (value, bytes) of every operand that was computed.
        weights: (value, bytes) of every operand that is the module's own.
        writes: (value, bytes) of every result.
        hidden_bytes: what moves beyond that where the operator's parts run one by one.
    """

    name: str
    block: str
    macs: int
    reads: tuple[tuple[int, int], ...]
    weights: tuple[tuple[int, int], ...]
    writes: tuple[tuple[int, int], ...]
    hidden_bytes: int

    @property
    def fused_bytes(self) -> int:
        """Operands and results, once each."""
        return sum(bytes_ for _, bytes_ in {*self.reads, *self.weights, *self.writes})

    @property
    def unfused_bytes(self) -> int:
        """The same, and what moves between the operator's parts."""
        return self.fused_bytes + self.hidden_bytes


@dataclass(frozen=True)
class Analysis:
    """What a module takes.

    Attributes:
        operators: in the order in which they ran.
        blocks: the cost of each direct child that ran, and under "" of what ran outside of them.
        total: the whole; its `fused_bytes` is the sum over the blocks, each fused by itself.
    """

    operators: tuple[Operator, ...]
    blocks: dict[str, Cost]
    total: Cost

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline block by block, one block after the other; see `Cost.floor_seconds`."""
        return sum(
            cost.floor_seconds(flops_per_second, bytes_per_second) for cost in self.blocks.values()
        )


def analyze(module: nn.Module, input: Tensor) -> Analysis:
    """Counts the arithmetic, the parameters and the traffic of one forward pass.

    Args:
        module: any module on one device; on "meta", nothing is computed. Its dtype decides the
            bytes. A module that branches on its mode runs in the mode it is in.
        input: what it is called with, on the same device.

    Returns:
        The costs; every operator is in the block (direct child of `module`) that called it.

    Raises:
        ValueError: an operator forms products that nothing is known about here.
    """
    with _Recorder(module) as recorder, recorder.hooks(), torch.no_grad():
        result = module(input)
    kept = {recorder.value(tensor) for tensor in _tensors(result)}
    operators = tuple(recorder.operators)
    children = dict(module.named_children())
    costs = {}
    for name in dict.fromkeys(operator.block for operator in operators):
        inside = [operator for operator in operators if operator.block == name]
        outside = [operator for operator in operators if operator.block != name]
        costs[name] = Cost(
            sum(operator.macs for operator in inside),
            _parameters(children[name].parameters() if name else _own_parameters(module, children)),
            _boundary_bytes(inside, outside, kept),
            sum(operator.unfused_bytes for operator in inside),
        )
    total = Cost(
        sum(cost.macs for cost in costs.values()),
        _parameters(module.parameters()),
        sum(cost.fused_bytes for cost in costs.values()),
        sum(cost.unfused_bytes for cost in costs.values()),
    )
    return Analysis(operators, costs, total)


def _parameters(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in set(parameters))


def _own_parameters(module: nn.Module, children: dict[str, nn.Module]) -> Iterator[nn.Parameter]:
    # Those of the module itself; of a module without children that ran, all of them.
    return module.parameters(recurse=not children)


def _boundary_bytes(inside: Sequence[Operator], outside: Sequence[Operator], kept: set[int]) -> int:
    """Bytes of what goes into a group of operators and of what comes out of it, once each."""
    written = {value: size for operator in inside for value, size in operator.writes}
    needed = kept | {value for operator in outside for value, _ in operator.reads}
    read: dict[int, int] = {}
    for operator in inside:
        for value, size in (*operator.reads, *operator.weights):
            if value not in written:
                read[value] = max(size, read.get(value, 0))
    results = sum(size for value, size in written.items() if value in needed)
    return sum(read.values()) + results


def _pixels(tensor: Tensor) -> int:
    return tensor.numel() // tensor.shape[1]


def _pair_macs(args: Sequence[Any], out: Tensor) -> int:
    return _pixels(out) * (args[1].numel() + args[3].numel())


def _conv_macs(args: Sequence[Any], out: Tensor) -> int:
    return _pixels(out) * args[1].numel()


def _linear_macs(args: Sequence[Any], out: Tensor) -> int:
    # addmm(bias, rows, weights), mm(rows, weights)
    return out.numel() * args[-2].shape[-1]


def _linear_op_macs(args: Sequence[Any], out: Tensor) -> int:
    # linear(input, weight, bias, ...)
    return out.numel() * args[1].shape[1]


def _mid_bytes(args: Sequence[Any], out: Tensor) -> int:
    # The tensor between the factors, written and read.
    return 2 * _pixels(out) * args[1].shape[0] * out.element_size()


def _concatenated_bytes(args: Sequence[Any], out: Tensor) -> int:
    # The second reading of the input; the concatenation reads and writes all of the output.
    return args[0].nbytes + 2 * out.nbytes


def _nothing(args: Sequence[Any], out: Tensor) -> int:
    return 0


# Operator -> (multiply-accumulates, bytes that move between its parts).
_PRODUCTS: dict[str, tuple[Count, Count]] = {
    "aten::convolution": (_conv_macs, _nothing),
    "aten::addmm": (_linear_macs, _nothing),
    "aten::mm": (_linear_macs, _nothing),
    "fused_inception::conv2d_act": (_conv_macs, _nothing),
    "fused_inception::factorized_conv2d": (_pair_macs, _mid_bytes),
    "fused_inception::split_conv2d": (_pair_macs, _concatenated_bytes),
    "fused_inception::grid_reduction": (_conv_macs, _concatenated_bytes),
    "fused_inception::linear": (_linear_op_macs, _nothing),
    "fused_inception::max_pool2d": (_nothing, _nothing),
    "fused_inception::global_avg_pool2d": (_nothing, _nothing),
}
# Operators that ride along with the one that made their operand.
_EPILOGUES = (
    "aten::_native_batch_norm_legit_no_training",
    "aten::cudnn_batch_norm",
    "aten::detach",
    "aten::dropout",
    "aten::native_batch_norm",
    "aten::relu",
    "aten::relu_",
)


class _Recorder(TorchDispatchMode):
    # Writes down the operators that run, and which values they read and write.

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._module = module
        self._blocks: list[str] = []
        # Storage -> value. What is held here cannot be freed, and its address not be reused.
        self._values: dict[int, int] = {}
        self._held: list[Tensor] = []
        own = (*module.parameters(), *module.buffers())
        self._own = {self.value(tensor) for tensor in own}

    def value(self, tensor: Tensor) -> int:
        storage: int = tensor.untyped_storage()._cdata
        if storage not in self._values:
            self._held.append(tensor)
            self._values[storage] = len(self._values)
        return self._values[storage]

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follows which direct child runs. Hooks further inside would make fused blocks unfuse."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self._blocks.append(name)

        def leave(*_: Any) -> None:
            self._blocks.pop()

        handles = []
        for name, child in self._module.named_children():
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = list(_tensors((args, kwargs)))
        outputs = list(_tensors(result))
        if not operands or not outputs:
            return result
        name, out = func._schema.name, outputs[0]
        read = {self.value(tensor) for tensor in operands}
        if name in _EPILOGUES:
            self._values[out.untyped_storage()._cdata] = self.value(operands[0])
            self._held.append(out)
            return result
        if self.value(out) in read:  # a view
            return result
        known = _PRODUCTS.get(name) or costs.registered.get(name)
        if known is not None:
            macs, hidden = known
        elif name.startswith("fused_inception::") or func._overloadpacket in flop_registry:
            raise ValueError(f"analyze: the cost of the operator {name} is not known")
        else:
            macs = hidden = _nothing
        sizes = [(self.value(tensor), tensor.nbytes) for tensor in operands]
        self.operators.append(
            Operator(
                name.partition("::")[2],
                self._blocks[0] if self._blocks else "",
                macs(args, out),
                tuple(item for item in sizes if item[0] not in self._own),
                tuple(item for item in sizes if item[0] in self._own),
                ((self.value(out), out.nbytes),),
                hidden(args, out),
            )
        )
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _tensors(item)
