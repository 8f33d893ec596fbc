"""The grid reduction from 35×35 to 17×17, every convolution with its BatchNorm folded in.

Figure 10 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 5: three branches on one input, concatenated in this order:

    direct   3×3, stride 2
    double   1×1 → 3×3 → 3×3, stride 2
    pool     max pool 3×3, stride 2

The direct convolution and the pool read the same windows of the same tensor and run as one, each
into its own slice of the output. ReLU stands behind every convolution.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, BlockWeights, Conv, Plan, Reduction

PLAN = Plan(
    "inception_b",
    steps=(
        Reduction(INPUT, "direct", "pool"),
        Conv(INPUT, ("double_reduce",)),
        Conv("double_reduce", ("double_mid",)),
        Conv("double_mid", ("double_last",), halves=True),
    ),
    parts=("direct", "double_last", "pool"),
)
_op = BlockOp(PLAN)


def inception_b(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs the grid reduction from 35×35 to 17×17 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        direct = conv(input, w["direct"], stride=2)
        double = conv(conv(input, w["double_reduce"]), w["double_mid"], padding=1)
        double = conv(double, w["double_last"], stride=2)
        pool = F.max_pool2d(input, 3, 2)
        torch.cat([direct, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `double_reduce` and `double_mid` have R×S with R and S odd, `direct` and
            `double_last` 3×3.
        backend: as in `grid_reduction`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last, K the sum of the filters of
        `direct` and `double_last`.

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
