"""The files of a run: one folder, whole at every moment.

A checkpoint is written beside the old one, brought to the disk and put in its place by renaming, so
that neither a kill nor a full disk leaves less than the last one. The metrics are brought to the
disk before the checkpoint that counts on them; what they have beyond it is cut off when the run
goes on. Checkpoints hold tensors and plain values, and are read without running code from them.
"""

import csv
import io
import os
from collections.abc import Mapping
from typing import Any

import torch

from fused_inception.training.recipe import TrainingError

__all__ = ["EPOCH_COLUMNS", "STEP_COLUMNS", "RunFolder", "write_atomically"]

STEP_COLUMNS = ("step", "epoch", "learning_rate", "loss", "gradient_norm")
EPOCH_COLUMNS = (
    "epoch", "step", "train_loss", "test_loss", "test_top1", "test_top5", "seconds",
)  # fmt: skip

_FORMAT = 1
_SUFFIX = ".tmp"


def write_atomically(path: str, content: bytes) -> None:
    """Writes a file whole or not at all, also where the process or the machine stops in between.

    Args:
        path: of the file; what it held is replaced.
        content: its new content.

    Raises:
        OSError: it cannot be written. The file is as it was.
    """
    temporary = path + _SUFFIX
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # or the new name may be lost with the machine's power
        finally:
            os.close(folder)


class RunFolder:
    """The files of one run.

    Args:
        path: of the folder; it is made where it is missing.

    Attributes:
        checkpoint: path of the last checkpoint.
        average: path of the averaged weights, as a state dict of the network.
        steps: path of the metrics of every step, CSV with `STEP_COLUMNS`.
        epochs: path of the metrics of every epoch, CSV with `EPOCH_COLUMNS`.
        curves: path of the plot.

    Raises:
        TrainingError: the folder cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.checkpoint = os.path.join(path, "checkpoint.pt")
        self.average = os.path.join(path, "average.pth")
        self.steps = os.path.join(path, "steps.csv")
        self.epochs = os.path.join(path, "epochs.csv")
        self.curves = os.path.join(path, "curves.png")
        self._open: dict[str, io.TextIOWrapper] = {}
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"folder {path!r} cannot be made: {error.strerror}") from error

    def begin(self) -> None:
        """Begins the metrics of a new run."""
        self._write(self.steps, _rows_to_csv(STEP_COLUMNS, []))
        self._write(self.epochs, _rows_to_csv(EPOCH_COLUMNS, []))

    def cut(self, step: int) -> None:
        """Cuts off what the metrics have beyond a step, where a run goes on from there."""
        for path, columns in ((self.steps, STEP_COLUMNS), (self.epochs, EPOCH_COLUMNS)):
            kept = [row for row in read_metrics(path) if int(row["step"]) <= step]
            self._write(path, _rows_to_csv(columns, kept))

    def add_step(self, row: Mapping[str, object]) -> None:
        """Adds a step to the metrics."""
        self._append(self.steps, STEP_COLUMNS, row)

    def add_epoch(self, row: Mapping[str, object]) -> None:
        """Adds an epoch to the metrics."""
        self._append(self.epochs, EPOCH_COLUMNS, row)

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint.

        Args:
            state: of the run, tensors and plain values.

        Raises:
            TrainingError: it cannot be written. The one before is kept.
        """
        for path, file in self._open.items():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise self._unwritable(path, error) from error
        self._write(self.checkpoint, _serialize({"format": _FORMAT, **state}))

    def save_average(self, state: Mapping[str, Any]) -> None:
        """Writes the averaged weights."""
        self._write(self.average, _serialize(state))

    def load(self) -> dict[str, Any]:
        """Reads the checkpoint.

        Returns:
            What was saved, on the CPU.

        Raises:
            TrainingError: there is none, or it cannot be read.
        """
        if not os.path.exists(self.checkpoint):
            raise TrainingError(f"there is no checkpoint {self.checkpoint!r} to go on from")
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            known = isinstance(state, dict) and state.get("format") == _FORMAT
        except OSError as error:
            raise TrainingError(
                f"checkpoint {self.checkpoint!r} cannot be read: {error.strerror}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # PyTorch raises anything on damaged files
            raise TrainingError(
                f"checkpoint {self.checkpoint!r} cannot be read: it is damaged or was not written "
                f"by a training run ({type(error).__name__})"
            ) from error
        if not known:
            raise TrainingError(
                f"checkpoint {self.checkpoint!r} is not one of a training run of this version"
            )
        return dict(state)

    def close(self) -> None:
        """Closes the metrics."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _append(self, path: str, columns: tuple[str, ...], row: Mapping[str, object]) -> None:
        try:
            if path not in self._open:
                self._open[path] = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
            csv.writer(self._open[path]).writerow([row[column] for column in columns])
            self._open[path].flush()
        except OSError as error:
            raise self._unwritable(path, error) from error

    def _write(self, path: str, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            raise self._unwritable(path, error) from error

    def _unwritable(self, path: str, error: OSError) -> TrainingError:
        kept = f"; checkpoint {self.checkpoint!r} is as it was, --resume goes on from it"
        return TrainingError(
            f"{path!r} cannot be written: {error.strerror}"
            f"{kept if os.path.exists(self.checkpoint) else ''}"
        )


def read_metrics(path: str) -> list[dict[str, str]]:
    """Reads metrics.

    Args:
        path: of the CSV.

    Returns:
        Its whole rows, by column; the last one may be cut short where a run was killed.

    Raises:
        TrainingError: the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise TrainingError(f"{path!r} cannot be read: {error.strerror}") from error
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


def _rows_to_csv(columns: tuple[str, ...], rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows)
    return text.getvalue().encode()


def _serialize(state: Mapping[str, Any]) -> bytes:
    # In memory first: how torch.save reports a full disk differs between versions.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
