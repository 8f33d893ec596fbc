# SPDX-License-Identifier: Apache-2.0
"""Build script: everything but the optional CUDA extension is declared in pyproject.toml.

``FUSED_INCEPTION_CUDA`` says what becomes of the extension: ``0`` leaves it out, ``1`` requires it,
``auto`` (the default) builds it where the sources and ``nvcc`` are at hand. There are no sources in
``csrc/`` yet, so ``auto`` gives a package of pure Python and ``1`` is refused.
"""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent


def find_nvcc() -> str | None:
    """The nvcc of ``CUDA_HOME`` where that is set, else the first one on ``PATH``."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc")


def extension_modules() -> list[Extension]:
    """The extensions to build; ends the build where ``FUSED_INCEPTION_CUDA`` cannot be met."""
    mode = os.environ.get("FUSED_INCEPTION_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"error: FUSED_INCEPTION_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return []
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu"))
    obstacle = None
    if not sources:
        obstacle = "csrc/ has no sources"
    elif find_nvcc() is None:
        obstacle = "nvcc is neither in CUDA_HOME nor on PATH"
    if obstacle is not None:
        if mode == "1":
            raise SystemExit(f"error: FUSED_INCEPTION_CUDA=1 cannot be met: {obstacle}")
        return []
    # The change that adds the first source adds the rule that compiles it, here.
    raise SystemExit("error: csrc/ has sources, but setup.py has no rule to build them")


setup(ext_modules=extension_modules())
