"""The compiled CUDA extension: finds and loads the library, and remembers why it could not.

Nothing outside this module and the ops' `launch.py` knows the extension. Importing the package
never fails for its sake.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch


@functools.cache
def build_info() -> dict[str, Any]:
    """What was built, and whether it could be loaded.

    Returns:
        A dict with the keys "loaded" (bool), "architectures" (list of str), "torch" and "cuda"
        (versions built with, or None) and "error" (None, or the reason why nothing is loaded).
    """
    info: dict[str, Any] = {
        "loaded": False,
        "architectures": [],
        "torch": None,
        "cuda": None,
        "error": None,
    }
    libraries = sorted(Path(__file__).parent.glob("_C*.so"))
    if not libraries:
        info["error"] = "the CUDA extension is not built into this installation"
        return info
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        info["error"] = f"{libraries[0].name} cannot be loaded: {error}"
        return info
    info["loaded"] = True
    return info
