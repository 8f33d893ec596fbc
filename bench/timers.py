"""How time is taken, on a CPU and on a GPU, and the rates that a GPU reaches at best.

A sampler takes one sample each time it is called: microseconds per call of the function that it
was made for, over as many calls as make a sample long enough. The inputs of a sampler are used one
after the other, from sample to sample; with enough of them none is still in the cache when its turn
comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Sampler = Callable[[], float]

_MAX_INPUTS = 2048
_MAX_CALLS = 1000
_CPU_INPUTS = 4
# Calls in a captured graph of one input.
_GRAPH_CALLS = 20


class Timer(Protocol):
    """Takes samples on one kind of device.

    Attributes:
        modes: "eager" is calls from Python, one after the other; "graph" is a CUDA graph of them.
    """

    modes: tuple[str, ...]

    def inputs(self, bytes_per_call: int) -> int:
        """How many inputs of a call that moves so much keep each other out of the cache."""

    def sampler(
        self, name: str, function: Function, inputs: Sequence[Tensor], mode: str
    ) -> Sampler:
        """A sampler of `function`, called `name`, over `inputs`."""


class HostTimer:
    """The host's clock, for functions that have finished when they return."""

    modes = ("eager",)

    def __init__(self, sample_seconds: float = 0.02) -> None:
        self.sample_seconds = sample_seconds

    def inputs(self, bytes_per_call: int) -> int:
        return _CPU_INPUTS

    def _wait(self) -> None:
        pass

    def _seconds(self, function: Function, ring: cycle[Tensor], calls: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            function(next(ring))
        self._wait()
        return time.perf_counter() - start

    def sampler(
        self, name: str, function: Function, inputs: Sequence[Tensor], mode: str
    ) -> Sampler:
        ring = cycle(inputs)
        self._seconds(function, ring, 2)  # the first calls are slower
        once = self._seconds(function, ring, 2) / 2
        calls = max(1, min(_MAX_CALLS, round(self.sample_seconds / max(once, 1e-9))))
        return lambda: self._seconds(function, ring, calls) / calls * 1e6


class CudaTimer(HostTimer):
    """Eager calls by the host's clock up to the end of the last kernel; graphs by CUDA events."""

    modes = ("eager", "graph")

    def __init__(self, device: torch.device, sample_seconds: float = 0.004) -> None:
        super().__init__(sample_seconds)
        self.device = device
        self.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size

    def inputs(self, bytes_per_call: int) -> int:
        # Twice the cache passes between two uses of one input.
        return max(2, min(_MAX_INPUTS, 1 + 2 * self.l2_bytes // max(1, bytes_per_call)))

    def _wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def sampler(
        self, name: str, function: Function, inputs: Sequence[Tensor], mode: str
    ) -> Sampler:
        if mode == "eager":
            return super().sampler(name, function, inputs, mode)
        ring = inputs if len(inputs) > 1 else [inputs[0]] * _GRAPH_CALLS
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                function(ring[0])
        torch.cuda.current_stream(self.device).wait_stream(side)
        self._wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for input in ring:
                function(input)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def seconds(replays: int) -> float:
            self._wait()
            start.record()
            for _ in range(replays):
                graph.replay()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3

        seconds(1)
        replays = max(1, round(self.sample_seconds / max(seconds(1), 1e-9)))
        return lambda: seconds(replays) / (replays * len(ring)) * 1e6


def measure_ceilings(device: torch.device) -> dict[str, float] | None:
    """What the device reaches at best, in FLOP/s and bytes/s; None on a CPU.

    A square matrix product for each precision, and a copy from memory to memory, which reads and
    writes every byte.
    """
    if device.type != "cuda":
        return None
    timer = CudaTimer(device, sample_seconds=0.02)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    ceilings = {}
    try:
        for name, dtype, size, precision in (
            ("bfloat16", torch.bfloat16, 8192, "ieee"),
            ("float16", torch.float16, 8192, "ieee"),
            ("tf32", torch.float32, 8192, "tf32"),
            ("float32", torch.float32, 4096, "ieee"),
        ):
            matmul.fp32_precision = precision
            left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            microseconds = best(timer.sampler(name, left.mm, [right], "graph"))
            ceilings[f"{name}_flops"] = 2 * size**3 / microseconds * 1e6
    finally:
        matmul.fp32_precision = before
    source = torch.empty(2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    ceilings["copy_bytes"] = (
        2 * 2**30 / best(timer.sampler("copy", target.copy_, [source], "graph"))
    )
    ceilings["copy_bytes"] *= 1e6
    return ceilings


def best(sampler: Sampler, samples: int = 10) -> float:
    """The least of some samples."""
    return min(sampler() for _ in range(samples))
