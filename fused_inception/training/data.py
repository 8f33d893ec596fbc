"""Sets of labelled images, and the order in which a run sees them.

A set is folders in the layout of torchvision's `ImageFolder`, or the handwritten digits that come
inside scikit-learn. The order of an epoch and the augmentation of an image are functions of the
seed, the epoch and the image, whoever loads it: neither the number of processes and workers nor a
stop in the middle changes what is seen.
"""

import importlib
import importlib.util
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fused_inception._errors import first_line
from fused_inception.decoding import ImageError, read_image, resize_and_crop
from fused_inception.models.torchvision_import import import_torchvision
from fused_inception.training.recipe import TrainingError, derive_seed

__all__ = ["Batch", "Digits", "Folder", "LabelledImages", "epoch_order", "load_batches"]

TRAIN, TEST = "train", "val"  # the folders' names

_DIGITS = ("datasets", "data", "digits.csv.gz")  # in scikit-learn's installation

# Of every class each fifth image is for the test.
_TEST_EVERY = 5
_DIGIT_SIZE = 8
_DIGIT_LEVELS = 16
_DIGIT_SHIFT = 1

# GoogLeNet's (Szegedy et al. 2014, arXiv 1409.4842, section 6): patches of 8 to 100 % of the area,
# sides in a ratio of 3/4 to 4/3.
_PATCH_AREA = (0.08, 1.0)
_PATCH_RATIO = (3 / 4, 4 / 3)
_PATCH_TRIES = 10


