"""The ops as modules: parameters in channels_last, initialized as `torch.nn.Conv2d`'s are.

Argument names and attributes mirror `torch.nn`. `from_unfused` takes the convolutions, and the
BatchNorms behind them, of an existing network, checks that they are what the op computes, and folds
the BatchNorms into the new module's weights. channels_last is what the kernels read without a copy;
it survives `.to()`, `.half()`, `load_state_dict` and `copy.deepcopy`, because all of these keep
strides.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fused_inception.folding import (
    KernelPattern,
    check_batch_norm,
    check_conv2d,
    conv2d_padding,
    fold_batch_norm,
)
from fused_inception.ops.common.checks import check_options, check_taps, pair
from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d
from fused_inception.ops.grid_reduction.op import grid_reduction
from fused_inception.ops.split_conv2d.op import split_conv2d

__all__ = ["Conv2dAct", "FactorizedConv2d", "GridReduction", "SplitConv2d"]


class _ConvModule(nn.Module):
    # What the four modules share: how parameters are made, initialized and replaced by folded ones.

    # (weight, bias) names of the parameters.
    _pairs: tuple[tuple[str, str], ...] = (("weight", "bias"),)

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

    def _set_folded(self, pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d | None]]) -> None:
        for (weight_name, bias_name), (conv, bn) in zip(self._pairs, pairs, strict=True):
            weight, bias = fold_batch_norm(conv.weight, conv.bias, bn)
            self.register_parameter(weight_name, nn.Parameter(weight))
            self.register_parameter(bias_name, None if bias is None else nn.Parameter(bias))

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


class Conv2dAct(_ConvModule):
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

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

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
    ) -> "Conv2dAct":
        """Makes the module that computes `act(bn(conv(input)))` in evaluation mode.

        Args:
            conv: any stride and padding; dilation 1, groups 1, zeros as padding.
            bn: the BatchNorm behind it, in evaluation mode, or None.
            activation: "relu" or "none", the activation behind both. Default "relu".

        Returns:
            A new module with weights of its own, in the dtype and on the device of `conv`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d` or `torch.nn.BatchNorm2d`, or
                holds something else than plain floating-point parameters.
            ValueError: a setting of `conv` or `bn` that the op does not take.
        """
        _check_unfused("conv", conv, "bn", bn)
        module = cls(
            conv.weight.shape[1],
            conv.weight.shape[0],
            (conv.weight.shape[2], conv.weight.shape[3]),
            (conv.stride[0], conv.stride[1]),
            conv2d_padding("conv", conv),
            activation=activation,
            device="meta",
        )
        module._set_folded([(conv, bn)])
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`, channels_last."""
        return conv2d_act(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}"
            f"{self._options('activation', 'backend')}"
        )


class FactorizedConv2d(_ConvModule):
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

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    _pairs = (("weight1", "bias1"), ("weight2", "bias2"))
    weight1: nn.Parameter
    bias1: nn.Parameter | None
    weight2: nn.Parameter
    bias2: nn.Parameter | None

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
    ) -> "FactorizedConv2d":
        """Makes the module that computes `act(bn2(conv2(mid_act(bn1(conv1(input))))))`.

        Args:
            conv1: 1×n or n×1, n odd, stride 1, padding n // 2 along the filter.
            conv2: n×1 behind 1×n, 1×n behind n×1; its n may be another. As many input channels as
                `conv1` has filters.
            bn1: the BatchNorm behind `conv1`, in evaluation mode, or None.
            bn2: the BatchNorm behind `conv2`, in evaluation mode, or None.
            mid_activation: "relu" or "none", the activation between the two. Default "relu".
            activation: "relu" or "none", the activation behind them. Default "relu".

        Returns:
            A new module with weights of its own, in the dtype and on the device of `conv1`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d` or `torch.nn.BatchNorm2d`, or
                holds something else than plain floating-point parameters of one dtype.
            ValueError: a setting of an argument that the op does not take.
        """
        _check_unfused("conv1", conv1, "bn1", bn1, stride=1, padding="same")
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
        _check_unfused("conv2", conv2, "bn2", bn2, kernel=across, stride=1, padding="same")
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
        module._set_folded([(conv1, bn1), (conv2, bn2)])
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, H, W)`, channels_last."""
        return factorized_conv2d(
            input,
            self.weight1,
            self.bias1,
            self.weight2,
            self.bias2,
            mid_activation=self.mid_activation,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.mid_channels}, {self.out_channels}, "
            f"kernel_size={self.kernel_size}, order={self.order!r}"
            f"{self._options('mid_activation', 'activation', 'backend')}"
        )


class SplitConv2d(_ConvModule):
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

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    _pairs = (("weight_row", "bias_row"), ("weight_col", "bias_col"))
    weight_row: nn.Parameter
    bias_row: nn.Parameter | None
    weight_col: nn.Parameter
    bias_col: nn.Parameter | None

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
    ) -> "SplitConv2d":
        """Makes the module that computes both convolutions, BatchNorms and activations and `cat`.

        Args:
            conv_row: 1×n, n odd, stride 1, padding (0, n // 2).
            conv_col: m×1, m odd, stride 1, padding (m // 2, 0), of the same input channels.
            bn_row: the BatchNorm behind `conv_row`, in evaluation mode, or None.
            bn_col: the BatchNorm behind `conv_col`, in evaluation mode, or None.
            activation: "relu" or "none", the activation behind both. Default "relu".

        Returns:
            A new module with weights of its own, in the dtype and on the device of `conv_row`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d` or `torch.nn.BatchNorm2d`, or
                holds something else than plain floating-point parameters of one dtype.
            ValueError: a setting of an argument that the op does not take.
        """
        _check_unfused(
            "conv_row", conv_row, "bn_row", bn_row, kernel=(1, None), stride=1, padding="same"
        )
        _check_unfused(
            "conv_col", conv_col, "bn_col", bn_col, kernel=(None, 1), stride=1, padding="same"
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
        module._set_folded([(conv_row, bn_row), (conv_col, bn_col)])
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K_row + K_col, H, W)`, channels_last."""
        return split_conv2d(
            input,
            self.weight_row,
            self.bias_row,
            self.weight_col,
            self.bias_col,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, as `torch.nn` modules print theirs."""
        return (
            f"{self.in_channels}, {self.row_channels}, {self.col_channels}, "
            f"kernel_size={self.kernel_size}{self._options('activation', 'backend')}"
        )


class GridReduction(_ConvModule):
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

    Raises:
        ValueError: an option or a size that the op does not take.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

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
    ) -> "GridReduction":
        """Makes the module that computes `cat([act(bn(conv(input))), pool(input)], 1)`.

        Args:
            conv: k×k, k odd, stride 2, padding 0.
            bn: the BatchNorm behind it, in evaluation mode, or None.
            pool: "max" or "avg", with the window of `conv`, stride 2, no padding. Default "max".
            activation: "relu" or "none", the activation behind the BatchNorm. Default "relu".

        Returns:
            A new module with weights of its own, in the dtype and on the device of `conv`'s.

        Raises:
            TypeError: an argument is not exactly a `torch.nn.Conv2d` or `torch.nn.BatchNorm2d`, or
                holds something else than plain floating-point parameters.
            ValueError: a setting of `conv` or `bn` that the op does not take.
        """
        _check_unfused("conv", conv, "bn", bn, kernel=(None, None), stride=2, padding=0)
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
        module._set_folded([(conv, bn)])
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K + C, (H - k) // 2 + 1, (W - k) // 2 + 1)`."""
        return grid_reduction(
            input,
            self.weight,
            self.bias,
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
) -> None:
    check_conv2d(conv_name, conv, kernel=kernel, stride=stride, padding=padding)
    if bn is None:
        return
    check_batch_norm(bn_name, bn, conv.out_channels)
    if bn.training:
        raise ValueError(
            f"{bn_name}: in training mode, takes evaluation mode; call .eval() first: folding uses "
            "the running statistics"
        )


def _check_same(name: str, conv: nn.Conv2d, other_name: str, other: nn.Conv2d) -> None:
    if conv.weight.dtype != other.weight.dtype:
        raise TypeError(f"{name}: {conv.weight.dtype}, takes {other_name}'s {other.weight.dtype}")
    if conv.weight.device != other.weight.device:
        raise ValueError(
            f"{name}: on {conv.weight.device}, takes {other_name}'s {other.weight.device}"
        )
