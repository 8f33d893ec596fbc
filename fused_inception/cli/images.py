"""Decodes image files and prepares them for Inception V3.

Any file that Pillow reads becomes an RGB square of 8-bit values: the first frame, turned as its
EXIF orientation says, the shorter side resized to 342/299 of the square (bilinear, antialiased) and
the centre cut out. This is what torchvision's preset for Inception V3 does, up to the normalization
to [-1, 1] in place of ImageNet's mean and deviation, which is what the published weights were
trained on.
"""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fused_inception.cli.main import CliError, first_line

# torchvision resizes the shorter side to 342 and cuts 299 out of it.
_RESIZE_NUMERATOR, _RESIZE_DENOMINATOR = 342, 299

# Wider images are cut to this ratio of sides before they are resized, or a strip of 1×100000
# pixels would become 342×34200000. The square that is kept lies far inside.
_MAX_ASPECT = 4

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
        The photograph. Grayscale is spread over the three channels, CMYK and palettes are
        converted, an alpha channel is dropped. Values of more than 8 bits are divided by 257 where
        all lie in the 16-bit range, otherwise stretched from their minimum to their maximum.

    Raises:
        CliError: the file is missing, a directory, unreadable, damaged, truncated or no image, or
            has so many pixels that Pillow takes it for an attack.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CliError(f"image {path!r} does not exist") from error
    except IsADirectoryError as error:
        raise CliError(f"image {path!r} is a directory") from error
    except OSError as error:
        raise CliError(f"image {path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the path
        raise CliError(f"image {path!r} cannot be read: {first_line(error)}") from error
    try:
        with warnings.catch_warnings():
            # Large images below Pillow's limit, odd palettes, damaged EXIF: all still decoded.
            warnings.simplefilter("ignore")
            image = _decode(content)
            square = _resize_and_crop(image, image_size)
    except Image.UnidentifiedImageError as error:
        raise CliError(f"image {path!r} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise CliError(f"image {path!r} is too large: {first_line(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise CliError(f"image {path!r} is damaged or truncated: {first_line(error)}") from error
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


def _decode(content: bytes) -> Image.Image:
    Image.init()
    # Decoding EPS would run Ghostscript on the file.
    formats = [name for name in Image.OPEN if name != "EPS"]
    with Image.open(io.BytesIO(content), formats=formats) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow would clip deep values at 255.
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if image.mode != "F" and low >= 0 and high <= 65535:
            values = values / 257
        else:
            if not np.isfinite(values).all():
                raise ValueError("its values are not finite")
            values = (values - low) * (255 / (high - low) if high > low else 0.0)
        image = Image.fromarray(np.rint(values).astype(np.uint8))
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    image = _limit_aspect(image)
    short = min(image.size)
    resized = -(-image_size * _RESIZE_NUMERATOR // _RESIZE_DENOMINATOR)
    image = image.resize(
        (image.width * resized // short, image.height * resized // short),
        Image.Resampling.BILINEAR,  # Pillow's filters are antialiased when they shrink
    )
    left = round((image.width - image_size) / 2)
    top = round((image.height - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))


def _limit_aspect(image: Image.Image) -> Image.Image:
    limit = _MAX_ASPECT * min(image.size)
    width, height = min(image.width, limit), min(image.height, limit)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
