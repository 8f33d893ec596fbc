"""The 8×8 Inception block, every convolution with its BatchNorm folded in.

Figure 7 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015),
section 3.2: four branches on one input, concatenated in this order:

    direct   1×1
    split    1×1 → (1×n beside n×1)
    double   1×1 → 3×3 → (1×n beside n×1)
    pool     average pool 3×3, stride 1 → 1×1

The four 1×1s on the input run as one product, the last of them in front of the pool instead of
behind it; the one-dimensional convolutions that stand side by side run as one too. ReLU stands
behind every convolution.

Inception-v4 has a pair in the place of the 3×3 (`inception_e_pair`; figure 6 of "Inception-v4,
Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy et al. 2016).

The network of the Fréchet Inception Distance ends with a variant: a max pool instead of the average
pool. That is not linear, so it stays in front of its 1×1, which is then no sibling of the others.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import (
    INPUT,
    AveragePool,
    BlockWeights,
    Conv,
    MaxPool,
    Pair,
    Plan,
    Split,
)

PLAN = Plan(
    "inception_e",
    steps=(
        Conv(INPUT, ("direct", "split_reduce", "double_reduce", "pool_project")),
        AveragePool("pool_project", "pool"),
        Split("split_reduce", "split_row", "split_col", "split"),
        Conv("double_reduce", ("double_mid",)),
        Split("double_mid", "double_row", "double_col", "double"),
    ),
    parts=("direct", "split", "double", "pool"),
)
PLAN_MAX_POOL = Plan(
    "inception_e_max_pool",
    steps=(
        Conv(INPUT, ("direct", "split_reduce", "double_reduce")),
        MaxPool(INPUT, "pool", halves=False),
        Conv("pool", ("pool_project",)),
        *PLAN.steps[2:],
    ),
    parts=("direct", "split", "double", "pool_project"),
)
PLAN_PAIR = Plan(
    "inception_e_pair",
    steps=(
        *PLAN.steps[:3],
        Pair("double_reduce", "double_first", "double_second"),
        Split("double_second", "double_row", "double_col", "double"),
    ),
    parts=PLAN.parts,
)
_op = BlockOp(PLAN)
_op_max_pool = BlockOp(PLAN_MAX_POOL)
_op_pair = BlockOp(PLAN_PAIR)


def inception_e(
    input: Tensor,
    weights: BlockWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 8×8 Inception block on folded weights.

    Equivalent to, with `conv(x, w)` for `F.relu(F.conv2d(x, w.weight, w.bias, padding="same"))`:

        direct = conv(input, w["direct"])
        mid = conv(input, w["split_reduce"])
        split = torch.cat([conv(mid, w["split_row"]), conv(mid, w["split_col"])], 1)
        mid = conv(conv(input, w["double_reduce"]), w["double_mid"])
        double = torch.cat([conv(mid, w["double_row"]), conv(mid, w["double_col"])], 1)
        pool = conv(F.avg_pool2d(input, 3, 1, 1, count_include_pad=...), w["pool_project"])
        torch.cat([direct, split, double, pool], 1)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `*_row` are 1×n and `*_col` n×1 with n odd, 1 to 31, `double_mid` R×S
            with R and S odd, the others 1×1.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `split_conv2d`. Default "auto".

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


def inception_e_max_pool(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs the 8×8 Inception block with a max pool on folded weights.

    Equivalent to: `inception_e`, with `F.max_pool2d(input, 3, 1, 1)` for the average pool.

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: `PLAN_MAX_POOL.pack(w)` of the folded convolutions `w`, as in `inception_e`.
        backend: as in `split_conv2d`. Default "auto".

    Returns:
        `(N, K, H, W)` in channels_last, K the sum of the branches' filters.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        Precision and batch invariance are those of the ops. Differentiable; then it runs as single
        ops.
    """
    return _op_max_pool(input, weights, backend)


def inception_e_pair(
    input: Tensor,
    weights: BlockWeights,
    *,
    count_include_pad: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Runs the 8×8 Inception block of Inception-v4 on folded weights.

    Equivalent to: `inception_e`, with

        mid = conv(conv(conv(input, w["double_reduce"]), w["double_first"]), w["double_second"])

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: `PLAN_PAIR.pack(w)` of the folded convolutions `w`, as in `inception_e`;
            `double_first` and `double_second` are 1×n and m×1, or n×1 and 1×m.
        count_include_pad: whether the average pool divides by 9 at the border too. Default True.
        backend: as in `split_conv2d`. Default "auto".

    Returns:
        `(N, K, H, W)` in channels_last, K the sum of the branches' filters.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        As in `inception_e`.
    """
    return _op_pair(input, weights, backend, count_include_pad)
