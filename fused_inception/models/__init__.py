"""The reference networks, what they are made of and trained with, and what loads their weights.

Nothing here needs torchvision: `torchvision_import.import_torchvision` is for those who want it.
"""

from fused_inception.models.factorizations import (
    AsymmetricFactors,
    ConvThenPool,
    LinearConv2d,
    ParallelReduction,
    PoolThenConv,
    SymmetricFactors,
    convolution_cost,
    two_layer_cost,
)
from fused_inception.models.inception_modules import (
    AsymmetricInception,
    OriginalInception,
    SymmetricInception,
)
from fused_inception.models.inception_v2 import InceptionV2, inception_v2
from fused_inception.models.inception_v3 import (
    BasicConv2d,
    InceptionA,
    InceptionAux,
    InceptionAuxDropout,
    InceptionB,
    InceptionBlocks,
    InceptionC,
    InceptionD,
    InceptionE,
    InceptionNetwork,
    InceptionOutputs,
    InceptionTwoAuxOutputs,
    InceptionV3,
    inception_v3,
)
from fused_inception.models.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from fused_inception.models.ladder import LADDER, InceptionLoss, Rung, ladder
from fused_inception.models.weights import WeightsError, load_into, load_weights

__all__ = [
    "LADDER",
    "AsymmetricFactors",
    "AsymmetricInception",
    "BasicConv2d",
    "ConvThenPool",
    "InceptionA",
    "InceptionAux",
    "InceptionAuxDropout",
    "InceptionB",
    "InceptionBlocks",
    "InceptionC",
    "InceptionD",
    "InceptionE",
    "InceptionLoss",
    "InceptionNetwork",
    "InceptionOutputs",
    "InceptionTwoAuxOutputs",
    "InceptionV2",
    "InceptionV3",
    "LabelSmoothingLoss",
    "LinearConv2d",
    "OriginalInception",
    "ParallelReduction",
    "PoolThenConv",
    "Rung",
    "SymmetricFactors",
    "SymmetricInception",
    "WeightsError",
    "convolution_cost",
    "inception_v2",
    "inception_v3",
    "label_smoothing_loss",
    "ladder",
    "load_into",
    "load_weights",
    "two_layer_cost",
]
