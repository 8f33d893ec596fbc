"""Finds Inception blocks in a model and verifies, one by one, that they compute what we fuse.

A candidate for a block is a module whose children look like a known block's, by their names or by
the filters and strides of their convolutions; a candidate for a unit, which is a block of one
convolution, is a module with one convolution and nothing else but BatchNorm and ReLU. Names decide
nothing further: the candidate's forward runs on a `torch.fx` proxy in a twin of the module, the
graph is lowered to a few kinds of expression (input, convolution with its BatchNorm and ReLU, pool,
concatenation), and the expression is held against the known block's pattern. Whatever the pattern
does not have is a refusal, with the reason in words. In other modules with a forward of their own
the trace is searched for pairs 1×n, m×1 and n×1, 1×m; where there are any, the module is the list
of its trace's calls, with these as one. What tracing cannot see is taken on trust:
side effects outside the module, and attributes of its class that change later.

The twin shares parameters with the candidate but has an attribute dictionary of its own, so tracing
changes nothing on the model. `torch.fx.Tracer.trace` is not used: while it runs it patches
`torch.nn.Module.__call__` for the whole process, which breaks the modules that other threads run.
"""

import inspect
import operator
import pickle
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as module_globals

from fused_inception.blocks import BlockWeights, Call, Value
from fused_inception.folding import (
    KernelPattern,
    check_batch_norm,
    check_conv2d,
    conv2d_padding,
    describe_kernel,
    type_name,
)
from fused_inception.ops.common.checks import DTYPES, MAX_TAPS

__all__ = [
    "CONV_GRAPH",
    "CONV_SEQUENCE",
    "CONV_UNIT",
    "KNOWN_BLOCKS",
    "NO_PAIR",
    "BlockMatch",
    "KnownBlock",
    "NotRecognizedError",
    "StandIn",
    "UnitMatch",
    "calls_in_a_row",
    "find_blocks",
    "find_graphs",
    "find_layers",
    "find_sequences",
    "find_units",
    "global_hooks_installed",
    "hook_refusal",
    "recognize",
]


class NotRecognizedError(Exception):
    """A block that cannot be fused; the message is the reason."""


class StandIn(nn.Module):
    """A module that stands in for another one and shares its dictionaries of children and tensors.

    Recognition looks at the other one.
    """

    _original: nn.Module

    @property
    def fused_match(self) -> "BlockMatch | None":
        """What it was recognized as; None where it is that no more."""
        raise NotImplementedError

    def fused_weights_for(self, input: Any) -> BlockWeights | None:
        """Its folded weights, where its fused forward of `input` means the same; else None."""
        raise NotImplementedError


def _original(module: nn.Module) -> nn.Module:
    return module._original if isinstance(module, StandIn) else module


@dataclass(frozen=True)
class Input:
    """The block's input, in patterns and in expressions."""


INPUT = Input()


@dataclass(frozen=True)
class ConvPattern:
    """A convolution with ReLU behind it, and BatchNorm between them or not.

    Attributes:
        role: the name of the convolution in the fused block's weights.
        kernel: rows and columns of the filter.
        source: what it reads.
        stride: in both directions.
        padding: zeros on each side; "same" is half the filter.
    """

    role: str
    kernel: KernelPattern
    source: "Pattern"
    stride: int = 1
    padding: int | Literal["same"] = "same"


@dataclass(frozen=True)
class AnyConvPattern:
    """A convolution with any filter, stride and padding, and BatchNorm or ReLU behind it or not.

    `stride` and `padding` become options, and `activation` too: "relu" or "none".

    Attributes:
        role: the name of the convolution in the fused block's weights.
        source: what it reads.
    """

    role: str
    source: "Pattern"


@dataclass(frozen=True)
class PoolPattern:
    """A pool with a square window, floor mode; `count_include_pad` becomes an option."""

    kind: Literal["avg", "max"]
    window: int
    stride: int
    padding: int
    source: "Pattern"


@dataclass(frozen=True)
class CatPattern:
    """A concatenation over channels, in this order; a part may itself be written as one."""

    sources: tuple["Pattern", ...]


Pattern: TypeAlias = Input | ConvPattern | AnyConvPattern | PoolPattern | CatPattern


@dataclass(frozen=True)
class KnownBlock:
    """A block that can be fused.

    Attributes:
        kind: its name, the key in `fused_inception.blocks.FUSED_BLOCKS`.
        pattern: what it computes.
        child_names: the names of its children in torchvision; a module with all of them is a
            candidate, whatever it computes. None: it is found by its filters, if it has such a
            pool as a module too, which other modules with the same filters do not.
    """

    kind: str
    pattern: Pattern
    child_names: frozenset[str] | None


_POINT: KernelPattern = (1, 1)
_SQUARE: KernelPattern = (3, 3)
_ROW: KernelPattern = (1, None)
_COL: KernelPattern = (None, 1)


def _chain(*steps: tuple[str, KernelPattern], source: Pattern = INPUT) -> Pattern:
    # Convolutions one behind the other, stride 1 and "same" padding.
    for role, kernel in steps:
        source = ConvPattern(role, kernel, source)
    return source


def _halving(role: str, source: Pattern) -> Pattern:
    return ConvPattern(role, _SQUARE, source, stride=2, padding=0)


_AVG_POOL_3 = PoolPattern("avg", window=3, stride=1, padding=1, source=INPUT)
_MAX_POOL_3 = PoolPattern("max", window=3, stride=1, padding=1, source=INPUT)
_MAX_POOL_3_2 = PoolPattern("max", window=3, stride=2, padding=0, source=INPUT)


def _numbered(prefix: str, last: int) -> list[str]:
    return [f"{prefix}_{index}" for index in range(1, last + 1)]


def _inception_a(wide: KernelPattern) -> KnownBlock:
    branches = (
        _chain(("direct", _POINT)),
        _chain(("wide_reduce", _POINT), ("wide_last", wide)),
        _chain(("double_reduce", _POINT), ("double_mid", _SQUARE), ("double_last", _SQUARE)),
        _chain(("pool_project", _POINT), source=_AVG_POOL_3),
    )
    names = [
        "branch1x1",
        *_numbered("branch5x5", 2),
        *_numbered("branch3x3dbl", 3),
        "branch_pool",
    ]
    return KnownBlock("inception_a", CatPattern(branches), frozenset(names))


def _inception_b() -> KnownBlock:
    branches = (
        _halving("direct", INPUT),
        _halving("double_last", _chain(("double_reduce", _POINT), ("double_mid", _SQUARE))),
        _MAX_POOL_3_2,
    )
    names = ["branch3x3", *_numbered("branch3x3dbl", 3)]
    return KnownBlock("inception_b", CatPattern(branches), frozenset(names))


