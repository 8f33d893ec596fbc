"""The reference networks, and what loads their weights.

Nothing here needs torchvision: `torchvision_import.import_torchvision` is for those who want it.
"""

from fused_inception.models.inception_v3 import (
    BasicConv2d,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionBlocks,
    InceptionC,
    InceptionD,
    InceptionE,
    InceptionOutputs,
    InceptionV3,
    inception_v3,
)
from fused_inception.models.weights import WeightsError, load_into, load_weights

__all__ = [
    "BasicConv2d",
    "InceptionA",
    "InceptionAux",
    "InceptionB",
    "InceptionBlocks",
    "InceptionC",
    "InceptionD",
    "InceptionE",
    "InceptionOutputs",
    "InceptionV3",
    "WeightsError",
    "inception_v3",
    "load_into",
    "load_weights",
]
