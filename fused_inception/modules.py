"""The ops as modules: parameters in channels_last, initialized as `torch.nn.Conv2d`'s are.

Argument names and attributes mirror `torch.nn`. `from_unfused` takes the convolutions, and the
BatchNorms behind them, of an existing network, checks that they are what the op computes, and folds
the BatchNorms into the new module's weights. channels_last is what the kernels read without a copy;
it survives `.to()`, `.half()`, `load_state_dict` and `copy.deepcopy`, because all of these keep
strides.

For training, `from_unfused` can keep the BatchNorms as children. One that normalizes by the
statistics of the batch runs as PyTorch's own module, behind its convolution alone; one with frozen
statistics is folded in every forward, differentiably, and the module runs as its op.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.folding import (
    BATCH_NORMS,
    HOOKS,
    KernelPattern,
    check_batch_norm,
    check_conv2d,
    conv2d_padding,
    fold_batch_norm,
    type_name,
    uses_batch_statistics,
)
from fused_inception.ops.common.autocast import autocast
from fused_inception.ops.common.checks import check_options, check_taps, pair
from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.aten import same_padding
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d
from fused_inception.ops.grid_reduction.aten import pool2d
from fused_inception.ops.grid_reduction.op import grid_reduction
from fused_inception.ops.split_conv2d.op import split_conv2d

__all__ = ["Conv2dAct", "FactorizedConv2d", "GridReduction", "SplitConv2d"]

_Module = TypeVar("_Module", bound="ConvModule")


class ConvModule(nn.Module):
    """What the four modules share: their parameters, and the BatchNorms behind convolutions.

    Attributes:
        op: name of the op.
        backend: that the op is called with.
    """

    op: str
    backend: str
    # (weight, bias) names of the parameters, and of the BatchNorm behind each.
    _pairs: tuple[tuple[str, str], ...] = (("weight", "bias"),)
    _norms: tuple[str, ...] = ("bn",)
    # The BatchNorms that divide the op where they are live; empty: all.
    _dividing: tuple[str, ...] = ()

    def _make_parameters(
        self,
        shapes: Sequence[tuple[int, int, int, int]],
        bias: bool,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        for (weight_name, bias_name), shape in zip(self._pairs, shapes, strict=True):
            if min(shape) < 1:
                raise ValueError(
                    f"{type(self).__name__}: {weight_name} must have at least 1 of everything, "
                    f"got shape {shape}"
                )
            weight = torch.empty(
                shape, device=device, dtype=dtype, memory_format=torch.channels_last
            )
            self.register_parameter(weight_name, nn.Parameter(weight))
            if bias:
                values = torch.empty(shape[0], device=device, dtype=dtype)
                self.register_parameter(bias_name, nn.Parameter(values))
            else:
                self.register_parameter(bias_name, None)
        for norm_name in self._norms:
            setattr(self, norm_name, None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Conv2d` does: the same seed gives the same numbers."""
        for weight_name, bias_name in self._pairs:
            weight, bias = self._parameters[weight_name], self._parameters[bias_name]
            assert weight is not None
            # Drawn in contiguous order: the order in which a random tensor is filled follows its
            # strides.
            values = torch.empty(weight.shape, device=weight.device, dtype=weight.dtype)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5))
            with torch.no_grad():
                weight.copy_(values)
            if bias is not None:
                bound = 1 / math.sqrt(weight.shape[1] * weight.shape[2] * weight.shape[3])
                nn.init.uniform_(bias, -bound, bound)

    def _take(
        self, convs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d | None]], keep_batch_norm: bool
    ) -> None:
        names = zip(self._pairs, self._norms, strict=True)
        for ((weight_name, bias_name), norm_name), (conv, bn) in zip(names, convs, strict=True):
            self._set(weight_name, bias_name, fold_batch_norm(conv.weight, conv.bias, None))
            setattr(self, norm_name, copy.deepcopy(bn))
        if not keep_batch_norm:
            self._fold()

    def _set(self, weight_name: str, bias_name: str, values: tuple[Tensor, Tensor | None]) -> None:
        weight, bias = values
        self.register_parameter(weight_name, nn.Parameter(weight))
        self.register_parameter(bias_name, None if bias is None else nn.Parameter(bias))

    def _fold(self) -> None:
        for (weight_name, bias_name), norm_name in zip(self._pairs, self._norms, strict=True):
            bn = getattr(self, norm_name)
            if bn is not None:
                weight, bias = getattr(self, weight_name), getattr(self, bias_name)
                self._set(weight_name, bias_name, fold_batch_norm(weight, bias, bn))
                delattr(self, norm_name)
                setattr(self, norm_name, None)

    def folded(self: _Module) -> _Module:
        """Returns a copy for inference, with the BatchNorms folded into its weights.

        Raises:
            ValueError: a BatchNorm is in training mode or has no running statistics.
            TypeError: something else than a BatchNorm stands in its place.
        """
        module = copy.deepcopy(self)
        for name, (weight_name, _) in zip(self._norms, self._pairs, strict=True):
            bn = getattr(self, name)
            if bn is not None:
                check_batch_norm(name, bn, getattr(self, weight_name).shape[0])
                _check_evaluation(name, bn)
        module._fold()
        return module

    def unfused_reason(self) -> str | None:
        """Says why a forward would now run its parts one by one; None: it runs as its op."""
        for norm_name in self._dividing or self._norms:
            reason = self._live_reason(norm_name)
            if reason is not None:
                return f"{norm_name}: {reason}"
        return None

    def _live_reason(self, norm_name: str) -> str | None:
        # Why a BatchNorm has to run as a module of its own; None: it is folded, or there is none.
        bn = getattr(self, norm_name)
        if bn is None:
            return None
        if type(bn) not in BATCH_NORMS:
            return f"{type_name(bn)} is not folded"
        if uses_batch_statistics(bn):
            return "batch statistics"
        if any(getattr(bn, hooks) for hooks in HOOKS):
            return "has a hook"
        return None

    def _operands(self, index: int) -> tuple[Tensor, Tensor | None]:
        # Weight and bias, with a frozen BatchNorm folded in.
        weight_name, bias_name = self._pairs[index]
        weight, bias = getattr(self, weight_name), getattr(self, bias_name)
        norm_name = self._norms[index]
        bn = None if self._live_reason(norm_name) else getattr(self, norm_name)
        return (
            (weight, bias) if bn is None else fold_batch_norm(weight, bias, bn, differentiable=True)
        )

    def _unit(self, index: int, input: Tensor, activation: str, **geometry: Any) -> Tensor:
        # One convolution, its BatchNorm and its activation.
        norm_name = self._norms[index]
        inner = self._inner_activation(norm_name, activation)
        result = conv2d_act(
            input, *self._operands(index), activation=inner, backend=self.backend, **geometry
        )
        return self._behind(norm_name, result, activation)

    def _inner_activation(self, norm_name: str, activation: str) -> str:
        # That of the op: a live BatchNorm stands between the op and the activation.
        return "none" if self._live_reason(norm_name) else activation

    def _behind(self, norm_name: str, result: Tensor, activation: str) -> Tensor:
        # A live BatchNorm and the activation, on the op's result.
        if not self._live_reason(norm_name):
            return result
        result = getattr(self, norm_name)(result)
        return F.relu(result) if activation == "relu" else result

    def _options(self, *names: str) -> str:
        # The tail of `extra_repr`: bias where it is missing, and what is not at its default.
        biases = [self._parameters[bias_name] is not None for _, bias_name in self._pairs]
        parts = [] if all(biases) else [f"bias={biases if any(biases) else False}"]
        defaults = {"mid_activation": "relu", "activation": "relu", "backend": "auto"}
        for name in names:
            value = getattr(self, name)
            if value != defaults.get(name):
                parts.append(f"{name}={value!r}")
        return "".join(f", {part}" for part in parts)