def _inception_c(double_first: KernelPattern, double_second: KernelPattern) -> KnownBlock:
    # The roles of the double branch are places, named for V3's order: n×1 first. The paper's figure
    # 6 has 1×n first.
    branches = (
        _chain(("direct", _POINT)),
        _chain(("pair_reduce", _POINT), ("pair_row", _ROW), ("pair_col", _COL)),
        _chain(
            ("double_reduce", _POINT),
            ("double_col1", double_first),
            ("double_row1", double_second),
            ("double_col2", double_first),
            ("double_row2", double_second),
        ),
        _chain(("pool_project", _POINT), source=_AVG_POOL_3),
    )
    names = ["branch1x1", *_numbered("branch7x7", 3), *_numbered("branch7x7dbl", 5), "branch_pool"]
    return KnownBlock("inception_c", CatPattern(branches), frozenset(names))


def _inception_d() -> KnownBlock:
    pair = _chain(("pair_reduce", _POINT), ("pair_row", _ROW), ("pair_col", _COL))
    branches = (
        _halving("direct_last", _chain(("direct_reduce", _POINT))),
        _halving("pair_last", pair),
        _MAX_POOL_3_2,
    )
    names = [*_numbered("branch3x3", 2), *_numbered("branch7x7x3", 4)]
    return KnownBlock("inception_d", CatPattern(branches), frozenset(names))


def _inception_d_double() -> KnownBlock:
    # Of Inception-ResNet-v2.
    branches = (
        _halving("direct_last", _chain(("direct_reduce", _POINT))),
        _halving("other_last", _chain(("other_reduce", _POINT))),
        _halving("double_last", _chain(("double_reduce", _POINT), ("double_mid", _SQUARE))),
        _MAX_POOL_3_2,
    )
    return KnownBlock("inception_d_double", CatPattern(branches), None)


def _reduction(kind: str, *, pool_first: bool) -> KnownBlock:
    branches = (_halving("direct", INPUT), _MAX_POOL_3_2)
    return KnownBlock(kind, CatPattern(branches[::-1] if pool_first else branches), None)


def _inception_e(kind: str, pool: Pattern, *middle: tuple[str, KernelPattern]) -> KnownBlock:
    split = _chain(("split_reduce", _POINT))
    double = _chain(("double_reduce", _POINT), *middle)
    branches = (
        _chain(("direct", _POINT)),
        _chain(("split_row", _ROW), source=split),
        _chain(("split_col", _COL), source=split),
        _chain(("double_row", _ROW), source=double),
        _chain(("double_col", _COL), source=double),
        _chain(("pool_project", _POINT), source=pool),
    )
    names = [
        "branch1x1",
        *(f"branch3x3_{step}" for step in ("1", "2a", "2b")),
        *(f"branch3x3dbl_{step}" for step in ("1", "2", "3a", "3b")),
        "branch_pool",
    ]
    return KnownBlock(kind, CatPattern(branches), frozenset(names))


_MIDDLE = ("double_mid", _SQUARE)

KNOWN_BLOCKS: tuple[KnownBlock, ...] = (
    _inception_a((5, 5)),
    _inception_b(),
    _inception_c(_COL, _ROW),
    _inception_c(_ROW, _COL),
    _inception_d(),
    _inception_e("inception_e", _AVG_POOL_3, _MIDDLE),
    # As the network of the Fréchet Inception Distance ends.
    _inception_e("inception_e_max_pool", _MAX_POOL_3, _MIDDLE),
    # Those of Inception-v4 and Inception-ResNet-v2, which have no names of their own.
    replace(_inception_a((3, 3)), child_names=None),
    replace(
        _inception_e(
            "inception_e_pair", _AVG_POOL_3, ("double_first", _COL), ("double_second", _ROW)
        ),
        child_names=None,
    ),
    _reduction("reduction", pool_first=False),
    _reduction("reduction_pool_first", pool_first=True),
    _inception_d_double(),
)

# Not found by names or filters, but by what there is in it: see `find_units`.
CONV_UNIT = KnownBlock("conv2d_act", AnyConvPattern("conv", INPUT), None)
# Nor is this: see `find_sequences`. It has no one pattern.
CONV_SEQUENCE = "conv_sequence"
# Nor this: see `find_graphs`. Many that look like one are none, for this reason.
CONV_GRAPH = "conv_graph"
NO_PAIR = "forward: no pair 1xn, mx1 or nx1, 1xm in it"


@dataclass(frozen=True)
class UnitMatch:
    """A convolution of a recognized block: its role, and the paths of it and its BatchNorm."""

    role: str
    conv: str
    bn: str | None


@dataclass(frozen=True)
class BlockMatch:
    """A recognized block.

    Attributes:
        kind: of the known block.
        units: every convolution.
        options: keyword arguments for the fused block's forward.
        left: (name, reason) of convolutions inside that run as they are.
    """

    kind: str
    units: tuple[UnitMatch, ...]
    options: Mapping[str, Any]
    left: tuple[tuple[str, str], ...] = ()


def find_blocks(
    model: nn.Module, stop: Callable[[nn.Module], bool] = lambda module: False
) -> list[tuple[str, nn.Module]]:
    """Lists the modules that look like a known block, under every name they are registered by.

    Args:
        model: where to look; it may be a candidate itself, with the name "".
        stop: says of a module that neither it nor what it contains is wanted.

    Returns:
        (qualified name, module) in the order of `model.named_modules()`. A module that contains a
        candidate is none.
    """
    found: list[tuple[str, nn.Module]] = []
    _visit_blocks(model, "", stop, found)
    return found


def _visit_blocks(
    module: nn.Module,
    name: str,
    stop: Callable[[nn.Module], bool],
    found: list[tuple[str, nn.Module]],
) -> Counter[str]:
    # Returns the filters of all convolutions below, and finds candidates on the way up.
    if stop(module):
        return Counter()
    if isinstance(module, nn.Conv2d):
        return Counter([_conv_class(module)])
    found_before = len(found)
    filters: Counter[str] = Counter()
    for child_name, child in _children(module, name):
        filters += _visit_blocks(child, child_name, stop, found)
    if len(found) == found_before and any(_blocks_like(module, filters)):
        found.append((name, module))
    return filters


def find_units(
    model: nn.Module, stop: Callable[[nn.Module], bool] = lambda module: False
) -> list[tuple[str, nn.Module]]:
    """Lists the modules that look like a unit, under every name they are registered by.

    Such a module contains one Conv2d, at least one BatchNorm or ReLU, and nothing else but
    nn.Identity and the containers of these.

    Args:
        model: where to look; it may be a candidate itself, with the name "".
        stop: says of a module that neither it nor what it contains is wanted.

    Returns:
        (qualified name, module) in the order of `model.named_modules()`. A module that contains a
        candidate is none.
    """
    found: list[tuple[str, nn.Module]] = []
    _visit_units(model, "", stop, found)
    return found


