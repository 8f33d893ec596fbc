"""Prints which torch has loaded which library: the heading of `make compat`.

Ends with an error where another copy of the package was found than the one in the folder given, or
where its library is not loaded.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

import fused_inception
from fused_inception import _extension


def main(folder: str) -> None:
    package = Path(fused_inception.__file__).parent
    assert package == Path(folder, "fused_inception"), package
    info = _extension.build_info()
    assert info["loaded"], info["error"]
    digest = hashlib.sha256((package / _extension.LIBRARY).read_bytes()).hexdigest()
    print(
        f"torch {torch.__version__} (CUDA {torch.version.cuda}), Python {sys.version.split()[0]}: "
        f"{_extension.LIBRARY} {digest[:12]}, built with torch {info['torch']}, loaded"
    )


if __name__ == "__main__":
    main(sys.argv[1])