class Conv2dAct(ConvModule):
    """One convolution with its bias and activation: `conv2d_act` as a module.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters, `K`.
        kernel_size: filter rows and columns, in pixels; one number for both.
        stride: pixels, one number or (rows, columns). Default 1.
        padding: pixels of zeros on each side, one number or (rows, columns). Default 0.
        bias: whether there is a bias. Default True.
        activation: "relu" or "none". Default "relu".
        backend: as in `conv2d_act`. Default "auto".
        device: of the parameters. Default: PyTorch's.
        dtype: of the parameters. Default: PyTorch's.

    Attributes:
        weight: `(K, C, R, S)`, channels_last.
        bias: `(K,)` or None.
        bn: the BatchNorm behind the convolution, or None.

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    op = "conv2d_act"
    weight: nn.Parameter
    bias: nn.Parameter | None
    bn: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        activation: str = "relu",
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_options(name, activation=activation, backend=backend)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = pair(name, "stride", stride, 1)
        self.padding = pair(name, "padding", padding, 0)
        self.activation = activation
        self.backend = backend
        shape = (out_channels, in_channels, *self.kernel_size)
        self._make_parameters([shape], bias, device, dtype)

    @classmethod
    def from_unfused(
        cls,
        conv: nn.Conv2d,
        bn: nn.BatchNorm2d | None = None,
        *,
        activation: str = "relu",
        keep_batch_norm: bool = False,
    ) -> "Conv2dAct":
        """Makes the module that computes `act(bn(conv(input)))` in evaluation mode.

        Args:
            conv: any stride and padding; dilation 1, groups 1, zeros as padding.
            bn: the BatchNorm behind it, in evaluation mode unless it is kept, or None.
            activation: "relu" or "none", the activation behind both. Default "relu".
            keep_batch_norm: whether the BatchNorm becomes a child that trains, instead of being
                folded now. Default False.

        Returns:
            A new module with weights and BatchNorms of its own, in the dtype and on the device of
            `conv`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d`, `BatchNorm2d` or
                `SyncBatchNorm`, or holds something else than plain floating-point parameters.
            ValueError: a setting of `conv` or `bn` that the op does not take.
        """
        _check_unfused("conv", conv, "bn", bn, keep_batch_norm=keep_batch_norm)
        module = cls(
            conv.weight.shape[1],
            conv.weight.shape[0],
            (conv.weight.shape[2], conv.weight.shape[3]),
            (conv.stride[0], conv.stride[1]),
            conv2d_padding("conv", conv),
            activation=activation,
            device="meta",
        )
        module._take([(conv, bn)], keep_batch_norm)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`, channels_last."""
        return self._unit(0, input, self.activation, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}"
            f"{self._options('activation', 'backend')}"
        )


class FactorizedConv2d(ConvModule):
    """Two one-dimensional convolutions in a row: `factorized_conv2d` as a module.

    They stand for one convolution with a filter of `kernel_size`. Stride 1, and as many zeros on
    each side as keep the size of the map.

    Args:
        in_channels: channels of the input, `C`.
        mid_channels: channels between the two, `C_mid`.
        out_channels: filters of the second, `K`.
        kernel_size: rows and columns of the filter that the pair factorizes, in pixels, odd, 1 to
            31; one number for both. (m, n) makes 1×n → m×1, or m×1 → 1×n.
        order: "row_first" is 1×n → m×1, "column_first" m×1 → 1×n. Default "row_first".
        bias: whether both have a bias. Default True.
        mid_activation: "relu" or "none", between the two. Default "relu".
        activation: "relu" or "none", behind them. Default "relu".
        backend: as in `factorized_conv2d`. Default "auto".
        device: of the parameters. Default: PyTorch's.
        dtype: of the parameters. Default: PyTorch's.

    Attributes:
        weight1: `(C_mid, C, 1, n)` or `(C_mid, C, m, 1)`, channels_last.
        bias1: `(C_mid,)` or None.
        weight2: `(K, C_mid, m, 1)` or `(K, C_mid, 1, n)`, channels_last.
        bias2: `(K,)` or None.
        bn1, bn2: the BatchNorm behind each of the two, or None.

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    op = "factorized_conv2d"
    _pairs = (("weight1", "bias1"), ("weight2", "bias2"))
    _norms = ("bn1", "bn2")
    _dividing = ("bn1",)
    weight1: nn.Parameter
    bias1: nn.Parameter | None
    bn1: nn.Module | None
    weight2: nn.Parameter
    bias2: nn.Parameter | None
    bn2: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        order: str = "row_first",
        bias: bool = True,
        mid_activation: str = "relu",
        activation: str = "relu",
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_options(
            name, order=order, mid_activation=mid_activation, activation=activation, backend=backend
        )
        self.in_channels = in_channels
        self.mid_channels = mid_channels
        self.out_channels = out_channels
        self.kernel_size = _odd_pair(name, kernel_size)
        self.order = order
        self.mid_activation = mid_activation
        self.activation = activation
        self.backend = backend
        rows, columns = self.kernel_size
        filters = [(1, columns), (rows, 1)]
        if order == "column_first":
            filters.reverse()
        shapes = [
            (mid_channels, in_channels, *filters[0]),
            (out_channels, mid_channels, *filters[1]),
        ]
        self._make_parameters(shapes, bias, device, dtype)

    @classmethod
    def from_unfused(
        cls,
        conv1: nn.Conv2d,
        conv2: nn.Conv2d,
        bn1: nn.BatchNorm2d | None = None,
        bn2: nn.BatchNorm2d | None = None,
        *,
        mid_activation: str = "relu",
        activation: str = "relu",
        keep_batch_norm: bool = False,
    ) -> "FactorizedConv2d":
        """Makes the module that computes `act(bn2(conv2(mid_act(bn1(conv1(input))))))`.

        Args:
            conv1: 1×n or n×1, n odd, stride 1, padding n // 2 along the filter.
            conv2: n×1 behind 1×n, 1×n behind n×1; its n may be another. As many input channels as
                `conv1` has filters.
            bn1: the BatchNorm behind `conv1`, in evaluation mode unless it is kept, or None.
            bn2: the BatchNorm behind `conv2`, in evaluation mode unless it is kept, or None.
            mid_activation: "relu" or "none", the activation between the two. Default "relu".
            activation: "relu" or "none", the activation behind them. Default "relu".
            keep_batch_norm: whether the BatchNorms become children that train, instead of being
                folded now. Default False.

        Returns:
            A new module with weights and BatchNorms of its own, in the dtype and on the device of
            `conv1`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d`, `BatchNorm2d` or
                `SyncBatchNorm`, or holds something else than plain floating-point parameters of one
                dtype.
            ValueError: a setting of an argument that the op does not take.
        """
        _check_unfused(
            "conv1", conv1, "bn1", bn1, stride=1, padding="same", keep_batch_norm=keep_batch_norm
        )
        rows, columns = conv1.weight.shape[2:]
        if rows != 1 and columns != 1:
            raise ValueError(f"conv1: kernel {(rows, columns)}, takes 1xn or nx1")
        if rows == columns == 1:
            # A 1×1 filter is either; what stands behind it tells the order.
            check_conv2d("conv2", conv2)
            row_first = conv2.weight.shape[3] == 1
        else:
            row_first = rows == 1
        across: KernelPattern = (None, 1) if row_first else (1, None)
        along: KernelPattern = (1, None) if row_first else (None, 1)
        check_conv2d("conv1", conv1, kernel=along)
        _check_unfused(
            "conv2",
            conv2,
            "bn2",
            bn2,
            kernel=across,
            stride=1,
            padding="same",
            keep_batch_norm=keep_batch_norm,
        )
        _check_same("conv2", conv2, "conv1", conv1)
        if conv2.weight.shape[1] != conv1.weight.shape[0]:
            raise ValueError(
                f"conv2: {conv2.weight.shape[1]} input channels, takes {conv1.weight.shape[0]}, "
                "one for each filter of conv1"
            )
        row, column = (conv1, conv2) if row_first else (conv2, conv1)
        module = cls(
            conv1.weight.shape[1],
            conv1.weight.shape[0],
            conv2.weight.shape[0],
            (column.weight.shape[2], row.weight.shape[3]),
            order="row_first" if row_first else "column_first",
            mid_activation=mid_activation,
            activation=activation,
            device="meta",
        )
        module._take([(conv1, bn1), (conv2, bn2)], keep_batch_norm)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, H, W)`, channels_last."""
        if self.unfused_reason() is not None:
            padding = same_padding(self.weight1)
            mid = self._unit(0, input, self.mid_activation, padding=padding)
            return self._unit(1, mid, self.activation, padding=same_padding(self.weight2))
        result = factorized_conv2d(
            input,
            *self._operands(0),
            *self._operands(1),
            mid_activation=self.mid_activation,
            activation=self._inner_activation("bn2", self.activation),
            backend=self.backend,
        )
        return self._behind("bn2", result, self.activation)

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.mid_channels}, {self.out_channels}, "
            f"kernel_size={self.kernel_size}, order={self.order!r}"
            f"{self._options('mid_activation', 'activation', 'backend')}"
        )


class SplitConv2d(ConvModule):
    """A 1×n and an m×1 convolution side by side on one input: `split_conv2d` as a module.

    Their outputs are concatenated, those of the 1×n first. Stride 1, and as many zeros on each side
    as keep the size of the map.

    Args:
        in_channels: channels of the input, `C`.
        row_channels: filters of the 1×n, `K_row`.
        col_channels: filters of the m×1, `K_col`.
        kernel_size: (m, n), in pixels, odd, 1 to 31; one number for both.
        bias: whether both have a bias. Default True.
        activation: "relu" or "none". Default "relu".
        backend: as in `split_conv2d`. Default "auto".
        device: of the parameters. Default: PyTorch's.
        dtype: of the parameters. Default: PyTorch's.

    Attributes:
        weight_row: `(K_row, C, 1, n)`, channels_last.
        bias_row: `(K_row,)` or None.
        weight_col: `(K_col, C, m, 1)`, channels_last.
        bias_col: `(K_col,)` or None.
        bn_row, bn_col: the BatchNorm behind each of the two, or None.

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    op = "split_conv2d"
    _pairs = (("weight_row", "bias_row"), ("weight_col", "bias_col"))
    _norms = ("bn_row", "bn_col")
    weight_row: nn.Parameter
    bias_row: nn.Parameter | None
    bn_row: nn.Module | None
    weight_col: nn.Parameter
    bias_col: nn.Parameter | None
    bn_col: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        row_channels: int,
        col_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        bias: bool = True,
        activation: str = "relu",
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_options(name, activation=activation, backend=backend)
        self.in_channels = in_channels
        self.row_channels = row_channels
        self.col_channels = col_channels
        self.kernel_size = _odd_pair(name, kernel_size)
        self.activation = activation
        self.backend = backend
        rows, columns = self.kernel_size
        shapes = [
            (row_channels, in_channels, 1, columns),
            (col_channels, in_channels, rows, 1),
        ]
        self._make_parameters(shapes, bias, device, dtype)

    @classmethod
    def from_unfused(
        cls,
        conv_row: nn.Conv2d,
        conv_col: nn.Conv2d,
        bn_row: nn.BatchNorm2d | None = None,
        bn_col: nn.BatchNorm2d | None = None,
        *,
        activation: str = "relu",
        keep_batch_norm: bool = False,
    ) -> "SplitConv2d":
        """Makes the module that computes both convolutions, BatchNorms and activations and `cat`.

        Args:
            conv_row: 1×n, n odd, stride 1, padding (0, n // 2).
            conv_col: m×1, m odd, stride 1, padding (m // 2, 0), of the same input channels.
            bn_row: the BatchNorm behind `conv_row`, in evaluation mode unless it is kept, or None.
            bn_col: the BatchNorm behind `conv_col`, in evaluation mode unless it is kept, or None.
            activation: "relu" or "none", the activation behind both. Default "relu".
            keep_batch_norm: whether the BatchNorms become children that train, instead of being
                folded now. Default False.

        Returns:
            A new module with weights and BatchNorms of its own, in the dtype and on the device of
            `conv_row`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d`, `BatchNorm2d` or
                `SyncBatchNorm`, or holds something else than plain floating-point parameters of one
                dtype.
            ValueError: a setting of an argument that the op does not take.
        """
        _check_unfused(
            "conv_row",
            conv_row,
            "bn_row",
            bn_row,
            kernel=(1, None),
            stride=1,
            padding="same",
            keep_batch_norm=keep_batch_norm,
        )
        _check_unfused(
            "conv_col",
            conv_col,
            "bn_col",
            bn_col,
            kernel=(None, 1),
            stride=1,
            padding="same",
            keep_batch_norm=keep_batch_norm,
        )
        _check_same("conv_col", conv_col, "conv_row", conv_row)
        if conv_col.weight.shape[1] != conv_row.weight.shape[1]:
            raise ValueError(
                f"conv_col: {conv_col.weight.shape[1]} input channels, takes "
                f"{conv_row.weight.shape[1]}, as many as conv_row"
            )
        module = cls(
            conv_row.weight.shape[1],
            conv_row.weight.shape[0],
            conv_col.weight.shape[0],
            (conv_col.weight.shape[2], conv_row.weight.shape[3]),
            activation=activation,
            device="meta",
        )
        module._take([(conv_row, bn_row), (conv_col, bn_col)], keep_batch_norm)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K_row + K_col, H, W)`, channels_last."""
        if self.unfused_reason() is not None:
            halves = [
                self._unit(i, input, self.activation, padding=same_padding(weight))
                for i, weight in enumerate((self.weight_row, self.weight_col))
            ]
            return torch.cat(halves, 1)
        return split_conv2d(
            input,
            *self._operands(0),
            *self._operands(1),
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.row_channels}, {self.col_channels}, "
            f"kernel_size={self.kernel_size}{self._options('activation', 'backend')}"
        )


