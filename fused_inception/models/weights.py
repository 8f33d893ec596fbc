"""Reads state dicts from files and mappings, and loads them into a model, all or nothing.

`.pth` and `.pt` files go through `torch.load(weights_only=True)`, which rebuilds tensors and plain
containers and refuses everything else, so no code from the file is run; `.safetensors` files hold
nothing but tensors. A checkpoint that wraps its state dict, or whose names carry a wrapper's
prefix, is unwrapped. Names, shapes and kinds of dtype are compared with the model before the first
value is copied. The bytes of a file are not verified: one that was damaged inside a tensor loads.
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fused_inception._errors import first_line

Weights: TypeAlias = str | os.PathLike[str] | Mapping[str, Tensor]

_TORCH_SUFFIXES = (".pth", ".pt")
_SAFETENSORS_SUFFIX = ".safetensors"
_WRAPPER_KEYS = ("state_dict", "model")
# What DistributedDataParallel and torch.compile put in front of every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = ".num_batches_tracked"
_NAMES_SHOWN = 3


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit the model.

    Args:
        message: one line.
        missing: names that the model has and the weights lack.
    """

    def __init__(self, message: str, *, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


def load_weights(weights: Weights) -> dict[str, Tensor]:
    """Reads a state dict from a file or a mapping, without running code from either.

    Args:
        weights: a path ending in `.pth` or `.pt` (written by `torch.save`) or in `.safetensors`,
            or a mapping of names to tensors. Either may hold the state dict under the key
            `"state_dict"` or `"model"`, and all names may begin with `module.`
            (DistributedDataParallel) or `_orig_mod.` (`torch.compile`), which is dropped.

    Returns:
        Names to tensors, in their order: on the CPU from a file; from a mapping the very tensors
        given, not copies.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is of another kind, is damaged, or holds objects that only running
            code could rebuild; or what it holds is not a state dict.
        TypeError: `weights` is neither a path nor a mapping.
        ImportError: a `.safetensors` file without the safetensors package.
    """
    source = _source(weights)
    if isinstance(weights, Mapping):
        return _unwrap(weights, source)
    return _unwrap(_read_file(os.fspath(weights), source), source)


def load_into(
    model: nn.Module, weights: Weights, *, ignore: Sequence[str] = (), source: str | None = None
) -> None:
    """Loads weights into a model strictly: every name and every shape must agree.

    Args:
        model: any module; changed in place, and only after everything was found to fit.
        weights: as `load_weights` takes them. Floating-point tensors are converted to the model's
            dtype and device.
        ignore: entries whose names begin with one of these are dropped from `weights`.
        source: what messages call them. Default: the file, or "the given state_dict".

    Raises:
        WeightsError: as `load_weights`; or names are missing or unknown, or a shape, or a kind of
            dtype (floating-point, complex, integer) differs. The model is as it was before.
        FileNotFoundError: there is no such file.
        TypeError: `weights` is neither a path nor a mapping.
        ImportError: a `.safetensors` file without the safetensors package.

    Note:
        BatchNorm's `num_batches_tracked` may be absent, as in files from before PyTorch 0.4.1; the
        model's own counters then stay. No forward pass in evaluation mode reads them.
    """
    state = load_weights(weights)
    prefixes = tuple(ignore)
    state = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    expected = model.state_dict()
    for name, value in expected.items():
        if name.endswith(_COUNTER):
            state.setdefault(name, value)

    problems = list(_misfits(expected, state))
    if problems:
        raise WeightsError(
            f"{source or _source(weights)} does not fit {type(model).__name__}, "
            f"{'; '.join(problems)}",
            missing=[name for name in expected if name not in state],
        )
    model.load_state_dict(state, strict=True)


def _source(weights: object) -> str:
    if isinstance(weights, Mapping):
        return "the given state_dict"
    if isinstance(weights, (str, os.PathLike)):
        path = os.fspath(weights)
        if isinstance(path, str):
            return f"weights file {path!r}"
    raise TypeError(
        "weights takes a path (.pth, .pt, .safetensors) or a mapping of names to tensors, "
        f"got {type(weights).__name__}"
    )


def _read_file(path: str, source: str) -> object:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{source} does not exist")
    if os.path.isdir(path):
        raise WeightsError(f"{source} is a directory")
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _TORCH_SUFFIXES:
        return _read_torch(path, source)
    if suffix == _SAFETENSORS_SUFFIX:
        return _read_safetensors(path, source)
    raise WeightsError(
        f"{source} has the suffix {suffix!r}, takes "
        f"{', '.join((*_TORCH_SUFFIXES, _SAFETENSORS_SUFFIX))}"
    )


def _read_torch(path: str, source: str) -> object:
    try:
        with warnings.catch_warnings():
            # Guesses about damaged files, which the error below replaces.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # PyTorch's own text runs over many lines and advises `weights_only=False`.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise WeightsError(
                f"{source} is refused: it holds {refused[1]}, which only running code from the "
                "file could rebuild; save model.state_dict() instead"
            ) from error
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{source} is refused: it is a TorchScript program; save model.state_dict() instead"
            ) from error
        raise WeightsError(
            f"{source} cannot be read: it is damaged or was not written by torch.save "
            f"({type(error).__name__})"
        ) from error


