"""The processes of a run, and the sums over them.

`torchrun` starts several, and tells each its place in the environment; they speak through NCCL
where each has a GPU, otherwise through gloo. A run of one process does without either.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes", "launched_by_torchrun"]


def launched_by_torchrun() -> bool:
    """Whether there are several processes, or one that was started like them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: of this one, from 0.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Meets the other processes, where `torchrun` started any.

        Args:
            device: of this process; one with an index where it is a GPU.
        """
        if not launched_by_torchrun():
            return cls()
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def leave(self) -> None:
        """Parts from the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Adds up over all processes, in place.

        Args:
            values: of this process, on its device.

        Returns:
            `values`.
        """
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sum_all(self, tensors: Iterable[Tensor]) -> None:
        """Adds up tensors of one dtype over all processes, in place and in one message."""
        if self.count == 1:
            return
        tensors = list(tensors)
        total = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(
            tensors, total.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))
