"""The photographs of `compare`: squares of 8-bit values, and batches of them for Inception V3.

The preprocessing is that of torchvision's preset for Inception V3 (`fused_inception.decoding`), up
to the normalization to [-1, 1] in place of ImageNet's mean and deviation, which is what the
published weights were trained on.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fused_inception.cli.main import CliError
from fused_inception.decoding import ImageError, read_image, resize_and_crop

# Color photographs that are files of scikit-image's wheel, not downloads.
_BUILTIN = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class Photograph:
    """An image, decoded and cut to a square.

    Attributes:
        name: for tables: the path as it was given, or the file's name alone for a built-in one.
        path: of the file.
        width: columns of pixels of the whole image, orientation applied.
        height: rows.
        pixels: `(3, S, S)`, uint8, RGB.
    """

    name: str
    path: str
    width: int
    height: int
    pixels: Tensor


def builtin_photographs(image_size: int) -> list[Photograph]:
    """The photographs that are used where none are given.

    Args:
        image_size: rows and columns of the square to cut out, in pixels.

    Returns:
        Four photographs from scikit-image's installation.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        CliError: its installation lacks one of them.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no photographs without scikit-image", name="skimage")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [load_photograph(str(folder / name), image_size, name=name) for name in _BUILTIN]


def load_photograph(path: str, image_size: int, *, name: str | None = None) -> Photograph:
    """Decodes one image file.

    Args:
        path: of a file in a format that Pillow reads.
        image_size: rows and columns of the square to cut out, in pixels.
        name: how it is called in tables. Default: the path.

    Returns:
        The photograph.

    Raises:
        CliError: the file cannot be read as an image; see `fused_inception.decoding.read_image`.
    """
    try:
        image = read_image(path)
    except ImageError as error:
        raise CliError(str(error)) from error
    square = resize_and_crop(image, image_size)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
    return Photograph(name or path, path, image.width, image.height, pixels)


def to_batch(photographs: Sequence[Photograph]) -> Tensor:
    """Stacks and normalizes photographs.

    Args:
        photographs: of one size.

    Returns:
        `(N, 3, S, S)`, float32, channels_last, on the CPU, in [-1, 1].
    """
    pixels = torch.stack([photograph.pixels for photograph in photographs])
    batch = (pixels.to(torch.float32) / 255 - 0.5) / 0.5
    return batch.contiguous(memory_format=torch.channels_last)
