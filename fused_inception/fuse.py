"""Replaces blocks and convolution units of a model by fused ones that fall back to the original.

A recognized block is replaced by a `FusedBlock`, and so is a unit, a block of one convolution,
where no recognized block is around it. The `FusedBlock` takes over the block's dictionaries of
children, parameters, buffers and hooks, so names, state dict and hooks stay what they are. The
block itself lives on inside, unregistered; its forward runs wherever the fused one would not mean
the same: in training mode, where autograd would record, under hooks on inner modules, and when the
block is no longer what was recognized. The weights with BatchNorm folded in are non-persistent
buffers. They are rebuilt when what they were made from has changed, and written in place, so that
captured and compiled programs see the change.

A *differentiable* `FusedBlock` runs fused in training mode and where autograd records too, as long
as no BatchNorm in it normalizes by the statistics of the batch. Where autograd records, the weights
are folded in every forward, so that gradients reach the model's own parameters.

Limits. Compiled and exported programs do not look for changes; they get those made by
`load_state_dict`, `.to()` and its like, `eval()` and `refresh`. Writes that PyTorch does not count
(through `.data`, or to tensors made in inference mode) are seen by nobody but `refresh`.
"""

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, getitem, is_
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fused_inception.blocks import FUSED_BLOCKS, GRAPH_OPS, BlockWeights, ConvWeights
from fused_inception.folding import (
    HOOKS,
    fold_batch_norm,
    type_name,
    uses_batch_statistics,
)
from fused_inception.modules import ConvModule
from fused_inception.ops.common.dispatch import batch_invariance_refusal
from fused_inception.ops.common.packed_weights import keep_packed
from fused_inception.recognize import (
    CONV_GRAPH,
    CONV_SEQUENCE,
    KNOWN_BLOCKS,
    NO_PAIR,
    BlockMatch,
    NotRecognizedError,
    StandIn,
    UnitMatch,
    find_blocks,
    find_graphs,
    find_layers,
    find_sequences,
    find_units,
    global_hooks_installed,
    hook_refusal,
    recognize,
)
from fused_inception.stem import STEM, RunsStem, fuse_stem, network_class, stem_parts

__all__ = ["FusedBlock", "FusionReport", "fuse", "refresh", "report"]

# What torch.nn.Module keeps in every instance.
_MODULE_STATE = frozenset(vars(nn.Module()))
_BLOCK_KINDS = frozenset(known.kind for known in KNOWN_BLOCKS)
# These have as many weights as convolutions.
_OF_ANY_LENGTH = (CONV_SEQUENCE, CONV_GRAPH)
_FOLDED = "folded_"
# On a candidate that filter_fn excluded, so that `report` can say so, also of a copy.
_EXCLUDED = "_fused_inception_excluded"


