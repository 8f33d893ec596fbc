"""The subcommand `train`: trains a network, and goes on where it was stopped."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from fused_inception._errors import first_line
from fused_inception.cli.curves import Curve, CurvePanel, draw_curves
from fused_inception.cli.info import resolve_device
from fused_inception.cli.main import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    CliError,
    make_console,
    write_file,
)
from fused_inception.models.weights import WeightsError
from fused_inception.training.data import Digits, Folder, LabelledImages
from fused_inception.training.files import STEP_COLUMNS, RunFolder, read_metrics
from fused_inception.training.processes import Processes, launched_by_torchrun
from fused_inception.training.recipe import Recipe, TrainingError
from fused_inception.training.trainer import Loading, Step, Trainer

if TYPE_CHECKING:
    pass

_DIGITS = "digits"
_MEAN_OF = 50  # a smoothed curve has about this many independent points


def run(args: argparse.Namespace) -> int:
    """Trains.

    Args:
        args: the options of the subcommand.

    Returns:
        The exit code: 0; 130 or 143 where SIGINT or SIGTERM stopped it.

    Raises:
        CliError: an option, a file, an image or a device is at fault, or another process ended.
        ImportError: a package is missing.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    if args.sync_batch_norm and device.type != "cuda":
        raise CliError("--sync-batch-norm runs on GPUs only; --micro-batches 1 in one process")
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    processes = Processes.join(device)
    try:
        with _Signals() as signals:
            return _train(args, device, processes, signals)
    except (TrainingError, WeightsError, FileNotFoundError) as error:
        raise CliError(first_line(error)) from error
    except dist.DistError as error:
        raise CliError(f"another process of the run has ended ({first_line(error)})") from error
    except RuntimeError as error:
        # What gloo says.
        if processes.count > 1 and "onnection" in str(error):
            raise CliError(f"another process of the run has ended ({first_line(error)})") from error
        raise
    finally:
        processes.leave()


