"""The reference Inception V3: torchvision's names, shapes and numbers, in exchangeable blocks.

The network of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015,
arXiv 1512.00567, sections 3 to 6) in the widths of the published ImageNet weights, so that state
dicts move between this network and torchvision's in both directions. Each block is a module that
`torch.fx` traces to plain convolutions, BatchNorms, ReLUs, pools and one concatenation;
`InceptionBlocks` is where other blocks are put in. What the paper leaves open (the widths inside
the modules, the 5×5 that V3 keeps at 35×35) follows torchvision.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.models.weights import Weights, WeightsError, load_into

# Smaller images have no pixel left for the stride-2 convolutions of Mixed_7a.
MIN_IMAGE_SIZE = 75

# What the first layers can be made for, so that the grids behind them are the same.
IMAGE_SIZES = (299, 151, 79)
AUX_REGULARIZERS = ("batch_norm", "dropout", "none")

# (mean, standard deviation) of ImageNet's red, green and blue, as torchvision normalizes images.
_IMAGENET_STATISTICS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))

_AUX_HEADS = ("LowerAuxLogits", "AuxLogits")
_AUX_DROPOUT = 0.7
_INIT_STD = 0.1
_AUX_INIT_STD = {"AuxLogits.conv1": 0.01, "AuxLogits.fc": 0.001}

_IMAGE_CHANNELS = 3
_MIN_GRID_SIZE = 3  # rows and columns that Mixed_7a needs
# Divides every number of channels in the networks but that of the images.
_CHANNELS_UNIT = 16


class InceptionOutputs(NamedTuple):
    """What the network returns in training mode when it has an auxiliary head.

    Attributes:
        logits: `(N, num_classes)`.
        aux_logits: `(N, num_classes)`, from the head on the last 17×17 grid; None where the head
            was taken out after construction.
    """

    logits: Tensor
    aux_logits: Tensor | None


class InceptionTwoAuxOutputs(NamedTuple):
    """What the network returns in training mode when it has two auxiliary heads.

    Attributes:
        logits: `(N, num_classes)`.
        aux_logits: `(N, num_classes)`, from the upper head, on the last 17×17 grid; None where the
            head was taken out after construction.
        lower_aux_logits: the same from the lower head, on the first Inception module of that grid.
    """

    logits: Tensor
    aux_logits: Tensor | None
    lower_aux_logits: Tensor | None


class BasicConv2d(nn.Module):
    """A convolution without bias, BatchNorm with eps 0.001, ReLU: the unit everything is made of.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters, `K`.
        kernel_size: filter rows and columns.
        stride: of the convolution, default 1.
        padding: zeros on each side, default 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


ConvBlock = Callable[..., nn.Module]


def scaled_channels(channels: int, width: float) -> int:
    """Channels of a layer in a network of another width."""
    return round(channels * width)


def _scaled_conv(
    conv_block: ConvBlock, width: float, in_channels: int, out_channels: int, **options: Any
) -> nn.Module:
    if in_channels != _IMAGE_CHANNELS:
        in_channels = scaled_channels(in_channels, width)
    return conv_block(in_channels, scaled_channels(out_channels, width), **options)


class InceptionA(nn.Module):
    """The module of the 35×35 grid: 1×1, 5×5, double 3×3 and average pool side by side.

    Figure 5 of the paper (section 3.1), except that the middle branch keeps its 5×5 as in figure 4.
    Output channels: 64 (1×1), 64 (5×5), 96 (double 3×3), `pool_features` (pool).

    Args:
        in_channels: channels of the input, `C`.
        pool_features: filters of the 1×1 convolution behind the average pool.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    def __init__(
        self, in_channels: int, pool_features: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        self.branch1x1 = conv_block(in_channels, 64, kernel_size=1)

        self.branch5x5_1 = conv_block(in_channels, 48, kernel_size=1)
        self.branch5x5_2 = conv_block(48, 64, kernel_size=5, padding=2)

        self.branch3x3dbl_1 = conv_block(in_channels, 64, kernel_size=1)
        self.branch3x3dbl_2 = conv_block(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = conv_block(96, 96, kernel_size=3, padding=1)

        self.branch_pool = conv_block(in_channels, pool_features, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 224 + pool_features, H, W)`."""
        single = self.branch1x1(x)
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, wide, double, pool], 1)


