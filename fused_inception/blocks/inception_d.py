"""The grid reduction from 17×17 to 8×8, every convolution with its BatchNorm folded in.

Figure 10 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 5, with the factors of section 3.2 in one branch: three branches on one input, concatenated
in this order:

    direct   1×1 → 3×3, stride 2
    pair     1×1 → 1×n → n×1 → 3×3, stride 2
    pool     max pool 3×3, stride 2

The two 1×1s on the input run as one product, the two one-dimensional convolutions as one pair. The
pool reads another tensor than the stride-2 convolutions, and these read two: there is nothing to
share, but none waits for another, so all that halves the map is one launch, each part into its
slice of the output. ReLU stands behind every convolution.

Inception-ResNet-v2 has a fourth branch in the place of the pair's (`inception_d_double`; figure 18
of "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy et
al. 2016):

    direct   1×1 → 3×3, stride 2
    other    1×1 → 3×3, stride 2
    double   1×1 → 3×3 → 3×3, stride 2
    pool     max pool 3×3, stride 2
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, BlockWeights, Conv, HalvingBranches, Pair, Plan

PLAN = Plan(
    "inception_d",
    steps=(
        Conv(INPUT, ("direct_reduce", "pair_reduce")),
        Pair("pair_reduce", "pair_row", "pair_col"),
        HalvingBranches(("direct_reduce", "pair_col"), ("direct_last", "pair_last"), INPUT, "pool"),
    ),
    parts=("direct_last", "pair_last", "pool"),
)
PLAN_DOUBLE = Plan(
    "inception_d_double",
    steps=(
        Conv(INPUT, ("direct_reduce", "other_reduce", "double_reduce")),
        Conv("double_reduce", ("double_mid",)),
        HalvingBranches(
            ("direct_reduce", "other_reduce", "double_mid"),
            ("direct_last", "other_last", "double_last"),
            INPUT,
            "pool",
        ),
    ),
    parts=("direct_last", "other_last", "double_last", "pool"),
)
_op = BlockOp(PLAN)
_op_double = BlockOp(PLAN_DOUBLE)


def inception_d(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs the grid reduction from 17×17 to 8×8 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        direct = conv(conv(input, w["direct_reduce"]), w["direct_last"], stride=2)
        pair = conv(input, w["pair_reduce"])
        pair = conv(conv(pair, w["pair_row"], padding="same"), w["pair_col"], padding="same")
        pair = conv(pair, w["pair_last"], stride=2)
        pool = F.max_pool2d(input, 3, 2)
        torch.cat([direct, pair, pool], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `*_reduce` are 1×1, `*_last` 3×3, `pair_row` is 1×n and `pair_col` n×1
            with n odd, 1 to 31.
        backend: as in `factorized_conv2d`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last, K the sum of the filters of
        `direct_last` and `pair_last`.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        Precision and batch invariance are those of the ops. Differentiable; then it runs as single
        ops. Under autocast the output has the autocast dtype, also where the pool alone would make
        it that of a float32 input.
    """
    return _op(input, weights, backend)


def inception_d_double(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs the grid reduction from 17×17 to 8×8 of Inception-ResNet-v2 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        direct = conv(conv(input, w["direct_reduce"]), w["direct_last"], stride=2)
        other = conv(conv(input, w["other_reduce"]), w["other_last"], stride=2)
        double = conv(conv(input, w["double_reduce"]), w["double_mid"], padding="same")
        double = conv(double, w["double_last"], stride=2)
        pool = F.max_pool2d(input, 3, 2)
        torch.cat([direct, other, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: `PLAN_DOUBLE.pack(w)` of the folded convolutions `w`, as in `inception_d`;
            `double_mid` is R×S with R and S odd.
        backend: as in `conv2d_act`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last, K the sum of the filters of
        `direct_last`, `other_last` and `double_last`.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        As in `inception_d`.
    """
    return _op_double(input, weights, backend)
