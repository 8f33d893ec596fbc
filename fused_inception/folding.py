"""Folds BatchNorm in evaluation mode into the weights of the convolution in front of it.

`gamma * (conv(x) - mean) / sqrt(var + eps) + beta` is a convolution again: its weights are scaled
and its bias shifted per output channel. The products are taken in float64 and rounded once to the
dtype of the convolution's weight, whatever the dtype of the statistics. The result is right for
running statistics only: BatchNorm in training mode normalizes by those of the batch. For training
with frozen statistics folding is a differentiable function of weight, bias, gamma and beta, in
float32. The checks say which convolutions and BatchNorms the ops of this package can stand in for.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fused_inception.ops.common.autograd import keep_strides
from fused_inception.ops.common.checks import DTYPES, MAX_TAPS
from fused_inception.ops.common.geometry import empty_channels_last

# Rows and columns of a filter; None stands for any odd length up to 31.
KernelPattern = tuple[int | None, int | None]

# With running statistics they compute the same.
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)

# Where a module keeps the hooks that its call runs.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def uses_batch_statistics(bn: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether a BatchNorm would now normalize by the statistics of the batch: it is *live*."""
    return bn.training or bn.running_mean is None or bn.running_var is None


def channels_last_copy(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Returns a new tensor with `values` (K, C, R, S), its strides exactly those of channels_last.

    `like` gives the dtype and device, by default `values` does. Exactly: also where other strides
    would describe the same layout, as with one tap or one channel.
    """
    return empty_channels_last((*values.shape,), values if like is None else like).copy_(values)


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    bn: nn.modules.batchnorm._BatchNorm | None,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that equals a convolution and its BatchNorm.

    Equivalent to (in float64, rounded once at the end):

        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        weight = weight * scale[:, None, None, None]
        bias = (bias - bn.running_mean) * scale + bn.bias

    Args:
        weight: `(K, C, R, S)`, floating point, any strides.
        bias: `(K,)`, or None for zeros.
        bn: the BatchNorm2d or SyncBatchNorm behind the convolution, with running statistics;
            without `affine`, its scale is one and its shift zero. None: nothing is folded.
        differentiable: whether gradients reach `weight`, `bias`, `bn.weight` and `bn.bias`. The
            products are then taken in float32, of a float64 weight in float64. Default False.

    Returns:
        The weight, `(K, C, R, S)` in channels_last, and the bias, `(K,)`, in the dtype of `weight`:
        new tensors without gradient, unless `differentiable`. The bias is None if `bias` and `bn`
        are.

    Raises:
        TypeError: `weight` is not floating point, or `bn` is no BatchNorm of these.
        ValueError: `bn` has no running statistics, or shapes do not belong together.

    Note:
        The running statistics are used whether or not `bn` is in training mode.
    """
    if weight.dim() != 4:
        raise ValueError(f"weight: shape {tuple(weight.shape)}, takes (K, C, R, S)")
    if not weight.is_floating_point():
        raise TypeError(f"weight: {weight.dtype}, takes a floating-point dtype")
    filters = weight.shape[0]
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"bias: shape {tuple(bias.shape)}, takes ({filters},)")
    if bn is not None and not isinstance(bn, BATCH_NORMS):
        raise TypeError(f"bn: {type_name(bn)}, takes torch.nn.BatchNorm2d or None")
    if bn is not None and bn.num_features != filters:
        raise ValueError(f"bn: {bn.num_features} features, takes {filters}, one for each filter")
    if bn is not None and (bn.running_mean is None or bn.running_var is None):
        raise ValueError("bn: has no running statistics, takes a BatchNorm2d that tracks them")

    if differentiable:
        wide = torch.promote_types(weight.dtype, torch.float32)
        folded, shift = _fold(keep_strides(weight), bias, bn, weight.device, wide)
        return (
            folded.to(weight.dtype, memory_format=torch.channels_last),
            None if shift is None else shift.to(weight.dtype),
        )
    with torch.no_grad():
        # MPS has no float64: there the products are taken on the host.
        on_host = weight.device.type == "mps"
        device = torch.device("cpu") if on_host else weight.device
        folded, shift = _fold(weight, bias, bn, device, torch.float64)
        return (
            channels_last_copy(folded, like=weight),
            None if shift is None else shift.to(weight.device, weight.dtype, copy=True),
        )


