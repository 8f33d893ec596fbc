"""Test-wide rules: which tests need a CUDA device, and what a fresh test starts from."""

from __future__ import annotations

import pytest
import torch


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
