"""The Inception modules of the paper that Inception V3, as torchvision has it, does not contain.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015, arXiv 1512.00567):
figure 4, the module that is factorized; figure 5, its 5×5 as two 3×3; figure 6, every n×n as 1×n
and n×1, for any n. Figure 7, the expanded one, is `InceptionE`, and the grid reductions of figure
10 are `InceptionB` and `InceptionD`. The paper's text gives no widths inside the modules; these
have those of V3's `InceptionA` and `InceptionC` in the same places, and the output of all modules
of one grid has the same channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_inception.models.inception_v3 import BasicConv2d, ConvBlock

__all__ = ["AsymmetricInception", "OriginalInception", "SymmetricInception"]


def check_factorizable(kernel_size: int) -> None:
    """Refuses a filter that is not n×n with n odd and at least 3."""
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size takes an odd number of at least 3, got {kernel_size}")


class OriginalInception(nn.Module):
    """The module before factorization: 1×1, 3×3, 5×5 and average pool side by side.

    Figure 4 of the paper (section 3.1). Output channels: 64 (1×1), 64 (3×3), 96 (5×5),
    `pool_features` (pool).

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

        self.branch3x3_1 = conv_block(in_channels, 48, kernel_size=1)
        self.branch3x3_2 = conv_block(48, 64, kernel_size=3, padding=1)

        self.branch5x5_1 = conv_block(in_channels, 64, kernel_size=1)
        self.branch5x5_2 = conv_block(64, 96, kernel_size=5, padding=2)

        self.branch_pool = conv_block(in_channels, pool_features, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 224 + pool_features, H, W)`."""
        single = self.branch1x1(x)
        square = self.branch3x3_2(self.branch3x3_1(x))
        wide = self.branch5x5_2(self.branch5x5_1(x))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, square, wide, pool], 1)


class SymmetricInception(nn.Module):
    """The module whose 5×5 is two 3×3: 1×1, 3×3, double 3×3 and average pool side by side.

    Figure 5 of the paper (section 3.1): `OriginalInception` with the 5×5 of 64 to 96 channels as
    two 3×3 of 64 to 96 and 96 to 96. `InceptionA` differs in one filter: it has a 5×5 in place of
    the single 3×3.

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

        self.branch3x3_1 = conv_block(in_channels, 48, kernel_size=1)
        self.branch3x3_2 = conv_block(48, 64, kernel_size=3, padding=1)

        self.branch3x3dbl_1 = conv_block(in_channels, 64, kernel_size=1)
        self.branch3x3dbl_2 = conv_block(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = conv_block(96, 96, kernel_size=3, padding=1)

        self.branch_pool = conv_block(in_channels, pool_features, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 224 + pool_features, H, W)`."""
        single = self.branch1x1(x)
        square = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, square, double, pool], 1)


class AsymmetricInception(nn.Module):
    """The module with every n×n factorized into 1×n and n×1, for any odd n.

    Figure 6 of the paper (section 3.2), which takes n = 7 on the 17×17 grid. The factors of the
    double branch stand in the figure's order, 1×n → n×1 → 1×n → n×1; V3's `InceptionC` is this
    module with n = 7 and that branch the other way round. Output channels: 192 from each of the
    branches 1×1, 1×n → n×1, the double one, and average pool.

    Args:
        in_channels: channels of the input, `C`.
        channels_mid: channels between the factors, `C_mid`.
        kernel_size: n, odd, at least 3.
        conv_block: makes the convolution units; called as `BasicConv2d` is.

    Raises:
        ValueError: `kernel_size` is not odd or below 3.
    """

    def __init__(
        self,
        in_channels: int,
        channels_mid: int,
        kernel_size: int = 7,
        conv_block: ConvBlock = BasicConv2d,
    ) -> None:
        super().__init__()
        check_factorizable(kernel_size)
        mid, half = channels_mid, kernel_size // 2
        row, col = (1, kernel_size), (kernel_size, 1)
        along, down = (0, half), (half, 0)
        self.branch1x1 = conv_block(in_channels, 192, kernel_size=1)

        self.branch_pair_1 = conv_block(in_channels, mid, kernel_size=1)
        self.branch_pair_2 = conv_block(mid, mid, kernel_size=row, padding=along)
        self.branch_pair_3 = conv_block(mid, 192, kernel_size=col, padding=down)

        self.branch_double_1 = conv_block(in_channels, mid, kernel_size=1)
        self.branch_double_2 = conv_block(mid, mid, kernel_size=row, padding=along)
        self.branch_double_3 = conv_block(mid, mid, kernel_size=col, padding=down)
        self.branch_double_4 = conv_block(mid, mid, kernel_size=row, padding=along)
        self.branch_double_5 = conv_block(mid, 192, kernel_size=col, padding=down)

        self.branch_pool = conv_block(in_channels, 192, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 768, H, W)`."""
        single = self.branch1x1(x)
        pair = self.branch_pair_3(self.branch_pair_2(self.branch_pair_1(x)))
        double = self.branch_double_3(self.branch_double_2(self.branch_double_1(x)))
        double = self.branch_double_5(self.branch_double_4(double))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([single, pair, double, pool], 1)
