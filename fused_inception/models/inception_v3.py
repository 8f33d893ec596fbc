"""The reference Inception V3: torchvision's names, shapes and numbers, in exchangeable blocks.

The network of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015,
arXiv 1512.00567, sections 3 to 6) in the widths of the published ImageNet weights, so that state
dicts move between this network and torchvision's in both directions. Each block is a module that
`torch.fx` traces to plain convolutions, BatchNorms, ReLUs, pools and one concatenation;
`InceptionBlocks` is where other blocks are put in. What the paper leaves open (the widths inside
the modules, the 5×5 that V3 keeps at 35×35) follows torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.models.weights import Weights, WeightsError, load_into

# Smaller images have no pixel left for the stride-2 convolutions of Mixed_7a.
MIN_IMAGE_SIZE = 75

# (mean, standard deviation) of ImageNet's red, green and blue, as torchvision normalizes images.
_IMAGENET_STATISTICS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))

_AUX_PREFIX = "AuxLogits."
_INIT_STD = 0.1
_AUX_INIT_STD = {"AuxLogits.conv1": 0.01, "AuxLogits.fc": 0.001}


class InceptionOutputs(NamedTuple):
    """What the network returns in training mode when it has an auxiliary head.

    Attributes:
        logits: `(N, num_classes)`.
        aux_logits: `(N, num_classes)`, from the head on the last 17×17 grid; None where the head
            was taken out after construction.
    """

    logits: Tensor
    aux_logits: Tensor | None


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
    """The auxiliary classifier on the last 17×17 grid, with BatchNorm in its convolutions.

    Section 4 and figure 8 of the paper. It regularizes training and is not run in evaluation.

    Args:
        in_channels: channels of the input, `C`.
        num_classes: classes.
        conv_block: makes the convolution units; called as `BasicConv2d` is.
    """

    # The 5×5 pool and the 5×5 convolution need the whole 17×17 grid.
    min_image_size = 299

    def __init__(
        self, in_channels: int, num_classes: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        self.conv0 = conv_block(in_channels, 128, kernel_size=1)
        self.conv1 = conv_block(128, 768, kernel_size=5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)`, H and W at least 17, to `(N, num_classes)`."""
        x = F.avg_pool2d(x, kernel_size=5, stride=3)
        x = self.conv1(self.conv0(x))
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.fc(torch.flatten(x, 1))


@dataclass(frozen=True)
class InceptionBlocks:
    """The classes that `InceptionV3` is built from; replace some to put other blocks in.

    Attributes:
        basic_conv: called as `BasicConv2d` is, for the stem, and handed to the others as
            `conv_block`.
        a: called as `InceptionA` is.
        b: called as `InceptionB` is.
        c: called as `InceptionC` is.
        d: called as `InceptionD` is.
        e: called as `InceptionE` is.
        aux: called as `InceptionAux` is. If it has an attribute `min_image_size`, training refuses
            smaller images.
    """

    basic_conv: ConvBlock = BasicConv2d
    a: ConvBlock = InceptionA
    b: ConvBlock = InceptionB
    c: ConvBlock = InceptionC
    d: ConvBlock = InceptionD
    e: ConvBlock = InceptionE
    aux: ConvBlock = InceptionAux


@torch.fx.wrap
def _check_images(x: Tensor, min_size: int) -> None:
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
        why = "" if min_size == MIN_IMAGE_SIZE else " in training with the auxiliary head"
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