def find_sequences(
    model: nn.Module, stop: Callable[[nn.Module], bool] = lambda module: False
) -> list[tuple[str, nn.Module]]:
    """Lists the sequences of convolutions, under every name they are registered by.

    Such a module is an nn.Sequential, nested or not, of at least two Conv2d, BatchNorm, ReLU,
    MaxPool2d, nn.Identity and modules made of these. A pair 1×n, m×1 or n×1, 1×m stands in it, or
    its convolutions are its own children, with BatchNorm or ReLU behind each.

    Args:
        model: where to look; it may be a candidate itself, with the name "".
        stop: says of a module that neither it nor what it contains is wanted.

    Returns:
        (qualified name, module) in the order of `model.named_modules()`. A module inside a
        candidate is none.
    """
    found: list[tuple[str, nn.Module]] = []
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        if stop(module):
            continue
        if is_sequence_like(module):
            found.append((name, module))
        else:
            pending += reversed(list(_children(module, name)))
    return found


def is_sequence_like(module: nn.Module) -> bool:
    """Whether a module looks like a sequence of convolutions, as `find_sequences` says."""
    if type(_original(module)) is not nn.Sequential:
        return False
    convs: list[nn.Conv2d] = []
    bare = 0
    before = None
    for leaf in _leaves(module):
        part = "pool" if type(leaf) is nn.MaxPool2d else _unit_part(leaf)
        if part is None or part == "other":
            return False
        if isinstance(leaf, nn.Conv2d):
            convs.append(leaf)
        bare += before == "conv" and part not in ("bn", "relu")
        before = before if part == "identity" else part
    if len(convs) < 2:
        return False
    if any(map(_is_pair, convs, convs[1:])):
        return True
    own = [child for child in module.children() if isinstance(child, nn.Conv2d)]
    return len(own) == len(convs) and not bare and before != "conv"


def find_graphs(
    model: nn.Module, stop: Callable[[nn.Module], bool] = lambda module: False
) -> list[tuple[str, nn.Module]]:
    """Lists the modules in whose own forward a pair may stand, under every name they have.

    Such a module is not of torch.nn, and among its convolutions outside of sequences and of other
    such modules there are two with filters 1×n and m×1, or n×1 and 1×m, of which one can read what
    the other gives.

    Args:
        model: where to look; it may be a candidate itself, with the name "".
        stop: says of a module that neither it nor what it contains is wanted.

    Returns:
        (qualified name, module), inner ones first.
    """
    found: list[tuple[str, nn.Module]] = []
    _visit_graphs(model, "", stop, found)
    return found


def _visit_graphs(
    module: nn.Module,
    name: str,
    stop: Callable[[nn.Module], bool],
    found: list[tuple[str, nn.Module]],
) -> list[nn.Conv2d]:
    # Returns the convolutions that a forward further up may have to do with.
    if stop(module) or is_sequence_like(module):
        return []
    if isinstance(module, nn.Conv2d):
        return [module]
    convs = [
        conv
        for child_name, child in _children(module, name)
        for conv in _visit_graphs(child, child_name, stop, found)
    ]
    is_own = not _in_torch(module) and not isinstance(module, StandIn)
    if not is_own or type(module).forward is nn.Module.forward:
        return convs
    if not any(
        first.out_channels == second.in_channels and _is_pair(first, second)
        for first in convs
        for second in convs
    ):
        return convs
    found.append((name, module))
    return []


def _is_graph_like(module: nn.Module) -> bool:
    return any(inner is module for _, inner in find_graphs(module))


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    # In the order in which they are registered. Modules of more than one convolution, other than
    # sequences, do as they like with them and stay whole.
    for child in module._modules.values():
        if child is None:
            continue
        if isinstance(_original(child), nn.Sequential) or (
            _unit_part(child) is None and _conv_filters(child).total() <= 1
        ):
            yield from _leaves(child)
        else:
            yield child


def _is_pair(first: nn.Conv2d, second: nn.Conv2d) -> bool:
    # Whether the filters are 1×n and m×1, or n×1 and 1×m, of lengths that the op takes; and the
    # maps stay as large as they are.
    rows, columns = _pair(first.kernel_size), _pair(second.kernel_size)
    if rows[0] != 1:
        rows, columns = rows[::-1], columns[::-1]
    taps = (rows[1], columns[0])
    if (rows[0], columns[1]) != (1, 1) or any(n % 2 == 0 or not 1 < n <= MAX_TAPS for n in taps):
        return False
    return all(
        conv.padding == "same"
        or (
            _pair(conv.stride) == (1, 1)
            and not isinstance(conv.padding, str)
            and _pair(conv.padding) == tuple(n // 2 for n in _pair(conv.kernel_size))
        )
        for conv in (first, second)
    )


def find_layers(
    model: nn.Module, is_block: Callable[[nn.Module], bool]
) -> list[tuple[str, nn.Module]]:
    """Lists the pools and linear layers that stand beside a block, under every name they have.

    Args:
        model: where to look.
        is_block: says of a module that it is a block that runs fused, or will.

    Returns:
        (qualified name, module) in the order of `model.named_modules()`.
    """
    found = []
    for name, parent in model.named_modules(remove_duplicate=False):
        children = list(_children(parent, name))
        if any(is_block(child) for _, child in children):
            found += [pair for pair in children if _recognize_layer(pair[1]) is not None]
    return found


def _visit_units(
    module: nn.Module,
    name: str,
    stop: Callable[[nn.Module], bool],
    found: list[tuple[str, nn.Module]],
) -> Counter[str]:
    # Returns what leaves there are below, and finds candidates on the way up.
    if stop(module):
        return Counter(["other"])
    leaf = _unit_part(module)
    if leaf is not None:
        return Counter([leaf])
    found_before = len(found)
    parts: Counter[str] = Counter()
    for child_name, child in _children(module, name):
        parts += _visit_units(child, child_name, stop, found)
    if len(found) == found_before and _is_unit_like(module, parts):
        found.append((name, module))
    return parts


def _unit_part(module: nn.Module) -> str | None:
    # None: what is in it decides.
    if isinstance(module, nn.Conv2d):
        return "conv"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "bn"
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.Identity):
        return "identity"
    # An empty nn.Sequential is a container of nothing.
    return None if module._modules or isinstance(module, nn.Sequential) else "other"


def _is_unit_like(module: nn.Module, parts: Counter[str]) -> bool:
    if parts["conv"] != 1 or parts["other"] or not (parts["bn"] or parts["relu"]):
        return False
    # Lists and dictionaries of modules, and what only holds modules, are parts of a unit.
    is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    return not is_list and type(module).forward is not nn.Module.forward


def _children(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module._modules.items():
        if child is not None:
            yield f"{name}.{child_name}" if name else child_name, child


def _in_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))


def _blocks_like(module: nn.Module, filters: Counter[str]) -> Iterator[KnownBlock]:
    if _in_torch(module) or isinstance(module, StandIn):
        return
    children = set(module._modules.keys())
    for known in KNOWN_BLOCKS:
        by_name = known.child_names is not None and known.child_names <= children
        if by_name or (
            filters == _pattern_filters(known.pattern)
            and (known.child_names is not None or _has_pool_of(module, known.pattern))
        ):
            yield known


def _parts(pattern: Pattern) -> Iterator[Pattern]:
    yield pattern
    if isinstance(pattern, CatPattern):
        for source in pattern.sources:
            yield from _parts(source)
    elif not isinstance(pattern, Input):
        yield from _parts(pattern.source)


