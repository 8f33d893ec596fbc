"""The loop: steps, epochs, evaluation, and the state from which a run goes on.

A step's images are cut into micro-batches. Each runs forward and backward by itself, and the step's
gradient is the mean of theirs, so that a process with two micro-batches computes what two processes
with one each do, BatchNorm's statistics included: with the same global batch and the same
micro-batches the losses are the same to the bit for up to two of them, and to rounding for more,
where the order of the sums differs.
"""

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fused_inception.fuse import FusionReport, fuse, report
from fused_inception.models.weights import Weights, WeightsError, load_into, load_weights
from fused_inception.training.averaging import RunningMean
from fused_inception.training.batch_norm import BATCH_NORM_TYPES, freeze, measure_statistics
from fused_inception.training.data import Batch, LabelledImages, epoch_order, load_batches
from fused_inception.training.processes import Processes
from fused_inception.training.recipe import AMP_DTYPES, Recipe, TrainingError, derive_seed

__all__ = ["Evaluation", "Loading", "Step", "Trainer"]

_CLASSIFIERS = ("fc", "AuxLogits.fc", "LowerAuxLogits.fc")
_HEADS = {"AuxLogits", "LowerAuxLogits"}

# Running statistics are averaged, not copied from the first process. torch 2.13 has a new name.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}

