"""Label smoothing: cross entropy against labels that are mixed with a prior.

Section 7 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015,
arXiv 1512.00567): with probability ε a label q is replaced by one drawn from a prior u, so the loss
is the cross entropy H(q', p) for q' = (1 - ε)q + εu, which is (1 - ε)H(q, p) + εH(u, p). It is
computed in that form: q' is never built.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LabelSmoothingLoss", "label_smoothing_loss"]

_REDUCTIONS = ("none", "mean", "sum")


def label_smoothing_loss(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.1,
    prior: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of logits against smoothed labels.

    Equivalent to, for the uniform prior:

        F.cross_entropy(logits, target, label_smoothing=smoothing, ignore_index=ignore_index)

    Args:
        logits: `(N, K)`, `(N, K, ...)` with a label at every place, or `(K,)`; floating point.
        target: labels as int64, of the shape of `logits` without K; or the distribution q of each,
            of the shape and dtype of `logits`.
        smoothing: ε, in [0, 1]. Default 0.1, as in the paper.
        prior: u, `(K,)`, not negative, of sum 1, on the device of `logits`. Default: 1/K each.
        ignore_index: an int64 label with this value has no loss and no gradient, and does not count
            in the mean. Without effect on distributions.
        reduction: "mean", "sum" or "none", as in `F.cross_entropy`.

    Returns:
        A scalar, or for "none" the losses in the shape of the labels, in the dtype that
        `F.log_softmax` returns. The mean of nothing is NaN.

    Raises:
        TypeError: `logits`, `target` or `prior` have a dtype that this does not take.
        ValueError: `smoothing`, `reduction`, or a shape that this does not take.

    Note:
        What `prior` holds is not looked at here, which would wait for the device:
        `LabelSmoothingLoss` looks once. A class whose prior is 0 adds nothing, also where its logit
        is minus infinity.

    Source: Szegedy et al. 2015, arXiv 1512.00567, section 7.
    """
    _check_options(smoothing, reduction)
    if not logits.is_floating_point():
        raise TypeError(f"logits takes a floating-point dtype, got {logits.dtype}")
    if logits.dim() < 1:
        raise ValueError("logits takes (K,) or (N, K, ...), got a scalar")
    dim = 0 if logits.dim() == 1 else 1
    labels_shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    if target.is_floating_point():
        ignored = None
        if target.shape != logits.shape:
            raise ValueError(
                f"target takes distributions of the shape of logits, {tuple(logits.shape)}, "
                f"got {tuple(target.shape)}"
            )
    else:
        if target.dtype != torch.int64:
            raise TypeError(f"target takes int64 labels or distributions, got {target.dtype}")
        if target.shape != labels_shape:
            raise ValueError(
                f"target takes labels of shape {tuple(labels_shape)} for logits of shape "
                f"{tuple(logits.shape)}, got {tuple(target.shape)}"
            )
        ignored = target == ignore_index
    log_p = F.log_softmax(logits, dim)

    if ignored is None:
        loss = -(target * log_p).sum(dim)
    else:
        loss = F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="none")
    if smoothing > 0:
        loss = (1 - smoothing) * loss + smoothing * _entropy_from_prior(log_p, prior, dim)
        if ignored is not None:
            loss = loss.masked_fill(ignored, 0)
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    return total / (loss.numel() if ignored is None else (~ignored).sum())


def _entropy_from_prior(log_p: Tensor, prior: Tensor | None, dim: int) -> Tensor:
    # H(u, p)
    if prior is None:
        return -log_p.mean(dim)
    if not prior.is_floating_point():
        raise TypeError(f"prior takes a floating-point dtype, got {prior.dtype}")
    if prior.shape != log_p.shape[dim : dim + 1]:
        raise ValueError(f"prior takes shape ({log_p.shape[dim]},), got {tuple(prior.shape)}")
    u = prior.to(log_p.dtype).reshape([-1] + [1] * (log_p.dim() - dim - 1))
    # Not 0 times minus infinity, neither forward nor backward.
    return -(u * log_p.masked_fill(u == 0, 0)).sum(dim)


def _check_options(smoothing: float, reduction: str) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing takes a number from 0 to 1, got {smoothing}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction takes {', '.join(_REDUCTIONS)}, got {reduction!r}")


class LabelSmoothingLoss(nn.Module):
    """Cross entropy of logits against smoothed labels; see `label_smoothing_loss`.

    Args:
        smoothing: ε, in [0, 1]. Default 0.1, as in the paper.
        prior: u, `(K,)`, not negative, of sum 1; kept as a buffer. Default: 1/K each.
        ignore_index: an int64 label with this value has no loss and no gradient.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: `prior` is not of a floating-point dtype.
        ValueError: an option has another value than those above, or `prior` is no distribution.
    """

    prior: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        prior: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(smoothing, reduction)
        if prior is not None:
            _check_prior(prior)
            prior = prior.detach().clone()
        self.smoothing = smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.register_buffer("prior", prior)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Maps logits `(N, K, ...)` and labels or distributions to the loss."""
        return label_smoothing_loss(
            logits,
            target,
            smoothing=self.smoothing,
            prior=self.prior,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The options."""
        prior = "uniform" if self.prior is None else f"of {len(self.prior)} classes"
        return f"smoothing={self.smoothing}, prior {prior}, reduction={self.reduction!r}"


def _check_prior(prior: Tensor) -> None:
    if not prior.is_floating_point():
        raise TypeError(f"prior takes a floating-point dtype, got {prior.dtype}")
    if prior.dim() != 1 or prior.numel() == 0:
        raise ValueError(f"prior takes shape (K,), got {tuple(prior.shape)}")
    total = prior.double().sum().item()
    # Each entry is rounded relative to itself.
    tolerance = max(1e-6, torch.finfo(prior.dtype).eps)
    if not (prior >= 0).all() or not abs(total - 1) <= tolerance:
        raise ValueError(
            f"prior takes probabilities that are not negative and sum to 1, got a smallest of "
            f"{prior.min().item():g} and a sum of {total:g}"
        )