def _folded_names(match: BlockMatch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # The buffers of the folded weights and biases of what was matched.
    if match.kind in _OF_ANY_LENGTH:
        weights = biases = tuple([unit.role for unit in match.units])
    else:
        spec = FUSED_BLOCKS[match.kind]
        weights, biases = spec.weight_names, spec.bias_names
    return (
        tuple([f"{_FOLDED}{name}_weight" for name in weights]),
        tuple([f"{_FOLDED}{name}_bias" for name in biases]),
    )


# The attributes, parameters and buffers of these modules that a call in evaluation mode reads, and
# the count of batches, which shows that statistics have moved. Of other modules all of them matter.
_READ: dict[type[nn.Module], frozenset[str]] = {
    nn.Conv2d: frozenset(
        {"stride", "padding", "dilation", "groups", "padding_mode", "weight", "bias"}
    ),
    nn.BatchNorm2d: frozenset(
        {"eps", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    ),
}

# Rebuilding writes into buffers that other threads may be about to rebuild as well.
_rebuild_lock = threading.RLock()


class _Snapshot:
    """What a block was made of at one moment, and whether it still is.

    Everything is kept in flat tuples that are compared in C: this runs in every forward.
    """

    def __init__(self, block: nn.Module) -> None:
        modules = tuple(block.modules())
        self._modules = modules
        self._types = tuple(map(type, modules))
        self._states = tuple(map(vars, modules))
        self._inner_hooks = tuple(getattr(module, name) for module in modules[1:] for name in HOOKS)

        # Every child, parameter, buffer and plain attribute that is read: (dictionary, key, value).
        # Holding the values keeps their identities from being given to others. Sizes show what was
        # added; the folded weights are in the block's own buffers.
        entries: list[tuple[dict[str, Any], str, Any]] = []
        sized: list[dict[str, Any]] = []
        for module in modules:
            state = vars(module)
            read = _READ.get(type(module))
            mappings = (module._modules, module._parameters, module._buffers)
            if read is not None:
                for mapping in (state, *mappings):
                    entries += [(mapping, key, mapping[key]) for key in read & mapping.keys()]
                sized.append(state)
                continue
            entries += [(state, key, state[key]) for key in state.keys() - _MODULE_STATE]
            for mapping in mappings:
                is_own = mapping is block._buffers
                entries += [
                    (mapping, key, value)
                    for key, value in mapping.items()
                    if not (is_own and key.startswith(_FOLDED))
                ]
                if not is_own:
                    sized.append(mapping)
            sized.append(state)
        self._mappings = tuple(entry[0] for entry in entries)
        self._keys = tuple(entry[1] for entry in entries)
        self._values = tuple(entry[2] for entry in entries)
        self._sized = tuple(sized)
        self._sizes = tuple(map(len, sized))

        # Of other tensors (distributed, sparse, fake) the identity is enough: with such a parameter
        # no block is recognized.
        self._tensors = tuple(
            value
            for value in self._values
            if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        )
        # Aliases keep the storages, and with them the addresses, from being reused by others, so
        # an unchanged address and dtype mean the unchanged storage, on its unchanged device.
        with torch.no_grad():
            self._aliases = tuple(tensor.detach() for tensor in self._tensors)
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        self._dtypes = [tensor.dtype for tensor in self._tensors]
        self._counted = tuple(tensor for tensor in self._tensors if not tensor.is_inference())
        self._versions = list(map(attrgetter("_version"), self._counted))
        self._norms = tuple(
            vars(module)
            for module in modules
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        )

    def structure_holds(self) -> bool:
        """Whether modules, attributes, parameters and buffers are the same objects."""
        try:
            return (
                tuple(map(type, self._modules)) == self._types
                and tuple(map(len, self._sized)) == self._sizes
                and all(map(is_, map(getitem, self._mappings, self._keys), self._values))
            )
        except KeyError:
            return False

    def storage_holds(self) -> bool:
        """Whether the tensors still have the same memory and dtypes; only if the structure does."""
        return (
            list(map(Tensor.data_ptr, self._tensors)) == self._pointers
            and [tensor.dtype for tensor in self._tensors] == self._dtypes
        )

    def values_hold(self) -> bool:
        """Whether nothing was written to the tensors; only if structure and storage hold."""
        return list(map(attrgetter("_version"), self._counted)) == self._versions

    def trains(self) -> bool:
        """Whether any of the modules is in training mode."""
        return any(map(getitem, self._states, repeat("training")))

    def norms_train(self) -> bool:
        """Whether any BatchNorm is in training mode."""
        return any(map(getitem, self._norms, repeat("training")))

    def has_inner_hooks(self) -> bool:
        """Whether any inner module has a hook that its call would run."""
        return any(self._inner_hooks)

    def requires_grad(self) -> bool:
        """Whether any parameter wants a gradient."""
        return any(map(attrgetter("requires_grad"), self._tensors))


class _Warning:
    """Warns once; the blocks of one model share it. A copy warns anew."""

    def __init__(self) -> None:
        self.given = False

    def __getstate__(self) -> dict[str, bool]:
        return {"given": False}

    def give(self) -> None:
        if not self.given:
            self.given = True
            warnings.warn(
                "autograd would record this forward, so the fused blocks run their original, "
                "unfused code; call the model under torch.no_grad() or torch.inference_mode() "
                "for the fused one",
                stacklevel=2,
            )


class FusedBlock(StandIn):
    """A recognized block or unit in its fused form, which stands in for the original throughout.

    Children, parameters, buffers and hooks are the original's own, under their names; attributes
    and methods that are not found here are the original's. `fuse` makes these; see there for when
    the original forward runs.

    Args:
        original: the block, which this takes over.
        match: what it was recognized as.
        warning: shared by the blocks of one model.
        differentiable: whether it runs fused where autograd records too.
    """

    _OWN = frozenset(
        {
            "_original",
            "_match",
            "_reason",
            "_snapshot",
            "_warning",
            "_differentiable",
            "_has_recorded",
            "_folded_names",
        }
    )
    _match: BlockMatch
    _reason: str | None
    _snapshot: _Snapshot | None
    _warning: _Warning
    _differentiable: bool
    # The buffers that hold the folded weights and biases.
    _folded_names: tuple[tuple[str, ...], tuple[str, ...]]
    # Since the last call of `eval()`: until the next one, optimizers may be at work, of which some
    # (`fused=True`) change weights without counting it.
    _has_recorded: bool

    def __init__(
        self,
        original: nn.Module,
        match: BlockMatch,
        warning: _Warning,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        state = vars(original)
        # The very dictionaries, not copies. `copy` and `pickle` keep them shared.
        vars(self).update({name: state[name] for name in _MODULE_STATE if name in state})
        # Past nn.Module.__setattr__, which would register the original as a child.
        vars(self).update(
            _original=original,
            _match=match,
            _reason=None,
            _snapshot=None,
            _warning=warning,
            _differentiable=differentiable,
            _has_recorded=False,
            _folded_names=((), ()),
        )
        self.register_load_state_dict_post_hook(_rebuild_after_load)
        self._rebuild(recognized=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`, fused where that means the same."""
        if len(args) == 1 and not kwargs and self._can_fuse(args[0]):
            return self._run(args[0])
        return self._original.forward(*args, **kwargs)

    def _run(self, input: Tensor) -> Tensor:
        kind, options = self._match.kind, self._match.options
        if kind == CONV_GRAPH:
            options = {**options, "module": self}
        return FUSED_BLOCKS[kind].forward(input, self._weights(input), **options)

    def _weights(self, input: Tensor) -> BlockWeights:
        if self._differentiable and self._records(input):
            convs = {u.role: self._folded(u, differentiable=True) for u in self._match.units}
            return FUSED_BLOCKS[self._match.kind].pack(convs)
        buffers = self._buffers
        weights, biases = self._folded_names
        return BlockWeights(
            tuple([cast("Tensor", buffers[name]) for name in weights]),
            tuple([buffers[name] for name in biases]),
        )

    @property
    def fused_match(self) -> BlockMatch | None:
        """What it runs fused as; None where its original forward runs, since it is that no more."""
        return None if self._reason is not None else self._match

    def fused_weights_for(self, input: Any) -> BlockWeights | None:
        """Its folded weights, where it would run fused; for a block around it to run on."""
        return self._weights(input) if self._can_fuse(input) else None

    def _records(self, input: Tensor) -> bool:
        # Whether autograd would record.
        return torch.is_grad_enabled() and (
            input.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        )

    def _original_reason(self) -> str | None:
        # Why the original forward would run now, whatever the input, or None.
        if self._differentiable:
            for name, module in self.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    return f"batch statistics in {name}"
        elif any(module.training for module in self.modules()):
            return "training mode"
        return None

    def _can_fuse(self, input: Any) -> bool:
        if torch.compiler.is_compiling():
            return self._can_fuse_compiled(input)
        # FSDP puts a class of its own in place of this one, DataParallel makes replicas without
        # parameters; proxies, fake and distributed tensors are tensors of another type. What
        # torch.jit.trace records is meant to run without this package.
        differentiable = self._differentiable
        if (
            (self.training and not differentiable)
            or type(self) not in _FUSED_CLASSES
            or "_is_replica" in vars(self)
            or type(input) not in (Tensor, nn.Parameter)
            or input.dim() != FUSED_BLOCKS[self._match.kind].input_dims
            or input.is_meta
            or torch.jit.is_tracing()
            or global_hooks_installed()
            or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
        ):
            return False
        snapshot = self._snapshot
        if snapshot is None or not snapshot.structure_holds():
            snapshot = self._rebuild()
        trains = snapshot.norms_train() if differentiable else snapshot.trains()
        if self._reason is not None or trains or snapshot.has_inner_hooks():
            return False
        records = torch.is_grad_enabled() and (input.requires_grad or snapshot.requires_grad())
        if records and not differentiable:
            self._warning.give()
            return False
        self._has_recorded |= records
        if not snapshot.storage_holds():
            self._rebuild()
        elif not records and (self._has_recorded or not snapshot.values_hold()):
            self._rebuild(recognized=True)
        return self._reason is None

    def _can_fuse_compiled(self, input: Tensor) -> bool:
        # A subset of the above that Dynamo can trace: no addresses, no versions, no warnings.
        dims = FUSED_BLOCKS[self._match.kind].input_dims
        differentiable = self._differentiable
        if self._reason is not None or input.dim() != dims:
            return False
        for module in self.modules():
            matters = not differentiable or isinstance(module, nn.modules.batchnorm._BatchNorm)
            if (module.training and matters) or hasattr(module, "_is_fsdp_managed_module"):
                return False
            if module is not self and (
                module._forward_pre_hooks
                or module._forward_hooks
                or module._backward_pre_hooks
                or module._backward_hooks
            ):
                return False
        return differentiable or not self._records(input)

    def _rebuild(self, *, recognized: bool = False) -> _Snapshot:
        # `recognized`: the structure is known to be that of the match.
        with _rebuild_lock:
            self._snapshot = None
            # Before folding: a write in between shows as a change in the next forward.
            snapshot = _Snapshot(self._original)
            reason = None
            try:
                if not recognized:
                    self._match = _recognize_alone(self._original, self._differentiable)
                self._fold()
            except NotRecognizedError as error:
                reason = str(error)
            self._reason = reason
            self._snapshot = snapshot
        return snapshot

    def _release(self) -> nn.Module:
        # Gives the original back. Should this still be in use elsewhere, it folds anew.
        with _rebuild_lock:
            self._snapshot = None
            self._drop_folded({name for name in self._buffers if name.startswith(_FOLDED)})
        return self._original

    def _drop_folded(self, names: set[str]) -> None:
        for name in names:
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)

    def _fold(self) -> None:
        # Ordinary tensors also where the model runs in inference mode: such can be written later.
        with torch.inference_mode(False), torch.no_grad():
            spec = FUSED_BLOCKS[self._match.kind]
            convs = {unit.role: self._folded(unit) for unit in self._match.units}
            try:
                packed = spec.pack(convs)
            except ValueError as error:  # channels that do not fit: the block cannot run at all
                raise NotRecognizedError(str(error)) from error
            weights, biases = _folded_names(self._match)
            for name, weight in zip(weights, packed.weights, strict=True):
                self._store(name, weight)
            for name, bias in zip(biases, packed.biases, strict=True):
                self._store(name, bias)
            self._folded_names = weights, biases
            # Of what it was recognized as before.
            held = {name for name in self._buffers if name.startswith(_FOLDED)}
            self._drop_folded(held.difference(weights, biases))

    def _folded(self, unit: UnitMatch, *, differentiable: bool = False) -> ConvWeights:
        conv = cast("nn.Conv2d | nn.Linear", self._original.get_submodule(unit.conv))
        bn = None if unit.bn is None else self._original.get_submodule(unit.bn)
        # A linear layer is a convolution of maps of one pixel.
        weight = conv.weight[:, :, None, None] if conv.weight.dim() == 2 else conv.weight
        norm = cast("nn.BatchNorm2d | None", bn)
        return ConvWeights(*fold_batch_norm(weight, conv.bias, norm, differentiable=differentiable))

    def _store(self, name: str, value: Tensor | None) -> None:
        held = self._buffers.get(name)
        if (
            value is not None
            and held is not None
            and type(held) is Tensor
            and not held.is_inference()
            and held.dtype == value.dtype
            and held.device == value.device
            and held.shape == value.shape
            and held.stride() == value.stride()
        ):
            held.copy_(value)
        else:
            held = self._buffers[name] = value
            self._non_persistent_buffers_set.add(name)
        if held is not None and held.dim() == 4:
            # Folded weights are written here alone, in ways that PyTorch counts.
            keep_packed(held)

    def train(self, mode: bool = True) -> "FusedBlock":
        """Sets the mode, as every module's; going to evaluation looks for changed weights."""
        trained = any(module.training for module in self.modules())
        super().train(mode)
        if not mode:
            snapshot = self._snapshot
            # Running statistics and many an optimizer's weights change without being counted.
            if (
                trained
                or self._has_recorded
                or snapshot is None
                or not snapshot.structure_holds()
                or not snapshot.storage_holds()
                or not snapshot.values_hold()
            ):
                self._rebuild()
            self._has_recorded = False
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedBlock":
        # The old tensors need not outlive the conversion.
        self._snapshot = None
        super()._apply(fn, recurse)
        self._rebuild()
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = vars(self).get("_original")
            if original is None:
                raise
            return getattr(original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What the original's forward may read goes to the original; dictionaries are shared, so
        # registering there is registering here.
        state = vars(self)
        # nn.Sequential makes a new dictionary of the rest when a child is deleted.
        if name in ("training", "_modules") and "_original" in state:
            vars(state["_original"])[name] = value
        if name in self._OWN or "_original" not in state:
            state[name] = value
        elif name in _MODULE_STATE or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(state["_original"], name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            delattr(self._original, name)

    def __getstate__(self) -> dict[str, Any]:
        # The snapshot is of these objects, not of their copies.
        state = vars(self) | {"_snapshot": None}
        state.pop("_compiled_call_impl", None)
        return state

    def _replicate_for_data_parallel(self) -> "FusedBlock":
        # The replica's original needs the replica's children.
        inner = self._original._replicate_for_data_parallel()
        replica = object.__new__(type(self))
        vars(replica).update(vars(self))
        vars(replica).update({name: vars(inner)[name] for name in _MODULE_STATE})
        vars(replica).update(_original=inner, _snapshot=None, _is_replica=True)
        return replica

    def extra_repr(self) -> str:
        """What was replaced, and by what."""
        return f"kind={self._match.kind!r}, original={type(self._original).__qualname__}"


class FusedSequential(FusedBlock, nn.Sequential):
    """A fused unit that was an nn.Sequential: it can be indexed, iterated and changed as one."""

    def __getitem__(self, index: Any) -> Any:
        """A child, or for a slice a sequence of some of them, as the original gives it."""
        return self._original[index]  # type: ignore[index]


_FUSED_CLASSES = (FusedBlock, FusedSequential)


def _rebuild_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    # The dictionary of hooks is the original's too.
    if isinstance(module, FusedBlock):
        module._rebuild()


@dataclass
class FusionReport:
    """What `fuse` has done to a model, or could do.

    Attributes:
        replaced: (qualified name, kind) of the blocks, units and layers that run fused, and of the
            modules of this package.
        skipped: (qualified name, reason) of those that do not.
        unfused: (qualified name, reason) of those of `replaced` that run unfused as long as they
            are in the mode in which they are now.
        launches: (qualified name, (fewest, most)) kernels that each of `replaced` launches in a
            forward in evaluation mode on a GPU; which of the numbers it is depends on the shape.
            Without those that run in training only.
        batch_dependent: (qualified name, reason) of what may make an image's result depend on the
            images around it.
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unfused: list[tuple[str, str]] = field(default_factory=list, compare=False)
    launches: list[tuple[str, tuple[int, int]]] = field(default_factory=list, compare=False)
    batch_dependent: list[tuple[str, str]] = field(default_factory=list, compare=False)

    @property
    def batch_invariant(self) -> bool:
        """Whether an image's result is bitwise the same whatever else is in the batch."""
        return bool(self.replaced) and not self.batch_dependent

    @property
    def launches_per_forward(self) -> tuple[int, int]:
        """The fewest and the most launches of all of `replaced` together."""
        counts = [count for _, count in self.launches]
        return sum(low for low, _ in counts), sum(high for _, high in counts)

    def __str__(self) -> str:
        """An aligned table in plain text."""
        launches, unfused = dict(self.launches), dict(self.unfused)
        rows = [
            (
                name,
                f"fused as {kind}{_count(launches[name]) if name in launches else ''}"
                f"{f'; unfused now: {unfused[name]}' if name in unfused else ''}",
            )
            for name, kind in self.replaced
        ]
        rows += [(name, f"skipped: {reason}") for name, reason in self.skipped]
        rows = [(name or _ITSELF, text) for name, text in rows]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        lines.append(f"{len(self.replaced)} fused, {len(self.skipped)} skipped")
        return "\n".join([*lines, *self.summary()])

    def summary(self) -> list[str]:
        """Launches of a forward and batch invariance, in lines of text."""
        if not self.replaced:
            return []
        lines = []
        if self.unfused:
            lines.append(f"{len(self.unfused)} run unfused in the mode in which they are now")
        if self.launches:
            count = _count(self.launches_per_forward)
            lines.append(f"a forward{count} on a GPU, beside what is not fused")
        if self.batch_invariant:
            return [*lines, "batch-invariant"]
        lines.append("not batch-invariant:")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.batch_dependent:
            by_reason.setdefault(reason, []).append(name or _ITSELF)
        for reason, names in by_reason.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  {names[0]}{more}: {reason}")
        return lines


# Of the ops that are more than one launch on some shapes.
_OP_LAUNCHES = {"factorized_conv2d": (1, 2)}


def _launches(match: BlockMatch) -> tuple[int, int]:
    if match.kind in _OF_ANY_LENGTH:
        ops = _ops(match)
        return len(ops), len(ops) + ops.count("factorized_conv2d")
    return FUSED_BLOCKS[match.kind].launches


def _ops(match: BlockMatch) -> list[str]:
    # Of this package, that a sequence or graph runs.
    if match.kind == CONV_SEQUENCE:
        return [op for op, _ in match.options["steps"]]
    return [call.kind for call in match.options["calls"] if call.kind in GRAPH_OPS]


_ITSELF = "(the model itself)"


def _count(launches: tuple[int, int]) -> str:
    low, high = launches
    number = str(low) if low == high else f"{low} to {high}"
    return f", {number} launch{'es' if high > 1 else ''}"


def fuse(
    model: nn.Module,
    *,
    inplace: bool = False,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
    differentiable: bool = False,
) -> nn.Module:
    """Replaces the Inception blocks of a model, and elsewhere its convolutions, by fused ones.

    Each module that looks like a known block is verified against it, operation by operation; what
    is not known stays as it is, and `report` says why. The kinds are the blocks of Inception V3,
    `inception_a` (Mixed_5b to 5d), `inception_b` (Mixed_6a), `inception_c` (Mixed_6b to 6e),
    `inception_d` (Mixed_7a), `inception_e` (Mixed_7b and 7c) and `inception_e_max_pool` (the last
    block of the Fréchet Inception Distance's network), with those of Inception-v4 and
    Inception-ResNet-v2 that are made alike and `inception_e_pair`, `inception_d_double`,
    `reduction` and `reduction_pool_first`, which are their own. Outside of these there are
    `conv_graph` and `conv_sequence`, a module with a forward of its own and an nn.Sequential in
    which a pair 1×n, m×1 runs as one op, and `conv2d_act`: a unit of one convolution and, behind
    it, BatchNorm, ReLU or both. A module is taken for a unit if it contains one Conv2d, at least
    one BatchNorm or ReLU, and nothing else. Where a module has such a block among its children, its
    nn.MaxPool2d, its nn.AdaptiveAvgPool2d to one pixel and its nn.Linear are replaced too
    (`max_pool2d`, `global_avg_pool2d`, `linear`), so that on a GPU nothing between an image and its
    logits depends on the batch around it. This package's Inception V3 and torchvision's get a
    subclass of their class, whose forward runs the layers in front of the first block as one,
    `inception_stem`, where all of them are fused.

    Args:
        model: any module, on any device, in any floating-point dtype.
        inplace: whether to change `model` itself; default: a deep copy.
        filter_fn: called with the qualified name of a block, unit or layer and the module; False
            leaves it alone, and everything inside it. A module that is registered under several
            names is replaced if all of them pass. Units are asked for only where no block around
            them was excluded or understood. Default: everything.
        strict: whether to raise, before changing anything, when a block or unit is not understood.
        differentiable: whether blocks run fused in training mode and where autograd records too, as
            long as their BatchNorms are in evaluation mode (frozen statistics); gradients reach the
            model's own weights, gammas and betas. What is fused already stays as it is. Default
            False.

    Returns:
        The model with its blocks and units replaced; if `model` is itself one, what replaces it.
        Names, parameters, `state_dict` and hooks on blocks are unchanged.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: with `strict`, something was not understood; the message lists all of it.

    Note:
        Same results up to rounding. Unless `differentiable`, the original forward runs in training
        mode, and where autograd would record (grad mode is on and the input or a parameter requires
        grad), with one warning. It always runs where a BatchNorm uses the statistics of the batch;
        under hooks on modules inside a block; and when a block has been changed into something
        else. Weights with BatchNorm folded in follow the model's own automatically, except after
        writes through `.data`: call `refresh`. Fusing twice does nothing more. The output is in
        channels_last, whatever the input is: `view` over its channels fails, where `reshape` or
        `flatten` copy. What stands beside the pairs of a `conv_graph` is called in the order of a
        `torch.fx` trace, so what its forward does to anything but tensors is not done, such as
        printing.
    """
    _check_module("fuse", model)
    if not inplace:
        model = copy.deepcopy(model)

    def is_excluded(module: nn.Module, names: list[str]) -> bool:
        return filter_fn is not None and not all(filter_fn(name, module) for name in names)

    candidates = _survey(model, is_excluded, differentiable)
    refused = [
        f"{name or 'the model itself'}: {reason}"
        for candidate in candidates
        if not candidate.excluded
        for name, reason in candidate.refusals()
    ]
    if strict and refused:
        raise RuntimeError(
            "fuse(strict=True): not every block was understood\n  " + "\n  ".join(refused)
        )

    fused = [module for module in model.modules() if isinstance(module, FusedBlock)]
    warning = fused[0]._warning if fused else _Warning()
    for candidate in candidates:
        vars(candidate.module).pop(_EXCLUDED, None)
        if candidate.excluded:
            vars(candidate.module)[_EXCLUDED] = True
        if candidate.match is None:
            continue
        _release_units(candidate.module)
        is_sequential = isinstance(candidate.module, nn.Sequential)
        fused_class = FusedSequential if is_sequential else FusedBlock
        wrapper = fused_class(candidate.module, candidate.match, warning, differentiable)
        for name in candidate.names:
            if name:
                parent, _, child = name.rpartition(".")
                model.get_submodule(parent)._modules[child] = wrapper
            else:
                model = wrapper
    for module in model.modules():
        fuse_stem(module)
    return model


def report(model: nn.Module) -> FusionReport:
    """Says which blocks and units of a model run fused, and why others do not.

    Args:
        model: a fused model, a copy of one, a module that contains one, or any other.

    Returns:
        Names are relative to `model`, in the order of `model.named_modules()`. A module that is
        registered under several names has several entries. `str()` of the report is a table.

    Raises:
        TypeError: `model` is not a module.
    """
    _check_module("report", model)
    found = FusionReport()
    in_training = _training_only(model)
    in_stem: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, RunsStem) and (parts := stem_parts(module)):
            found.replaced.append((name, STEM))
            found.launches.append((name, FUSED_BLOCKS[STEM].launches))
            in_stem.update(parts)
        if isinstance(module, FusedBlock):
            match, refusal = _verdict(module._original, _recognize_alone, module._differentiable)
            reason = None
            if match is not None:
                reason = module._original_reason()
                found.replaced.append((name, match.kind))
                found.skipped += _inside(name, match.left)
                if module not in in_training and module not in in_stem:
                    found.launches.append((name, _launches(match)))
            else:
                found.skipped.append((name, f"runs its original forward: {refusal}"))
        elif isinstance(module, ConvModule):
            found.replaced.append((name, module.op))
            found.launches.append((name, _OP_LAUNCHES.get(module.op, (1, 1))))
            reason = module.unfused_reason()
        else:
            continue
        if reason is not None:
            found.unfused.append((name, reason))
    for candidate in _survey(model, lambda module, names: _EXCLUDED in vars(module)):
        reason = candidate.reason or "not fused yet: call fuse(model)"
        found.skipped += [(name, reason) for name in candidate.names]
    order = {name: i for i, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    found.skipped.sort(key=lambda entry: order[entry[0]])
    found.batch_dependent = _batch_dependent(model, in_training)
    return found


def refresh(model: nn.Module) -> None:
    """Rebuilds the folded weights of all fused blocks now.

    Needed only after writes that PyTorch does not count (`parameter.data.mul_(...)`), and before
    running a compiled program again after changes other than `load_state_dict`, `.to()` or
    `eval()`. The weights are written in place.

    Args:
        model: a module; without fused blocks nothing happens.

    Raises:
        TypeError: `model` is not a module.
    """
    _check_module("refresh", model)
    for module in model.modules():
        if isinstance(module, FusedBlock):
            module._rebuild()


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type_name(model)}")


@dataclass
class _Candidate:
    """A module that looks like a block or unit, with a match or the reason why there is none."""

    module: nn.Module
    names: list[str]
    match: BlockMatch | None = None
    reason: str | None = None
    excluded: bool = False

    def refusals(self) -> list[tuple[str, str]]:
        """(qualified name, reason) of what is not understood."""
        if self.match is None:
            return [(name, self.reason or "") for name in self.names]
        return [refusal for name in self.names for refusal in _inside(name, self.match.left)]


def _inside(name: str, left: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(f"{name}.{path}".lstrip("."), reason) for path, reason in left]


# Their forwards call their children and, in evaluation, beside these only what treats every element
# or every image alone. Their auxiliary head runs in training only.
_KNOWN_NETWORKS = {
    ("fused_inception.models.inception_v3", "InceptionV3"),
    ("torchvision.models.inception", "Inception3"),
}
_AUXILIARY = "AuxLogits"
# The forwards of layers whose result for one image has nothing to do with the batch, in evaluation
# mode, and of containers; the last is that of lists and dictionaries of modules, which have none.
_BATCH_INVARIANT_FORWARDS = frozenset(
    kind.forward
    for kind in (
        nn.Identity,
        nn.Dropout,
        nn.Dropout2d,
        nn.ReLU,
        nn.BatchNorm2d,
        nn.MaxPool2d,
        nn.Flatten,
        nn.Softmax,
        nn.Sequential,
        nn.Module,
    )
)


def _is_known_network(module: nn.Module) -> bool:
    kind = network_class(module)
    return (kind.__module__, kind.__qualname__) in _KNOWN_NETWORKS


def _training_only(model: nn.Module) -> set[nn.Module]:
    heads = [
        module._modules.get(_AUXILIARY) for module in model.modules() if _is_known_network(module)
    ]
    return {inner for head in heads if head is not None for inner in head.modules()}


def _batch_dependent(model: nn.Module, in_training: set[nn.Module]) -> list[tuple[str, str]]:
    # The device and dtype of layers without weights are those of the model.
    of_model = next(model.parameters(), None)
    found: list[tuple[str, str]] = []
    settled: set[nn.Module] = set(in_training)
    for name, module in model.named_modules():
        if module in settled:
            continue
        reason = None
        if (
            isinstance(module, FusedBlock)
            and module._reason is None
            and module._original_reason() is None
        ):
            settled.update(module.modules())
            if module._match.kind == CONV_GRAPH and len(_ops(module._match)) < len(
                module._match.options["calls"]
            ):
                found.append((name, "calls more than its convolutions, which is not looked at"))
                continue
            weight = next(module.parameters(), of_model)
            if module._match.kind != "max_pool2d" and weight is not None:
                reason = batch_invariance_refusal(weight.dtype, weight.device)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and uses_batch_statistics(module):
            reason = "normalizes by the statistics of the batch"
        elif isinstance(module, ConvModule):
            weight = next(module.parameters())
            if module.backend == "aten":
                reason = "runs as backend aten, which was asked for"
            else:
                reason = batch_invariance_refusal(weight.dtype, weight.device)
        elif "forward" in vars(module) or type(module).forward not in _BATCH_INVARIANT_FORWARDS:
            if type(module).__module__.startswith("torch.nn."):
                reason = "is PyTorch's own kernel, which may choose its order of summation by batch"
            elif not _is_known_network(module):
                reason = "its forward may call functions, which are not looked at"
        if reason is not None:
            found.append((name, reason))
    return found


def _survey(
    model: nn.Module,
    is_excluded: Callable[[nn.Module, list[str]], bool],
    differentiable: bool = False,
) -> list[_Candidate]:
    # Everything that could be fused and is not yet, blocks first. The others are looked for where
    # nothing around them is excluded or understood.
    def judge(found: list[tuple[str, nn.Module]]) -> list[_Candidate]:
        return _judge(found, is_excluded, differentiable)

    blocks = judge(find_blocks(model, _is_fused_block))
    settled = {block.module for block in blocks if block.excluded or block.match is not None}
    matched = {block.module for block in blocks if block.match is not None}

    def is_settled(module: nn.Module) -> bool:
        return module in settled or isinstance(module, FusedBlock)

    looks_like_block = {block.module for block in blocks}
    graphs = []
    for graph in judge(
        find_graphs(model, lambda m: m in looks_like_block | settled or _is_whole(m))
    ):
        if graph.reason == NO_PAIR:
            continue
        for path, inner in graph.module.named_modules():
            if graph.match is not None and (inner in settled or _is_whole(inner)):
                graph.match = None
                graph.reason = f"{path}: is fused on its own, beside a pair"
        if graph.excluded or graph.match is not None:
            settled.add(graph.module)
        graphs.append(graph)
    sequences = judge(find_sequences(model, is_settled))
    settled |= {found.module for found in sequences if found.excluded or found.match is not None}
    units = judge(find_units(model, is_settled))
    layers = find_layers(model, lambda m: m in matched or _is_fused_block(m))
    return blocks + graphs + sequences + units + judge(layers)


def _judge(
    found: list[tuple[str, nn.Module]],
    is_excluded: Callable[[nn.Module, list[str]], bool],
    differentiable: bool,
) -> list[_Candidate]:
    places: dict[nn.Module, list[str]] = {}
    for name, module in found:
        places.setdefault(module, []).append(name)
    candidates = []
    for module, names in places.items():
        if is_excluded(module, names):
            candidates.append(_Candidate(module, names, None, "excluded by filter_fn", True))
        else:
            verdict = _verdict(module, _recognize, differentiable)
            candidates.append(_Candidate(module, names, *verdict))
    return candidates


def _verdict(
    module: nn.Module, recognize: Callable[[nn.Module, bool], BlockMatch], differentiable: bool
) -> tuple[BlockMatch | None, str | None]:
    # A match, or the reason why there is none.
    reason = hook_refusal(module)
    if reason is not None:
        return None, reason
    try:
        return recognize(module, differentiable), None
    except NotRecognizedError as error:
        return None, str(error)


def _recognize_alone(block: nn.Module, differentiable: bool) -> BlockMatch:
    # A snapshot of a block does not see all of what a fused unit in it stands for.
    for path, module in block.named_modules():
        if isinstance(module, FusedBlock):
            raise NotRecognizedError(f"{path}: is fused on its own")
    return _recognize(block, differentiable)


def _recognize(block: nn.Module, differentiable: bool) -> BlockMatch:
    match = recognize(block)
    if differentiable:
        try:
            same = recognize(block, training=True) == match
        except NotRecognizedError as error:
            raise NotRecognizedError(f"in training mode: {error}") from error
        if not same:
            raise NotRecognizedError("forward: is another block in training mode")
    return match


def _is_fused_block(module: nn.Module) -> bool:
    # Fused units and sequences are looked through: the block around them may be understood by now.
    return isinstance(module, FusedBlock) and module._match.kind in _BLOCK_KINDS


def _is_whole(module: nn.Module) -> bool:
    is_graph = isinstance(module, FusedBlock) and module._match.kind == CONV_GRAPH
    return is_graph or _is_fused_block(module)


def _release_units(block: nn.Module) -> None:
    # In a block that is fused as a whole, no unit or sequence is fused on its own.
    for parent in block.modules():
        for name, child in parent._modules.items():
            if isinstance(child, FusedBlock):
                parent._modules[name] = child._release()
