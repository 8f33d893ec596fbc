"""Test-wide rules: which tests need a CUDA device, and what a fresh test starts from; fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fused_inception import blocks


def gpu_refusal() -> str | None:
    """Why tests marked `gpu` cannot run here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}, needs 8.0"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    refusal = gpu_refusal()
    if refusal is not None:
        skip = pytest.mark.skip(reason=f"gpu: {refusal}")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


class Counter:
    """Counts the forwards that run fused."""

    def __init__(self) -> None:
        self.calls = 0

    def took(self) -> int:
        """How many there were since this was asked last."""
        calls, self.calls = self.calls, 0
        return calls


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter.calls += 1
            return forward(*args, **kwargs)

        return call

    for kind, spec in blocks.FUSED_BLOCKS.items():
        monkeypatch.setitem(blocks.FUSED_BLOCKS, kind, spec._replace(forward=counted(spec.forward)))
    return counter


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