class InceptionB(nn.Module):
    """The grid reduction from 35×35 to 17×17: stride-2 convolutions beside a stride-2 max pool.

    Figure 10 of the paper (section 5). Output channels: 384 (3×3), 96 (double 3×3), `C` (pool).

    Args:
        in_channels: channels of the input, `C`.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    def __init__(self, in_channels: int, conv_block: ConvBlock = BasicConv2d) -> None:
        super().__init__()
        self.branch3x3 = conv_block(in_channels, 384, kernel_size=3, stride=2)

        self.branch3x3dbl_1 = conv_block(in_channels, 64, kernel_size=1)
        self.branch3x3dbl_2 = conv_block(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = conv_block(96, 96, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 480 + C, (H - 1) // 2, (W - 1) // 2)`."""
        single = self.branch3x3(x)
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = F.max_pool2d(x, kernel_size=3, stride=2)
        return torch.cat([single, double, pool], 1)


class InceptionC(nn.Module):
    """The module of the 17×17 grid, with every 7×7 factorized into 1×7 and 7×1.

    Figure 6 of the paper with n = 7 (section 3.2). Output channels: 192 from each of the branches
    1×1, 1×7 → 7×1, 7×1 → 1×7 → 7×1 → 1×7, and average pool.

    Args:
        in_channels: channels of the input, `C`.
        channels_7x7: channels between the factors, `C_mid`.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    def __init__(
        self, in_channels: int, channels_7x7: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        mid = channels_7x7
        self.branch1x1 = conv_block(in_channels, 192, kernel_size=1)

        self.branch7x7_1 = conv_block(in_channels, mid, kernel_size=1)
        self.branch7x7_2 = conv_block(mid, mid, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7_3 = conv_block(mid, 192, kernel_size=(7, 1), padding=(3, 0))

        self.branch7x7dbl_1 = conv_block(in_channels, mid, kernel_size=1)
        self.branch7x7dbl_2 = conv_block(mid, mid, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = conv_block(mid, mid, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = conv_block(mid, mid, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = conv_block(mid, 192, kernel_size=(1, 7), padding=(0, 3))

        self.branch_pool = conv_block(in_channels, 192, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 768, H, W)`."""
        single = self.branch1x1(x)
        pair = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, pair, double, pool], 1)


class InceptionD(nn.Module):
    """The grid reduction from 17×17 to 8×8, one of its branches a factorized 7×7.

    Figure 10 of the paper (section 5), with the factors of section 3.2 in front of the second
    stride-2 convolution. Output channels: 320 (3×3), 192 (1×7 → 7×1 → 3×3), `C` (pool).

    Args:
        in_channels: channels of the input, `C`.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    def __init__(self, in_channels: int, conv_block: ConvBlock = BasicConv2d) -> None:
        super().__init__()
        self.branch3x3_1 = conv_block(in_channels, 192, kernel_size=1)
        self.branch3x3_2 = conv_block(192, 320, kernel_size=3, stride=2)

        self.branch7x7x3_1 = conv_block(in_channels, 192, kernel_size=1)
        self.branch7x7x3_2 = conv_block(192, 192, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv_block(192, 192, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv_block(192, 192, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 512 + C, (H - 1) // 2, (W - 1) // 2)`."""
        single = self.branch3x3_2(self.branch3x3_1(x))
        pair = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        pair = self.branch7x7x3_4(pair)
        pool = F.max_pool2d(x, kernel_size=3, stride=2)
        return torch.cat([single, pair, pool], 1)


