"""BatchNorm with frozen statistics: put there, and measured where a network has none of its own."""

import torch
from torch import Tensor, nn

__all__ = ["BATCH_NORM_TYPES", "freeze", "measure_statistics"]

BATCH_NORM_TYPES = (nn.BatchNorm2d, nn.SyncBatchNorm)


def freeze(model: nn.Module) -> None:
    """Makes every BatchNorm normalize by its running statistics, in training too.

    Args:
        model: changed in place; `train()` makes its BatchNorms live again.
    """
    for module in model.modules():
        if isinstance(module, BATCH_NORM_TYPES):
            module.eval()


@torch.no_grad()
def measure_statistics(model: nn.Module, images: Tensor) -> None:
    """Sets the running statistics of every BatchNorm to those of a batch.

    Args:
        model: in the mode in which it trains; its BatchNorms are left as they were.
        images: `(N, 3, S, S)`, on the model's device.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORM_TYPES)]
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches, here over one
        norm.train()
    model(images)
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)
