"""The grid reduction from 17×17 to 8×8, every convolution with its BatchNorm folded in.

Figure 10 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 5, with the factors of section 3.2 in one branch: three branches on one input, concatenated
in this order:

    direct   1×1 → 3×3, stride 2
    pair     1×1 → 1×n → n×1 → 3×3, stride 2
    pool     max pool 3×3, stride 2

The two one-dimensional convolutions run as one op. The pool reads another tensor than the stride-2
convolutions, so it is PyTorch's own. ReLU stands behind every convolution.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_inception.blocks.common import ConvWeights, conv, conv_pair
from fused_inception.ops.common.autocast import autocast


class InceptionDWeights(NamedTuple):
    """The six convolutions of the block, each named by its branch and its place or filter.

    Attributes:
        direct_reduce: 1×1.
        direct_last: 3×3, stride 2.
        pair_reduce: 1×1.
        pair_row: 1×n.
        pair_col: n×1.
        pair_last: 3×3, stride 2.
    """

    direct_reduce: ConvWeights
    direct_last: ConvWeights
    pair_reduce: ConvWeights
    pair_row: ConvWeights
    pair_col: ConvWeights
    pair_last: ConvWeights


def inception_d(input: Tensor, weights: InceptionDWeights, *, backend: str = "auto") -> Tensor:
    """Runs the grid reduction from 17×17 to 8×8 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        direct = conv(conv(input, weights.direct_reduce), weights.direct_last, stride=2)
        pair = conv(input, weights.pair_reduce)
        pair = conv(conv(pair, pair_row, padding="same"), pair_col, padding="same")
        pair = conv(pair, weights.pair_last, stride=2)
        pool = F.max_pool2d(input, 3, 2)
        torch.cat([direct, pair, pool], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: the folded convolutions, all in the dtype of `input` unless under autocast.
        backend: as in `factorized_conv2d`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last, K the sum of the filters of
        `direct_last` and `pair_last`.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the ops. Under autocast the output has the
        autocast dtype, also where the pool alone would make it that of a float32 input.
    """
    # The pool and the cat would otherwise widen the output to the dtype of the input.
    input = cast("Tensor", autocast(input)[0])
    input = input.contiguous(memory_format=torch.channels_last)

    direct = conv(input, weights.direct_reduce, backend)
    direct = conv(direct, weights.direct_last, backend, stride=2)

    pair = conv(input, weights.pair_reduce, backend)
    pair = conv_pair(pair, weights.pair_row, weights.pair_col, backend)
    pair = conv(pair, weights.pair_last, backend, stride=2)

    pool = F.max_pool2d(input, kernel_size=3, stride=2)

    return torch.cat([direct, pair, pool], 1)
