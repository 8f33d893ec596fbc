"""Inception V2, the options that V2 and V3 share, and the ladder between them.

V3 with torchvision's options is in test_models.py. Left out: training to an accuracy.
"""

import copy
import math
import pickle
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fused_inception import models
from fused_inception.analysis import analyze
from fused_inception.fuse import fuse, report
from fused_inception.models import (
    LADDER,
    BasicConv2d,
    InceptionLoss,
    InceptionOutputs,
    InceptionTwoAuxOutputs,
    InceptionV2,
    InceptionV3,
    LabelSmoothingLoss,
    WeightsError,
    inception_v2,
    inception_v3,
    ladder,
)
from fused_inception.models.inception_v3 import blocks_with_aux

SMALL = {"num_classes": 7, "init_weights": False}
NETWORKS = {
    "v2": inception_v2,
    "v2, 7x7": partial(inception_v2, stem="7x7"),
    "v3": inception_v3,
}
IMAGE_SIZES = (299, 151, 79)


def enliven(model):
    """Sets weights and statistics that carry the input to the logits, unlike PyTorch's defaults."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.2, 0.2, generator=generator)
    return model


def images(batch, size, seed=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


# In front of the 35×35 grid: (name, in, out, filter, stride, padding), and None for a pool.
FACTORIZED = [
    ("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 32, 64, 3, 1, 1),
]
WHOLE = [("Conv2d_1a_7x7", 3, 64, 7, 2, 0)]
V2_REST = [
    None,
    ("Conv2d_3b_3x3", 64, 80, 3, 1, 0),
    ("Conv2d_4a_3x3", 80, 192, 3, 2, 0),
    ("Conv2d_4b_3x3", 192, 288, 3, 1, 1),
]
V3_REST = [None, ("Conv2d_3b_1x1", 64, 80, 1, 1, 0), ("Conv2d_4a_3x3", 80, 192, 3, 1, 0), None]
STEMS = {
    "v2": FACTORIZED + V2_REST,
    "v2, 7x7": WHOLE + V2_REST,
    "v3": FACTORIZED + V3_REST,
}


def expected_convolutions(name, image_size):
    """(in, out, rows, columns, grid) of every convolution: the paper's table 1, V3's widths."""
    grid, convolutions = image_size, []
    pools = 0
    for index, layer in enumerate(STEMS[name]):
        if layer is None:
            pools += 1
            if pools > 1 or image_size != 79:
                grid = (grid - 3) // 2 + 1
            continue
        _, c, k, n, stride, padding = layer
        if index == 0 and image_size != 299:
            stride = 1
            padding = 1 if n == 7 and image_size == 151 else padding
        grid = (grid + 2 * padding - n) // stride + 1
        convolutions.append((c, k, n, n, grid))

    five = 3 if name != "v3" else 5
    inputs, pool_features = (288, 288, 288), (64, 64, 64)
    if name == "v3":
        inputs, pool_features = (192, 256, 288), (32, 64, 64)
    for c, p in zip(inputs, pool_features, strict=True):
        convolutions += [(c, 64, 1, 1, grid), (c, 48, 1, 1, grid), (48, 64, five, five, grid)]
        convolutions += [(c, 64, 1, 1, grid), (64, 96, 3, 3, grid), (96, 96, 3, 3, grid)]
        convolutions += [(c, p, 1, 1, grid)]
    small = (grid - 3) // 2 + 1
    convolutions += [(288, 384, 3, 3, small), (288, 64, 1, 1, grid)]
    convolutions += [(64, 96, 3, 3, grid), (96, 96, 3, 3, small)]

    grid, small = small, (small - 3) // 2 + 1
    for m in (128, 160, 160, 192, 192)[: 5 if name != "v3" else 4]:
        convolutions += [(768, m, 1, 1, grid)] * 2 + [(768, 192, 1, 1, grid)] * 2
        # One pair and two, the last factor of each branch to 192 channels.
        convolutions += [(m, m, 1, 7, grid)] * 4 + [(m, 192, 7, 1, grid)] * 2
    convolutions += [(768, 192, 1, 1, grid)] * 2 + [(192, 192, 1, 7, grid), (192, 192, 7, 1, grid)]
    convolutions += [(192, 320, 3, 3, small), (192, 192, 3, 3, small)]

    for c in (1280, 2048):
        convolutions += [(c, k, 1, 1, small) for k in (320, 384, 448, 192)]
        convolutions += [(448, 384, 3, 3, small)] + [(384, 384, 1, 3, small)] * 4
    return convolutions


def on_meta(make, image_size=299, **options):
    with torch.device("meta"):
        return make(init_weights=False, image_size=image_size, **options)


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_macs_are_those_of_the_layers_written_down_by_hand(name, image_size):
    model = on_meta(NETWORKS[name], image_size, aux_logits=0).eval()
    found = analyze(model, torch.empty(2, 3, image_size, image_size, device="meta")).total
    layers = expected_convolutions(name, image_size)
    parameters = sum(c * k * r * s + 2 * k for c, k, r, s, _ in layers) + 2048 * 1000 + 1000
    macs = sum(c * k * r * s * grid * grid for c, k, r, s, grid in layers) + 2048 * 1000
    assert found.parameters == parameters
    assert found.macs == 2 * macs


def test_pytorch_counts_the_same_multiply_accumulates():
    model = on_meta(inception_v2, aux_logits=0).eval()
    x = torch.empty(1, 3, 299, 299, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() == analyze(model, x).total.flops


# Bias or BatchNorm of the 768 in the fully connected layer.
@pytest.mark.parametrize(
    ("aux_regularizer", "normalization"), [("batch_norm", 2), ("dropout", 1), ("none", 1)]
)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_the_heads(name, heads, aux_regularizer, normalization):
    counts = []
    for aux_logits in (0, heads):
        options = {} if aux_logits == 0 else {"aux_regularizer": aux_regularizer}
        model = on_meta(NETWORKS[name], aux_logits=aux_logits, **options)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    head = 768 * 128 + 2 * 128 + 128 * 768 * 25 + normalization * 768 + 768 * 1000 + 1000
    assert counts[1] - counts[0] == heads * head


def sizes_of_children(model, image_size):
    sizes = {}
    handles = [
        child.register_forward_hook(
            lambda module, args, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
        for name, child in model.named_children()
    ]
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    for handle in handles:
        handle.remove()
    return sizes


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_grids_are_those_of_table_1(name, image_size):
    """Of the 79-pixel network the first ones are a few pixels larger, where nothing is cut away."""
    sizes = sizes_of_children(on_meta(NETWORKS[name], image_size, aux_logits=0), image_size)
    early = {299: (149, 147, 147, 73), 151: (149, 147, 147, 73), 79: (77, 75, 75, 75)}[image_size]
    if name == "v2, 7x7" and image_size == 79:
        early = (None, None, 73, 73)
    after_pool = early[3]
    late = (after_pool - 5) // 2 + 1
    assert late == (36 if after_pool == 75 else 35)
    stem = {"Conv2d_1a_7x7": (64, early[2], early[2])}
    if name != "v2, 7x7":
        stem = {
            "Conv2d_1a_3x3": (32, early[0], early[0]),
            "Conv2d_2a_3x3": (32, early[1], early[1]),
            "Conv2d_2b_3x3": (64, early[2], early[2]),
        }
    stem["maxpool1"] = (64, after_pool, after_pool)
    if name == "v3":
        stem["Conv2d_3b_1x1"] = (80, after_pool, after_pool)
        stem["Conv2d_4a_3x3"] = (192, after_pool - 2, after_pool - 2)
        stem["maxpool2"] = (192, late, late)
    else:
        stem["Conv2d_3b_3x3"] = (80, after_pool - 2, after_pool - 2)
        stem["Conv2d_4a_3x3"] = (192, late, late)
        stem["Conv2d_4b_3x3"] = (288, late, late)
    mixed = {"Mixed_5b": (256 if name == "v3" else 288, late, late)}
    mixed |= {f"Mixed_5{letter}": (288, late, late) for letter in "cd"}
    mixed |= {f"Mixed_6{x}": (768, 17, 17) for x in ("abcde" if name == "v3" else "abcdef")}
    mixed |= {"Mixed_7a": (1280, 8, 8), "Mixed_7b": (2048, 8, 8), "Mixed_7c": (2048, 8, 8)}
    rest = {"avgpool": (2048, 1, 1), "dropout": (2048, 1, 1), "fc": (1000,)}
    assert sizes == {**stem, **mixed, **rest}
    assert list(sizes) == [*stem, *mixed, *rest]


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_other_sizes_cost_the_same(name):
    """Section 9: almost the same, the smallest slightly less."""
    costs = {}
    for size in IMAGE_SIZES:
        model = on_meta(NETWORKS[name], size, aux_logits=0).eval()
        costs[size] = analyze(model, torch.empty(1, 3, size, size, device="meta")).total.macs
    assert costs[151] == costs[299]
    assert 0.93 < costs[79] / costs[299] < 1


def test_the_networks_differ_where_they_say_so():
    two, three = (on_meta(make, aux_logits=1) for make in (inception_v2, inception_v3))
    kinds = {
        name: {child: type(part).__name__ for child, part in model.named_children()}
        for name, model in (("two", two), ("three", three))
    }
    assert {kinds["two"][f"Mixed_5{x}"] for x in "bcd"} == {"SymmetricInception"}
    assert {kinds["two"][f"Mixed_6{x}"] for x in "bcdef"} == {"AsymmetricInception"}
    assert {kinds["two"][f"Mixed_7{x}"] for x in "bc"} == {"InceptionE"}
    same = ("Mixed_6a", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AuxLogits", "fc")
    assert all(kinds["two"][name] == kinds["three"][name] for name in same)


# The smallest images, without and with an auxiliary head in training.
SMALLEST = {
    ("v2", 299): (75, 299),
    ("v2", 151): (39, 151),
    ("v2", 79): (21, 77),
    ("v2, 7x7", 299): (75, 299),
    ("v2, 7x7", 151): (39, 151),
    ("v2, 7x7", 79): (23, 79),
    ("v3", 299): (75, 299),
    ("v3", 151): (39, 151),
    ("v3", 79): (21, 77),
}


@pytest.mark.parametrize(("name", "image_size"), SMALLEST)
def test_the_smallest_images_are_taken_and_smaller_ones_refused(name, image_size):
    """The messages' sizes are right: without the check, one pixel less would fail inside."""
    plain, with_head = SMALLEST[name, image_size]
    with torch.device("meta"):
        model = NETWORKS[name](**SMALL, image_size=image_size, aux_logits=2)
        for mode, smallest in ((False, plain), (True, with_head)):
            model.train(mode)
            output = model(torch.empty(2, 3, smallest, smallest))
            assert all(logits.shape == (2, 7) for logits in (output if mode else [output]))
            small = torch.empty(2, 3, smallest, smallest - 1)
            message = f"at least {smallest}x{smallest} pixels.*got {smallest}x{smallest - 1}"
            with pytest.raises(ValueError, match=message):
                model(small)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(models.InceptionNetwork, "_min_image_size", lambda self, grid: 1)
                with pytest.raises(RuntimeError, match="size"):
                    model(small)