def _device(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda":
        if launched_by_torchrun():
            device = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    return device


class _Signals:
    # The first SIGINT or SIGTERM asks for a checkpoint behind the step, the second ends at once.
    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "_Signals":
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def exit_code(self) -> int:
        return EXIT_TERMINATED if self.received is signal.SIGTERM else EXIT_INTERRUPTED


def _train(
    args: argparse.Namespace, device: torch.device, processes: Processes, signals: _Signals
) -> int:
    console = make_console(stderr=True)
    recipe = _recipe(args, processes)
    train, test = (_images(args.data, part, recipe.pixels) for part in (True, False))
    trainer = Trainer(
        recipe,
        train,
        test,
        device=device,
        processes=processes,
        loading=Loading(
            args.workers, args.skip_corrupt, lambda line: console.print(f"skipped: {line}")
        ),
        weights=None if args.resume else args.weights,
    )
    if recipe.ops == "fused" and processes.writes:
        _say_what_is_fused(trainer)
    folder = RunFolder(args.output)
    if args.resume:
        trainer.load_state(folder.load(), f"checkpoint {folder.checkpoint!r}")
    elif os.path.exists(folder.checkpoint):
        raise CliError(
            f"--output {args.output!r} has a checkpoint: --resume goes on from it, or take another "
            "folder"
        )
    processes.wait()  # until each has looked
    if processes.writes:
        if args.resume:
            folder.cut(trainer.step)
        else:
            folder.begin()
            folder.save(trainer.state())
    with contextlib.closing(folder), _progress(processes.writes, trainer) as progress:
        stopped = _epochs(args, trainer, folder, processes, signals, progress)
    if processes.writes:
        print(
            f"step {trainer.step}, {trainer.epoch} of {recipe.epochs} epochs: {args.output}",
            flush=True,
        )
    if stopped and processes.writes:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
    return signals.exit_code() if stopped else 0


def _recipe(args: argparse.Namespace, processes: Processes) -> Recipe:
    options = {field.name: getattr(args, field.name) for field in fields(Recipe)}
    options["pixels"] = args.pixels or args.image_size
    options["micro_batches"] = args.micro_batches or processes.count
    return Recipe(**options)


def _images(data: str, train: bool, pixels: int) -> LabelledImages:
    return Digits(train, pixels) if data == _DIGITS else Folder(data, train, pixels)


def _say_what_is_fused(trainer: Trainer) -> None:
    fusion = trainer.fusion()
    unfused = [*fusion.skipped, *fusion.unfused]
    parts = len(fusion.replaced) + len(fusion.skipped)
    line = f"ops: {parts - len(unfused)} of {parts} parts run fused in training"
    if unfused:
        name, reason = unfused[0]
        line += f", not {name} ({reason}){' and others' if len(unfused) > 1 else ''}"
    print(line, flush=True)


def _epochs(
    args: argparse.Namespace,
    trainer: Trainer,
    folder: RunFolder,
    processes: Processes,
    signals: _Signals,
    progress: Callable[[Step], None],
) -> bool:
    """Runs the epochs that are left; returns whether it was stopped."""
    while trainer.epoch < trainer.recipe.epochs:
        begin = time.perf_counter()
        for step in trainer.steps(lambda: signals.received is not None):
            progress(step)
            if processes.writes:
                folder.add_step({name: getattr(step, name) for name in STEP_COLUMNS})
            if step.stop or step.step % args.checkpoint_steps == 0:
                if processes.writes:
                    folder.save(trainer.state())
                if step.stop:
                    return True
        epoch = trainer.epoch
        loss, evaluation = trainer.finish_epoch()
        if processes.writes:
            seconds = time.perf_counter() - begin
            folder.add_epoch(
                {
                    "epoch": epoch,
                    "step": trainer.step,
                    "train_loss": loss,
                    "test_loss": evaluation.loss,
                    "test_top1": evaluation.top1,
                    "test_top5": evaluation.top5,
                    "seconds": f"{seconds:.1f}",
                }
            )
            folder.save(trainer.state())
            folder.save_average(trainer.average_state())
            _plot(folder, trainer)
            print(
                f"epoch {epoch + 1} of {trainer.recipe.epochs}: loss {loss:.4f}, test loss "
                f"{evaluation.loss:.4f}, top-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%}, "
                f"{seconds:.1f} s",
                flush=True,
            )
    return False


@contextlib.contextmanager
def _progress(shown: bool, trainer: Trainer) -> Iterator[Callable[[Step], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = make_console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda step: None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Epochs belong to standard output, also where that is a file.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        total = trainer.recipe.epochs * trainer.steps_per_epoch
        task = progress.add_task("starting", total=total, completed=trainer.step)

        def show(step: Step) -> None:
            text = f"epoch {step.epoch + 1}, loss {step.loss:.3f}"
            progress.update(task, completed=step.step, description=text)

        yield show


def _plot(folder: RunFolder, trainer: Trainer) -> None:
    steps, epochs = read_metrics(folder.steps), read_metrics(folder.epochs)
    at = [float(row["step"]) for row in steps]
    losses = [float(row["loss"]) for row in steps]
    recipe = trainer.recipe
    panels = (
        CurvePanel(
            "training loss",
            "step",
            (
                Curve("each step", at, losses, faint=True),
                Curve("mean of the steps around", at, _smoothed(losses)),
            ),
        ),
        CurvePanel(
            "top-1 of the averaged weights on the test images",
            "epoch",
            (
                Curve(
                    "",
                    [float(row["epoch"]) + 1 for row in epochs],
                    [float(row["test_top1"]) for row in epochs],
                ),
            ),
            points=True,
        ),
    )
    picture = draw_curves(
        f"{recipe.network}, width {recipe.width:g}, on {os.path.basename(trainer.train.name)}",
        f"{recipe.pixels}×{recipe.pixels} pixels, batch {recipe.batch_size}, step {trainer.step}, "
        f"epoch {trainer.epoch} of {recipe.epochs}, last top-1 "
        f"{float(epochs[-1]['test_top1']):.2%}",
        panels,
    )
    write_file(folder.curves, picture, "curves")


def _smoothed(values: list[float]) -> list[float]:
    half = max(1, len(values) // _MEAN_OF)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smoothed = []
    for index in range(len(values)):
        low, high = max(0, index - half), min(len(values), index + half + 1)
        smoothed.append((sums[high] - sums[low]) / (high - low))
    return smoothed