class LabelledImages(Protocol):
    """A set of images with labels.

    Attributes:
        name: of the set, for messages.
        identity: tells it from other sets, wherever it is.
        classes: their names, by label.
    """

    name: str
    identity: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def load(self, index: int, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Loads one image.

        Args:
            index: of the image.
            generator: of the augmentation, or None for none.

        Returns:
            `(3, S, S)` in [-1, 1], float32, and its label.
        """
        ...


class Digits:
    """Handwritten digits: the 1,797 images of 8×8 pixels that come inside scikit-learn.

    Of each class every fifth image is for the test, 357 in all. Images are enlarged bilinearly.
    Augmentation shifts them by up to one of their own pixels in each direction.

    Args:
        train: whether the images are those for training.
        pixels: rows and columns that they are enlarged to.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        TrainingError: its installation lacks them.
    """

    def __init__(self, train: bool, pixels: int) -> None:
        table = torch.from_numpy(_read_digits())
        labels = table[:, -1].long()
        images = table[:, :-1].reshape(-1, 1, _DIGIT_SIZE, _DIGIT_SIZE) / (_DIGIT_LEVELS / 2) - 1
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            (of_class,) = torch.where(labels == label)
            chosen[of_class[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
        if train:
            chosen = ~chosen
        self.name = self.identity = "digits"
        self.classes = tuple(map(str, range(10)))
        self._images = images[chosen]
        self._labels = labels[chosen].tolist()
        self._pixels = pixels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._labels)

    def load(self, index: int, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Enlarges one image; see `LabelledImages.load`."""
        image = self._images[index : index + 1]
        if generator is not None:
            top, left = torch.randint(2 * _DIGIT_SHIFT + 1, (2,), generator=generator).tolist()
            rows, columns = image.shape[2:]
            padded = F.pad(image, [_DIGIT_SHIFT] * 4, value=-1)
            image = padded[:, :, top : top + rows, left : left + columns]
        size = (self._pixels, self._pixels)
        image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return image[0].expand(3, -1, -1), self._labels[index]


def _read_digits() -> np.ndarray[Any, np.dtype[np.float32]]:
    # 64 pixels and the label a row. Only the file is needed: importing scikit-learn takes seconds.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no digits without scikit-learn", name="sklearn")
    path = os.path.join(next(iter(spec.submodule_search_locations)), *_DIGITS)
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    except (OSError, ValueError) as error:
        raise TrainingError(f"--data digits: {first_line(error)}") from error
    return table


class Folder:
    """Images in folders: `ROOT/train/CLASS/*.png` and `ROOT/val/CLASS/*.png`, as `ImageFolder` has.

    Augmentation takes a patch of 8 to 100 % of the image and mirrors every second one, as GoogLeNet
    was trained; without, the image is what `fused_inception.decoding.resize_and_crop` cuts out.

    Args:
        root: of both folders.
        train: whether the images are those for training.
        pixels: rows and columns that the images are cut and resized to.

    Raises:
        TrainingError: a folder is missing, has no classes, or a class has no images.
        ImportError: torchvision is missing.
    """

    def __init__(self, root: str, train: bool, pixels: int) -> None:
        folder = os.path.join(root, TRAIN if train else TEST)
        if not os.path.isdir(folder):
            raise TrainingError(
                f"--data {root!r} takes a folder with {TRAIN}/CLASS/IMAGE and {TEST}/CLASS/IMAGE "
                f"in it, or digits: there is no folder {folder!r}"
            )
        import_torchvision()
        datasets: Any = importlib.import_module("torchvision.datasets")
        try:
            found = datasets.ImageFolder(folder)
        except (OSError, ValueError) as error:
            raise TrainingError(f"--data {root!r}: {first_line(error)}") from error
        self.name = os.path.abspath(root)
        self.classes = tuple(found.classes)
        self._samples: list[tuple[str, int]] = found.samples
        paths = [os.path.relpath(path, folder) for path, _ in self._samples]
        self.identity = f"{len(paths)} images, {derive_seed(*paths):016x} by their names"
        self._pixels = pixels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._samples)

    def load(self, index: int, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Decodes one image; see `LabelledImages.load`.

        Raises:
            ImageError: it cannot be read.
        """
        path, label = self._samples[index]
        image = read_image(path)
        if generator is None:
            square = resize_and_crop(image, self._pixels)
        else:
            box = random_patch(image.width, image.height, generator)
            size = (self._pixels, self._pixels)
            square = image.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        if generator is not None and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(2)
        return (pixels.to(torch.float32) / 255 - 0.5) / 0.5, label


def random_patch(
    width: int, height: int, generator: torch.Generator
) -> tuple[float, float, float, float]:
    """Draws a patch of an image.

    Args:
        width: columns of the image, in pixels.
        height: rows.
        generator: what to draw from.

    Returns:
        Left, top, right and bottom, in pixels; the whole image where ten draws do not fit into it.
    """
    for _ in range(_PATCH_TRIES):
        area, ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (_PATCH_AREA[0] + area * (_PATCH_AREA[1] - _PATCH_AREA[0]))
        low, high = map(math.log, _PATCH_RATIO)
        ratio = math.exp(low + ratio * (high - low))
        columns, rows = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if columns <= width and rows <= height:
            left, top = x * (width - columns), y * (height - rows)
            return left, top, left + columns, top + rows
    return 0.0, 0.0, float(width), float(height)


@dataclass(frozen=True)
class Batch:
    """Images and labels, and what could not be read.

    Attributes:
        images: `(N, 3, S, S)`, float32.
        labels: `(N,)`, int64.
        skipped: a line for each image that could not be read.
    """

    images: Tensor
    labels: Tensor
    skipped: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """A copy from which a GPU can read; called by `DataLoader`."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.skipped)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of the training images in an epoch.

    Args:
        count: of images.
        seed: of the run.
        epoch: from 0.

    Returns:
        A permutation of the indices.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def load_batches(
    images: LabelledImages,
    batches: Sequence[list[int]],
    *,
    augment_seed: int | None = None,
    corrupt: str = "refuse",
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Loads batches in their order.

    Args:
        images: the set.
        batches: indices of the images of each.
        augment_seed: of the augmentation, another one in every epoch; None for none.
        corrupt: what becomes of an image that cannot be read: "refuse" ends with an error, "drop"
            leaves it out, "replace" takes the next one in the set that can be read.
        workers: processes that load ahead; 0 loads in this one.
        pin_memory: whether batches are in memory from which a GPU can read.

    Yields:
        The batches.

    Raises:
        TrainingError: an image cannot be read; the message names it.
    """
    loader = DataLoader(
        _Loading(images, augment_seed, corrupt),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=pin_memory,
        # Or it would draw from the generator of dropout.
        generator=torch.Generator(),
    )
    for batch in loader:
        if batch.skipped and corrupt == "refuse":
            raise TrainingError(f"{batch.skipped[0]}; --skip-corrupt leaves such images out")
        yield batch


# An image and its label, or None; and a line for each image that could not be read.
_Sample = tuple[tuple[Tensor, int] | None, list[str]]


class _Loading(Dataset[_Sample]):
    # Errors go with the sample: across processes an exception would come back as a traceback.
    def __init__(self, images: LabelledImages, augment_seed: int | None, corrupt: str) -> None:
        self.images = images
        self.augment_seed = augment_seed
        self.corrupt = corrupt

    def __getitem__(self, index: int) -> _Sample:
        lines: list[str] = []
        for offset in range(len(self.images)):
            place = (index + offset) % len(self.images)
            generator = None
            if self.augment_seed is not None:
                generator = torch.Generator()
                generator.manual_seed(derive_seed(self.augment_seed, place))
            try:
                return self.images.load(place, generator), lines
            except ImageError as error:
                lines.append(str(error))
            if self.corrupt != "replace":
                break
        return None, lines


def _collate(samples: Sequence[_Sample]) -> Batch:
    loaded = [sample for sample, _ in samples if sample is not None]
    lines = tuple(line for _, lines in samples for line in lines)
    if not loaded:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), lines)
    return Batch(
        torch.stack([image for image, _ in loaded]),
        torch.tensor([label for _, label in loaded]),
        lines,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