def narrow_conv(in_channels, out_channels, **options):
    # A sixteenth of every width, which leaves all of them whole; images keep their channels.
    narrowed = in_channels if in_channels == 3 else in_channels // 16
    return BasicConv2d(narrowed, out_channels // 16, **options)


def narrow(name, image_size, heads, aux_regularizer):
    """The network with a sixteenth of its channels, in float64."""
    torch.manual_seed(0)  # of the biases
    network = InceptionV3 if name == "v3" else InceptionV2
    options = {"stem": "7x7"} if name == "v2, 7x7" else {}
    blocks = replace(network.default_blocks(), basic_conv=narrow_conv)
    model = network(
        **SMALL,
        aux_logits=heads,
        image_size=image_size,
        blocks=blocks_with_aux(blocks, aux_regularizer, heads),
        **options,
    )
    model.fc = nn.Linear(128, 7)
    for head in (model.AuxLogits, model.LowerAuxLogits):
        if head is not None:
            head.fc = nn.Linear(48, 7)
            if aux_regularizer != "batch_norm":
                head.conv1 = nn.Conv2d(8, 48, 5)
    return enliven(model).double()


# Heads do not know what is in front: all of them on the smallest images, the other sizes with two.
@pytest.mark.parametrize(
    ("image_size", "heads", "aux_regularizer"),
    [
        (79, 0, "batch_norm"),
        *product((79,), (1, 2), ("batch_norm", "dropout", "none")),
        (151, 2, "batch_norm"),
        (299, 0, "batch_norm"),
        (299, 2, "batch_norm"),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_training_is_that_of_finite_differences(
    name, image_size, heads, aux_regularizer
):
    """Along a direction drawn for all parameters; every one of them has a gradient."""
    model = narrow(name, image_size, heads, aux_regularizer)
    criterion = InceptionLoss(LabelSmoothingLoss())
    x, labels = images(2, image_size).double(), torch.tensor([1, 5])

    def output():
        torch.manual_seed(0)  # the same dropout
        return model(x)

    logits = output()
    assert type(logits) is [torch.Tensor, InceptionOutputs, InceptionTwoAuxOutputs][heads]
    for part in [logits] if heads == 0 else logits:
        assert part.shape == (2, 7)
    criterion(logits, labels).backward()
    expected, directions = 0.0, []
    generator = torch.Generator().manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        directions.append(direction / direction.numel() ** 0.5)
        expected += (directions[-1] * parameter.grad).sum().item()

    # Further apart, the two would lie on other sides of some ReLU.
    step, losses = 1e-10, []
    with torch.no_grad():
        for by in (step, -2 * step):
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.add_(direction, alpha=by)
            losses.append(criterion(output(), labels).item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=2e-3)
    model.eval()
    with torch.no_grad():
        assert type(model(x)) is torch.Tensor


def test_each_head_is_on_its_own_module():
    """The gradient of a head's logits reaches the modules below it and no others."""
    model = enliven(inception_v2(**SMALL, aux_logits=2, image_size=79))
    output = model(images(2, 77))
    for logits, last in ((output.lower_aux_logits, "Mixed_6b"), (output.aux_logits, "Mixed_6f")):
        model.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        reached = [
            name
            for name, child in model.named_children()
            if name.startswith("Mixed")
            and all(p.grad is not None and p.grad.any() for p in child.parameters())
        ]
        assert reached[-1] == last
        assert reached[0] == "Mixed_5b"


@pytest.mark.parametrize("aux_regularizer", ["batch_norm", "dropout", "none"])
def test_what_regularizes_a_head_is_the_option(aux_regularizer):
    model = on_meta(inception_v3, aux_regularizer=aux_regularizer)
    head = model.AuxLogits
    assert isinstance(head.conv0, BasicConv2d)  # normalized in every case
    if aux_regularizer == "batch_norm":
        assert isinstance(head.conv1, BasicConv2d)
    else:
        assert isinstance(head.conv1, nn.Conv2d)
        assert head.conv1.bias is not None
        assert head.dropout.p == (0.7 if aux_regularizer == "dropout" else 0.0)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_heads_are_drawn_smaller(make):
    torch.manual_seed(0)
    model = make(num_classes=50, aux_logits=2, aux_regularizer="none")
    for head in (model.AuxLogits, model.LowerAuxLogits):
        assert head.conv1.weight.std().item() == pytest.approx(0.01, rel=0.01)
        assert head.fc.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert model.Mixed_6b.branch1x1.conv.weight.std().item() == pytest.approx(0.1, rel=0.02)


def assert_close(fused, model, x, tolerance):
    with torch.no_grad():
        expected, actual = model(x), fused(x)
    assert not torch.equal(actual, expected)  # or the same code would have run twice
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_fused_networks_agree_to_rounding(name, image_size):
    model = narrow(name, image_size, 2, "batch_norm").eval()
    fused = fuse(model)
    found = dict(report(fused).replaced)
    assert not report(fused).skipped
    blocks = {"Mixed_6a": "inception_b", "Mixed_7a": "inception_d"}
    blocks |= {f"Mixed_6{x}": "inception_c" for x in ("bcde" if name == "v3" else "bcdef")}
    blocks |= {f"Mixed_7{x}": "inception_e" for x in "bc"}
    if name == "v3":
        blocks |= {f"Mixed_5{x}": "inception_a" for x in "bcd"}
    whole = {"": "inception_stem"} if (name, image_size) == ("v3", 299) else {}
    layers = {
        path: "max_pool2d"
        for path, module in model.named_children()
        if isinstance(module, nn.MaxPool2d)
    }
    layers |= {"avgpool": "global_avg_pool2d", "fc": "linear"}
    assert {
        key: kind for key, kind in found.items() if kind != "conv2d_act"
    } == whole | blocks | layers
    inside = tuple(f"{block}." for block in blocks)
    units = {
        path
        for path, module in model.named_modules()
        if isinstance(module, BasicConv2d) and not path.startswith(inside)
    }
    assert found.keys() - whole.keys() - blocks.keys() - layers.keys() == units
    assert_close(fused, model, images(2, SMALLEST[name, image_size][0] + 4).double(), 1e-12)
    assert fused.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_of_fused_networks_in_float32(name):
    torch.manual_seed(0)
    model = enliven(NETWORKS[name](**SMALL)).eval()
    assert_close(fuse(model), model, images(2, 79), 2e-5)


def test_weights_go_out_and_in(tmp_path):
    torch.manual_seed(0)
    model = enliven(inception_v2(**SMALL, aux_logits=2)).eval()
    path = tmp_path / "v2.pth"
    torch.save(model.state_dict(), path)
    x = images(1, 75)
    for heads in (0, 1, 2):
        # Heads that the network does not have are dropped.
        twin = inception_v2(num_classes=7, aux_logits=heads, weights=path).eval()
        with torch.no_grad():
            assert torch.equal(twin(x), model(x))
    one = inception_v2(num_classes=7, aux_logits=1, weights=path)
    with pytest.raises(WeightsError, match="no auxiliary head in these weights: take aux_logits"):
        inception_v2(num_classes=7, weights=inception_v2(**SMALL, aux_logits=0).state_dict())
    with pytest.raises(WeightsError, match=r"does not fit InceptionV2.*LowerAuxLogits"):
        inception_v2(num_classes=7, aux_logits=2, weights=one.state_dict())
    with pytest.raises(WeightsError, match="does not fit InceptionV2"):
        inception_v2(num_classes=7, weights=inception_v3(**SMALL).state_dict())


def test_copies_pickles_traces_and_compiles():
    """With two heads; what does not depend on them is compiled and exported in test_models.py."""
    model = narrow("v2", 79, 2, "batch_norm").eval()
    x = images(2, 21).double()
    with torch.no_grad():
        expected = model(x)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
        ):
            torch.testing.assert_close(twin(x), expected)
    torch.compiler.reset()
    training = torch.compile(copy.deepcopy(model).train(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert isinstance(training(images(2, 77).double()), InceptionTwoAuxOutputs)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (inception_v3, {"aux_logits": 3}, r"aux_logits takes False or 0, .* or 2 .*got 3"),
        (inception_v2, {"aux_logits": "two"}, r"aux_logits takes False or 0, .*got 'two'"),
        (inception_v3, {"image_size": 300}, r"image_size takes 299, 151 or 79, got 300"),
        (inception_v2, {"image_size": "79"}, r"image_size takes 299, 151 or 79, got '79'"),
        (
            inception_v3,
            {"aux_regularizer": "bn"},
            r"aux_regularizer takes 'batch_norm', 'dropout' or 'none', got 'bn'",
        ),
        (
            inception_v2,
            {"aux_logits": False, "aux_regularizer": "dropout"},
            r"aux_regularizer='dropout' needs an auxiliary head: aux_logits takes 1 or 2 .*False",
        ),
        (inception_v2, {"stem": "5x5"}, r"stem takes '3x3' or '7x7', got '5x5'"),
        (inception_v2, {"num_classes": 0}, "num_classes takes at least 1, got 0"),
        (ladder, {"image_size": 80}, r"image_size takes 299, 151 or 79, got 80"),
    ],
)
def test_wrong_options_are_refused_with_what_is_possible(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"init_weights": False, **options})


# ---------------------------------------------------------------------------------- widths


# A quarter, the narrowest, and one that is wider than the paper's.
@pytest.mark.parametrize("width", [0.25, 0.0625, 1.5])
@pytest.mark.parametrize("aux_regularizer", ["batch_norm", "dropout"])
@pytest.mark.parametrize("name", NETWORKS)
def test_width_multiplies_the_channels_of_every_layer(name, aux_regularizer, width):
    options = {"aux_logits": 2, "aux_regularizer": aux_regularizer}
    whole = on_meta(NETWORKS[name], 79, **options).state_dict()
    model = on_meta(NETWORKS[name], 79, width=width, **options)
    found = model.state_dict()
    assert found.keys() == whole.keys()
    kept = {(1000,), (3,)}  # classes, and the channels of the images
    for entry, value in found.items():
        shape = tuple(whole[entry].shape)
        expected = tuple(
            size if (size,) in kept or axis > 1 else int(size * width)
            for axis, size in enumerate(shape)
        )
        assert tuple(value.shape) == expected, entry
    outputs = model(torch.empty(2, 3, 79, 79, device="meta"))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 1000)] * 3


