"""Fused Inception blocks: functions of an input and of weights with BatchNorm folded in.

`FUSED_BLOCKS` is the table that `fuse` runs from. Its keys are the kinds that recognition finds; a
block's convolutions are named by the roles of its plan.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from fused_inception.blocks.conv_graph import GRAPH_OPS, Call, Value, conv_graph
from fused_inception.blocks.conv_sequence import conv_sequence
from fused_inception.blocks.conv_unit import conv_unit
from fused_inception.blocks.inception_a import PLAN as PLAN_A
from fused_inception.blocks.inception_a import inception_a
from fused_inception.blocks.inception_b import PLAN as PLAN_B
from fused_inception.blocks.inception_b import inception_b
from fused_inception.blocks.inception_c import PLAN as PLAN_C
from fused_inception.blocks.inception_c import inception_c
from fused_inception.blocks.inception_d import PLAN as PLAN_D
from fused_inception.blocks.inception_d import PLAN_DOUBLE as PLAN_D_DOUBLE
from fused_inception.blocks.inception_d import inception_d, inception_d_double
from fused_inception.blocks.inception_e import PLAN as PLAN_E
from fused_inception.blocks.inception_e import PLAN_MAX_POOL as PLAN_E_MAX_POOL
from fused_inception.blocks.inception_e import PLAN_PAIR as PLAN_E_PAIR
from fused_inception.blocks.inception_e import inception_e, inception_e_max_pool, inception_e_pair
from fused_inception.blocks.inception_stem import PLAN as PLAN_STEM
from fused_inception.blocks.inception_stem import inception_stem
from fused_inception.blocks.launch import launches
from fused_inception.blocks.layers import global_avg_pool, linear, max_pool
from fused_inception.blocks.plan import BlockWeights, ConvWeights, Plan
from fused_inception.blocks.reduction import PLAN as PLAN_REDUCTION
from fused_inception.blocks.reduction import PLAN_POOL_FIRST as PLAN_REDUCTION_POOL_FIRST
from fused_inception.blocks.reduction import reduction, reduction_pool_first

__all__ = [
    "FUSED_BLOCKS",
    "GRAPH_OPS",
    "BlockWeights",
    "Call",
    "ConvWeights",
    "FusedBlockSpec",
    "Value",
    "conv_graph",
    "conv_sequence",
    "conv_unit",
    "global_avg_pool",
    "inception_a",
    "inception_b",
    "inception_c",
    "inception_d",
    "inception_d_double",
    "inception_e",
    "inception_e_max_pool",
    "inception_e_pair",
    "inception_stem",
    "linear",
    "max_pool",
    "reduction",
    "reduction_pool_first",
]


class FusedBlockSpec(NamedTuple):
    """How a kind of block runs.

    Attributes:
        roles: its convolutions.
        weight_names, bias_names: of the tensors in its `BlockWeights`.
        pack: makes these from the convolutions of all roles.
        forward: called as `forward(input, weights, **options)`.
        launches: the fewest and the most kernels that a forward on a GPU launches.
        input_dims: of the tensors that it takes.
    """

    roles: tuple[str, ...]
    weight_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    pack: Callable[[Mapping[str, ConvWeights]], BlockWeights]
    forward: Callable[..., Tensor]
    launches: tuple[int, int]
    input_dims: int = 4


def _block(plan: Plan, forward: Callable[..., Tensor]) -> FusedBlockSpec:
    return FusedBlockSpec(
        plan.roles, plan.weight_names, plan.bias_names, plan.pack, forward, launches(plan)
    )


def _single(forward: Callable[..., Tensor], *roles: str, input_dims: int = 4) -> FusedBlockSpec:
    # One launch, on the weights as they are.
    def pack(convs: Mapping[str, ConvWeights]) -> BlockWeights:
        return BlockWeights(
            tuple(convs[role].weight for role in roles), tuple(convs[role].bias for role in roles)
        )

    return FusedBlockSpec(roles, roles, roles, pack, forward, (1, 1), input_dims)


def _pack_in_order(convs: Mapping[str, ConvWeights]) -> BlockWeights:
    return BlockWeights(
        tuple(conv.weight for conv in convs.values()), tuple(conv.bias for conv in convs.values())
    )


FUSED_BLOCKS: dict[str, FusedBlockSpec] = {
    "inception_a": _block(PLAN_A, inception_a),
    "inception_b": _block(PLAN_B, inception_b),
    "inception_c": _block(PLAN_C, inception_c),
    "inception_d": _block(PLAN_D, inception_d),
    "inception_d_double": _block(PLAN_D_DOUBLE, inception_d_double),
    "inception_e": _block(PLAN_E, inception_e),
    "inception_e_max_pool": _block(PLAN_E_MAX_POOL, inception_e_max_pool),
    "inception_e_pair": _block(PLAN_E_PAIR, inception_e_pair),
    "inception_stem": _block(PLAN_STEM, inception_stem),
    "reduction": _block(PLAN_REDUCTION, reduction),
    "reduction_pool_first": _block(PLAN_REDUCTION_POOL_FIRST, reduction_pool_first),
    "conv2d_act": _single(conv_unit, "conv"),
    # Its weights are as many as its convolutions, each named by its place.
    "conv_sequence": FusedBlockSpec((), (), (), _pack_in_order, conv_sequence, (2, 2)),
    "conv_graph": FusedBlockSpec((), (), (), _pack_in_order, conv_graph, (1, 2)),
    "max_pool2d": _single(max_pool),
    "global_avg_pool2d": _single(global_avg_pool),
    "linear": _single(linear, "linear", input_dims=2),
}
