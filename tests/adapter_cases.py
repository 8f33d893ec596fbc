"""The networks that people run, with random weights: how they are made and called.

pytorch-fid and torch-fidelity read their weights from PyTorch's hub folder; here they find random
ones there. Every BatchNorm gets statistics and parameters that matter.
"""

import contextlib
import functools
import importlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fused_inception.cli.networks import random_hub_weights
from fused_inception.models import inception_v3
from fused_inception.models.torchvision_import import import_torchvision
from tests.test_fuse import randomize


def module(name):
    """Imports a module of another package, or skips the test."""
    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def floats(size, batch=2):
    """Images in [0, 1]."""
    return torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(1))


def pixels(size, batch=2):
    """Images as bytes, of which no two are alike."""
    return (floats(size, batch) * 256).to(torch.uint8)


def timm(name, **options):
    return module("timm").create_model(name, pretrained=False, **options)


def short_v4():
    """Inception-v4 with one block of each kind."""
    model = timm("inception_v4")
    model.features = nn.Sequential(*[model.features[i] for i in (*range(7), 10, 11, 18, 19)])
    return model


def short_resnet_v2():
    """Inception-ResNet-v2 with one residual block of each kind."""
    model = timm("inception_resnet_v2")
    for name in ("repeat", "repeat_1", "repeat_2"):
        setattr(model, name, getattr(model, name)[:1])
    return model


def torchvision():
    return module("torchvision.models").inception_v3(
        weights=None, init_weights=False, aux_logits=False
    )


def pytorch_fid(**options):
    inception = module("pytorch_fid.inception")
    with random_hub_weights():
        return inception.InceptionV3(**options)


def torch_fidelity(*features):
    extractor = module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with random_hub_weights():
        return extractor("inception-v3-compat", list(features))


def torchmetrics(name, **options):
    module("torch_fidelity")
    metric = getattr(module("torchmetrics.image"), name)
    with random_hub_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        return metric(**options)


class Factorized(nn.Module):
    """A residual block of pairs, as the one-dimensional networks for segmentation have it."""

    def __init__(self, channels, dilation=1):
        super().__init__()
        rows, columns = (dilation, 0), (0, dilation)
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.conv3 = nn.Conv2d(channels, channels, (3, 1), padding=rows, dilation=(dilation, 1))
        self.conv4 = nn.Conv2d(channels, channels, (1, 3), padding=columns, dilation=(1, dilation))
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, x):
        out = nn.functional.relu(self.conv1(x))
        out = nn.functional.relu(self.bn1(self.conv2(out)), inplace=True)
        out = nn.functional.relu(self.conv3(out))
        out = self.bn2(self.conv4(out))
        if self.dropout.p:
            out = self.dropout(out)
        out += x
        return nn.functional.relu(out)


class Downsampled(nn.Module):
    """A convolution beside a max pool, with BatchNorm behind both: nothing that can be fused."""

    def __init__(self, channels, filters):
        super().__init__()
        self.conv = nn.Conv2d(channels, filters - channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(filters)

    def forward(self, x):
        return nn.functional.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], 1)))


class Classifier(nn.Module):
    """An ordinary network of units, residual blocks of pairs, a sequence with a pair and a head."""

    def __init__(self):
        super().__init__()

        def unit(channels, filters, kernel, **options):
            conv = nn.Conv2d(channels, filters, kernel, bias=False, **options)
            return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))

        self.stem = unit(3, 8, 3, stride=2, padding=1)
        self.down = Downsampled(8, 16)
        self.layers = nn.ModuleList([Factorized(16), Factorized(16)])
        self.branch = nn.Sequential(
            unit(16, 12, (1, 7), padding=(0, 3)), unit(12, 20, (7, 1), padding=(3, 0))
        )
        self.expand = unit(20, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.down(self.stem(x))
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.expand(self.branch(x)).mean((2, 3)))


