"""The 35×35 Inception block, every convolution with its BatchNorm folded in.

Figure 5 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 3.1, with the 5×5 of figure 4 in one branch: four branches on one input, concatenated in
this order:

    direct   1×1
    wide     1×1 → 5×5
    double   1×1 → 3×3 → 3×3
    pool     average pool 3×3, stride 1 → 1×1

The four 1×1s on the input run as one product, the last of them in front of the pool instead of
behind it. ReLU stands behind every convolution.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, AveragePool, BlockWeights, Conv, Plan

PLAN = Plan(
    "inception_a",
    steps=(
        Conv(INPUT, ("direct", "wide_reduce", "double_reduce", "pool_project")),
        AveragePool("pool_project", "pool"),
        Conv("wide_reduce", ("wide_last",)),
        Conv("double_reduce", ("double_mid",)),
        Conv("double_mid", ("double_last",)),
    ),
    parts=("direct", "wide_last", "double_last", "pool"),
)
_op = BlockOp(PLAN)


def inception_a(
    input: Tensor,
    weights: BlockWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 35×35 Inception block on folded weights.

    Equivalent to, with `conv(x, w)` for `F.relu(F.conv2d(x, w.weight, w.bias, padding="same"))`:

        direct = conv(input, w["direct"])
        wide = conv(conv(input, w["wide_reduce"]), w["wide_last"])
        double = conv(conv(conv(input, w["double_reduce"]), w["double_mid"]), w["double_last"])
        pool = F.avg_pool2d(input, 3, 1, 1, count_include_pad=count_include_pad)
        torch.cat([direct, wide, double, conv(pool, w["pool_project"])], 1)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `wide_last`, `double_mid` and `double_last` are R×S with R and S odd,
            the others 1×1.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `conv2d_act`. Default "auto".

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
