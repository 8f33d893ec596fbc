"""A convolution with its BatchNorm folded in and its ReLU, where no known block is around it."""

from collections.abc import Sequence

from torch import Tensor

from fused_inception.blocks.plan import BlockWeights
from fused_inception.ops.conv2d_act.op import conv2d_act


def conv_unit(
    input: Tensor,
    weights: BlockWeights,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    activation: str = "relu",
    backend: str = "auto",
) -> Tensor:
    """Runs one convolution on folded weights: the op `conv2d_act` in the form of a block.

    Equivalent to, with `act` ReLU or nothing:

        act(F.conv2d(input, weight, bias, stride, padding))

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: the folded convolution alone, in the dtype of `input` unless under autocast.
        stride: pixels, one integer or (rows, columns). Default 1.
        padding: pixels on each side, one integer or (rows, columns). Default 0.
        activation: "relu" or "none". Default "relu".
        backend: as in `conv2d_act`. Default "auto".

    Returns:
        `(N, K, P, Q)` in channels_last.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the op.
    """
    (weight,), (bias,) = weights
    return conv2d_act(
        input, weight, bias, stride=stride, padding=padding, activation=activation, backend=backend
    )
