"""The 8×8 Inception block, every convolution with its BatchNorm folded in.

Figure 7 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 3.2: four branches on one input, concatenated in this order:

    direct   1×1
    split    1×1 → (1×n beside n×1)
    double   1×1 → 3×3 → (1×n beside n×1)
    pool     average pool 3×3, stride 1 → 1×1

The convolutions that stand side by side read the same tensor and run as one op. ReLU stands behind
every convolution.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_inception.blocks.common import ConvWeights, conv, conv_split


class InceptionEWeights(NamedTuple):
    """The nine convolutions of the block, each named by its branch and its place or filter.

    Attributes:
        direct: 1×1.
        split_reduce: 1×1.
        split_row: 1×n.
        split_col: n×1, beside `split_row`.
        double_reduce: 1×1.
        double_mid: 3×3, padded.
        double_row: 1×n.
        double_col: n×1, beside `double_row`.
        pool_project: 1×1, behind the average pool.
    """

    direct: ConvWeights
    split_reduce: ConvWeights
    split_row: ConvWeights
    split_col: ConvWeights
    double_reduce: ConvWeights
    double_mid: ConvWeights
    double_row: ConvWeights
    double_col: ConvWeights
    pool_project: ConvWeights


def inception_e(
    input: Tensor,
    weights: InceptionEWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 8×8 Inception block on folded weights.

    Equivalent to, with `conv(x, w)` for `F.relu(F.conv2d(x, w.weight, w.bias, padding="same"))`:

        direct = conv(input, weights.direct)
        mid = conv(input, weights.split_reduce)
        split = torch.cat([conv(mid, split_row), conv(mid, split_col)], 1)
        mid = conv(conv(input, weights.double_reduce), weights.double_mid)
        double = torch.cat([conv(mid, double_row), conv(mid, double_col)], 1)
        pool = conv(F.avg_pool2d(input, 3, 1, 1, count_include_pad=...), pool_project)
        torch.cat([direct, split, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: the folded convolutions, all in the dtype of `input` unless under autocast.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `split_conv2d`. Default "auto".

    Returns:
        `(N, K, H, W)` in channels_last, K the sum of the branches' filters.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the ops.
    """
    direct = conv(input, weights.direct, backend)

    split = conv(input, weights.split_reduce, backend)
    split = conv_split(split, weights.split_row, weights.split_col, backend)

    double = conv(input, weights.double_reduce, backend)
    double = conv(double, weights.double_mid, backend, padding=1)
    double = conv_split(double, weights.double_row, weights.double_col, backend)

    pool = F.avg_pool2d(
        input, kernel_size=3, stride=1, padding=1, count_include_pad=count_include_pad
    )
    pool = conv(pool, weights.pool_project, backend)

    return torch.cat([direct, split, double, pool], 1)