def _fold(
    weight: Tensor,
    bias: Tensor | None,
    bn: nn.modules.batchnorm._BatchNorm | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    # With the products in `dtype`; the given ones where there are none.
    if bn is None:
        return weight, bias

    def wide(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype)

    mean, var = cast("Tensor", bn.running_mean), cast("Tensor", bn.running_var)
    scale = torch.rsqrt(wide(var) + bn.eps)
    # Without affine these are None, which the annotations of nn.BatchNorm2d leave out.
    gamma, beta = cast("Tensor | None", bn.weight), cast("Tensor | None", bn.bias)
    if gamma is not None:
        scale = scale * wide(gamma)
    shift = -wide(mean) if bias is None else wide(bias) - wide(mean)
    shift = shift * scale
    if beta is not None:
        shift = shift + wide(beta)
    return wide(weight) * scale.reshape(-1, 1, 1, 1), shift


def check_conv2d(
    name: str,
    conv: nn.Module,
    *,
    kernel: KernelPattern | None = None,
    stride: int | None = None,
    padding: int | Literal["same"] | None = None,
) -> None:
    """Raises unless `conv` is a plain `torch.nn.Conv2d` that the ops can compute.

    Args:
        name: what the messages begin with.
        conv: the module to look at.
        kernel: the filter that is taken, None for any.
        stride: the stride that is taken in both directions, None for any.
        padding: the zeros that are taken on each side; "same" is half the filter. None for any.

    Raises:
        TypeError: of another type (subclasses and parametrized modules too), or a weight or bias
            that is not a plain parameter of a dtype that the ops take.
        ValueError: kernel, stride, padding, dilation, groups or padding mode.
    """
    if type(conv) is not nn.Conv2d:
        raise TypeError(f"{name}: {type_name(conv)}, takes torch.nn.Conv2d")
    weight = _plain_tensor(f"{name}.weight", conv._parameters.get("weight"))
    if weight.dtype not in DTYPES:
        raise TypeError(f"{name}.weight: {weight.dtype}, takes float64, float32, float16, bfloat16")
    if conv._parameters.get("bias") is not None:
        _plain_tensor(f"{name}.bias", conv._parameters["bias"])
    if conv.groups != 1:
        raise ValueError(f"{name}: groups {conv.groups}, takes 1")
    if tuple(conv.dilation) != (1, 1):
        raise ValueError(f"{name}: dilation {tuple(conv.dilation)}, takes 1")
    if conv.padding_mode != "zeros":
        raise ValueError(f"{name}: padding_mode {conv.padding_mode!r}, takes 'zeros'")
    size = (weight.shape[2], weight.shape[3])
    if kernel is not None:
        for taps, wanted in zip(size, kernel, strict=True):
            fits = taps % 2 == 1 and taps <= MAX_TAPS if wanted is None else taps == wanted
            if not fits:
                raise ValueError(f"{name}: kernel {size}, takes {describe_kernel(kernel)}")
    if stride is not None and tuple(conv.stride) != (stride, stride):
        raise ValueError(f"{name}: stride {tuple(conv.stride)}, takes {stride}")
    got = conv2d_padding(name, conv)
    if padding is not None:
        zeros = (size[0] // 2, size[1] // 2) if padding == "same" else (padding, padding)
        if got != zeros:
            raise ValueError(f"{name}: padding {got}, takes {zeros}")


def conv2d_padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    """The zeros that a `torch.nn.Conv2d` pads above and below, left and right.

    Raises:
        ValueError: "same" with an even filter, which pads one side more than the other.
    """
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        rows, columns = conv.weight.shape[2:]
        if rows % 2 == 0 or columns % 2 == 0:
            raise ValueError(
                f"{name}: padding 'same' with kernel {(rows, columns)}, takes odd kernels there"
            )
        return (rows // 2, columns // 2)
    rows, columns = cast("tuple[int, int]", conv.padding)
    return (rows, columns)


def check_batch_norm(
    name: str,
    bn: nn.Module,
    features: int,
    *,
    own_forward: bool = False,
    takes_live: bool = False,
) -> None:
    """Raises unless `bn` is a plain BatchNorm2d or SyncBatchNorm that `fold_batch_norm` can fold.

    Args:
        name: what the messages begin with.
        bn: the module to look at.
        features: how many it must have.
        own_forward: takes subclasses whose forward is their own, which the caller has looked at.
        takes_live: takes one that does not track running statistics.

    Raises:
        TypeError: of another type (subclasses too), or a parameter that is not a plain one.
        ValueError: no running statistics, or not `features` features.
    """
    looked_at = own_forward and type(bn).forward is not nn.BatchNorm2d.forward
    if type(bn) not in BATCH_NORMS and not (looked_at and isinstance(bn, nn.BatchNorm2d)):
        raise TypeError(f"{name}: {type_name(bn)}, takes torch.nn.BatchNorm2d")
    assert isinstance(bn, BATCH_NORMS)
    if bn.num_features != features:
        raise ValueError(f"{name}: {bn.num_features} features, takes {features}")
    if not takes_live and (bn.running_mean is None or bn.running_var is None):
        raise ValueError(f"{name}: has no running statistics, takes track_running_stats=True")
    if not (math.isfinite(bn.eps) and bn.eps >= 0):
        raise ValueError(f"{name}: eps {bn.eps}, takes a number that is not negative")
    for key, tensor in (*bn._parameters.items(), *bn._buffers.items()):
        if tensor is not None:
            _plain_tensor(f"{name}.{key}", tensor)


def describe_kernel(kernel: KernelPattern) -> str:
    """Words a filter, rows first: "1xn" for `(1, None)`."""
    sizes = "x".join("n" if length is None else str(length) for length in kernel)
    return f"{sizes}, n odd, 1 to {MAX_TAPS}" if None in kernel else sizes


def _plain_tensor(name: str, tensor: Tensor | None) -> Tensor:
    # A subclass (DTensor, FakeTensor, a quantized one) has a meaning of its own; a weight that is
    # no parameter is computed by someone else (weight norm, FSDP's flattened parameters).
    if tensor is None:
        raise TypeError(f"{name}: not registered, takes a plain torch.nn.Parameter")
    if type(tensor) not in (nn.Parameter, Tensor):
        raise TypeError(f"{name}: {type_name(tensor)}, takes a plain torch.nn.Parameter")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: layout {tensor.layout}, takes torch.strided")
    return tensor


def type_name(value: object) -> str:
    """Words the type of a value, with its module unless it is a builtin."""
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )
