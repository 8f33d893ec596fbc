"""CUDA graphs of a network for inputs of known shapes, over PyTorch's own API.

At small batches a network's time is the time of its launches: a fused Inception V3 has some 70,
each with Python in front of it. A CUDA graph records them once and replays them as one. It fixes
addresses and shapes, so there is one graph a shape, each with an input buffer that calls are copied
into. All graphs take their memory from one pool, and results are copied out of it before the next
replay. An input of another shape runs through the network as it is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_inception.folding import type_name

__all__ = ["CudaGraphs"]

# Runs in front of a capture: Triton compiles, cuDNN chooses, allocations settle.
_WARMUP = 3


class _Captured(NamedTuple):
    # What one shape replays: into `input`, out of `output`.
    input: Tensor
    output: Any
    replay: Callable[[], None]


class CudaGraphs:
    """Runs a network from CUDA graphs for the shapes that it was given, and as it is for others.

    Equivalent to: calling `model`, under `torch.no_grad()`.

    The network is called as it is, without a graph, for another shape, dtype or device, in training
    mode, where autograd would record, under autocast, while another graph is being captured, while
    compiling, and when `.to()` or its like has moved the weights.

    Args:
        model: a network in evaluation mode on a CUDA device, that takes one tensor and returns a
            tensor, or tuples, lists or dictionaries of tensors. It must not synchronize.
        shapes: `(N, C, H, W)` of every input to capture, largest first or in any order.
        dtype: of the inputs. Default: that of the model's parameters.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `model` has no parameters, is in training mode or not on one CUDA device, or
            there is no shape or one that is no `(N, C, H, W)` of at least 1.

    Note:
        Results are copies, so that the next call does not change them. A graph reads the weights
        where they were at capture: what `refresh`, `load_state_dict` and `eval` of a fused model
        write is seen; after `.to()` and its like, after modules or weights were replaced, and after
        `fp32_precision` was changed, call `capture` again. A replay does not look for weights that
        were written in place: call `fused_inception.refresh`. Calls from several threads or streams
        run one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        shapes: Sequence[Sequence[int]],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"CudaGraphs: model must be a torch.nn.Module, got {type_name(model)}")
        first = next(model.parameters(), None)
        if first is None:
            raise ValueError("CudaGraphs: model must have parameters, got none")
        _check_device(first.device)
        if any(parameter.device != first.device for parameter in model.parameters()):
            raise ValueError(
                f"CudaGraphs: model must be on one device, got {first.device} and others"
            )
        self.model = model
        self.dtype = first.dtype if dtype is None else dtype
        self.device = first.device
        self.shapes = _sorted_shapes(shapes)
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._finished: list[Any] = []
        self._lock = threading.RLock()
        self.capture()

    def capture(self) -> None:
        """Captures all shapes anew, with the weights where they are now.

        Raises:
            ValueError: the model is in training mode.
        """
        if _trains(self.model.modules()):
            raise ValueError("CudaGraphs: model must be in evaluation mode: call model.eval()")
        with self._lock:
            # The old graphs give their memory back first. A failure leaves none.
            self._captured = {}
            captured: dict[tuple[int, ...], _Captured] = {}
            pool = None
            for shape in self.shapes:
                n, c, h, w = shape
                example = torch.empty(
                    (n, c, h, w),
                    dtype=self.dtype,
                    device=self.device,
                    memory_format=torch.channels_last,
                )
                captured[shape], pool = _capture(self.model, example.zero_(), pool)
            self._captured = captured
            self._modules = tuple(self.model.modules())
            self._parameters = tuple(self.model.parameters())
            self._addresses = self._ends()

    def _ends(self) -> tuple[int, int]:
        # `.to()` and its like move all parameters: the first and the last show it.
        return self._parameters[0].data_ptr(), self._parameters[-1].data_ptr()

    def __call__(self, input: Tensor) -> Any:
        """The network's output for `input`, from a graph where there is one for its shape."""
        captured = self._captured.get(tuple(input.shape)) if self._can_replay(input) else None
        if captured is None:
            return self.model(input)
        with self._lock, _in_order(self.device, self._finished):
            captured.input.copy_(input)
            captured.replay()
            return _copied(captured.output)

    def _can_replay(self, input: Tensor) -> bool:
        if torch.compiler.is_compiling() or input.dtype != self.dtype:
            return False
        if input.device != self.device or _busy(self.device) or _trains(self._modules):
            return False
        if self._ends() != self._addresses:
            return False
        return not torch.is_grad_enabled() or not (
            input.requires_grad or any(p.requires_grad for p in self._parameters)
        )


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"CudaGraphs: model must be on a CUDA device, got {device}")


def _sorted_shapes(shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    # Largest first: the smaller ones fit into the memory that it left in the pool.
    found = {tuple(shape) for shape in shapes}
    for shape in found:
        if len(shape) != 4 or any(type(size) is not int or size < 1 for size in shape):
            raise ValueError(f"CudaGraphs: shapes must be (N, C, H, W) of at least 1, got {shape}")
    if not found:
        raise ValueError("CudaGraphs: shapes must have at least one (N, C, H, W), got none")
    return tuple(sorted(found, key=lambda s: (s[0] * s[1] * s[2] * s[3], s), reverse=True))


def _trains(modules: Iterable[nn.Module]) -> bool:
    return any(module.training for module in modules)


def _busy(device: torch.device) -> bool:
    # Under autocast other kernels would run; in a capture a replay would be an error.
    return torch.is_autocast_enabled(device.type) or torch.cuda.is_current_stream_capturing()


def _capture(model: nn.Module, input: Tensor, pool: Any) -> tuple[_Captured, Any]:
    # (what to replay, the pool for the next one)
    with torch.cuda.device(input.device), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUP):
                model(input)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        with torch.cuda.graph(graph, pool=pool):
            output = model(input)
    return _Captured(input, output, graph.replay), pool


@contextlib.contextmanager
def _in_order(device: torch.device, finished: list[Any]) -> Iterator[None]:
    # Behind what another stream still does with the same buffers; `finished` holds its last event.
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        for event in finished:
            stream.wait_event(event)
        yield
        finished[:] = [stream.record_event()]


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        parts = [_copied(part) for part in value]
        # A named tuple takes its fields one by one.
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return value
