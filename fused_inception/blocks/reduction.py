"""A grid reduction of two branches, the convolution with its BatchNorm folded in.

Figure 3 of "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"
(Szegedy et al. 2016): the stem of Inception-v4 halves its map twice, by two branches on one input:

    direct   3×3, stride 2
    pool     max pool 3×3, stride 2

Both read the same windows of the same tensor and run as one, each into its own slice of the output.
In the first of the two the pool stands in front (`reduction_pool_first`), in the last behind. ReLU
stands behind the convolution.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, BlockWeights, Plan, Reduction

PLAN = Plan("reduction", (Reduction(INPUT, "direct", "pool"),), parts=("direct", "pool"))
PLAN_POOL_FIRST = Plan("reduction_pool_first", PLAN.steps, parts=("pool", "direct"))
_op = BlockOp(PLAN)
_op_pool_first = BlockOp(PLAN_POOL_FIRST)


def reduction(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs a convolution and a max pool that halve one map on folded weights.

    Equivalent to, with `w` for the folded convolution:

        direct = F.relu(F.conv2d(input, w.weight, w.bias, stride=2))
        torch.cat([direct, F.max_pool2d(input, 3, 2)], 1)

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: `PLAN.pack({"direct": w})`, in the dtype of `input` unless under autocast; 3×3.
        backend: as in `grid_reduction`. Default "auto".

    Returns:
        `(N, K + C, (H - 1) // 2, (W - 1) // 2)` in channels_last.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        Precision and batch invariance are those of `grid_reduction`. Differentiable; then it runs
        as that op. Under autocast the output has the autocast dtype, also where the pool alone
        would make it that of a float32 input.
    """
    return _op(input, weights, backend)


def reduction_pool_first(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs a max pool and a convolution that halve one map on folded weights.

    Equivalent to: `reduction`, with `torch.cat([F.max_pool2d(input, 3, 2), direct], 1)`.

    Args:
        input: `(N, C, H, W)`, H and W at least 3, any strides; channels_last costs no copy.
        weights: `PLAN_POOL_FIRST.pack({"direct": w})`, as in `reduction`.
        backend: as in `grid_reduction`. Default "auto".

    Returns:
        `(N, C + K, (H - 1) // 2, (W - 1) // 2)` in channels_last.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        As in `reduction`.
    """
    return _op_pool_first(input, weights, backend)
