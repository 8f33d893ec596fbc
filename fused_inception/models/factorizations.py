"""The paper's factorizations of one convolution and its three ways to shrink a grid, as modules.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015, arXiv 1512.00567),
sections 3 and 5. An n×n convolution becomes a chain of 3×3 (`SymmetricFactors`) or 1×n and n×1
(`AsymmetricFactors`); where the channels grow from m to αm, both factors of two grow them by √α.
Each module is made of units with ReLU behind them; `LinearConv2d` in the place of the first ones
makes the factors linear, which the paper found inferior (section 3.1 and figure 2). The closed
forms of what they cost stand beside them; `python -m fused_inception cost` holds the two together.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.models.inception_modules import check_factorizable
from fused_inception.models.inception_v3 import BasicConv2d, ConvBlock

__all__ = [
    "AsymmetricFactors",
    "ConvThenPool",
    "LinearConv2d",
    "ParallelReduction",
    "PoolThenConv",
    "SymmetricFactors",
    "convolution_cost",
    "two_layer_cost",
]


def convolution_cost(kernel_size: int, channels: int, alpha: float = 1.0) -> float:
    """The cost of widening m channels to αm by one w×w convolution: αw²m².

    Args:
        kernel_size: w.
        channels: m.
        alpha: α, what the channels grow by.

    Returns:
        Multiply-accumulates for each output position, which is also the number of weights.

    Source: arXiv 1512.00567, section 3.1.
    """
    return alpha * kernel_size**2 * channels**2


def two_layer_cost(kernel_size: int, channels: int, alpha: float = 1.0) -> float:
    """The cost of widening m channels to αm in two steps of √α by w×w convolutions: w²√α(α+1)m².

    The first factor costs w²·m·√αm, the second w²·√αm·αm; their sum is w²√α(1+α)m².

    Args:
        kernel_size: w, of each of the two layers.
        channels: m.
        alpha: α, what the channels grow by.

    Returns:
        Multiply-accumulates for each output position, which is also the number of weights.

    Source: arXiv 1512.00567, section 3.1.
    """
    return kernel_size**2 * math.sqrt(alpha) * (alpha + 1) * channels**2


class LinearConv2d(BasicConv2d):
    """A convolution without bias and BatchNorm with eps 0.001: `BasicConv2d` without its ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, P, Q)`."""
        return self.bn(self.conv(x))


class SymmetricFactors(nn.Sequential):
    """An n×n convolution factorized into (n - 1) / 2 of 3×3, at stride 1 and "same" padding.

    Section 3.1 and figure 1 of the paper: each layer sees two pixels further, so the last one sees
    n×n. The channels grow by the same factor in each layer, rounded to whole channels.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters of the last layer, `K`.
        kernel_size: n, odd, at least 3. Default 5: two layers.
        conv_block: makes the last unit; called as `BasicConv2d` is.
        mid_block: makes those in front of it; `LinearConv2d` for no ReLU between the factors.

    Raises:
        ValueError: `kernel_size` is not odd or below 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 5,
        conv_block: ConvBlock = BasicConv2d,
        mid_block: ConvBlock = BasicConv2d,
    ) -> None:
        check_factorizable(kernel_size)
        layers = kernel_size // 2
        growth = (out_channels / in_channels) ** (1 / layers)
        widths = [round(in_channels * growth**layer) for layer in range(layers)] + [out_channels]
        units = [
            (conv_block if layer == layers - 1 else mid_block)(
                widths[layer], widths[layer + 1], kernel_size=3, padding=1
            )
            for layer in range(layers)
        ]
        super().__init__(*units)


class AsymmetricFactors(nn.Sequential):
    """An n×n convolution factorized into 1×n and n×1, at stride 1 and "same" padding.

    Section 3.2 and figure 3 of the paper; for grids of 12 to 20 rows. The channels grow by the same
    factor in both layers, rounded to whole channels. `fused_inception.FactorizedConv2d` runs the
    two as one operator: its `from_unfused` takes the convolutions and BatchNorms of these units.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters of the second layer, `K`.
        kernel_size: n, odd, at least 3. Default 7.
        conv_block: makes the second unit; called as `BasicConv2d` is.
        mid_block: makes the first; `LinearConv2d` for no ReLU between the factors.

    Raises:
        ValueError: `kernel_size` is not odd or below 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 7,
        conv_block: ConvBlock = BasicConv2d,
        mid_block: ConvBlock = BasicConv2d,
    ) -> None:
        check_factorizable(kernel_size)
        n, half = kernel_size, kernel_size // 2
        mid = round(math.sqrt(in_channels * out_channels))
        super().__init__(
            mid_block(in_channels, mid, kernel_size=(1, n), padding=(0, half)),
            conv_block(mid, out_channels, kernel_size=(n, 1), padding=(half, 0)),
        )


class ConvThenPool(nn.Module):
    """A grid reduction that widens first: a 3×3 convolution at stride 1, then a max pool.

    Section 5 and figure 9, right, of the paper. No representational bottleneck, but the convolution
    runs on the large grid: 2d²k² operations for d×d of k channels to d/2×d/2 of 2k, not counting
    the nine positions of the filter.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters, `K`.
        conv_block: makes the unit; called as `BasicConv2d` is.
    """

    def __init__(
        self, in_channels: int, out_channels: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        self.conv = conv_block(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, (H - 1) // 2, (W - 1) // 2)`."""
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2)


class PoolThenConv(nn.Module):
    """A grid reduction that pools first: a max pool, then a 3×3 convolution on the small grid.

    Section 5 and figure 9, left, of the paper: 2(d/2)²k² operations, but a bottleneck, as only
    d/2×d/2×k numbers go through its middle.

    Args:
        in_channels: channels of the input, `C`.
        out_channels: filters, `K`.
        conv_block: makes the unit; called as `BasicConv2d` is.
    """

    def __init__(
        self, in_channels: int, out_channels: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        self.conv = conv_block(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, (H - 1) // 2, (W - 1) // 2)`."""
        return self.conv(F.max_pool2d(x, kernel_size=3, stride=2))


class ParallelReduction(nn.Module):
    """The paper's grid reduction: a 3×3 convolution of stride 2 beside a max pool of stride 2.

    Section 5 and figure 10, right, of the paper, for d×d of k channels to d/2×d/2 of 2k: (d/2)²k²
    operations, and no bottleneck. `fused_inception.GridReduction` runs the two as one operator.

    Args:
        in_channels: channels of the input, `C`, and of the pool.
        out_channels: channels of the output, `K`, more than `in_channels`; the rest are filters.
        conv_block: makes the unit; called as `BasicConv2d` is.

    Raises:
        ValueError: `out_channels` leaves no filter.
    """

    def __init__(
        self, in_channels: int, out_channels: int, conv_block: ConvBlock = BasicConv2d
    ) -> None:
        super().__init__()
        if out_channels <= in_channels:
            raise ValueError(
                f"out_channels takes more than the {in_channels} of the pool, got {out_channels}"
            )
        self.conv = conv_block(in_channels, out_channels - in_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, K, (H - 1) // 2, (W - 1) // 2)`."""
        return torch.cat([self.conv(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)
