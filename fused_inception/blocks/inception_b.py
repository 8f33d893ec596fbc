"""The grid reduction from 35×35 to 17×17, every convolution with its BatchNorm folded in.

Figure 10 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 5: three branches on one input, concatenated in this order:

    direct   3×3, stride 2
    double   1×1 → 3×3 → 3×3, stride 2
    pool     max pool 3×3, stride 2

The direct convolution and the pool read the same windows of the same tensor and run as one op. Its
two halves are not neighbours in the output, so they are copied there. ReLU stands behind every
convolution.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_inception.blocks.common import ConvWeights, conv
from fused_inception.ops.grid_reduction.op import grid_reduction


class InceptionBWeights(NamedTuple):
    """The four convolutions of the block, each named by its branch and its place in it.

    Attributes:
        direct: 3×3, stride 2.
        double_reduce: 1×1.
        double_mid: 3×3, padded.
        double_last: 3×3, stride 2.
    """

    direct: ConvWeights
    double_reduce: ConvWeights
    double_mid: ConvWeights
    double_last: ConvWeights


def inception_b(input: Tensor, weights: InceptionBWeights, *, backend: str = "auto") -> Tensor:
    """Runs the grid reduction from 35×35 to 17×17 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        direct = conv(input, weights.direct, stride=2)
        double = conv(conv(input, weights.double_reduce), weights.double_mid, padding=1)
        double = conv(double, weights.double_last, stride=2)
        pool = F.max_pool2d(input, 3, 2)
        torch.cat([direct, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: the folded convolutions, all in the dtype of `input` unless under autocast.
        backend: as in `grid_reduction`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last, K the sum of the filters of
        `direct` and `double_last`.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the ops. Under autocast the output has the
        autocast dtype, also where the pool alone would make it that of a float32 input.
    """
    reduced = grid_reduction(input, weights.direct.weight, weights.direct.bias, backend=backend)
    filters = weights.direct.weight.shape[0]

    double = conv(input, weights.double_reduce, backend)
    double = conv(double, weights.double_mid, backend, padding=1)
    double = conv(double, weights.double_last, backend, stride=2)

    return torch.cat([reduced[:, :filters], double, reduced[:, filters:]], 1)
