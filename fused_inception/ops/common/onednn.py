"""A way around one fault of oneDNN, in one place for forward and backward.

Its bfloat16 convolutions return garbage, weight gradients included, where they stride along W to a
single output column (pytorch#169688, torch 2.11 to 2.13 on processors with AMX). With one column
the step between columns means nothing, so the convolution takes steps of 1 and all but the first of
the columns that this gives, at most `stride` of them, are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .geometry import conv_output_size


def strides_to_one_column(
    input: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]
) -> bool:
    """Whether a convolution is of the kind that oneDNN gets wrong."""
    return (
        stride[1] > 1
        and input.device.type == "cpu"
        and input.dtype == torch.bfloat16
        and conv_output_size(input.shape[3], weight.shape[3], stride[1], padding[1]) == 1
    )
