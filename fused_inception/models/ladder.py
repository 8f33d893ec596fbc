"""The ladder from Inception-v2 to Inception-v3: four named changes of network and training.

Table 3 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015,
arXiv 1512.00567, section 10) adds them one by one. Two change the network, `factorized_7x7` and
`bn_auxiliary`; two its training, `rmsprop` and `label_smoothing`; with all four it is what the
paper calls Inception-v3. `ladder` takes any of them and gives what a training loop needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from fused_inception.models.inception_v2 import InceptionV2, inception_v2
from fused_inception.models.inception_v3 import (
    InceptionOutputs,
    InceptionTwoAuxOutputs,
    choices,
)
from fused_inception.models.label_smoothing import LabelSmoothingLoss

__all__ = ["LADDER", "InceptionLoss", "Rung", "ladder"]

# In the order of the paper's table 3, which is cumulative.
LADDER = ("rmsprop", "label_smoothing", "factorized_7x7", "bn_auxiliary")

# Section 8.
LEARNING_RATE = 0.045
DECAY = 0.94
DECAY_EPOCHS = 2
MOMENTUM = 0.9
RMS_DECAY = 0.9
RMS_EPS = 1.0
CLIP_NORM = 2.0

# Section 7.
SMOOTHING = 0.1

# GoogLeNet's (Szegedy et al. 2014, arXiv 1409.4842, section 5).
AUX_WEIGHT = 0.3


class InceptionLoss(nn.Module):
    """The loss of a network with auxiliary heads: that of the logits, and of each head by a weight.

    Args:
        criterion: takes logits `(N, num_classes)` and a target, and returns a scalar.
        aux_weight: of each auxiliary head. Default 0.3, as in GoogLeNet (Szegedy et al. 2014, arXiv
            1409.4842, section 5); the paper on Inception-v3 gives none, and the Inception code that
            TensorFlow published has 0.4.
    """

    def __init__(self, criterion: nn.Module, aux_weight: float = AUX_WEIGHT) -> None:
        super().__init__()
        self.criterion = criterion
        self.aux_weight = aux_weight

    def forward(
        self, output: Tensor | InceptionOutputs | InceptionTwoAuxOutputs, target: Tensor
    ) -> Tensor:
        """Maps what the network returns, in training or not, to a scalar."""
        if isinstance(output, Tensor):
            return self.criterion(output, target)
        logits, *heads = output
        loss = self.criterion(logits, target)
        for aux_logits in heads:
            if aux_logits is not None:
                loss = loss + self.aux_weight * self.criterion(aux_logits, target)
        return loss


@dataclass(frozen=True)
class Rung:
    """A network of the ladder, and how the paper trains it.

    Attributes:
        options: the changes, in the ladder's order.
        model: the network, in training mode.
        loss: takes what the network returns, and labels.
        clip_norm: what the norm of the gradients is clipped at (section 8).
    """

    options: tuple[str, ...]
    model: InceptionV2
    loss: InceptionLoss
    clip_norm: float = CLIP_NORM

    def optimizer(self) -> torch.optim.Optimizer:
        """Makes the optimizer of section 8 for the model's parameters, where they are now.

        Returns:
            With "rmsprop" RMSprop of decay 0.9 and ε 1.0, otherwise SGD with momentum 0.9; both
            with the learning rate 0.045.

        Note:
            PyTorch's RMSprop divides by √v + ε and starts at v = 0, TensorFlow's, which the paper
            used, by √(v + ε) and starts at v = 1: with ε = 1 the steps differ in size.
        """
        parameters = self.model.parameters()
        if "rmsprop" in self.options:
            return torch.optim.RMSprop(parameters, lr=LEARNING_RATE, alpha=RMS_DECAY, eps=RMS_EPS)
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Makes the schedule of section 8: step it once an epoch, × 0.94 every second time.

        Args:
            optimizer: of the model.
        """
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=DECAY_EPOCHS, gamma=DECAY)


def ladder(
    *options: str,
    num_classes: int = 1000,
    aux_logits: int = True,
    image_size: int = 299,
    width: float = 1.0,
    dropout: float = 0.5,
    init_weights: bool = True,
) -> Rung:
    """Builds Inception-v2 with some of the changes that make it Inception-v3.

    Args:
        options: any of `LADDER`, each once, in any order: "rmsprop" in place of momentum;
            "label_smoothing" of 0.1; "factorized_7x7", three 3×3 convolutions in place of the first
            7×7; "bn_auxiliary", BatchNorm also in the fully connected layer of the auxiliary heads.
            The paper's own rungs are the first n of them.
        num_classes: classes, at least 1.
        aux_logits: how many auxiliary heads there are, as in `inception_v2`.
        image_size: 299, 151 or 79, as in `inception_v2`.
        width: as in `inception_v2`.
        dropout: probability in front of the last linear layer.
        init_weights: as in `inception_v2`.

    Returns:
        The network and its training.

    Raises:
        ValueError: there is no such option, one is given twice, "bn_auxiliary" without an auxiliary
            head, or another argument has a value that `inception_v2` does not take.

    Source: Szegedy et al. 2015, arXiv 1512.00567, sections 8 and 10, table 3.
    """
    _check_options(options, aux_logits)
    model = inception_v2(
        num_classes=num_classes,
        aux_logits=aux_logits,
        aux_regularizer=("batch_norm" if "bn_auxiliary" in options or not aux_logits else "none"),
        image_size=image_size,
        width=width,
        stem="3x3" if "factorized_7x7" in options else "7x7",
        dropout=dropout,
        init_weights=init_weights,
    )
    smoothing = SMOOTHING if "label_smoothing" in options else 0.0
    chosen = tuple(option for option in LADDER if option in options)
    return Rung(chosen, model, InceptionLoss(LabelSmoothingLoss(smoothing)))


def _check_options(options: Sequence[str], aux_logits: int) -> None:
    for option in options:
        if option not in LADDER:
            raise ValueError(f"ladder takes the options {choices(LADDER)}, got {option!r}")
        if options.count(option) > 1:
            raise ValueError(f"ladder takes each option once, got {option!r} more than once")
    if "bn_auxiliary" in options and not aux_logits:
        raise ValueError(
            "'bn_auxiliary' needs an auxiliary head: aux_logits takes 1 or 2 with it, "
            f"got {aux_logits!r}"
        )