# Options that a run may change when it goes on.
MAY_CHANGE = ("epochs",)


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        step: how many steps there were, this one included.
        epoch: from 0.
        learning_rate: of this step.
        loss: mean over the images, auxiliary heads included.
        gradient_norm: of all gradients together, before clipping.
        stop: whether any process was asked to stop.
    """

    step: int
    epoch: int
    learning_rate: float
    loss: float
    gradient_norm: float
    stop: bool = False


@dataclass(frozen=True)
class Evaluation:
    """How the averaged network does on the test images.

    Attributes:
        loss: mean cross entropy, labels not smoothed.
        top1: share of the images whose label is the first class.
        top5: share of the images whose label is among the first five.
    """

    loss: float
    top1: float
    top5: float


@dataclass(frozen=True)
class Loading:
    """How images are loaded; without effect on the curve where all can be read.

    Attributes:
        workers: processes that load ahead, for each process of the run.
        skip_corrupt: whether images that cannot be read are skipped.
        on_skipped: called with a line for each that was.
    """

    workers: int = 0
    skip_corrupt: bool = False
    on_skipped: Callable[[str], None] = lambda line: None


class Trainer:
    """A network in training.

    Args:
        recipe: of the run.
        train: the images to train on.
        test: the images to evaluate on.
        device: of this process.
        processes: of the run.
        loading: of the images.
        weights: a path or a state dict to begin with; layers that have other classes there, and
            auxiliary heads that it lacks, keep the weights they were drawn with.

    Attributes:
        recipe: as given.
        model: the network.
        epoch: from 0; `recipe.epochs` behind the last one.
        batch: how many steps of the epoch are done.
        step: how many steps of the run are done.
        steps_per_epoch: what is left over of the images is left out, others in every epoch.

    Raises:
        TrainingError: the recipe, the images and the processes do not go together.
        WeightsError: the weights cannot be read or do not fit.
        FileNotFoundError: there is no file `weights`.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: LabelledImages,
        test: LabelledImages,
        *,
        device: torch.device,
        processes: Processes = Processes(),  # noqa: B008
        loading: Loading = Loading(),
        weights: Weights | None = None,
    ) -> None:
        _check(recipe, train, test, processes)
        self.recipe = recipe
        self.train = train
        self.test = test
        self.epoch = self.batch = self.step = 0
        self.steps_per_epoch = len(train) // recipe.batch_size
        self._device = device
        self._processes = processes
        self._loading = loading
        self._epoch_loss = 0.0

        network = recipe.build(len(train.classes))
        if recipe.pixels < network.min_image_size():
            heads = " with auxiliary heads" if recipe.aux_heads else ""
            raise TrainingError(
                f"pixels takes at least {network.min_image_size()} for {recipe.network} made for "
                f"{recipe.image_size}{heads}, got {recipe.pixels}"
            )
        model: nn.Module = network
        if weights is not None:
            _load_weights(model, weights)
        if recipe.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # oneDNN takes longer over channels_last in narrow layers, forward and backward. The cast:
        # the annotations of `to` do not know memory formats.
        on_gpu = device.type == "cuda"
        self._memory_format = torch.channels_last if on_gpu else torch.contiguous_format
        cast("Any", model).to(device=device, memory_format=self._memory_format)
        self.model = model
        if recipe.batch_norm == "frozen":
            freeze(model)
            if weights is None:
                self._measure_statistics()
        self._mean = RunningMean(model, recipe.average_decay)
        if recipe.ops == "fused":
            # In place: the optimizer, the mean and the state have the same parameters.
            fuse(model, inplace=True, differentiable=True)
            fuse(self._mean.model, inplace=True)
        self._optimizer = recipe.optimizer(model)
        self._scheduler = recipe.scheduler(self._optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self._loss = recipe.loss()
        self._statistics = _RunningStatistics(model, processes, recipe)
        self._network: nn.Module = model
        if processes.count > 1:
            self._network = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None, **_NO_BUFFERS
            )

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Runs what is left of the epoch.

        Args:
            stop: whether this process was asked to stop; asked once a step.

        Yields:
            Each step, behind it.

        Raises:
            TrainingError: an image cannot be read, or the loss is not finite.
        """
        recipe, count = self.recipe, self._processes.count
        order = epoch_order(len(self.train), recipe.seed, self.epoch)
        share = recipe.batch_size // count
        starts = range(
            self.batch * recipe.batch_size + self._processes.rank * share,
            self.steps_per_epoch * recipe.batch_size,
            recipe.batch_size,
        )
        batches = load_batches(
            self.train,
            [order[start : start + share] for start in starts],
            augment_seed=(
                derive_seed(recipe.seed, "augment", self.epoch) if recipe.augment else None
            ),
            corrupt="replace" if self._loading.skip_corrupt else "refuse",
            workers=self._loading.workers,
            pin_memory=self._device.type == "cuda",
        )
        for batch in batches:
            self._report_skipped(batch)
            step = self._step(batch, stop())
            self._epoch_loss += step.loss
            self.batch += 1
            self.step += 1
            yield step

    def finish_epoch(self) -> tuple[float, Evaluation]:
        """Ends the epoch: evaluates, and lowers the learning rate.

        Returns:
            The mean of the epoch's losses, and the evaluation.
        """
        mean_loss = self._epoch_loss / self.steps_per_epoch
        evaluation = self.evaluate()
        self._scheduler.step()
        self.epoch += 1
        self.batch, self._epoch_loss = 0, 0.0
        return mean_loss, evaluation

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Runs the averaged network on the test images."""
        rank, count = self._processes.rank, self._processes.count
        share = self.recipe.batch_size // count
        mine = list(range(rank, len(self.test), count))
        batches = load_batches(
            self.test,
            [mine[start : start + share] for start in range(0, len(mine), share)],
            corrupt="drop" if self._loading.skip_corrupt else "refuse",
            workers=self._loading.workers,
            pin_memory=self._device.type == "cuda",
        )
        sums = torch.zeros(4, dtype=torch.float64, device=self._device)
        for batch in batches:
            self._report_skipped(batch)
            if not len(batch.labels):
                continue
            labels = batch.labels.to(self._device)
            with self._autocast():
                logits = self._mean.model(self._to_device(batch.images))
            log_p = logits.double().log_softmax(1)
            best = log_p.topk(min(5, log_p.shape[1]), dim=1).indices == labels[:, None]
            of_labels = log_p.gather(1, labels[:, None])
            sums += torch.stack(
                [-of_labels.sum(), best[:, 0].sum(), best.sum(), torch.tensor(len(labels))]
            )
        loss, top1, top5, number = self._processes.sum(sums).tolist()
        if not number:
            raise TrainingError("none of the test images can be read")
        return Evaluation(loss / number, top1 / number, top5 / number)

    def fusion(self) -> FusionReport:
        """What runs fused in training, and what does not and why."""
        return report(self.model)

    def average_state(self) -> dict[str, Tensor]:
        """The state dict of the averaged network, under the network's own names."""
        return dict(self._mean.model.state_dict())

    def state(self) -> dict[str, Any]:
        """Everything from which the run goes on as if it had not stopped."""
        return {
            "recipe": asdict(self.recipe),
            "data": self._data(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "epoch_loss": self._epoch_loss,
            "model": self.model.state_dict(),
            "mean": self._mean.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any], source: str) -> None:
        """Goes back to a state.

        Args:
            state: as `state` returned it, tensors on any device.
            source: what it was read from, for messages.

        Raises:
            TrainingError: it is that of another network, recipe or set of images.
        """
        difference = self.recipe.difference(state["recipe"], MAY_CHANGE)
        if difference is None:
            for name, value in self._data().items():
                if state["data"].get(name) != value:
                    difference = f"was made with {name} {state['data'].get(name)!r}, got {value!r}"
                    break
        if difference is not None:
            raise TrainingError(f"{source} {difference}")
        try:
            load_into(self.model, state["model"], source=source)
        except WeightsError as error:
            raise TrainingError(f"{error}; it is of another network") from error
        self._mean.load_state_dict(state["mean"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self._epoch_loss = state["epoch_loss"]

    def _data(self) -> dict[str, object]:
        return {
            "classes": list(self.train.classes),
            "training images": self.train.identity,
        }

    def _measure_statistics(self) -> None:
        # Of the first batch, which every process looks at whole.
        order = epoch_order(len(self.train), self.recipe.seed, 0)
        first = [order[: self.recipe.batch_size]]
        corrupt = "replace" if self._loading.skip_corrupt else "refuse"
        (batch,) = load_batches(self.train, first, corrupt=corrupt)
        torch.manual_seed(derive_seed(self.recipe.seed, "statistics"))
        measure_statistics(self.model, self._to_device(batch.images))

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True, memory_format=self._memory_format)

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.recipe.amp]
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    def _report_skipped(self, batch: Batch) -> None:
        for line in batch.skipped:
            self._loading.on_skipped(line)

    def _step(self, batch: Batch, stop: bool) -> Step:
        recipe, processes = self.recipe, self._processes
        mine = recipe.micro_batches // processes.count
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        self._statistics.begin_step()
        pieces = zip(batch.images.chunk(mine), batch.labels.chunk(mine), strict=True)
        for index, (images, labels) in enumerate(pieces):
            images = self._to_device(images)
            labels = labels.to(self._device, non_blocking=True)
            # One seed for every piece, whichever process has it.
            torch.manual_seed(
                derive_seed(recipe.seed, "dropout", self.step, processes.rank * mine + index)
            )
            self._statistics.begin_piece()
            with self._gradients_stay_here(index < mine - 1):
                with self._autocast():
                    loss = self._loss(self._network(images), labels)
                self._scaler.scale(loss / mine).backward()
            self._statistics.end_piece()
            total += loss.detach() / mine
        self._statistics.end_step()
        mean, stops = self._across_processes(total, stop)
        learning_rate = self._optimizer.param_groups[0]["lr"]
        if not math.isfinite(mean) and recipe.amp != "fp16":  # there the scaler skips the step
            raise TrainingError(
                f"the loss of step {self.step + 1} is {mean}; a lower learning_rate may help"
            )
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm or math.inf)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._mean.update()
        return Step(self.step + 1, self.epoch, learning_rate, mean, norm.item(), stops)

    def _across_processes(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        sums = self._processes.sum(torch.stack([loss, torch.tensor(float(stop)).to(loss)]))
        total, stops = sums.tolist()
        return total / self._processes.count, stops > 0

    def _gradients_stay_here(self, stay: bool) -> contextlib.AbstractContextManager[None]:
        if stay and isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return contextlib.nullcontext()


class _RunningStatistics:
    """BatchNorm's running statistics where a step has several micro-batches.

    Each begins with the statistics of the step before, and the step ends with the mean of what they
    come to, over all processes.
    """

    def __init__(self, model: nn.Module, processes: Processes, recipe: Recipe) -> None:
        norms = [module for module in model.modules() if isinstance(module, BATCH_NORM_TYPES)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        if recipe.micro_batches == 1 or recipe.batch_norm == "frozen":
            buffers = []
        self._means = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._micro_batches = recipe.micro_batches
        self._processes = processes
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []

    def begin_step(self) -> None:
        self._before = [buffer.clone() for buffer in (*self._means, *self._counters)]
        self._sums = [torch.zeros_like(buffer) for buffer in self._means]

    def begin_piece(self) -> None:
        for buffer, before in zip((*self._means, *self._counters), self._before, strict=True):
            buffer.copy_(before)

    def end_piece(self) -> None:
        for total, buffer in zip(self._sums, self._means, strict=True):
            total += buffer

    def end_step(self) -> None:
        if self._sums:
            self._processes.sum_all(self._sums)
        for buffer, total in zip(self._means, self._sums, strict=True):
            buffer.copy_(total / self._micro_batches)


def _check(
    recipe: Recipe, train: LabelledImages, test: LabelledImages, processes: Processes
) -> None:
    if len(train.classes) < 2:
        raise TrainingError(
            f"training takes at least two classes, {train.name} has {len(train.classes)}: "
            f"{', '.join(train.classes)}"
        )
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise TrainingError(
            f"the test images of {train.name} have other classes than those for training: "
            f"{', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''}"
        )
    if recipe.micro_batches % processes.count:
        raise TrainingError(
            f"micro_batches takes a multiple of the {processes.count} processes, "
            f"got {recipe.micro_batches}"
        )
    if len(train) < recipe.batch_size:
        raise TrainingError(
            f"batch_size takes at most the {len(train)} training images, got {recipe.batch_size}"
        )


def _load_weights(model: nn.Module, weights: Weights) -> None:
    state = load_weights(weights)
    given_heads = {name.partition(".")[0] for name in state}
    for name, value in model.state_dict().items():
        if name.partition(".")[0] in _HEADS - given_heads:
            state[name] = value
        elif name.rpartition(".")[0] in _CLASSIFIERS and name in state:
            given = state[name].shape
            if given != value.shape and given[1:] == value.shape[1:]:  # other classes
                state[name] = value
    absent = [f"{head}." for head in _HEADS if getattr(model, head) is None]
    source = None if isinstance(weights, Mapping) else f"weights file {os.fspath(weights)!r}"
    load_into(model, state, ignore=absent, source=source)
