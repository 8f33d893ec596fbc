"""The compiled CUDA extension: finds and loads the library, and remembers why it could not.

`_build.json`, written when the package is built, says what was built or why nothing was; the
library registers the CUDA implementations of internal operators, whose schemas Python defines.
Nothing outside this module and the ops' launchers knows the extension. Importing the package never
fails for its sake, and neither importing nor loading touches a GPU.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch

LIBRARY = "_C.abi3.so"
BUILD = "_build.json"
DTYPES = (torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)
# Integrated devices run only what was compiled for them, or PTX.
_INTEGRATED = ((8, 7), (11, 0))


@functools.cache
def build_info() -> dict[str, Any]:
    """What was built, and whether it could be loaded; the first call loads it.

    Returns:
        A dict with the keys "loaded" (bool), "architectures" (list of str), "torch" and "cuda"
        (versions built with, or None) and "error" (None, or the reason why nothing is loaded).
    """
    return load(Path(__file__).parent)


def load(folder: Path) -> dict[str, Any]:
    """Load the library in `folder`; see `build_info`."""
    try:
        build = json.loads((folder / BUILD).read_text())
    except FileNotFoundError:
        build = {"not_built_because": f"{folder} was never built or installed"}
    except (OSError, ValueError) as error:
        build = {"not_built_because": f"{folder / BUILD} cannot be read: {error}"}
    info: dict[str, Any] = {
        "loaded": False,
        "architectures": build.get("architectures", []),
        "torch": build.get("torch"),
        "cuda": build.get("cuda"),
        "error": None,
    }
    library = folder / LIBRARY
    if build.get("not_built_because"):
        info["error"] = f"the CUDA extension is not built: {build['not_built_because']}"
    elif not library.is_file():
        info["error"] = f"the CUDA extension was built, but {library} is missing"
    else:
        try:
            torch.ops.load_library(str(library))
            info["loaded"] = True
        except OSError as error:
            # torch names the file and keeps the loader's own words as the cause.
            info["error"] = f"{LIBRARY} cannot be loaded: {error.__cause__ or error}"
    return info


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code built for `architecture` ("8.0", "9.0a", "10.0+PTX") runs on a device.

    Machine code runs on the same major version from its minor version on; with the suffix "a" on
    that very version only. PTX without a suffix is compiled by the driver for anything later.
    """
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
    if match is None:
        return False
    built = (int(match[1]), int(match[2]))
    suffix, ptx = match[3], match[4] is not None
    if capability == built:
        return True
    if suffix == "a" or capability < built:
        return False
    if ptx and not suffix:
        return True
    return capability[0] == built[0] and capability not in _INTEGRATED


def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no kernel of the extension can run on `dtype` and `device`, or None where one can."""
    if dtype not in DTYPES:
        return f"dtype {dtype}; takes float16 and bfloat16"
    return device_refusal(device)


def device_refusal(device: torch.device) -> str | None:
    """Why no kernel of the extension can run on `device`, or None where one can."""
    info = build_info()
    if info["error"] is not None:
        return str(info["error"])
    if torch.version.hip is not None:
        return "torch is built for ROCm; takes CUDA"
    if device.type != "cuda":
        return f"input is on {device}; takes CUDA tensors"
    return capability_refusal(torch.cuda.get_device_capability(device), info["architectures"])


@functools.cache
def _runs_on_any(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    return any(runs_on(architecture, capability) for architecture in architectures)


def capability_refusal(capability: tuple[int, int], architectures: list[str]) -> str | None:
    """Why nothing built runs on a compute capability, or None where something does."""
    major, minor = capability
    if capability < MIN_CAPABILITY:
        return f"compute capability {major}.{minor}; takes 8.0 and later"
    if not _runs_on_any(tuple(architectures), capability):
        return (
            f"compute capability {major}.{minor}; the extension is built for "
            f"{', '.join(architectures)}"
        )
    return None
