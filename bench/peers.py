"""What the ops are held against: the same arithmetic as PyTorch, a compiler and cuDNN run it.

P0  as published: convolutions without bias, BatchNorm, ReLU; float32, NCHW, eager. For orientation,
    never the denominator of a ratio.
P1  BatchNorm folded, channels_last, ReLU in place, `cudnn.benchmark`; eager.
P2  P1 in a CUDA graph.
P3  P1 through `torch.compile` with freezing; on a GPU in mode max-autotune and in a CUDA graph of
    our own (mode "max-autotune-no-cudagraphs"), so that it is captured and fed like the others.
P4  cuDNN's graph of convolution, bias and ReLU, through nvidia-cudnn-frontend, in a CUDA graph.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.folding import fold_batch_norm
from fused_inception.models.inception_v3 import BasicConv2d
from fused_inception.recognize import NotRecognizedError, find_units, recognize

DESCRIPTIONS = {
    "P0": "as published: BatchNorm unfolded, float32, NCHW, eager (orientation only)",
    "P1": "PyTorch eager: BatchNorm folded, channels_last, cudnn.benchmark",
    "P2": "P1 in a CUDA graph",
    "P3": "torch.compile with freezing; on a GPU max-autotune, in a CUDA graph",
    "P4": "cuDNN graph of convolution + bias + ReLU (nvidia-cudnn-frontend), in a CUDA graph",
}
# Peers whose fastest is the denominator of a ratio.
RANKED = ("P1", "P2", "P3", "P4")


class ConvRelu(nn.Module):
    """A convolution with bias and ReLU in place, on given weights.

    Args:
        weight: `(K, C, R, S)`.
        bias: `(K,)` or None.
        stride: in pixels.
        padding: in pixels.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        filters, channels, *kernel = weight.shape
        # Cast: a list of two is a pair.
        size = cast("tuple[int, int]", tuple(kernel))
        self.conv = nn.Conv2d(
            channels, filters, size, stride, padding, bias=bias is not None, device="meta"
        )
        self.conv.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.conv.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)


def same(weight: Tensor, bias: Tensor | None) -> ConvRelu:
    """`ConvRelu` at stride 1 with half the filter as padding."""
    return ConvRelu(weight, bias, (1, 1), (weight.shape[2] // 2, weight.shape[3] // 2))


def fold(module: nn.Module) -> nn.Module:
    """A copy of a module of this package's networks with every BatchNorm folded (P1)."""
    module = copy.deepcopy(module)

    def visit(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, BasicConv2d):
                conv = child.conv
                weight, bias = fold_batch_norm(conv.weight, conv.bias, child.bn)
                stride, padding = cast("Any", (conv.stride, conv.padding))
                setattr(parent, name, ConvRelu(weight, bias, stride, padding))
            else:
                visit(child)

    visit(module)
    return module.eval()


def fold_units(module: nn.Module) -> nn.Module:
    """A copy of any network with every BatchNorm folded that `fuse` could fold (P1).

    The forwards are its own; a BatchNorm that held a ReLU leaves it in its place.
    """
    module = copy.deepcopy(module)
    for _, unit in find_units(module):
        try:
            match = recognize(unit)
        except NotRecognizedError:
            continue
        (found,) = match.units
        if found.bn is None:
            continue
        conv = cast("nn.Conv2d", unit.get_submodule(found.conv))
        bn = cast("nn.BatchNorm2d", unit.get_submodule(found.bn))
        weight, bias = fold_batch_norm(conv.weight, conv.bias, bn)
        assert bias is not None
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        held_relu = type(bn) is not nn.BatchNorm2d and match.options["activation"] == "relu"
        path, _, name = found.bn.rpartition(".")
        behind = nn.ReLU(inplace=True) if held_relu else nn.Identity()
        setattr(unit.get_submodule(path), name, behind)
    return module.eval()


def unfold(module: nn.Module) -> nn.Module:
    """P0 from P1: a BatchNorm behind every convolution, float32, NCHW.

    The BatchNorm's numbers are of no account: this peer is timed and not compared.
    """
    module = copy.deepcopy(module)
    for child in list(module.modules()):
        if isinstance(child, ConvRelu):
            conv = child.conv
            conv.bias = None
            child.conv = cast(
                "nn.Conv2d", nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, eps=0.001))
            )
    # Cast: the annotations of `to` do not know memory formats.
    device = next(module.parameters()).device
    return cast("Any", module.eval()).to(
        device=device, dtype=torch.float32, memory_format=torch.contiguous_format
    )


