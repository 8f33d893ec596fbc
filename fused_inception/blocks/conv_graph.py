"""A module with pairs inside a forward of its own, as the list of calls in its trace.

Pairs and the convolutions with BatchNorm or ReLU behind them run as ops on folded weights; every
other call is made as the module's own forward makes it, in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from fused_inception.blocks.plan import BlockWeights
from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d

# The kinds of calls that are ops of this package.
GRAPH_OPS = ("conv2d_act", "factorized_conv2d")


class Value(NamedTuple):
    """What a call gives, in the arguments of later ones; 0 is the input, i + 1 that of call i."""

    place: int


class Call(NamedTuple):
    """One call.

    Attributes:
        kind: what is called: an op on folded weights, or what `torch.fx` names so.
        target: a function, or the name of a method, module, parameter or buffer; of an op, "".
        args, kwargs: with `Value`s in them; of an op, the input and its options.
        frees: the values that no later call reads.
    """

    kind: Literal[
        "conv2d_act",
        "factorized_conv2d",
        "call_function",
        "call_method",
        "call_module",
        "get_attr",
    ]
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    frees: tuple[int, ...]


def conv_graph(
    input: Tensor,
    weights: BlockWeights,
    *,
    module: nn.Module,
    calls: Sequence[Call],
    backend: str = "auto",
) -> Tensor:
    """Runs the calls of a module's forward in order, its convolutions on folded weights.

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: the folded convolutions in order, in the dtype of `input` unless under autocast.
        module: whose children, parameters and buffers the other calls name.
        calls: in order; "conv2d_act" takes one weight, "factorized_conv2d" two.
        backend: as in the ops. Default "auto".

    Returns:
        What the last call gives.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance of the convolutions are those of the ops.
    """
    values: dict[int, Any] = {0: input}
    place = 0
    result: Any = input
    for index, call in enumerate(calls):
        args = _filled(call.args, values)
        kwargs = {key: _filled(value, values) for key, value in call.kwargs.items()}
        if call.kind == "conv2d_act":
            weight, bias = weights.weights[place], weights.biases[place]
            place += 1
            result = conv2d_act(args[0], weight, bias, **kwargs, backend=backend)
        elif call.kind == "factorized_conv2d":
            first = weights.weights[place], weights.biases[place]
            second = weights.weights[place + 1], weights.biases[place + 1]
            place += 2
            result = factorized_conv2d(args[0], *first, *second, **kwargs, backend=backend)
        elif call.kind == "call_module":
            result = module.get_submodule(str(call.target))(*args, **kwargs)
        elif call.kind == "call_method":
            result = getattr(args[0], str(call.target))(*args[1:], **kwargs)
        elif call.kind == "get_attr":
            result = attrgetter(str(call.target))(module)
        else:
            assert callable(call.target)
            result = call.target(*args, **kwargs)
        values[index + 1] = result
        for free in call.frees:
            del values[free]
    output: Tensor = result
    return output


def _filled(argument: Any, values: Mapping[int, Any]) -> Any:
    # An argument with the values it stands for; containers are tuples, lists, dicts and slices.
    if isinstance(argument, Value):
        return values[argument.place]
    if isinstance(argument, (tuple, list)):
        return type(argument)([_filled(part, values) for part in argument])
    if isinstance(argument, dict):
        return {key: _filled(part, values) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(*[_filled(p, values) for p in (argument.start, argument.stop, argument.step)])
    return argument