def _pattern_filters(pattern: Pattern) -> Counter[str]:
    # One convolution may stand at several places of a pattern.
    convs: dict[str, str] = {}
    for part in _parts(pattern):
        if isinstance(part, ConvPattern):
            rows, columns = part.kernel
            convs[part.role] = _filter_class((rows or 3, columns or 3), part.stride)
    return Counter(convs.values())


def _has_pool_of(module: nn.Module, pattern: Pattern) -> bool:
    pools = [part for part in _parts(pattern) if isinstance(part, PoolPattern)]
    wanted = {(pool.kind, pool.window, pool.stride, pool.padding) for pool in pools}
    for inner in module.modules():
        kind, _ = _POOL_MODULES.get(type(inner), ("", {}))
        if kind:
            sizes = (_pair(getattr(inner, key))[0] for key in ("kernel_size", "stride", "padding"))
            if (kind, *sizes) in wanted:
                return True
    return False


def _conv_class(conv: nn.Conv2d) -> str:
    return _filter_class(_pair(conv.kernel_size), _pair(conv.stride)[0])


def _filter_class(kernel: tuple[int, int], stride: int) -> str:
    rows, columns = kernel
    name = f"{rows}x{columns}"
    if 1 in kernel:
        name = f"{'1' if rows == 1 else 'n'}x{'1' if columns == 1 else 'n'}"
    return name if stride == 1 else f"{name}/{stride}"


def hook_refusal(block: nn.Module) -> str | None:
    """Says which inner module of a block has a hook that a fused forward would not call, or None.

    Hooks on the block itself do not matter: they are called around its forward.
    """
    if global_hooks_installed():
        return "a hook for all modules is installed"
    for path, module in block.named_modules():
        if module is block:
            continue
        for kind in ("forward_pre", "forward", "backward_pre", "backward"):
            if getattr(module, f"_{kind}_hooks"):
                return f"{path}: has a {kind.replace('_', ' ')} hook"
    return None


def global_hooks_installed() -> bool:
    """Whether `torch.nn.modules.module.register_module_*_hook` has hooks on every module."""
    return bool(
        module_globals._global_forward_pre_hooks
        or module_globals._global_forward_hooks
        or module_globals._global_backward_pre_hooks
        or module_globals._global_backward_hooks
    )


def recognize(block: nn.Module, *, training: bool = False) -> BlockMatch:
    """Verifies that a module computes, in evaluation mode, exactly what a known block computes.

    A max pool, a global average pool and a linear layer of torch.nn are known too.

    Args:
        block: a candidate. It is read, never changed.
        training: looks at it in training mode and where autograd records instead, but with its
            BatchNorms in evaluation mode. Default False.

    Returns:
        What it is, and where its convolutions are.

    Raises:
        NotRecognizedError: with the reason.
    """
    layer = _recognize_layer(block)
    if layer is not None:
        _check_modules(block)
        return layer
    filters = _conv_filters(block)
    likely = list(_blocks_like(block, filters))
    if filters.total() == 1:
        likely.append(CONV_UNIT)
    if is_sequence_like(block):
        _check_modules(block)
        return _Matcher(block, None).match_sequence(_lower(block, _trace(block, _Tracer(training))))
    if not likely and _is_graph_like(block):
        _check_modules(block)
        _check_questions(block)
        return _Matcher(block, None).match_graph(_trace(block, _GraphTracer(block, training)))
    if not likely:
        raise NotRecognizedError("does not look like a known block")
    _check_modules(block)
    output = _lower(block, _trace(block, _Tracer(training)))
    reasons = []
    for known in likely:
        try:
            return _Matcher(block, known).match(output)
        except NotRecognizedError as error:
            reasons.append(str(error))
    raise NotRecognizedError(reasons[0])


def _recognize_layer(module: nn.Module) -> BlockMatch | None:
    # None for other modules, and for those with options or parameters of another kind.
    if type(module) is nn.MaxPool2d:
        window, padding = _pair(module.kernel_size), _pair(module.padding)
        plain = _pair(module.dilation) == (1, 1) and not module.ceil_mode
        if not plain or module.return_indices:
            return None
        options = {"kernel": window, "stride": _pair(module.stride or window), "padding": padding}
        return BlockMatch("max_pool2d", (), options)
    if type(module) is nn.AdaptiveAvgPool2d:
        one = all(size == 1 for size in _flat(module.output_size))
        return BlockMatch("global_avg_pool2d", (), {}) if one else None
    if type(module) is nn.Linear:
        plain = all(type(p) is nn.Parameter and p.dtype in DTYPES for p in module.parameters())
        units = (UnitMatch("linear", "", None),)
        return BlockMatch("linear", units, {}) if plain and module.weight.numel() else None
    return None


def _conv_filters(module: nn.Module) -> Counter[str]:
    convs = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    return Counter(map(_conv_class, convs))


def _check_modules(block: nn.Module) -> None:
    for path, module in block.named_modules():
        where = path or "the block"
        if isinstance(module, torch.jit.ScriptModule):
            raise NotRecognizedError(f"{where}: is a ScriptModule, takes plain modules")
        if "forward" in vars(module):
            raise NotRecognizedError(f"{where}: its forward was replaced on the instance")
        # Set by FSDP on what it manages. It gathers weights into the same tensors again and again
        # without counting a new version.
        if getattr(module, "_is_fsdp_managed_module", False):
            raise NotRecognizedError(f"{where}: its parameters are managed by FSDP")


# Answered otherwise while tracing than in a forward. A known block would show it by its graph; of
# another forward the trace would be of the wrong branch.
_QUESTIONS = frozenset(
    {
        "isinstance",
        "issubclass",
        "type",
        "is_tensor",
        "random",
        "is_grad_enabled",
        "is_inference_mode_enabled",
        "is_autocast_enabled",
    }
)


def _check_questions(block: nn.Module) -> None:
    seen: set[types.CodeType] = set()
    for path, module in block.named_modules():
        if _is_leaf(module) or _in_torch(module):
            continue
        pending: list[Any] = [type(_original(module)).forward]
        while pending:
            function = inspect.unwrap(pending.pop())
            code = getattr(function, "__code__", None)
            # Code that was executed from text may have no module.
            if code is None or code in seen or (function.__module__ or "").startswith("torch."):
                continue
            seen.add(code)
            inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
            names = {name for part in (code, *inner) for name in part.co_names}
            for name in sorted(names & _QUESTIONS):
                where = f"{path}.forward" if path else "forward"
                raise NotRecognizedError(f"{where}: asks {name}, which a trace cannot answer")
            # What it calls: other functions, methods, functions that are attributes.
            for name in names:
                pending += [function.__globals__.get(name), vars(module).get(name)]
                pending.append(getattr(type(_original(module)), name, None))


