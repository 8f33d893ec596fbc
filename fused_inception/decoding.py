"""Decodes image files to RGB, and cuts the square out of them that Inception networks are shown.

Any file that Pillow reads becomes an RGB image of 8-bit values: the first frame, turned as its EXIF
orientation says. The shorter side is resized to 342/299 of the square (bilinear, antialiased) and
the centre cut out, which is what torchvision's preset for Inception V3 does.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fused_inception._errors import first_line

# torchvision resizes the shorter side to 342 and cuts 299 out of it.
_RESIZE_NUMERATOR, _RESIZE_DENOMINATOR = 342, 299

# Wider images are cut to this ratio of sides before they are resized, or a strip of 1×100000
# pixels would become 342×34200000. The square that is kept lies far inside.
_MAX_ASPECT = 4


class ImageError(ValueError):
    """A file that is no image, or none that can be read; the message is one line that names it."""


def read_image(path: str) -> Image.Image:
    """Decodes one image file.

    Args:
        path: of a file in a format that Pillow reads.

    Returns:
        An RGB image. Grayscale is spread over the three channels, CMYK and palettes are converted,
        an alpha channel is dropped. Values of more than 8 bits are divided by 257 where all lie in
        the 16-bit range, otherwise stretched from their minimum to their maximum.

    Raises:
        ImageError: the file is missing, a directory, unreadable, damaged, truncated or no image, or
            has so many pixels that Pillow takes it for an attack.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"image {path!r} does not exist") from error
    except IsADirectoryError as error:
        raise ImageError(f"image {path!r} is a directory") from error
    except OSError as error:
        raise ImageError(f"image {path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the path
        raise ImageError(f"image {path!r} cannot be read: {first_line(error)}") from error
    try:
        with warnings.catch_warnings():
            # Large images below Pillow's limit, odd palettes, damaged EXIF: all still decoded.
            warnings.simplefilter("ignore")
            return _decode(content)
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"image {path!r} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {path!r} is too large: {first_line(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise ImageError(f"image {path!r} is damaged or truncated: {first_line(error)}") from error


def resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Cuts the centre square out of an image.

    Args:
        image: of any size.
        image_size: rows and columns of the square, in pixels; the shorter side of the image is
            resized to 342/299 of it first.

    Returns:
        The square.
    """
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


def _limit_aspect(image: Image.Image) -> Image.Image:
    limit = _MAX_ASPECT * min(image.size)
    width, height = min(image.width, limit), min(image.height, limit)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