class InceptionE(nn.Module):
    """The module of the 8×8 grid, whose last factors stand side by side.

    Figure 7 of the paper (section 3.2). The 1×3 and the 3×1 read the same tensor and are
    concatenated, which doubles the channels. Output channels: 320 (1×1), 768 (1×3 beside 3×1),
    768 (3×3, then 1×3 beside 3×1), 192 (pool).

    Args:
        in_channels: channels of the input, `C`.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    def __init__(self, in_channels: int, conv_block: ConvBlock = BasicConv2d) -> None:
        super().__init__()
        self.branch1x1 = conv_block(in_channels, 320, kernel_size=1)

        self.branch3x3_1 = conv_block(in_channels, 384, kernel_size=1)
        self.branch3x3_2a = conv_block(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3_2b = conv_block(384, 384, kernel_size=(3, 1), padding=(1, 0))

        self.branch3x3dbl_1 = conv_block(in_channels, 448, kernel_size=1)
        self.branch3x3dbl_2 = conv_block(448, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a = conv_block(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = conv_block(384, 384, kernel_size=(3, 1), padding=(1, 0))

        self.branch_pool = conv_block(in_channels, 192, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 2048, H, W)`."""
        single = self.branch1x1(x)
        mid = self.branch3x3_1(x)
        split = torch.cat([self.branch3x3_2a(mid), self.branch3x3_2b(mid)], 1)
        mid = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat([self.branch3x3dbl_3a(mid), self.branch3x3dbl_3b(mid)], 1)
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, split, double, pool], 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier on a 17×17 grid, with BatchNorm in all its layers but the last.

    Section 4 and figure 8 of the paper. It regularizes training and is not run in evaluation. On
    the 5×5 grid behind its pool, `conv1` is the head's fully connected layer: that this one too has
    BatchNorm is what section 10 calls "BN-auxiliary".

    Args:
        in_channels: channels of the input, `C`.
        num_classes: classes.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
        width: what `conv_block` multiplies channels by, for the layer that it does not make.
    """

    # The 5×5 pool and the 5×5 convolution need the whole 17×17 grid.
    min_grid_size = 17

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        conv_block: ConvBlock = BasicConv2d,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv0 = conv_block(in_channels, 128, kernel_size=1)
        self.conv1 = conv_block(128, 768, kernel_size=5)
        self.fc = nn.Linear(scaled_channels(768, width), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)`, H and W at least 17, to `(N, num_classes)`."""
        x = F.avg_pool2d(x, kernel_size=5, stride=3)
        x = self.conv1(self.conv0(x))
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.fc(torch.flatten(x, 1))