class GridReduction(ConvModule):
    """A stride-2 convolution and a stride-2 pool side by side: `grid_reduction` as a module.

    Their outputs are concatenated, those of the convolution first. No padding.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters of the convolution, `K`; the output has `K + C` channels.
        kernel_size: rows and columns of the filter and of the pool's window, in pixels, odd.
            Default 3.
        bias: whether the convolution has a bias. Default True.
        pool: "max" or "avg". Default "max".
        activation: "relu" or "none", behind the convolution only. Default "relu".
        backend: as in `grid_reduction`. Default "auto".
        device: of the parameters. Default: PyTorch's.
        dtype: of the parameters. Default: PyTorch's.

    Attributes:
        weight: `(K, C, k, k)`, channels_last.
        bias: `(K,)` or None.
        bn: the BatchNorm behind the convolution, or None.

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    op = "grid_reduction"
    weight: nn.Parameter
    bias: nn.Parameter | None
    bn: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        bias: bool = True,
        pool: str = "max",
        activation: str = "relu",
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_options(name, pool=pool, activation=activation, backend=backend)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _odd_pair(name, kernel_size)
        if self.kernel_size[0] != self.kernel_size[1]:
            raise ValueError(f"{name}: kernel_size must be square, got {self.kernel_size}")
        self.pool = pool
        self.activation = activation
        self.backend = backend
        self._make_parameters([(out_channels, in_channels, *self.kernel_size)], bias, device, dtype)

    @classmethod
    def from_unfused(
        cls,
        conv: nn.Conv2d,
        bn: nn.BatchNorm2d | None = None,
        *,
        pool: str = "max",
        activation: str = "relu",
        keep_batch_norm: bool = False,
    ) -> "GridReduction":
        """Makes the module that computes `cat([act(bn(conv(input))), pool(input)], 1)`.

        Args:
            conv: k×k, k odd, stride 2, padding 0.
            bn: the BatchNorm behind it, in evaluation mode unless it is kept, or None.
            pool: "max" or "avg", with the window of `conv`, stride 2, no padding. Default "max".
            activation: "relu" or "none", the activation behind the BatchNorm. Default "relu".
            keep_batch_norm: whether the BatchNorm becomes a child that trains, instead of being
                folded now. Default False.

        Returns:
            A new module with weights and BatchNorms of its own, in the dtype and on the device of
            `conv`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d`, `BatchNorm2d` or
                `SyncBatchNorm`, or holds something else than plain floating-point parameters.
            ValueError: a setting of `conv` or `bn` that the op does not take.
        """
        _check_unfused(
            "conv",
            conv,
            "bn",
            bn,
            kernel=(None, None),
            stride=2,
            padding=0,
            keep_batch_norm=keep_batch_norm,
        )
        rows, columns = conv.weight.shape[2:]
        if rows != columns:
            raise ValueError(f"conv: kernel {(rows, columns)}, takes a square one")
        module = cls(
            conv.weight.shape[1],
            conv.weight.shape[0],
            (rows, columns),
            pool=pool,
            activation=activation,
            device="meta",
        )
        module._take([(conv, bn)], keep_batch_norm)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K + C, (H - k) // 2 + 1, (W - k) // 2 + 1)`."""
        if self.unfused_reason() is not None:
            x = cast("Tensor", autocast(input)[0])  # the pool's too, as in the op
            conv = self._unit(0, x, self.activation, stride=2)
            return torch.cat([conv, pool2d(x, self.kernel_size[0], self.pool)], 1)
        return grid_reduction(
            input,
            *self._operands(0),
            pool=self.pool,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"pool={self.pool!r}{self._options('activation', 'backend')}"
        )


def _odd_pair(name: str, kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = pair(name, "kernel_size", kernel_size, 1)
    for taps in (rows, columns):
        check_taps(name, "kernel_size", taps)
    return rows, columns


def _check_unfused(
    conv_name: str,
    conv: nn.Conv2d,
    bn_name: str,
    bn: nn.BatchNorm2d | None,
    *,
    kernel: KernelPattern | None = None,
    stride: int | None = None,
    padding: int | Literal["same"] | None = None,
    keep_batch_norm: bool,
) -> None:
    check_conv2d(conv_name, conv, kernel=kernel, stride=stride, padding=padding)
    if bn is None:
        return
    check_batch_norm(bn_name, bn, conv.out_channels, takes_live=keep_batch_norm)
    if not keep_batch_norm:
        _check_evaluation(bn_name, bn)


def _check_evaluation(name: str, bn: nn.Module) -> None:
    if bn.training:
        raise ValueError(
            f"{name}: in training mode, takes evaluation mode; call .eval() first: folding uses "
            "the running statistics"
        )


def _check_same(name: str, conv: nn.Conv2d, other_name: str, other: nn.Conv2d) -> None:
    if conv.weight.dtype != other.weight.dtype:
        raise TypeError(f"{name}: {conv.weight.dtype}, takes {other_name}'s {other.weight.dtype}")
    if conv.weight.device != other.weight.device:
        raise ValueError(
            f"{name}: on {conv.weight.device}, takes {other_name}'s {other.weight.device}"
        )
