"""Imports torchvision, also where its compiled library does not match the installed torch.

A torchvision built for CUDA cannot load its library beside a CPU build of torch. The models need
nothing from that library, but torchvision's import registers shape functions for a few operators
that the library would have declared, and stops there. Declaring their schemas beforehand lets the
import through; they stay without a kernel, so calling one still fails. With a matching pair of
builds nothing is declared.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import torch

# The operators that torchvision registers shape functions for whether or not its library loaded.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A destroyed Library takes its declarations with it, so it lives as long as the process.
_declarations: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Returns the torchvision module, imported.

    Returns:
        The module `torchvision`.

    Raises:
        ImportError: torchvision is not installed, or does not import beside this torch for another
            reason than a library built for other hardware.

    Note:
        Where torchvision's library cannot be loaded, its models, transforms and datasets work and
        its compiled operators (`torchvision.ops.nms`, `roi_align`, ...) raise RuntimeError.
    """
    if sys.modules.get("torchvision") is None:
        spec = importlib.util.find_spec("torchvision")
        if spec is None:
            raise ImportError(
                "torchvision is not installed; install the version that belongs to torch "
                f"{torch.__version__} (pip install torchvision)",
                name="torchvision",
            )
        # Settled before the import: what a failed one leaves behind differs between versions.
        _load_library(list(spec.submodule_search_locations or ()))
        _declare_missing_operators()
    try:
        return importlib.import_module("torchvision")
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImportError(
            f"torchvision is installed but does not import beside torch {torch.__version__}: "
            f"{reason}",
            name="torchvision",
        ) from error


def _load_library(folders: list[str]) -> None:
    """Loads torchvision's compiled library from its package folders, as its own import would."""
    loader = (
        importlib.machinery.ExtensionFileLoader,
        importlib.machinery.EXTENSION_SUFFIXES,
    )
    for folder in folders:
        spec = importlib.machinery.FileFinder(folder, loader).find_spec("_C")
        if spec is not None and spec.origin is not None:
            try:
                torch.ops.load_library(spec.origin)
            except OSError:
                continue


def _declare_missing_operators() -> None:
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _declarations.append(library)