class InceptionAuxDropout(nn.Module):
    """The auxiliary classifier whose fully connected layer has dropout in place of BatchNorm.

    The other regularizer that section 4 of the paper names; without dropout it is the head before
    "BN-auxiliary" (section 10), whose 1×1 convolution is normalized, as all convolutions of the
    network, and whose fully connected layer `conv1` has a bias instead.

    Args:
        in_channels: channels of the input, `C`.
        num_classes: classes.
        dropout: probability behind the fully connected layer. Default 0.7, as in GoogLeNet's heads
            (Szegedy et al. 2014, arXiv 1409.4842, section 5).
        conv_block: makes the convolution units; called as `BasicConv2d` is.
        width: what `conv_block` multiplies channels by, for the layers that it does not make.
    """

    min_grid_size = InceptionAux.min_grid_size

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dropout: float = _AUX_DROPOUT,
        conv_block: ConvBlock = BasicConv2d,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        narrow, wide = scaled_channels(128, width), scaled_channels(768, width)
        self.conv0 = conv_block(in_channels, 128, kernel_size=1)
        self.conv1 = nn.Conv2d(narrow, wide, kernel_size=5)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)`, H and W at least 17, to `(N, num_classes)`."""
        x = F.avg_pool2d(x, kernel_size=5, stride=3)
        x = F.relu(self.conv1(self.conv0(x)), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.fc(self.dropout(torch.flatten(x, 1)))


@dataclass(frozen=True)
class InceptionBlocks:
    """The classes that a network is built from; replace some to put other blocks in.

    Attributes:
        basic_conv: called as `BasicConv2d` is, for the stem, and handed to the others as
            `conv_block`; in a network of another width than 1 inside a function that multiplies the
            channels, so the channels that the others get are those of width 1.
        a: called as `InceptionA` is.
        b: called as `InceptionB` is.
        c: called as `InceptionC` is.
        d: called as `InceptionD` is.
        e: called as `InceptionE` is.
        aux: called as `InceptionAux` is, with `width` where it is not 1. If it has an attribute
            `min_grid_size`, training refuses images that come to it as a smaller grid.
    """

    basic_conv: ConvBlock = BasicConv2d
    a: ConvBlock = InceptionA
    b: ConvBlock = InceptionB
    c: ConvBlock = InceptionC
    d: ConvBlock = InceptionD
    e: ConvBlock = InceptionE
    aux: ConvBlock = InceptionAux


@torch.fx.wrap
def _check_images(x: Tensor, min_size: int, with_head: bool) -> None:
    # A leaf to torch.fx: these comparisons have no value while a graph is being traced.
    if not isinstance(x, Tensor):
        raise TypeError(f"x takes a tensor of images (N, 3, H, W), got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"x takes images of a floating-point dtype, got {x.dtype}; convert and normalize them"
        )
    if x.dim() != 4:
        raise ValueError(f"x takes a batch of images (N, 3, H, W), got shape {tuple(x.shape)}")
    if x.shape[1] != 3:
        raise ValueError(
            f"x takes images of 3 channels (N, 3, H, W), got {x.shape[1]} channels in shape "
            f"{tuple(x.shape)}"
        )
    if x.shape[2] < min_size or x.shape[3] < min_size:
        why = " in training with the auxiliary head" if with_head else ""
        raise ValueError(
            f"x takes images of at least {min_size}x{min_size} pixels{why}, "
            f"got {x.shape[2]}x{x.shape[3]}"
        )


def _from_imagenet_normalization(x: Tensor) -> Tensor:
    """Renormalizes (N, 3, H, W) from ImageNet's statistics to mean 0.5, deviation 0.5."""
    return torch.cat(
        [
            x[:, channel : channel + 1] * (std / 0.5) + (mean - 0.5) / 0.5
            for channel, (mean, std) in enumerate(_IMAGENET_STATISTICS)
        ],
        1,
    )


class InceptionNetwork(nn.Module):
    """What the networks of the paper share: everything but the first layers.

    A subclass has those (`_add_stem`, `_stem`, `_image_size_for`) and the widths of its modules.

    Args:
        num_classes: classes, at least 1.
        aux_logits: how many auxiliary heads there are: False or 0; True or 1, the upper one on the
            last 17×17 grid, `AuxLogits`; 2, also the lower one on the first Inception module of
            that grid, `LowerAuxLogits`. A child that is not there is None.
        transform_input: whether images come normalized by ImageNet's mean and standard deviation
            and are renormalized to the [-1, 1] of the published weights first.
        dropout: probability in front of `fc`.
        init_weights: whether to draw the weights as `inception_v3` says; otherwise PyTorch's
            defaults stay.
        blocks: the classes to build from.
        image_size: 299, 151 or 79: the size of image that brings the first layers to the grids of
            the paper's table 1 (section 9).
        width: what the channels of every layer are multiplied by, a multiple of 1/16.

    Raises:
        ValueError: `num_classes` is below 1, `dropout` not in [0, 1], or there is no such
            `aux_logits`, `image_size` or `width`.
    """

    # Filters behind the average pools at 35×35; channels between the factors at 17×17.
    _POOL_FEATURES: Sequence[int]
    _CHANNELS_17: Sequence[int]

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        aux_logits: int = True,
        transform_input: bool = False,
        dropout: float = 0.5,
        init_weights: bool = True,
        blocks: InceptionBlocks | None = None,
        image_size: int = 299,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes takes at least 1, got {num_classes}")
        if aux_logits not in (0, 1, 2):
            raise ValueError(
                f"aux_logits takes False or 0, True or 1, or 2 auxiliary heads, got {aux_logits!r}"
            )
        if image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size takes {choices(IMAGE_SIZES)}, got {image_size!r}")
        if not (width > 0 and width * _CHANNELS_UNIT % 1 == 0):
            raise ValueError(
                f"width takes a multiple of 1/{_CHANNELS_UNIT} above 0, with which all layers have "
                f"whole numbers of channels, got {width!r}"
            )
        if blocks is None:
            blocks = self.default_blocks()
        conv = blocks.basic_conv if width == 1 else partial(_scaled_conv, blocks.basic_conv, width)
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.image_size = image_size
        self.width = width

        channels = self._add_stem(conv)
        self._grid_35 = [f"Mixed_5{letter}" for letter in "bcd"]
        for name, pool_features in zip(self._grid_35, self._POOL_FEATURES, strict=True):
            self.add_module(name, blocks.a(channels, pool_features=pool_features, conv_block=conv))
            channels = 224 + pool_features

        self.Mixed_6a = blocks.b(channels, conv_block=conv)
        self._grid_17 = [f"Mixed_6{letter}" for letter in "bcdef"[: len(self._CHANNELS_17)]]
        for name, mid in zip(self._grid_17, self._CHANNELS_17, strict=True):
            self.add_module(name, blocks.c(768, mid, conv_block=conv))
        # Heads of others, torchvision's, say, need not know of widths.
        aux_width = {} if width == 1 else {"width": width}
        self.AuxLogits: nn.Module | None = None
        self.LowerAuxLogits: nn.Module | None = None
        if aux_logits:
            self.AuxLogits = blocks.aux(768, num_classes, conv_block=conv, **aux_width)
        if aux_logits == 2:
            self.LowerAuxLogits = blocks.aux(768, num_classes, conv_block=conv, **aux_width)

        self.Mixed_7a = blocks.d(768, conv_block=conv)
        self.Mixed_7b = blocks.e(1280, conv_block=conv)
        self.Mixed_7c = blocks.e(2048, conv_block=conv)

        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(scaled_channels(2048, width), num_classes)
        if init_weights:
            self._init_weights()

    @classmethod
    def default_blocks(cls) -> InceptionBlocks:
        """The classes that the network is built from unless others are given."""
        return InceptionBlocks()

    def _add_stem(self, conv: ConvBlock) -> int:
        # Registers the layers in front of the 35×35 grid; returns the channels behind them.
        raise NotImplementedError

    def _stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _image_size_for(self, size: int) -> int:
        # The smallest image that comes to the first max pool, where there is one, as `size`.
        raise NotImplementedError

    def _first_pool(self) -> nn.Module:
        return nn.Identity() if self.image_size == 79 else nn.MaxPool2d(kernel_size=3, stride=2)

    def _min_image_size(self, grid: int) -> int:
        # The smallest image that comes to Mixed_6b as `grid`.
        size = 2 * (2 * grid + 1) + 1 + 2  # a 3×3 convolution and two of stride 2 or pools
        return self._image_size_for(size if self.image_size == 79 else 2 * size + 1)

    def min_image_size(self) -> int:
        """Rows and columns that images have at least, in the mode that the network is in."""
        lower = self.LowerAuxLogits if self.training else None
        upper = self.AuxLogits if self.training else None
        # What is not there has no such attribute. torch.compile does not take max(..., default=).
        grid = max(getattr(head, "min_grid_size", _MIN_GRID_SIZE) for head in (lower, upper))
        return self._min_image_size(grid)

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                std = next((v for k, v in _AUX_INIT_STD.items() if k in name), _INIT_STD)
                nn.init.trunc_normal_(module.weight, std=std, a=-2.0, b=2.0)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs | InceptionTwoAuxOutputs:
        """Classifies a batch of images.

        Args:
            x: `(N, 3, H, W)`, a floating-point dtype, any layout; H and W at least a quarter of
                `image_size` (75 of 299, 39 of 151, 21 of 79), and in training with an auxiliary
                head nearly all of it (299, 151, 77). With a 7×7 in front 79 takes 23, and 79.

        Returns:
            The logits `(N, num_classes)`; in training with one auxiliary head `InceptionOutputs`,
            with two `InceptionTwoAuxOutputs`.

        Raises:
            TypeError: `x` is not a tensor, or its dtype not a floating-point one.
            ValueError: its rank, channels or size are others.
        """
        lower = self.LowerAuxLogits if self.training else None
        upper = self.AuxLogits if self.training else None
        min_size = self.min_image_size()
        _check_images(x, min_size, min_size > self._min_image_size(_MIN_GRID_SIZE))
        if self.transform_input:
            x = _from_imagenet_normalization(x)

        x = self._stem(x)
        for name in self._grid_35:
            x = getattr(self, name)(x)
        x = self.Mixed_6a(x)
        lower_aux = None
        for name in self._grid_17:
            x = getattr(self, name)(x)
            if lower is not None and name == self._grid_17[0]:
                lower_aux = lower(x)
        aux = None if upper is None else upper(x)
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))
        x = self.dropout(self.avgpool(x))
        logits = self.fc(torch.flatten(x, 1))
        if not (self.training and self.aux_logits):
            return logits
        if self.aux_logits == 2:
            return InceptionTwoAuxOutputs(logits, aux, lower_aux)
        return InceptionOutputs(logits, aux)


class InceptionV3(InceptionNetwork):
    """Inception V3 (Szegedy et al. 2015, arXiv 1512.00567, table 1 and section 8).

    Children have torchvision's names, in its order; sizes are those of a 299×299 image:

    | children | output |
    |---|---|
    | Conv2d_1a_3x3, Conv2d_2a_3x3, Conv2d_2b_3x3 | 32×149×149, 32×147×147, 64×147×147 |
    | maxpool1, Conv2d_3b_1x1, Conv2d_4a_3x3, maxpool2 | 64×73×73, 80×73×73, 192×71×71, 192×35×35 |
    | Mixed_5b, Mixed_5c, Mixed_5d (`blocks.a`) | 256×35×35, 288×35×35, 288×35×35 |
    | Mixed_6a (`blocks.b`), Mixed_6b to Mixed_6e (`blocks.c`) | 768×17×17 |
    | AuxLogits (`blocks.aux`, on Mixed_6e, in training only) | num_classes |
    | Mixed_7a (`blocks.d`), Mixed_7b, Mixed_7c (`blocks.e`) | 1280×8×8, 2048×8×8, 2048×8×8 |
    | avgpool, dropout, fc | 2048×1×1, 2048×1×1, num_classes |

    With `image_size` 151 the first convolution has stride 1; with 79 `maxpool1` passes on what it
    gets as well. With 151 all grids are those above; with 79 they are 77, 75 and 75, then 75, 73
    and 36, and from there 17 and 8 as above.

    Args and errors: see `InceptionNetwork`.
    """

    _POOL_FEATURES = (32, 64, 64)
    _CHANNELS_17 = (128, 160, 160, 192)

    def _add_stem(self, conv: ConvBlock) -> int:
        stride = 2 if self.image_size == 299 else 1
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=stride)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = self._first_pool()
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)
        return 192

    def _stem(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.maxpool1(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        return self.maxpool2(x)

    def _image_size_for(self, size: int) -> int:
        size += 2
        return 2 * size + 1 if self.image_size == 299 else size + 2


def blocks_with_aux(
    blocks: InceptionBlocks, aux_regularizer: str, aux_logits: int
) -> InceptionBlocks:
    """Puts the auxiliary head with the given regularizer into the classes of a network.

    Args:
        blocks: the classes.
        aux_regularizer: "batch_norm", "dropout" or "none".
        aux_logits: how many heads the network has.

    Returns:
        The classes.

    Raises:
        ValueError: there is no such regularizer, or no head to regularize.
    """
    if aux_regularizer not in AUX_REGULARIZERS:
        raise ValueError(
            f"aux_regularizer takes {choices(AUX_REGULARIZERS)}, got {aux_regularizer!r}"
        )
    if aux_regularizer == "batch_norm":
        return blocks
    if not aux_logits:
        raise ValueError(
            f"aux_regularizer={aux_regularizer!r} needs an auxiliary head: aux_logits takes 1 or 2 "
            f"with it, got {aux_logits!r}"
        )
    dropout = _AUX_DROPOUT if aux_regularizer == "dropout" else 0.0
    return replace(blocks, aux=partial(InceptionAuxDropout, dropout=dropout))


def choices(values: Iterable[object]) -> str:
    """Lists what an option takes: `a, b or c`."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}"


def load_network(model: InceptionNetwork, weights: Weights) -> None:
    """Loads weights strictly, but for those of auxiliary heads that the network does not have.

    Args:
        model: a network of this package.
        weights: see `fused_inception.models.load_weights`.

    Raises:
        WeightsError: the weights cannot be read or do not fit.
    """
    absent = [f"{head}." for head in _AUX_HEADS if getattr(model, head) is None]
    try:
        load_into(model, weights, ignore=absent)
    except WeightsError as error:
        heads = tuple(f"{head}." for head in _AUX_HEADS)
        missing = {
            name
            for name in model.state_dict()
            if name.startswith(heads) and not name.endswith(".num_batches_tracked")
        }
        if missing and set(error.missing) == missing:
            raise WeightsError(
                f"{error}; there is no auxiliary head in these weights: take aux_logits=False",
                missing=error.missing,
            ) from error
        raise


def inception_v3(
    *,
    num_classes: int = 1000,
    aux_logits: int = True,
    transform_input: bool = False,
    dropout: float = 0.5,
    init_weights: bool = True,
    weights: Weights | None = None,
    aux_regularizer: str = "batch_norm",
    image_size: int = 299,
    width: float = 1.0,
) -> InceptionV3:
    """Builds the reference Inception V3, in training mode, as `nn.Module` does.

    Equivalent to: `torchvision.models.inception_v3` with the same arguments, as far as it has
    them: the same state dict and, with it, the same outputs.

    Args:
        num_classes: classes, at least 1.
        aux_logits: how many auxiliary heads there are: False or 0; True or 1, the upper one, on the
            last 17×17 grid; 2, also a lower one, which torchvision does not have, on the first
            Inception module of that grid, as GoogLeNet's lower head is on its 14×14 grid. They run
            in training mode only, where the network then returns
            `InceptionOutputs(logits, aux_logits)`, with two heads `InceptionTwoAuxOutputs`.
        transform_input: whether images come normalized by ImageNet's mean and standard deviation
            and are renormalized to the [-1, 1] of the published weights first.
        dropout: probability in front of the last linear layer.
        init_weights: whether to draw the weights from a normal distribution of deviation 0.1 (in
            an auxiliary head 0.01 for `conv1` and 0.001 for `fc`), truncated at ±2; otherwise
            PyTorch's defaults stay. Without effect where `weights` is given.
        weights: a path (`.pth`, `.pt`, `.safetensors`) or a state dict; see
            `fused_inception.models.load_weights`. Every name and shape must agree, but the entries
            of auxiliary heads that there are not are dropped.
        aux_regularizer: of the fully connected layer in the auxiliary heads: "batch_norm", as
            torchvision has it; "dropout"; or "none". The 1×1 convolution in front of it is
            normalized in each case.
        image_size: what the first layers are made for: 299; 151, where the first convolution has
            stride 1; or 79, where there is no first max pool either (section 9 of the paper).
        width: what the channels of every layer are multiplied by: a multiple of 1/16, as all of
            them are multiples of 16. Networks of another width than 1 have weights of their own.

    Returns:
        The network, fp32, on the CPU. It takes images `(N, 3, H, W)` from 75×75 on (from 299×299
        on in training with an auxiliary head; for `image_size` 151 and 79 from 39×39 and 21×21,
        151×151 and 77×77) and returns logits `(N, num_classes)`.

    Raises:
        FileNotFoundError: there is no file `weights`.
        WeightsError: the weights cannot be read or do not fit; it is a ValueError.
        ValueError: `num_classes` is below 1, `dropout` not in [0, 1], or an option has another
            value than those above.
        TypeError: `weights` is neither a path nor a mapping.
        ImportError: a `.safetensors` file without the safetensors package.

    Note:
        torchvision switches `transform_input` on by itself when it downloads its ImageNet weights;
        here it is as given. torchvision means to draw `AuxLogits.conv1` with deviation 0.01 too,
        but its setting does not reach the convolution, which gets 0.1 there
        (pytorch/vision#723).

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for
    Computer Vision", 2015, arXiv 1512.00567.
    """
    model = InceptionV3(
        num_classes=num_classes,
        aux_logits=aux_logits,
        transform_input=transform_input,
        dropout=dropout,
        init_weights=init_weights and weights is None,
        blocks=blocks_with_aux(InceptionV3.default_blocks(), aux_regularizer, aux_logits),
        image_size=image_size,
        width=width,
    )
    if weights is not None:
        load_network(model, weights)
    return model
