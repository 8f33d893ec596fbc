"""Convolutions one behind the other, with BatchNorm folded in, where no known block is around them.

A pair of neighbours 1×n and m×1, or n×1 and 1×m, is one `factorized_conv2d`, every other
convolution a `conv2d_act`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fused_inception.blocks.plan import BlockWeights
from fused_inception.ops.conv2d_act.op import conv2d_act
from fused_inception.ops.factorized_conv2d.op import factorized_conv2d
from fused_inception.ops.pool2d.op import max_pool2d


def conv_sequence(
    input: Tensor,
    weights: BlockWeights,
    *,
    steps: Sequence[tuple[str, Mapping[str, Any]]],
    backend: str = "auto",
) -> Tensor:
    """Runs convolutions and max pools in order on folded weights.

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy.
        weights: the folded convolutions in order, in the dtype of `input` unless under autocast.
        steps: in order, the op and its options: "conv2d_act", which takes one weight,
            "factorized_conv2d", which takes two, and "max_pool2d" with a `kernel`.
        backend: as in the ops. Default "auto".

    Returns:
        `(N, K, P, Q)` in channels_last.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.

    Note:
        Precision and batch invariance are those of the ops.
    """
    x = input
    place = 0
    for op, options in steps:
        if op == "max_pool2d":
            x = max_pool2d(x, **options, backend=backend)
            continue
        weight, bias = weights.weights[place], weights.biases[place]
        place += 1
        if op == "conv2d_act":
            x = conv2d_act(x, weight, bias, **options, backend=backend)
        else:
            second = weights.weights[place], weights.biases[place]
            place += 1
            x = factorized_conv2d(x, weight, bias, *second, **options, backend=backend)
    return x