def test_narrow_networks_fuse_and_agree():
    model = enliven(inception_v3(width=0.25, aux_logits=False, image_size=79, **SMALL))
    fused = fuse(model.double().eval())
    wide = fuse(on_meta(inception_v3, 79, aux_logits=False).eval())
    assert report(fused).replaced == report(wide).replaced
    x = images(2, 39).double()
    with torch.no_grad():
        expected, actual = model(x), fused(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("width", [0.0, -0.25, 0.3, 0.03125, math.inf, math.nan])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match=r"width takes a multiple of 1/16 above 0, .*got"):
        inception_v3(width=width, init_weights=False)


# ------------------------------------------------------------------------------- the ladder


def rung(*options, **arguments):
    with torch.device("meta"):
        return ladder(*options, **{"init_weights": False, **arguments})


@pytest.mark.parametrize("mask", range(16))
def test_every_choice_of_options_changes_what_it_says_and_nothing_else(mask):
    options = [option for bit, option in enumerate(LADDER) if mask >> bit & 1]
    found = rung(*reversed(options))
    assert found.options == tuple(options)
    model = found.model
    assert isinstance(model, models.InceptionV2)
    assert hasattr(model, "Conv2d_2b_3x3") == ("factorized_7x7" in options)
    assert hasattr(model, "Conv2d_1a_7x7") == ("factorized_7x7" not in options)
    head = models.InceptionAux if "bn_auxiliary" in options else models.InceptionAuxDropout
    assert isinstance(model.AuxLogits, head)
    assert found.loss.criterion.smoothing == (0.1 if "label_smoothing" in options else 0.0)
    optimizer = found.optimizer()
    assert isinstance(optimizer, torch.optim.RMSprop if "rmsprop" in options else torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.045
    assert len(group["params"]) == len(list(model.parameters()))
    if "rmsprop" in options:
        assert (group["alpha"], group["eps"], group["momentum"]) == (0.9, 1.0, 0)
    else:
        assert group["momentum"] == 0.9
    assert found.clip_norm == 2.0


def test_all_options_make_the_network_of_table_1():
    found, expected = rung(*LADDER).model, on_meta(inception_v2)
    assert str(found) == str(expected)
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_the_learning_rate_falls_every_second_epoch():
    found = rung(*LADDER)
    optimizer = found.optimizer()
    scheduler = found.scheduler(optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94, 0.045 * 0.94**2])