class _Tracer(torch.fx.proxy.GraphAppendingTracer):
    """Records one run of a module's twin; torch.nn modules are leaves."""

    def __init__(self, training: bool = False) -> None:
        super().__init__(torch.fx.Graph())
        self.training = training
        # (path, attributes before tracing, the twin): to see what the forward wrote.
        self.twins: list[tuple[str, dict[str, Any], nn.Module]] = []
        self._made: dict[nn.Module, nn.Module] = {}

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether `module` is recorded as a call instead of being run."""
        return _is_leaf(module)

    def twin(self, module: nn.Module, path: str) -> nn.Module:
        """A copy of `module` in the mode to trace, without hooks, that shares its parameters."""
        module = _original(module)
        made = self._made.get(module)
        if made is not None:
            return made
        twin: nn.Module = object.__new__(type(module))
        self._made[module] = twin
        state = {
            name: value.copy() if type(value) in (list, dict, set) else value
            for name, value in vars(module).items()
            if name != "_compiled_call_impl"
        }
        for name in vars(nn.Module()):
            if name.endswith("_hooks") and name in state:
                state[name] = type(state[name])()
        state["training"] = self.training
        if self.is_leaf(module):
            state["forward"] = self._recorder(path)
        else:
            state["_modules"] = {
                name: None if child is None else self.twin(child, f"{path}.{name}".lstrip("."))
                for name, child in module._modules.items()
            }
        vars(twin).update(state)
        before = {k: v.copy() if type(v) in (list, dict, set) else v for k, v in state.items()}
        self.twins.append((path, before, twin))
        return twin

    def _recorder(self, path: str) -> Callable[..., torch.fx.Proxy]:
        def forward(*args: Any, **kwargs: Any) -> torch.fx.Proxy:
            return self.create_proxy("call_module", path, args, kwargs)

        return forward


def _is_leaf(module: nn.Module) -> bool:
    # Convolutions and BatchNorms of other libraries too, so that a refusal can name their type.
    if isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
        return True
    # Containers and nn.Identity run, and leave no trace.
    transparent = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)
    return _in_torch(module) and not isinstance(module, transparent)


class _GraphTracer(_Tracer):
    """Records by name the parameters and buffers that the forward reads itself, too."""

    def __init__(self, block: nn.Module, training: bool = False) -> None:
        super().__init__(training)
        named = (*block.named_parameters(), *block.named_buffers())
        self._names = {id(tensor): name for name, tensor in named}

    def create_arg(self, a: Any) -> Any:
        """Parameters and buffers by name."""
        if isinstance(a, torch.Tensor) and id(a) in self._names:
            return self.create_node("get_attr", self._names[id(a)], (), {})
        return super().create_arg(a)


class _NormTracer(_GraphTracer):
    """Records what a subclass of BatchNorm does around `F.batch_norm`."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self._norm = norm

    def is_leaf(self, module: nn.Module) -> bool:
        """All but the BatchNorm itself as in a block."""
        return module is not self._norm and _is_leaf(module)


class _ChildTracer(_Tracer):
    """Records which children a module calls."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self._parent = parent

    def is_leaf(self, module: nn.Module) -> bool:
        """All but the module itself."""
        return module is not self._parent


def calls_in_a_row(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether a module's forward calls these children once each, in order, and in a row.

    In evaluation mode, each with nothing but the result of the one before, which nothing else uses.
    """
    try:
        output = _record(module, _ChildTracer(module))
    except NotRecognizedError:
        return False
    calls = [node for node in output.graph.nodes if node.target in names]
    return [call.target for call in calls] == list(names) and all(
        after.args == (before,) and not after.kwargs and list(before.users) == [after]
        for before, after in pairwise(calls)
    )


# What checks the rank of the input and leaves nothing behind.
_ASSERTIONS = (torch._assert, operator.eq, getattr, "dim")


