"""A running mean of a network's weights, with which it is evaluated (section 8 of the paper)."""

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["RunningMean"]


class RunningMean:
    """The exponential running mean of a network's parameters and running statistics.

    Behind step n the mean keeps min(decay, (1 + n)/(10 + n)) of itself, as TensorFlow's
    `ExponentialMovingAverage` does with the number of steps: a short run is averaged over its last
    tenth. `torch.optim.swa_utils.AveragedModel` would average a fused network's folded weights too.

    Args:
        model: the network; it must stay where it is, on its device, from then on.
        decay: what the mean keeps of itself; 0 makes it a copy of the last step.

    Attributes:
        model: the network with the means, in evaluation mode.
        count: how many steps there were.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.count = 0
        self._decay = decay
        means, currents = self.model.state_dict().values(), model.state_dict().values()
        pairs = list(zip(means, currents, strict=True))
        self._means = [mean for mean, _ in pairs if mean.is_floating_point()]
        self._currents = [current for _, current in pairs if current.is_floating_point()]
        # BatchNorm's counters.
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights that the network has now into the mean."""
        kept = min(self._decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._means, self._currents, 1 - kept)
        for mean, current in self._others:
            mean.copy_(current)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"count": self.count, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self.model.load_state_dict(state["model"])
        self.count = state["count"]