BLOCKS = {"inception_a": 3, "inception_b": 1, "inception_c": 4, "inception_d": 1}
STEM = {"conv2d_act": 5, "max_pool2d": 2}
HEAD = {"global_avg_pool2d": 1, "linear": 1}
V3 = {**BLOCKS, "inception_e": 2, **STEM}
FID = {**BLOCKS, "inception_e": 1, "inception_e_max_pool": 1}


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        make: builds it, in evaluation mode.
        counts: how many modules `fuse` replaces, by kind.
        images: makes its input from rows and columns, and a number of images.
        sizes: rows and columns to run it on.
        inner: a convolution inside one of its blocks.
        network: the part with the weights, of the module that people hold.
        resizes: whether it resizes to 299×299 itself.
        idle: replaced modules that its forward does not call.
        left: convolutions that are not understood.
        features: the part of its forward that on a GPU gives the same bits in any batch; None: all.
    """

    make: Callable[[], nn.Module]
    counts: dict[str, int]
    inner: str
    images: Callable[..., Tensor] = floats
    sizes: tuple[tuple[int, int], ...] = ((75, 75), (107, 91))
    network: Callable[[nn.Module], nn.Module] = lambda model: model
    resizes: bool = False
    idle: int = 0
    left: int = 0
    features: Callable[[nn.Module, Tensor], Tensor] | None = None


def metric(name, idle, **options):
    return Case(
        lambda: torchmetrics(name, **options),
        {**FID, **STEM, **HEAD},
        "inception.Mixed_6b.branch7x7_2.conv",
        pixels,
        ((32, 40), (310, 290)),
        lambda model: model.inception,
        resizes=True,
        idle=idle,
    )


V3_INNER = "Mixed_6b.branch7x7_2.conv"


def before_pool(model, input):
    """timm's features as maps. The pool behind them is PyTorch's own."""
    return model.forward_features(input)


CASES = {
    # Of both the first seven layers run as one.
    "reference": Case(
        lambda: inception_v3(aux_logits=False, init_weights=False),
        {**V3, **HEAD, "inception_stem": 1},
        V3_INNER,
        idle=7,
    ),
    "torchvision": Case(torchvision, {**V3, **HEAD, "inception_stem": 1}, V3_INNER, idle=7),
    # The pool in front of its linear layer is inside a module of timm's.
    "timm-v3": Case(
        lambda: timm("inception_v3"), {**V3, "linear": 1}, V3_INNER, features=before_pool
    ),
    "timm-v3-features": Case(
        lambda: timm("inception_v3", features_only=True), V3, "Mixed_6b.branch7x7_2.conv"
    ),
    "timm-v3-no-classes": Case(lambda: timm("inception_v3", num_classes=0), V3, V3_INNER),
    # In conv_sequence: the pair of Mixed4a.
    "timm-v4": Case(
        lambda: timm("inception_v4"),
        {
            "inception_a": 4,
            "inception_b": 1,
            "inception_c": 7,
            "inception_d": 1,
            "inception_e_pair": 3,
            "reduction": 1,
            "reduction_pool_first": 1,
            "conv_sequence": 1,
            "conv2d_act": 5,
        },
        "features.11.branch1.1.conv",
        sizes=((75, 75), (299, 299)),
        features=before_pool,
    ),
    # In conv_sequence: the pairs of 20 Block17 and 10 Block8. The convolutions in front of the
    # residual sums have neither BatchNorm nor ReLU and stay.
    "timm-resnet-v2": Case(
        lambda: timm("inception_resnet_v2"),
        {
            "inception_a": 1,
            "inception_b": 1,
            "inception_d_double": 1,
            "conv_sequence": 30,
            "conv2d_act": 96,
            "max_pool2d": 2,
            "linear": 1,
        },
        "repeat_1.0.branch1.1.conv",
        sizes=((75, 75), (299, 299)),
    ),
    # The same with less of the same, for what does not depend on how often.
    "timm-v4-short": Case(
        short_v4,
        {
            "inception_a": 1,
            "inception_b": 1,
            "inception_c": 1,
            "inception_d": 1,
            "inception_e_pair": 1,
            "reduction": 1,
            "reduction_pool_first": 1,
            "conv_sequence": 1,
            "conv2d_act": 5,
        },
        "features.8.branch1.1.conv",
        features=before_pool,
    ),
    "timm-resnet-v2-short": Case(
        short_resnet_v2,
        {
            "inception_a": 1,
            "inception_b": 1,
            "inception_d_double": 1,
            "conv_sequence": 3,
            "conv2d_act": 15,
            "max_pool2d": 2,
            "linear": 1,
        },
        "repeat_1.0.branch1.1.conv",
    ),
    # The max pools stand beside units, not beside blocks.
    "pytorch-fid": Case(
        lambda: pytorch_fid(output_blocks=(0, 1, 2, 3), resize_input=False),
        {**FID, "conv2d_act": 5, "global_avg_pool2d": 1},
        "blocks.2.4.branch7x7_2.conv",
    ),
    "pytorch-fid-resizing": Case(
        pytorch_fid,
        {**FID, "conv2d_act": 5, "global_avg_pool2d": 1},
        "blocks.2.4.branch7x7_2.conv",
        sizes=((32, 40), (310, 290)),
        resizes=True,
    ),
    "torch-fidelity": Case(
        lambda: torch_fidelity("64", "192", "768", "2048", "logits_unbiased", "logits"),
        {**FID, **STEM, **HEAD},
        V3_INNER,
        pixels,
        ((32, 40), (310, 290)),
        resizes=True,
        idle=1,
        features=lambda model, x: model(x)[3],  # the others are PyTorch's own means
    ),
    # Its linear layer is behind the features, or only its weight is read.
    "torchmetrics-fid": metric("FrechetInceptionDistance", 1),
    "torchmetrics-is": metric("InceptionScore", 1),
    "torchmetrics-kid": metric("KernelInceptionDistance", 1, subset_size=2),
    "user": Case(
        Classifier,
        {"conv_graph": 2, "conv_sequence": 1, "conv2d_act": 2},
        "layers.0.conv2",
        sizes=((64, 48), (33, 47)),
    ),
    # One that is nothing but a residual block of pairs, half of them dilated.
    "user-block": Case(
        lambda: nn.Sequential(Factorized(3, 2)),
        {"conv_graph": 1},
        "0.conv1",
        sizes=((16, 9), (1, 1)),
        left=2,
    ),
}


@functools.lru_cache(maxsize=4)
def made(name):
    """The network in evaluation mode; tests that change it take a copy."""
    return randomize(CASES[name].make()).eval()


def outputs(name, model, input):
    """All that a network returns for an input, as a list."""
    result = CASES[name].network(model)(input)
    return [result] if isinstance(result, Tensor) else list(result)


def kinds(found):
    """How many of each kind a report says are replaced."""
    return dict(Counter(kind for _, kind in found.replaced))


@contextlib.contextmanager
def quiet():
    """Without the warnings of the packages themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