def _rectifies(name: str, norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether ReLU is in a BatchNorm's own forward, as in timm's BatchNormAct2d.

    Raises:
        NotRecognizedError: its forward is more than BatchNorm in evaluation mode, then ReLU or not.
    """
    plain = type(norm).forward is nn.modules.batchnorm._BatchNorm.forward
    if plain or type(norm) is nn.SyncBatchNorm:
        return False  # its type is judged with its statistics
    refusal = NotRecognizedError(
        f"{name}: {type_name(norm)}, takes torch.nn.BatchNorm2d, alone or with ReLU"
    )
    try:
        output = _record(norm, _NormTracer(norm))
    except NotRecognizedError as error:
        raise refusal from error
    nodes = list(output.graph.nodes)
    for node in reversed(nodes):
        if not node.users and node is not output and node.target in _ASSERTIONS:
            output.graph.erase_node(node)
    nodes = [node for node in output.graph.nodes if node.op != "get_attr"]
    rectifies = len(nodes) == 3
    if not rectifies and len(nodes) != 2:
        raise refusal
    placeholder, batch_norm = nodes[:2]
    tensors = [
        None if norm._parameters.get(key, norm._buffers.get(key)) is None else key
        for key in ("running_mean", "running_var", "weight", "bias")
    ]
    options = dict(zip(("input", *_BATCH_NORM), batch_norm.args, strict=False))
    options.update(batch_norm.kwargs)
    given = [
        part.target if isinstance(part, torch.fx.Node) else part
        for part in map(options.get, ("running_mean", "running_var", "weight", "bias"))
    ]
    if (
        batch_norm.target is not F.batch_norm
        or options.get("input") is not placeholder
        or given != tensors
        or options.get("training", False) is not False
        or options.get("eps") != norm.eps
    ):
        raise refusal
    if rectifies:
        relu = nodes[2]
        is_module = relu.op == "call_module"
        known = (
            type(norm.get_submodule(str(relu.target))) is nn.ReLU
            if is_module
            else relu.target in _RELUS
        )
        if relu is not output or relu.args[:1] != (batch_norm,) or not known:
            raise refusal
    return rectifies


def _trace(block: nn.Module, tracer: _Tracer) -> torch.fx.Node:
    # The node of the block's output; its graph holds everything the forward did to tensors.
    output = _record(block, tracer)
    for node in output.graph.nodes:
        if not node.users and node is not output:
            raise NotRecognizedError(f"forward: does not use the result of {_node_name(node)}")
    return output


def _record(block: nn.Module, tracer: _Tracer) -> torch.fx.Node:
    required = [
        parameter
        for parameter in inspect.signature(block.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) != 1 or required[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise NotRecognizedError("forward: does not take exactly one positional argument")
    twin = tracer.twin(block, "")
    try:
        with torch.set_grad_enabled(tracer.training):
            output = twin.forward(tracer.create_proxy("placeholder", "input", (), {}))
    except Exception as error:  # the forward is foreign code and can raise anything
        line = (str(error).splitlines() or [""])[0]
        raise NotRecognizedError(
            f"forward: could not be traced ({type(error).__name__}: {line})"
        ) from error
    for path, before, after in tracer.twins:
        for name in before.keys() | vars(after).keys():
            if name == "forward":
                continue
            if not _same(before.get(name), vars(after).get(name)):
                where = f"{path}." if path else ""
                raise NotRecognizedError(f"forward: writes the attribute {where}{name}")
    if not isinstance(output, torch.fx.Proxy):
        raise NotRecognizedError(f"forward: returns {type_name(output)}, takes one tensor")
    return output.node


def _same(before: Any, after: Any) -> bool:
    # Identity of the value, or of all elements. Never ==: it would record on a proxy.
    if before is after:
        return True
    if type(before) is not type(after) or not isinstance(before, (list, dict, set)):
        return False
    if isinstance(before, dict):
        before, after = [*before, *before.values()], [*after, *after.values()]
    identities = [[id(value) for value in values] for values in (before, after)]
    if isinstance(before, set):
        identities = [sorted(ids) for ids in identities]
    return identities[0] == identities[1]


@dataclass(frozen=True)
class Unit:
    """A convolution, with BatchNorm and ReLU as far as they were found behind it."""

    conv: str
    bn: str | None
    relu: bool
    source: "Expression"


@dataclass(frozen=True)
class Pool:
    """A pool with all its options, whether it was written as a function or as a module."""

    name: str
    kind: str
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None
    source: "Expression"


@dataclass(frozen=True)
class Cat:
    """A concatenation."""

    dim: int
    sources: tuple["Expression", ...]


Expression: TypeAlias = Input | Unit | Pool | Cat

_AVG_POOL: dict[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
_MAX_POOL: dict[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}
_POOL_FUNCTIONS: dict[Any, tuple[str, dict[str, Any]]] = {
    F.avg_pool2d: ("avg", _AVG_POOL),
    F.max_pool2d: ("max", _MAX_POOL),
    torch.max_pool2d: ("max", _MAX_POOL),
}
_POOL_MODULES: dict[type, tuple[str, dict[str, Any]]] = {
    nn.AvgPool2d: ("avg", _AVG_POOL),
    nn.MaxPool2d: ("max", _MAX_POOL),
}
_BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_CATS = (torch.cat, torch.concat, torch.concatenate)
# The tensors have four dimensions, so -3 is the channels too.
_CHANNEL_DIMS = (1, -3)


def _lower(block: nn.Module, output: torch.fx.Node) -> Expression:
    lowered: dict[torch.fx.Node, Expression] = {}
    convs: set[str] = set()
    for node in output.graph.nodes:
        expression = _lower_node(block, node, lowered)
        if isinstance(expression, Unit) and expression.conv == node.target:
            if expression.conv in convs:
                raise NotRecognizedError(f"{expression.conv}: is used twice")
            convs.add(expression.conv)
        lowered[node] = expression
    return lowered[output]


def _lower_node(
    block: nn.Module, node: torch.fx.Node, lowered: Mapping[torch.fx.Node, Expression]
) -> Expression:
    name = _node_name(node)
    if node.op == "placeholder":
        return INPUT
    if node.op == "call_function" and node.target in _CATS:
        return _lower_cat(node, lowered)
    if node.op == "call_function" and node.target in _POOL_FUNCTIONS:
        kind, defaults = _POOL_FUNCTIONS[node.target]
        source, options = _arguments(node, lowered, defaults)
        return _pool(name, kind, options, source)
    if node.op in ("call_function", "call_method") and node.target in _RELUS:
        source, options = _arguments(node, lowered, {"inplace": False})
        in_place = options["inplace"] or node.target in (torch.relu_, "relu_")
        return _relu(node, name, source, bool(in_place))
    if node.op != "call_module":
        raise NotRecognizedError(f"{name}: not part of a known block")

    module = block.get_submodule(str(node.target))
    source, _ = _arguments(node, lowered, {})
    if isinstance(module, nn.Conv2d):
        return Unit(name, None, False, source)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if not isinstance(source, Unit) or source.bn is not None or source.relu:
            raise NotRecognizedError(f"{name}: is not directly behind a convolution")
        return Unit(source.conv, name, _rectifies(name, module), source.source)
    if type(module) is nn.ReLU:
        return _relu(node, name, source, module.inplace)
    if type(module) in _POOL_MODULES:
        kind, defaults = _POOL_MODULES[type(module)]
        return _pool(name, kind, {key: getattr(module, key) for key in defaults}, source)
    raise NotRecognizedError(f"{name}: {type_name(module)}, not part of a known block")


def _arguments(
    node: torch.fx.Node,
    lowered: Mapping[torch.fx.Node, Expression],
    defaults: Mapping[str, Any],
) -> tuple[Expression, dict[str, Any]]:
    # The tensor a node reads, and its options with their defaults filled in.
    options = dict(zip(("input", *defaults), node.args, strict=False))
    options.update(node.kwargs)
    source = options.pop("input", None)
    unknown = options.keys() - defaults.keys()
    if unknown or len(node.args) > 1 + len(defaults) or not isinstance(source, torch.fx.Node):
        raise NotRecognizedError(f"{_node_name(node)}: called with other arguments than known")
    for key, value in options.items():
        if any(isinstance(part, torch.fx.Node) for part in _flat(value)):
            raise NotRecognizedError(f"{_node_name(node)}: its {key} is computed")
    return lowered[source], {**defaults, **options}


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _lower_cat(node: torch.fx.Node, lowered: Mapping[torch.fx.Node, Expression]) -> Cat:
    options = dict(zip(("tensors", "dim"), node.args, strict=False))
    options.update({"dim" if key == "axis" else key: value for key, value in node.kwargs.items()})
    tensors, dim = options.pop("tensors", ()), options.pop("dim", 0)
    sources = [lowered[part] for part in _flat(tensors) if isinstance(part, torch.fx.Node)]
    if options or not isinstance(dim, int) or len(sources) != len(_flat(tensors)):
        raise NotRecognizedError(f"{_node_name(node)}: called with other arguments than known")
    if dim not in _CHANNEL_DIMS:
        return Cat(dim, tuple(sources))
    # What is concatenated in two steps is the same as in one.
    parts: list[Expression] = []
    for source in sources:
        nested = isinstance(source, Cat) and source.dim in _CHANNEL_DIMS
        parts += cast("Cat", source).sources if nested else [source]
    return Cat(dim, tuple(parts))


def _pool(name: str, kind: str, options: Mapping[str, Any], source: Expression) -> Pool:
    if options.get("return_indices"):
        raise NotRecognizedError(f"{name}: return_indices True, takes False")
    window = _pair(options["kernel_size"])
    # PyTorch takes None and () for the window.
    stride = _pair(options["stride"] or window)
    return Pool(
        name=name,
        kind=kind,
        window=window,
        stride=stride,
        padding=_pair(options["padding"]),
        dilation=_pair(options.get("dilation", 1)),
        ceil_mode=bool(options["ceil_mode"]),
        count_include_pad=bool(options.get("count_include_pad", True)),
        divisor_override=options.get("divisor_override"),
        source=source,
    )


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(_flat(value))
    return (values[0], values[-1])


def _relu(node: torch.fx.Node, name: str, source: Expression, in_place: bool) -> Expression:
    if not isinstance(source, Unit):
        raise NotRecognizedError(f"{name}: ReLU of {_found(source)}, takes a convolution")
    if in_place:
        written = node.args[0] if node.args else node.kwargs["input"]
        if isinstance(written, torch.fx.Node) and len(written.users) > 1:
            raise NotRecognizedError(
                f"{name}: ReLU in place on the output of {source.conv}, which is read elsewhere too"
            )
    return Unit(source.conv, source.bn, True, source.source)


def _node_name(node: torch.fx.Node) -> str:
    # The path of a module, the name of a function or method.
    if node.op == "placeholder":
        return "the block's input"
    if isinstance(node.target, str):
        return node.target
    name = getattr(node.target, "__name__", node.name)
    # F.max_pool2d is one of several functions called "fn".
    return node.name if name == "fn" else str(name)


def _found(expression: Expression) -> str:
    if isinstance(expression, Input):
        return "the block's input"
    if isinstance(expression, Unit):
        return expression.conv
    return expression.name if isinstance(expression, Pool) else "a concatenation"


def _wanted(pattern: Pattern) -> str:
    if isinstance(pattern, Input):
        return "the block's input"
    if isinstance(pattern, AnyConvPattern):
        return "a convolution"
    if isinstance(pattern, ConvPattern):
        return f"a convolution {describe_kernel(pattern.kernel)}"
    if isinstance(pattern, PoolPattern):
        kind = "an average" if pattern.kind == "avg" else "a max"
        return f"{kind} pool {pattern.window}x{pattern.window}"
    return f"a concatenation of {len(pattern.sources)} tensors"


@dataclass
class _Chain:
    """A convolution in a trace with what is folded into it, or a pair of such.

    Attributes:
        nodes: in order; the first is a convolution.
        units: one, or the two of a pair.
        options: of `conv2d_act`, for each unit.
    """

    nodes: list[torch.fx.Node]
    units: list[Unit]
    options: list[dict[str, Any]]

    @property
    def is_bare(self) -> bool:
        return len(self.units) == 1 and self.units[0].bn is None and not self.units[0].relu

    def call(self, source: Value) -> Call:
        """What runs in the place of the nodes."""
        if len(self.units) == 1:
            return Call("conv2d_act", "", (source,), self.options[0], ())
        mid, last = (options["activation"] for options in self.options)
        activations = {"mid_activation": mid, "activation": last}
        return Call("factorized_conv2d", "", (source,), activations, ())


def _calls(
    nodes: Sequence[torch.fx.Node], fused: Mapping[torch.fx.Node, _Chain]
) -> tuple[Call, ...]:
    # A chain runs where its first node stands: writes to what it reads may follow.
    skipped = {node for chain in fused.values() for node in chain.nodes}
    values: dict[torch.fx.Node, Value] = {}
    last_reads: dict[int, int] = {}
    calls: list[Call] = []

    def value(node: torch.fx.Node) -> Value:
        last_reads[values[node].place] = len(calls)
        return values[node]

    for node in nodes:
        if node.op == "placeholder":
            values[node] = Value(0)
            continue
        if node in fused:
            calls.append(fused[node].call(value(node.all_input_nodes[0])))
            node = fused[node].nodes[-1]
        elif node in skipped:
            continue
        else:
            calls.append(_call(node, value))
        values[node] = Value(len(calls))
    frees: dict[int, list[int]] = {}
    for place, reader in last_reads.items():
        frees.setdefault(reader, []).append(place)
    return tuple([call._replace(frees=tuple(frees.get(i, ()))) for i, call in enumerate(calls)])


def _call(node: torch.fx.Node, value: Callable[[torch.fx.Node], Value]) -> Call:
    if node.op == "call_function":
        try:
            pickle.dumps(node.target)
        except Exception as error:  # of a foreign function, whatever it raises
            raise NotRecognizedError(
                f"{_node_name(node)}: cannot be pickled, takes functions that can"
            ) from error
    args = tuple([_plain(part, value) for part in node.args])
    kwargs = {key: _plain(part, value) for key, part in node.kwargs.items()}
    return Call(cast("Any", node.op), node.target, args, kwargs, ())


def _plain(argument: Any, value: Callable[[torch.fx.Node], Value]) -> Any:
    # torch.fx has containers of its own.
    if isinstance(argument, torch.fx.Node):
        return value(argument)
    if isinstance(argument, (tuple, list)):
        return (list if isinstance(argument, list) else tuple)([_plain(a, value) for a in argument])
    if isinstance(argument, dict):
        return {key: _plain(part, value) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(*[_plain(a, value) for a in (argument.start, argument.stop, argument.step)])
    return argument


class _Matcher:
    # Holds one expression against one known block.

    def __init__(self, block: nn.Module, known: KnownBlock | None) -> None:
        self.block = block
        self.known = known
        self.units: dict[str, UnitMatch] = {}
        self.options: dict[str, Any] = {}

    def match_sequence(self, output: Expression) -> BlockMatch:
        """Convolutions and max pools one behind the other; a pair of neighbours is one step."""
        parts: list[Unit | Pool] = []
        while not isinstance(output, Input):
            if not isinstance(output, (Unit, Pool)):
                raise NotRecognizedError(f"output: is {_found(output)}, takes a convolution")
            parts.insert(0, output)
            output = output.source
        steps: list[tuple[str, dict[str, Any]]] = []
        before: Unit | None = None
        for part in parts:
            if isinstance(part, Pool):
                steps.append(("max_pool2d", self._max_pool_options(part)))
                before = None
                continue
            self.options = {}
            self._match_unit(AnyConvPattern(str(len(self.units)), INPUT), part)
            if before is not None and _is_pair(self._conv(before.conv), self._conv(part.conv)):
                _, first = steps.pop()
                activations = {
                    "mid_activation": first["activation"],
                    "activation": self.options["activation"],
                }
                steps.append(("factorized_conv2d", activations))
                before = None
            else:
                steps.append(("conv2d_act", self.options))
                before = part
        self._check_one_kind()
        return BlockMatch(CONV_SEQUENCE, tuple(self.units.values()), {"steps": tuple(steps)})

    def match_graph(self, output: torch.fx.Node) -> BlockMatch:
        """Any forward with a pair in it. What is between the halves is read by the second alone."""
        chains: dict[torch.fx.Node, _Chain] = {}  # by their last nodes
        left: dict[str, str] = {}
        nodes = list(output.graph.nodes)
        uses = Counter(node.target for node in nodes if node.op == "call_module")
        for node in nodes:
            if not isinstance(self._module_of(node), nn.Conv2d):
                continue
            name, chain = str(node.target), _Chain([node], [], [])
            try:
                self._follow(chain, output)
                if uses[name] > 1:
                    raise NotRecognizedError("is used twice")
                self.units, self.options = {}, {}
                self._match_unit(AnyConvPattern("", INPUT), chain.units[0])
            except NotRecognizedError as error:
                if not (chain.units and chain.is_bare):
                    left[name] = str(error).removeprefix(f"{name}: ")
                continue
            chain.options.append(self.options)
            before = chains.get(node.all_input_nodes[0])
            if before is not None and self._are_pair(before, chain, output):
                del chains[before.nodes[-1]]
                before.nodes += chain.nodes
                before.units += chain.units
                before.options += chain.options
                chain = before
            chains[chain.nodes[-1]] = chain
        if all(len(chain.units) == 1 for chain in chains.values()):
            raise NotRecognizedError(NO_PAIR)
        fused = {chain.nodes[0]: chain for chain in chains.values() if not chain.is_bare}
        units = [unit for node in nodes if node in fused for unit in fused[node].units]
        self.units = {
            str(place): UnitMatch(str(place), unit.conv, unit.bn)
            for place, unit in enumerate(units)
        }
        self._check_one_kind()
        options = {"calls": _calls(nodes, fused)}
        return BlockMatch(CONV_GRAPH, tuple(self.units.values()), options, tuple(left.items()))

    def _module_of(self, node: torch.fx.Node) -> nn.Module | None:
        return self.block.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _follow(self, chain: _Chain, output: torch.fx.Node) -> None:
        # Adds the BatchNorm and the ReLU behind a convolution to its chain.
        (node,) = chain.nodes
        if node.kwargs or len(node.args) != 1 or len(node.all_input_nodes) != 1:
            raise NotRecognizedError("called with other arguments than known")
        bn, relu = None, False
        while not relu and node is not output and len(node.users) == 1:
            (user,) = node.users
            module = self._module_of(user)
            if user.all_input_nodes != [node]:
                break
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and bn is None:
                bn = str(user.target)
                relu = _rectifies(bn, module)
            elif type(module) is nn.ReLU or (module is None and user.target in _RELUS):
                relu = True
            else:
                break
            chain.nodes.append(user)
            node = user
        chain.units.append(Unit(str(chain.nodes[0].target), bn, relu, INPUT))

    def _are_pair(self, first: _Chain, second: _Chain, output: torch.fx.Node) -> bool:
        last = first.nodes[-1]
        if len(first.units) == 2 or len(last.users) != 1 or last is output:
            return False
        return _is_pair(self._conv(first.units[0].conv), self._conv(second.units[0].conv))

    def _max_pool_options(self, pool: Pool) -> dict[str, Any]:
        if pool.kind != "max" or pool.dilation != (1, 1) or pool.ceil_mode:
            raise NotRecognizedError(
                f"{pool.name}: takes a max pool without dilation and ceil_mode"
            )
        return {"kernel": pool.window, "stride": pool.stride, "padding": pool.padding}

    def match(self, output: Expression) -> BlockMatch:
        assert self.known is not None
        self._match(self.known.pattern, output, "output: is")
        self._check_one_kind()
        return BlockMatch(self.known.kind, tuple(self.units.values()), self.options)

    def _conv(self, path: str) -> nn.Conv2d:
        return cast("nn.Conv2d", self.block.get_submodule(path))

    def _match(self, pattern: Pattern, expression: Expression, reader: str) -> None:
        if isinstance(pattern, Input) and isinstance(expression, Input):
            return
        if isinstance(pattern, (ConvPattern, AnyConvPattern)) and isinstance(expression, Unit):
            self._match_unit(pattern, expression)
            self._match(pattern.source, expression.source, f"{expression.conv}: reads")
        elif isinstance(pattern, PoolPattern) and isinstance(expression, Pool):
            self._match_pool(pattern, expression)
            self._match(pattern.source, expression.source, f"{expression.name}: reads")
        elif isinstance(pattern, CatPattern) and isinstance(expression, Cat):
            self._match_cat(pattern, expression)
        else:
            raise NotRecognizedError(f"{reader} {_found(expression)}, takes {_wanted(pattern)}")

    def _match_cat(self, pattern: CatPattern, cat: Cat) -> None:
        if cat.dim not in _CHANNEL_DIMS:
            raise NotRecognizedError(f"cat: dimension {cat.dim}, takes 1")
        if len(cat.sources) != len(pattern.sources):
            raise NotRecognizedError(
                f"cat: {len(cat.sources)} tensors, takes {len(pattern.sources)}"
            )
        for index, (wanted, source) in enumerate(zip(pattern.sources, cat.sources, strict=True)):
            self._match(wanted, source, f"cat: tensor {index} is")

    def _match_unit(self, pattern: ConvPattern | AnyConvPattern, unit: Unit) -> None:
        conv = self._conv(unit.conv)
        wanted: dict[str, Any] = {}
        if isinstance(pattern, ConvPattern):
            wanted = {name: getattr(pattern, name) for name in ("kernel", "stride", "padding")}
        try:
            check_conv2d(unit.conv, conv, **wanted)
            if unit.bn is not None:
                bn = self.block.get_submodule(unit.bn)
                check_batch_norm(unit.bn, bn, conv.weight.shape[0], own_forward=True)
        except (TypeError, ValueError) as error:
            raise NotRecognizedError(str(error)) from error
        if isinstance(pattern, AnyConvPattern):
            self.options["stride"] = _pair(conv.stride)
            self.options["padding"] = conv2d_padding(unit.conv, conv)
            self.options["activation"] = "relu" if unit.relu else "none"
        elif not unit.relu:
            raise NotRecognizedError(f"{unit.conv}: no ReLU behind it, takes one")
        # A pattern may name one convolution at several places, but always the same one.
        match = UnitMatch(pattern.role, unit.conv, unit.bn)
        if self.units.setdefault(pattern.role, match) != match:
            raise NotRecognizedError(
                f"{unit.conv}: takes {self.units[pattern.role].conv} in this place"
            )

    def _match_pool(self, pattern: PoolPattern, pool: Pool) -> None:
        wanted = {
            "kind": pattern.kind,
            "window": (pattern.window, pattern.window),
            "stride": (pattern.stride, pattern.stride),
            "padding": (pattern.padding, pattern.padding),
            "dilation": (1, 1),
            "ceil_mode": False,
            "divisor_override": None,
        }
        for name, value in wanted.items():
            if getattr(pool, name) != value:
                raise NotRecognizedError(
                    f"{pool.name}: {name} {getattr(pool, name)}, takes {value}"
                )
        if pattern.kind == "avg":
            self.options["count_include_pad"] = pool.count_include_pad

    def _check_one_kind(self) -> None:
        # All convolutions of one dtype, everything on one device.
        first = next(iter(self.units.values()))
        weight = self._conv(first.conv).weight
        for unit in self.units.values():
            other = self._conv(unit.conv)
            if other.weight.dtype != weight.dtype:
                raise NotRecognizedError(
                    f"{unit.conv}: {other.weight.dtype}, takes {first.conv}'s {weight.dtype}"
                )
            paths = [unit.conv] if unit.bn is None else [unit.conv, unit.bn]
            for path in paths:
                module = self.block.get_submodule(path)
                for tensor in (*module._parameters.values(), *module._buffers.values()):
                    if tensor is not None and tensor.device != weight.device:
                        raise NotRecognizedError(
                            f"{path}: on {tensor.device}, takes {first.conv}'s {weight.device}"
                        )