def _read_safetensors(path: str, source: str) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"reading {source} needs the safetensors package (pip install safetensors): {error}"
        ) from error
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise WeightsError(
            f"{source} cannot be read: it is damaged or not a safetensors file "
            f"({first_line(error)})"
        ) from error


def _unwrap(loaded: object, source: str) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{source} holds {type(loaded).__name__}, takes a mapping of names to tensors"
        )
    state: Mapping[Any, Any] = loaded
    for key in _WRAPPER_KEYS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not state:
        raise WeightsError(f"{source} holds no tensors")
    others = [
        f"{name!r}: {type(value).__name__}"
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise WeightsError(
            f"{source} is not a mapping of names to tensors: {_some(others)} among "
            f"{len(state)} entries"
        )
    return _strip_prefixes(dict(state))


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off the wrappers' prefixes that all names share, in whatever order they nest."""
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _strip_prefixes({name[len(prefix) :]: value for name, value in state.items()})
    return state


def _misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterable[str]:
    """Yields what keeps `state` from being loaded, one phrase for each kind of misfit."""
    missing = [repr(name) for name in expected if name not in state]
    if missing:
        yield f"missing: {len(missing)} of {len(expected)} entries ({_some(missing)})"
    unknown = [repr(name) for name in state if name not in expected]
    if unknown:
        yield f"unknown: {len(unknown)} ({_some(unknown)})"
    common = [(name, state[name], expected[name]) for name in expected if name in state]
    shapes = [
        f"{name!r} is {tuple(given.shape)}, takes {tuple(wanted.shape)}"
        for name, given, wanted in common
        if given.shape != wanted.shape
    ]
    if shapes:
        yield f"of another shape: {len(shapes)} ({_some(shapes)})"
    dtypes = [
        f"{name!r} is {given.dtype}, takes {wanted.dtype}"
        for name, given, wanted in common
        if _kind(given) != _kind(wanted)
    ]
    if dtypes:
        yield f"of another kind of dtype: {len(dtypes)} ({_some(dtypes)})"
    # Copying from either would fail midway.
    empty = [
        repr(name)
        for name, given, wanted in common
        if (given.is_meta and not wanted.is_meta) or given.layout is not torch.strided
    ]
    if empty:
        yield f"on the meta device or not dense: {len(empty)} ({_some(empty)})"


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.is_quantized


def _some(phrases: Sequence[str]) -> str:
    more = ", ..." if len(phrases) > _NAMES_SHOWN else ""
    return ", ".join(phrases[:_NAMES_SHOWN]) + more
