"""The 17×17 Inception block, every convolution with its BatchNorm folded in.

Figure 6 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 3.2: four branches on one input, concatenated in this order:

    direct   1×1
    pair     1×1 → 1×n → n×1
    double   1×1 → n×1 → 1×n → n×1 → 1×n
    pool     average pool 3×3, stride 1 → 1×1

That is the order in which V3 has the double branch; the figure has it the other way round,
1×n → n×1 → 1×n → n×1, which runs here too. The six one-dimensional convolutions run as three pairs,
each one op. ReLU stands behind every convolution.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_inception.blocks.common import ConvWeights, conv, conv_pair


class InceptionCWeights(NamedTuple):
    """The ten convolutions of the block, each named by its branch and its filter.

    Attributes:
        direct: 1×1.
        pair_reduce: 1×1.
        pair_row: 1×n.
        pair_col: n×1.
        double_reduce: 1×1.
        double_col1: n×1, the first of the double branch; 1×n in the figure's order.
        double_row1: 1×n; n×1 in the figure's order.
        double_col2: as `double_col1`.
        double_row2: as `double_row1`, the last of the double branch.
        pool_project: 1×1, behind the average pool.
    """

    direct: ConvWeights
    pair_reduce: ConvWeights
    pair_row: ConvWeights
    pair_col: ConvWeights
    double_reduce: ConvWeights
    double_col1: ConvWeights
    double_row1: ConvWeights
    double_col2: ConvWeights
    double_row2: ConvWeights
    pool_project: ConvWeights


def inception_c(
    input: Tensor,
    weights: InceptionCWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 17×17 Inception block on folded weights.

    Equivalent to, with `conv(x, w)` for `F.relu(F.conv2d(x, w.weight, w.bias, padding="same"))`:

        direct = conv(input, weights.direct)
        pair = conv(conv(conv(input, pair_reduce), pair_row), pair_col)
        double = conv(conv(conv(input, double_reduce), double_col1), double_row1)
        double = conv(conv(double, double_col2), double_row2)
        pool = conv(F.avg_pool2d(input, 3, 1, 1, count_include_pad=...), pool_project)
        torch.cat([direct, pair, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: the folded convolutions, all in the dtype of `input` unless under autocast.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `factorized_conv2d`. Default "auto".

    Returns:
        `(N, K, H, W)` in channels_last, K the sum of the branches' filters.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the ops.
    """
    direct = conv(input, weights.direct, backend)

    pair = conv(input, weights.pair_reduce, backend)
    pair = conv_pair(pair, weights.pair_row, weights.pair_col, backend)

    double = conv(input, weights.double_reduce, backend)
    double = conv_pair(double, weights.double_col1, weights.double_row1, backend)
    double = conv_pair(double, weights.double_col2, weights.double_row2, backend)

    pool = F.avg_pool2d(
        input, kernel_size=3, stride=1, padding=1, count_include_pad=count_include_pad
    )
    pool = conv(pool, weights.pool_project, backend)

    return torch.cat([direct, pair, double, pool], 1)
