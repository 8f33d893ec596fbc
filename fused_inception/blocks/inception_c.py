"""The 17×17 Inception block, every convolution with its BatchNorm folded in.

Figure 6 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 3.2: four branches on one input, concatenated in this order:

    direct   1×1
    pair     1×1 → 1×n → n×1
    double   1×1 → n×1 → 1×n → n×1 → 1×n
    pool     average pool 3×3, stride 1 → 1×1

That is the order in which V3 has the double branch; the figure has it the other way round,
1×n → n×1 → 1×n → n×1, which runs here too. The four 1×1s on the input run as one product, the last
of them in front of the pool instead of behind it; the six one-dimensional convolutions run as three
pairs. ReLU stands behind every convolution.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, AveragePool, BlockWeights, Conv, Pair, Plan

PLAN = Plan(
    "inception_c",
    steps=(
        Conv(INPUT, ("direct", "pair_reduce", "double_reduce", "pool_project")),
        AveragePool("pool_project", "pool"),
        Pair("pair_reduce", "pair_row", "pair_col"),
        Pair("double_reduce", "double_col1", "double_row1"),
        Pair("double_row1", "double_col2", "double_row2"),
    ),
    parts=("direct", "pair_col", "double_row2", "pool"),
)
_op = BlockOp(PLAN)


def inception_c(
    input: Tensor,
    weights: BlockWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 17×17 Inception block on folded weights.

    Equivalent to, with `conv(x, w)` for `F.relu(F.conv2d(x, w.weight, w.bias, padding="same"))`:

        direct = conv(input, w["direct"])
        pair = conv(conv(conv(input, w["pair_reduce"]), w["pair_row"]), w["pair_col"])
        double = conv(conv(conv(input, w["double_reduce"]), w["double_col1"]), w["double_row1"])
        double = conv(conv(double, w["double_col2"]), w["double_row2"])
        pool = conv(F.avg_pool2d(input, 3, 1, 1, count_include_pad=...), w["pool_project"])
        torch.cat([direct, pair, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `*_row*` are 1×n and `*_col*` n×1, or in the double branch the other way
            round, with n odd, 1 to 31; the others are 1×1.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `factorized_conv2d`. Default "auto".

    Returns:
        `(N, K, H, W)` in channels_last, K the sum of the branches' filters.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        Precision and batch invariance are those of the ops. In 16-bit dtypes the branch of the pool
        is rounded behind its 1×1 and behind the pool, where the unfused one is rounded behind the
        pool and behind the 1×1. Differentiable; then it runs as single ops.
    """
    return _op(input, weights, backend, count_include_pad)