class InceptionV3(nn.Module):
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

    Args:
        num_classes: classes, at least 1.
        aux_logits: whether there is an auxiliary head, `AuxLogits`; without, that child is None.
        transform_input: whether images come normalized by ImageNet's mean and standard deviation
            and are renormalized to the [-1, 1] of the published weights first.
        dropout: probability in front of `fc`.
        init_weights: whether to draw the weights as `inception_v3` says; otherwise PyTorch's
            defaults stay.
        blocks: the classes to build from.

    Raises:
        ValueError: `num_classes` is below 1, or `dropout` not in [0, 1].
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.5,
        init_weights: bool = True,
        blocks: InceptionBlocks | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes takes at least 1, got {num_classes}")
        if blocks is None:
            blocks = InceptionBlocks()
        conv = blocks.basic_conv
        self.aux_logits = aux_logits
        self.transform_input = transform_input

        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)

        self.Mixed_5b = blocks.a(192, pool_features=32, conv_block=conv)
        self.Mixed_5c = blocks.a(256, pool_features=64, conv_block=conv)
        self.Mixed_5d = blocks.a(288, pool_features=64, conv_block=conv)

        self.Mixed_6a = blocks.b(288, conv_block=conv)
        self.Mixed_6b = blocks.c(768, channels_7x7=128, conv_block=conv)
        self.Mixed_6c = blocks.c(768, channels_7x7=160, conv_block=conv)
        self.Mixed_6d = blocks.c(768, channels_7x7=160, conv_block=conv)
        self.Mixed_6e = blocks.c(768, channels_7x7=192, conv_block=conv)
        self.AuxLogits: nn.Module | None = None
        if aux_logits:
            self.AuxLogits = blocks.aux(768, num_classes, conv_block=conv)

        self.Mixed_7a = blocks.d(768, conv_block=conv)
        self.Mixed_7b = blocks.e(1280, conv_block=conv)
        self.Mixed_7c = blocks.e(2048, conv_block=conv)

        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        if init_weights:
            self._init_weights()

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                std = next((v for k, v in _AUX_INIT_STD.items() if name.startswith(k)), _INIT_STD)
                nn.init.trunc_normal_(module.weight, std=std, a=-2.0, b=2.0)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        """Classifies a batch of images.

        Args:
            x: `(N, 3, H, W)`, a floating-point dtype, any layout; H and W at least 75, and at least
                299 in training with the auxiliary head.

        Returns:
            The logits `(N, num_classes)`; in training with the auxiliary head `InceptionOutputs`.

        Raises:
            TypeError: `x` is not a tensor, or its dtype not a floating-point one.
            ValueError: its rank, channels or size are others.
        """
        aux_head = self.AuxLogits if self.training else None
        _check_images(x, getattr(aux_head, "min_image_size", MIN_IMAGE_SIZE))
        if self.transform_input:
            x = _from_imagenet_normalization(x)

        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.maxpool1(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = self.maxpool2(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        aux = None if aux_head is None else aux_head(x)
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))
        x = self.dropout(self.avgpool(x))
        logits = self.fc(torch.flatten(x, 1))
        if self.training and self.aux_logits:
            return InceptionOutputs(logits, aux)
        return logits


def inception_v3(
    *,
    num_classes: int = 1000,
    aux_logits: bool = True,
    transform_input: bool = False,
    dropout: float = 0.5,
    init_weights: bool = True,
    weights: Weights | None = None,
) -> InceptionV3:
    """Builds the reference Inception V3, in training mode, as `nn.Module` does.

    Equivalent to: `torchvision.models.inception_v3` with the same arguments: the same state dict
    and, with it, the same outputs.

    Args:
        num_classes: classes, at least 1.
        aux_logits: whether there is an auxiliary head. It runs in training mode only, where the
            network then returns `InceptionOutputs(logits, aux_logits)`.
        transform_input: whether images come normalized by ImageNet's mean and standard deviation
            and are renormalized to the [-1, 1] of the published weights first.
        dropout: probability in front of the last linear layer.
        init_weights: whether to draw the weights from a normal distribution of deviation 0.1 (in
            the auxiliary head 0.01 for `conv1` and 0.001 for `fc`), truncated at ±2; otherwise
            PyTorch's defaults stay. Without effect where `weights` is given.
        weights: a path (`.pth`, `.pt`, `.safetensors`) or a state dict; see
            `fused_inception.models.load_weights`. Every name and shape must agree, but with
            `aux_logits=False` the entries under `AuxLogits.` are dropped.

    Returns:
        The network, fp32, on the CPU. It takes images `(N, 3, H, W)` from 75×75 on (from 299×299
        on in training with the auxiliary head) and returns logits `(N, num_classes)`.

    Raises:
        FileNotFoundError: there is no file `weights`.
        WeightsError: the weights cannot be read or do not fit; it is a ValueError.
        ValueError: `num_classes` is below 1, or `dropout` not in [0, 1].
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
    )
    if weights is not None:
        try:
            load_into(model, weights, ignore=() if aux_logits else (_AUX_PREFIX,))
        except WeightsError as error:
            head = {
                name
                for name in model.state_dict()
                if name.startswith(_AUX_PREFIX) and not name.endswith(".num_batches_tracked")
            }
            if head and set(error.missing) == head:
                raise WeightsError(
                    f"{error}; there is no auxiliary head in these weights: take aux_logits=False",
                    missing=error.missing,
                ) from error
            raise
    return model