@pytest.mark.parametrize("options", [(), LADDER], ids=["first", "last"])
def test_a_step_of_training_lowers_the_loss(options):
    torch.manual_seed(0)
    found = ladder(*options, num_classes=5, image_size=79, dropout=0.0)
    enliven(found.model)
    optimizer = found.optimizer()
    optimizer.param_groups[0]["lr"] = 1e-3
    x, labels = images(2, 79), torch.tensor([0, 3])
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = found.loss(found.model(x), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(found.model.parameters(), found.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_the_loss_adds_each_head_by_its_weight():
    generator = torch.Generator().manual_seed(0)
    logits, upper, lower = torch.randn(3, 4, 7, generator=generator)
    labels = torch.tensor([0, 1, 2, 3])
    loss = InceptionLoss(nn.CrossEntropyLoss(), aux_weight=0.3)

    def alone(part):
        return F.cross_entropy(part, labels)

    torch.testing.assert_close(loss(logits, labels), alone(logits))
    torch.testing.assert_close(
        loss(InceptionOutputs(logits, upper), labels), alone(logits) + 0.3 * alone(upper)
    )
    torch.testing.assert_close(
        loss(InceptionTwoAuxOutputs(logits, upper, lower), labels),
        alone(logits) + 0.3 * alone(upper) + 0.3 * alone(lower),
    )
    torch.testing.assert_close(loss(InceptionOutputs(logits, None), labels), alone(logits))
    assert InceptionLoss(nn.CrossEntropyLoss()).aux_weight == 0.3


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_gradcheck_of_the_loss(heads):
    """Of the logits and of each head's; that of the criterion is in test_label_smoothing.py."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1 + heads, 3, 5, generator=generator, dtype=torch.float64)
    criterion = InceptionLoss(LabelSmoothingLoss(), aux_weight=0.3)
    outputs = [lambda x: x, InceptionOutputs, InceptionTwoAuxOutputs][heads]

    def loss(*parts):
        return criterion(outputs(*parts), torch.tensor([0, 4, 2]))

    parts = tuple(part.clone().requires_grad_() for part in logits)
    assert torch.autograd.gradcheck(loss, parts)
    assert torch.autograd.gradgradcheck(loss, parts)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            ["rmsporp"],
            {},
            r"takes the options 'rmsprop', 'label_smoothing', 'factorized_7x7' or "
            r"'bn_auxiliary', got 'rmsporp'",
        ),
        (["rmsprop", "rmsprop"], {}, r"takes each option once, got 'rmsprop' more than once"),
        (
            ["bn_auxiliary"],
            {"aux_logits": 0},
            r"'bn_auxiliary' needs an auxiliary head: aux_logits takes 1 or 2 with it, got 0",
        ),
    ],
)
def test_impossible_rungs_are_refused_with_what_is_possible(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        rung(*options, **arguments)


def test_a_rung_without_heads_is_possible():
    assert rung("rmsprop", aux_logits=0).model.AuxLogits is None
