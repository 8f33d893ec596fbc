"""Replaces the Inception blocks of a model by fused ones that fall back to the original.

A recognized block is replaced by a `FusedBlock` that takes over the block's dictionaries of
children, parameters, buffers and hooks, so names, state dict and hooks stay what they are. The
block itself lives on inside, unregistered; its forward runs wherever the fused one would not mean
the same: in training mode, where autograd would record, under hooks on inner modules, and when the
block is no longer what was recognized. The weights with BatchNorm folded in are non-persistent
buffers. They are rebuilt when what they were made from has changed, and written in place, so that
captured and compiled programs see the change.

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

from fused_inception.blocks import FUSED_BLOCKS, ConvWeights
from fused_inception.folding import fold_batch_norm, type_name
from fused_inception.recognize import (
    BlockMatch,
    NotRecognizedError,
    find_candidates,
    global_hooks_installed,
    hook_refusal,
    recognize,
)

__all__ = ["FusedBlock", "FusionReport", "fuse", "refresh", "report"]

# What torch.nn.Module keeps in every instance.
_MODULE_STATE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FOLDED = "folded_"
# On a candidate that filter_fn excluded, so that `report` can say so, also of a copy.
_EXCLUDED = "_fused_inception_excluded"

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
        self._inner_hooks = tuple(
            getattr(module, name) for module in modules[1:] for name in _HOOKS
        )

        # Every child, parameter, buffer and plain attribute: (dictionary, key, value). Holding the
        # values keeps their identities from being given to others. Sizes show what was added; the
        # folded weights are in the block's own buffers.
        entries: list[tuple[dict[str, Any], str, Any]] = []
        sized: list[dict[str, Any]] = []
        for module in modules:
            state = vars(module)
            entries += [(state, key, state[key]) for key in state.keys() - _MODULE_STATE]
            for mapping in (module._modules, module._parameters, module._buffers):
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


class FusedBlock(nn.Module):
    """A recognized block in its fused form, which stands in for the original in every respect.

    Children, parameters, buffers and hooks are the original's own, under their names; attributes
    and methods that are not found here are the original's. `fuse` makes these; see there for when
    the original forward runs.

    Args:
        original: the block, which this takes over.
        match: what it was recognized as.
        warning: shared by the blocks of one model.
    """

    _OWN = frozenset({"_original", "_match", "_reason", "_snapshot", "_warning"})
    _original: nn.Module
    _match: BlockMatch
    _reason: str | None
    _snapshot: _Snapshot | None
    _warning: _Warning

    def __init__(self, original: nn.Module, match: BlockMatch, warning: _Warning) -> None:
        super().__init__()
        state = vars(original)
        # The very dictionaries, not copies. `copy` and `pickle` keep them shared.
        vars(self).update({name: state[name] for name in _MODULE_STATE if name in state})
        # Past nn.Module.__setattr__, which would register the original as a child.
        vars(self).update(
            _original=original, _match=match, _reason=None, _snapshot=None, _warning=warning
        )
        self.register_load_state_dict_post_hook(_rebuild_after_load)
        self._rebuild(recognized=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`, fused where that means the same."""
        if len(args) == 1 and not kwargs and self._can_fuse(args[0]):
            return self._run(args[0])
        return self._original.forward(*args, **kwargs)

    def _run(self, input: Tensor) -> Tensor:
        spec = FUSED_BLOCKS[self._match.kind]
        buffers = self._buffers
        convs = {
            unit.role: ConvWeights(
                cast("Tensor", buffers[f"{_FOLDED}{unit.role}_weight"]),
                buffers[f"{_FOLDED}{unit.role}_bias"],
            )
            for unit in self._match.units
        }
        return spec.forward(input, spec.weights(**convs), **self._match.options)

    def _can_fuse(self, input: Any) -> bool:
        if torch.compiler.is_compiling():
            return self._can_fuse_compiled(input)
        # FSDP puts a class of its own in place of this one, DataParallel makes replicas without
        # parameters; proxies, fake and distributed tensors are tensors of another type. What
        # torch.jit.trace records is meant to run without this package.
        if (
            self.training
            or type(self) is not FusedBlock
            or "_is_replica" in vars(self)
            or type(input) not in (Tensor, nn.Parameter)
            or input.dim() != 4
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
        if self._reason is not None or snapshot.trains() or snapshot.has_inner_hooks():
            return False
        if torch.is_grad_enabled() and (input.requires_grad or snapshot.requires_grad()):
            self._warning.give()
            return False
        if not snapshot.storage_holds():
            self._rebuild()
        elif not snapshot.values_hold():
            self._rebuild(recognized=True)
        return self._reason is None

    def _can_fuse_compiled(self, input: Tensor) -> bool:
        # A subset of the above that Dynamo can trace: no addresses, no versions, no warnings.
        if self._reason is not None or self.training or input.dim() != 4:
            return False
        for module in self.modules():
            if module.training or hasattr(module, "_is_fsdp_managed_module"):
                return False
            if module is not self and (
                module._forward_pre_hooks
                or module._forward_hooks
                or module._backward_pre_hooks
                or module._backward_hooks
            ):
                return False
        return not torch.is_grad_enabled() or not (
            input.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        )

    def _rebuild(self, *, recognized: bool = False) -> _Snapshot:
        # `recognized`: the structure is known to be that of the match.
        with _rebuild_lock:
            self._snapshot = None
            # Before folding: a write in between shows as a change in the next forward.
            snapshot = _Snapshot(self._original)
            reason = None
            try:
                if not recognized:
                    self._match = recognize(self._original)
            except NotRecognizedError as error:
                reason = str(error)
            else:
                self._fold()
            self._reason = reason
            self._snapshot = snapshot
        return snapshot

    def _fold(self) -> None:
        # Ordinary tensors also where the model runs in inference mode: such can be written later.
        with torch.inference_mode(False), torch.no_grad():
            for unit in self._match.units:
                conv = cast("nn.Conv2d", self._original.get_submodule(unit.conv))
                bn = None if unit.bn is None else self._original.get_submodule(unit.bn)
                weight, bias = fold_batch_norm(
                    conv.weight, conv.bias, cast("nn.BatchNorm2d | None", bn)
                )
                self._store(f"{_FOLDED}{unit.role}_weight", weight)
                self._store(f"{_FOLDED}{unit.role}_bias", bias)

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
            self._buffers[name] = value
            self._non_persistent_buffers_set.add(name)

    def train(self, mode: bool = True) -> "FusedBlock":
        """Sets the mode, as every module's; going to evaluation looks for changed weights."""
        trained = any(module.training for module in self.modules())
        super().train(mode)
        if not mode:
            snapshot = self._snapshot
            # Running statistics and many an optimizer's weights change without being counted.
            if (
                trained
                or snapshot is None
                or not snapshot.structure_holds()
                or not snapshot.storage_holds()
                or not snapshot.values_hold()
            ):
                self._rebuild()
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
        if name == "training" and "_original" in state:
            state["_original"].training = value
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


def _rebuild_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    # The dictionary of hooks is the original's too.
    if isinstance(module, FusedBlock):
        module._rebuild()


@dataclass
class FusionReport:
    """What `fuse` has done to a model, or could do.

    Attributes:
        replaced: (qualified name, kind) of the blocks that run fused.
        skipped: (qualified name, reason) of the blocks that do not.
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """An aligned table in plain text."""
        rows = [(name, f"fused as {kind}") for name, kind in self.replaced]
        rows += [(name, f"skipped: {reason}") for name, reason in self.skipped]
        rows = [(name or "(the model itself)", text) for name, text in rows]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        counts = f"{len(self.replaced)} fused, {len(self.skipped)} skipped"
        return "\n".join([*lines, counts])


def fuse(
    model: nn.Module,
    *,
    inplace: bool = False,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
) -> nn.Module:
    """Replaces the Inception blocks of a model by fused ones.

    Each block that looks like a known one is verified against it, operation by operation; what is
    not known stays as it is, and `report` says why. At present the known block is the 17×17 one
    with factorized convolutions (`inception_c`), of which Inception V3 has four.

    Args:
        model: any module, on any device, in any floating-point dtype.
        inplace: whether to change `model` itself; default: a deep copy.
        filter_fn: called with a block's qualified name and the block; False leaves it alone. A
            block that is registered under several names is replaced if all of them pass.
            Default: every block.
        strict: whether to raise, before changing anything, when a block is not understood.

    Returns:
        The model with its blocks replaced; if `model` is itself such a block, what replaces it.
        Names, parameters, `state_dict` and hooks on blocks are unchanged.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: with `strict`, a block was not understood; the message lists all of them.

    Note:
        Same results up to rounding. The original forward runs in training mode; where autograd
        would record (grad mode is on and the input or a parameter requires grad), with one warning;
        under hooks on modules inside a block; and when a block has been changed into something
        else. Weights with BatchNorm folded in follow the model's own automatically, except after
        writes through `.data`: call `refresh`. Fusing twice does nothing more.
    """
    _check_module("fuse", model)
    if not inplace:
        model = copy.deepcopy(model)

    places: dict[nn.Module, list[str]] = {}
    for name, block in find_candidates(model, stop=_is_fused):
        places.setdefault(block, []).append(name)
    excluded: list[nn.Module] = []
    matches: dict[nn.Module, BlockMatch] = {}
    refused: list[str] = []
    for block, names in places.items():
        if filter_fn is not None and not all(filter_fn(name, block) for name in names):
            excluded.append(block)
            continue
        match, reason = _refusal(block)
        if match is None:
            refused += [f"{name or 'the model itself'}: {reason}" for name in names]
        else:
            matches[block] = match
    if strict and refused:
        raise RuntimeError(
            "fuse(strict=True): not every block was understood\n  " + "\n  ".join(refused)
        )

    for block in places:
        vars(block).pop(_EXCLUDED, None)
    for block in excluded:
        vars(block)[_EXCLUDED] = True
    fused = [module for module in model.modules() if isinstance(module, FusedBlock)]
    warning = fused[0]._warning if fused else _Warning()
    for block, match in matches.items():
        wrapper = FusedBlock(block, match, warning)
        for name in places[block]:
            if name:
                parent, _, child = name.rpartition(".")
                model.get_submodule(parent)._modules[child] = wrapper
            else:
                model = wrapper
    return model


def report(model: nn.Module) -> FusionReport:
    """Says which blocks of a model run fused, and why others do not.

    Args:
        model: a fused model, a copy of one, a module that contains one, or any other.

    Returns:
        Names are relative to `model`. A block that is registered under several names has several
        entries. `str()` of the report is a table.

    Raises:
        TypeError: `model` is not a module.
    """
    _check_module("report", model)
    found = FusionReport()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FusedBlock):
            match, reason = _refusal(module._original)
            if match is not None:
                found.replaced.append((name, match.kind))
            else:
                found.skipped.append((name, f"runs its original forward: {reason}"))
    for name, block in find_candidates(model, stop=_is_fused):
        if _EXCLUDED in vars(block):
            reason = "excluded by filter_fn"
        else:
            reason = _refusal(block)[1] or "not fused yet: call fuse(model)"
        found.skipped.append((name, reason))
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


def _is_fused(module: nn.Module) -> bool:
    return isinstance(module, FusedBlock)


def _refusal(block: nn.Module) -> tuple[BlockMatch | None, str | None]:
    # A match, or the reason why there is none.
    reason = hook_refusal(block)
    if reason is not None:
        return None, reason
    try:
        return recognize(block), None
    except NotRecognizedError as error:
        return None, str(error)