def compile_frozen(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """P3: `module` compiled for inputs like `example`, its weights constants of the program."""
    inductor: Any = importlib.import_module("torch._inductor.config")
    torch._dynamo.reset()
    mode = "max-autotune-no-cudagraphs" if example.is_cuda else "default"
    compiled = torch.compile(module, mode=mode, fullgraph=True, dynamic=False)
    with inductor.patch(freezing=True), _legacy_tf32_switch():
        compiled(example)
    return cast("Callable[[Tensor], Tensor]", compiled)


@contextmanager
def _legacy_tf32_switch() -> Iterator[None]:
    """Lets `cudnn.allow_tf32` be read, and say what the convolutions' own switch says.

    Inductor's templates of convolutions read it, and reading raises wherever the newer switches are
    not all alike. Writing it sets those.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.allow_tf32 = before == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32 = True  # PyTorch's default, and that of the switches beside
        cudnn.conv.fp32_precision = before


def cudnn_graph_refusal(device: torch.device) -> str | None:
    """Why there is no P4 here, or None."""
    if device.type != "cuda":
        return "cuDNN needs a CUDA device"
    try:
        cudnn = importlib.import_module("cudnn")
    except ImportError:
        return "nvidia-cudnn-frontend is not installed"
    return None if hasattr(cudnn, "pygraph") else "the module cudnn has no pygraph"


def cudnn_graph(conv: ConvRelu, example: Tensor) -> Callable[[Tensor], Tensor]:
    """P4: convolution, bias and ReLU as one cuDNN graph, for inputs like `example`."""
    cudnn: Any = importlib.import_module("cudnn")
    types = {
        torch.float16: cudnn.data_type.HALF,
        torch.bfloat16: cudnn.data_type.BFLOAT16,
        torch.float32: cudnn.data_type.FLOAT,
    }
    layer = conv.conv
    weight = layer.weight.detach()
    assert layer.bias is not None
    bias = layer.bias.detach().reshape(1, -1, 1, 1)
    result = conv(example)
    graph = cudnn.pygraph(
        io_data_type=types[example.dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
    )

    def declare(name: str, tensor: Tensor) -> Any:
        return graph.tensor(
            name=name,
            dim=list(tensor.shape),
            stride=list(tensor.stride()),
            data_type=types[tensor.dtype],
        )

    x, w, b = declare("x", example), declare("w", weight), declare("b", bias)
    product = graph.conv_fprop(
        image=x,
        weight=w,
        padding=list(layer.padding),
        stride=list(layer.stride),
        dilation=[1, 1],
    )
    y = graph.relu(input=graph.bias(input=product, bias=b))
    y.set_output(True).set_data_type(types[example.dtype])
    y.set_dim(list(result.shape)).set_stride(list(result.stride()))
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = torch.empty(graph.get_workspace_size(), device=example.device, dtype=torch.uint8)
    handle = cudnn.create_handle()

    def run(input: Tensor) -> Tensor:
        output = torch.empty_like(result)
        stream = torch.cuda.current_stream(input.device).cuda_stream
        cudnn.set_stream(handle=handle, stream=stream)
        graph.execute({x: input, w: weight, b: bias, y: output}, workspace, handle=handle)
        return output

    return run
