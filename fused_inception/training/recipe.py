"""What a run is made of: the network, how it is trained, and everything that decides on its curve.

The defaults are the paper's (Szegedy et al. 2015, arXiv 1512.00567, sections 7 and 8), as far as it
names them: RMSProp of decay 0.9 and ε 1.0, a learning rate of 0.045 that falls by 0.94 every second
epoch, gradients clipped at a norm of 2.0, averaged parameters for evaluation, label smoothing of
0.1, batches of 32 images, 100 epochs.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, StepLR

from fused_inception.models.inception_v2 import inception_v2
from fused_inception.models.inception_v3 import InceptionNetwork, choices, inception_v3
from fused_inception.models.label_smoothing import LabelSmoothingLoss
from fused_inception.models.ladder import (
    AUX_WEIGHT,
    CLIP_NORM,
    DECAY,
    DECAY_EPOCHS,
    LEARNING_RATE,
    RMS_DECAY,
    RMS_EPS,
    SMOOTHING,
    InceptionLoss,
)

__all__ = [
    "AMP_DTYPES",
    "BATCH_NORMS",
    "NETWORKS",
    "OPS",
    "Recipe",
    "TrainingError",
    "derive_seed",
]

NETWORKS: dict[str, Callable[..., InceptionNetwork]] = {
    "inception_v3": inception_v3,
    "inception_v2": inception_v2,
}
BATCH_NORMS = ("live", "frozen")
OPS = ("unfused", "fused")
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(Exception):
    """What a run ends with for a reason outside the program; the message is one line."""


@dataclass(frozen=True)
class Recipe:
    """The options of a run that decide on its curve.

    Attributes:
        network: "inception_v3" or "inception_v2".
        width: what the channels of its layers are multiplied by, a multiple of 1/16.
        image_size: 299, 151 or 79: what its first layers are made for.
        pixels: rows and columns of the images; without an auxiliary head they may be fewer.
        aux_heads: 0, 1 or 2.
        dropout: probability in front of the last layer.
        batch_norm: "live", statistics of the micro-batch; "frozen", the running ones, which do not
            change. gamma and beta are trained in either case.
        sync_batch_norm: whether live statistics are those of all processes together, on GPUs.
        ops: "unfused", PyTorch's own; "fused", those of `fuse(differentiable=True)`, wherever no
            live BatchNorm is in between.
        epochs: passes over the training images.
        batch_size: images of one step, over all processes.
        micro_batches: equal pieces that a step's images are cut into, over all processes; BatchNorm
            normalizes over a piece, and the gradient is the mean of theirs.
        learning_rate: of the first epoch.
        decay: what it is multiplied by every `decay_epochs` epochs.
        decay_epochs: see `decay`.
        rms_decay: RMSProp's decay of the mean square.
        rms_eps: RMSProp's ε, added to the root of the mean square.
        momentum: RMSProp's. The paper names none with it.
        weight_decay: the L2 penalty. The paper names none.
        clip_norm: what the norm of all gradients together is clipped at; 0 for no clipping.
        average_decay: of the averaged parameters, early in a run less: (1 + n)/(10 + n) behind step
            n. 0 for no averaging. The paper gives none; as in the Inception code that TensorFlow
            published.
        smoothing: ε of the labels.
        aux_weight: of each auxiliary head's loss.
        amp: "none", "bf16" or "fp16".
        augment: whether training images are changed at random, as their set does it.
        seed: of weights, order, augmentation and dropout.
    """

    network: str = "inception_v3"
    width: float = 1.0
    image_size: int = 299
    pixels: int = 299
    aux_heads: int = 1
    dropout: float = 0.5
    batch_norm: str = "live"
    sync_batch_norm: bool = False
    ops: str = "unfused"
    epochs: int = 100
    batch_size: int = 32
    micro_batches: int = 1
    learning_rate: float = LEARNING_RATE
    decay: float = DECAY
    decay_epochs: int = DECAY_EPOCHS
    rms_decay: float = RMS_DECAY
    rms_eps: float = RMS_EPS
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = CLIP_NORM
    average_decay: float = 0.9999
    smoothing: float = SMOOTHING
    aux_weight: float = AUX_WEIGHT
    amp: str = "none"
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("network", NETWORKS),
            ("batch_norm", BATCH_NORMS),
            ("ops", OPS),
            ("amp", AMP_DTYPES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise TrainingError(f"{name} takes {choices(known)}, got {value!r}")
        if self.batch_size % self.micro_batches:
            raise TrainingError(
                f"batch_size takes a multiple of the {self.micro_batches} micro-batches, "
                f"got {self.batch_size}"
            )
        if self.batch_norm == "live" and self.batch_size < 2 * self.micro_batches:
            raise TrainingError(
                "batch_size takes at least 2 images in each of the "
                f"{self.micro_batches} micro-batches, of which BatchNorm takes the statistics, "
                f"got {self.batch_size}"
            )

    def build(self, num_classes: int) -> InceptionNetwork:
        """Builds the network, its weights drawn from the seed.

        Args:
            num_classes: classes.

        Returns:
            The network in training mode, fp32, on the CPU.

        Raises:
            TrainingError: an option that the network does not take.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "weights"))
            try:
                return NETWORKS[self.network](
                    num_classes=num_classes,
                    aux_logits=self.aux_heads,
                    dropout=self.dropout,
                    image_size=self.image_size,
                    width=self.width,
                )
            except ValueError as error:
                raise TrainingError(str(error)) from error

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """RMSProp over the model's parameters, where they are now."""
        return torch.optim.RMSprop(
            model.parameters(),
            lr=self.learning_rate,
            alpha=self.rms_decay,
            eps=self.rms_eps,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The learning rate's schedule; step it once an epoch."""
        return StepLR(optimizer, step_size=self.decay_epochs, gamma=self.decay)

    def loss(self) -> InceptionLoss:
        """Takes what the network returns, and labels."""
        return InceptionLoss(LabelSmoothingLoss(self.smoothing), self.aux_weight)

    def difference(self, recorded: dict[str, object], ignore: Sequence[str] = ()) -> str | None:
        """The first option in which a recorded recipe is another.

        Args:
            recorded: of a run before, as `dataclasses.asdict` gives it.
            ignore: options that may differ.

        Returns:
            "was made with OPTION=OLD, got NEW", or None.
        """
        for name, value in asdict(self).items():
            if name not in ignore and recorded.get(name) != value:
                return f"was made with {name}={recorded.get(name)!r}, got {value!r}"
        return None


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits that is another for every sequence of parts.

    What is random in a run is drawn from generators with such seeds, one for every purpose and
    place in the run. So there is no state to keep: a run that goes on draws what it would have
    drawn, and processes draw what one process in their place would.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
