"""`fuse` on the Inception networks of other packages, as people hold them, with random weights.

What `fuse` does to a block of any origin is in `test_fuse.py`; here it is whole networks, and what
is their own: BatchNorms that hold their ReLU, pools without padding, bytes as input, metrics.
Left out: trained weights (they would have to be downloaded) and `torch.jit.script`.
"""

import copy
import io
import pickle
import re
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fused_inception.cli.networks import random_hub_weights
from fused_inception.fuse import FusedBlock, fuse, refresh, report
from tests.adapter_cases import (
    CASES,
    floats,
    kinds,
    made,
    module,
    outputs,
    pixels,
    pytorch_fid,
    timm,
    torch_fidelity,
    torchmetrics,
)
from tests.test_fuse import fresh_compiler, fused_calls, randomize  # noqa: F401 - fixtures

TOLERANCE = 2e-5
every_case = pytest.mark.parametrize("name", CASES)
# One of each package, for what does not depend on the network.
PACKAGES = ("reference", "timm-v3", "timm-resnet-v2", "pytorch-fid", "torch-fidelity")
every_package = pytest.mark.parametrize("name", PACKAGES)


def assert_agree(got, want, tolerance=TOLERANCE):
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.isfinite().all()
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def small(name):
    """An input of two small images."""
    case = CASES[name]
    return case.images((32, 32) if case.resizes else (75, 75))


def running(name):
    """How many of the replaced modules run in a forward."""
    return sum(CASES[name].counts.values()) - CASES[name].idle


@every_case
@torch.no_grad()
def test_counts_keys_and_errors(name):
    case, model = CASES[name], made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model, strict=True)
    found = report(fused)
    assert kinds(found) == case.counts
    assert found.skipped == []
    assert list(fused.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
    assert type(fused) is type(model)
    assert not any(isinstance(inner, FusedBlock) for inner in model.modules())
    for size in case.sizes:
        input = case.images(size)
        kept = input.clone()
        assert_agree(outputs(name, fused, input), outputs(name, model, input))
        assert torch.equal(input, kept)


@pytest.mark.parametrize("name", ["timm-v3", "torch-fidelity"])
@torch.no_grad()
def test_in_place_filter_and_twice(name):
    model = copy.deepcopy(made(name))
    want = outputs(name, model, small(name))
    fused = fuse(model, inplace=True, filter_fn=lambda path, module: path != "Mixed_6b")
    assert fused is model
    found = report(fused)
    assert found.skipped == [("Mixed_6b", "excluded by filter_fn")]
    assert kinds(found) == CASES[name].counts | {"inception_c": 3}
    assert fuse(fused, inplace=True) is model
    assert kinds(report(model)) == CASES[name].counts
    assert_agree(outputs(name, model, small(name)), want)


CHANGES = {
    "load": lambda net: net.load_state_dict(
        {k: v * 0.5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    ),
    "in-place": lambda net: [p.mul_(0.75) for p in net.parameters()],
    "double": lambda net: net.to(torch.float64),
}


@pytest.mark.parametrize(
    ("name", "change"),
    # torch-fidelity casts its input to a dtype of its own: see the test of float64.
    [
        (name, change)
        for name in PACKAGES
        for change in ("load", "in-place", "double")
        if (name, change) != ("torch-fidelity", "double")
    ],
)
@torch.no_grad()
def test_folded_weights_follow(change, name, fused_calls):  # noqa: F811
    model = copy.deepcopy(made(name))
    fused = fuse(model)
    input = small(name)
    old = outputs(name, fused, input)
    for net in (model, fused):
        CHANGES[change](net)
    input = input.double() if change == "double" else input
    fused_calls.took()
    got, want = outputs(name, fused, input), outputs(name, model, input)
    assert fused_calls.took() == running(name)
    assert_agree(got, want, 1e-12 if change == "double" else TOLERANCE)
    if change != "double":
        assert not torch.allclose(got[-1], old[-1])


@every_package
def test_half_folds_anew(name):
    fused = fuse(made(name)).half()
    folded = [b for key, b in fused.named_buffers() if ".folded_" in key]
    assert folded
    assert all(buffer.dtype is torch.float16 for buffer in folded)


def test_a_metric_keeps_its_network_in_float32():
    # A metric converts its states only, and never on half().
    fused = fuse(made("torchmetrics-fid")).half()
    assert all(b.dtype is torch.float32 for k, b in fused.named_buffers() if ".folded_" in k)


def test_norms_with_their_relu_train_fused_with_frozen_statistics(fused_calls):  # noqa: F811
    """timm's BatchNormAct2d, in evaluation mode while the rest of the network trains."""
    model = copy.deepcopy(made("timm-v3")).double()
    fused = fuse(model, differentiable=True)
    input = small("timm-v3").double()
    for net in (model, fused):
        net.train()
        for norm in net.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.Dropout)):
                norm.eval()
        net(input).square().mean().backward()
    assert fused_calls.took() == running("timm-v3")
    for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * theirs.grad.abs().max()


@every_package
def test_training_and_gradients_run_the_original(name, fused_calls):  # noqa: F811
    model = copy.deepcopy(made(name)).requires_grad_()
    fused = fuse(model)
    input = small(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got, want = outputs(name, fused, input), outputs(name, model, input)
        outputs(name, fused, input)
    assert fused_calls.took() == 0
    assert sum("autograd would record" in str(warning.message) for warning in caught) == 1
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    path = CASES[name].inner
    for net, result in ((fused, got), (model, want)):
        (gradient,) = torch.autograd.grad(result[-1].sum(), net.get_submodule(path).weight)
        net.kept = gradient
    assert torch.equal(fused.kept, model.kept)
    with torch.no_grad():
        for net in (model, fused):
            net.train()
            torch.manual_seed(0)  # dropout
            net.kept = outputs(name, net, input)
    assert fused_calls.took() == 0
    assert all(torch.equal(a, b) for a, b in zip(fused.kept, model.kept, strict=True))


@every_package
@torch.no_grad()
def test_a_hook_inside_a_block_keeps_firing(name, fused_calls):  # noqa: F811
    model = made(name)
    fused = fuse(model)
    seen = []
    inner = fused.get_submodule(CASES[name].inner)
    handle = inner.register_forward_hook(lambda *args: seen.append(1))
    got = outputs(name, fused, small(name))
    assert len(seen) == 1
    assert fused_calls.took() == running(name) - 1
    assert_agree(got, outputs(name, model, small(name)))
    handle.remove()
    outputs(name, fused, small(name))
    assert fused_calls.took() == running(name)


@every_package
@torch.no_grad()
def test_a_parametrized_block_is_left_alone(name):
    model = copy.deepcopy(made(name))
    parametrizations.weight_norm(model.get_submodule(CASES[name].inner))
    fused = fuse(model)
    assert any("takes torch.nn.Conv2d" in reason for _, reason in report(fused).skipped)
    assert_agree(outputs(name, fused, small(name)), outputs(name, model, small(name)))
    with pytest.raises(RuntimeError, match="ParametrizedConv2d, takes"):
        fuse(model, strict=True)


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": through_torch_save,
}


@pytest.mark.parametrize("name", ["timm-v3", "pytorch-fid", "torchmetrics-fid"])
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@torch.no_grad()
def test_copies(make_copy, name, fused_calls):  # noqa: F811
    fused = fuse(made(name))
    copied = make_copy(fused)
    assert kinds(report(copied)) == CASES[name].counts
    input = small(name)
    want = outputs(name, fused, input)
    fused_calls.took()
    got = outputs(name, copied, input)
    assert fused_calls.took() == running(name)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["timm-v3", "timm-v4", "pytorch-fid"])
@torch.no_grad()
def test_compile_and_export(name, fresh_compiler):  # noqa: F811
    fused = fuse(made(name))
    input = small(name)
    want = outputs(name, fused, input)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert_agree(outputs(name, compiled, input), want)
    program = torch.export.export(fused, (input,), strict=False)
    result = program.module()(input)
    assert_agree([result] if isinstance(result, torch.Tensor) else list(result), want)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("fused_inception.inception_") for name in names) == sum(
        count for kind, count in CASES[name].counts.items() if kind.startswith("inception_")
    )


@every_package
def test_fuse_takes_two_seconds_and_one_copy_of_the_weights(name):
    model = made(name)
    # Of the process, so that what others do on the machine does not count.
    seconds = []
    for _ in range(3):
        start = time.process_time()
        fused = fuse(model)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2
    wrappers = [module for module in fused.modules() if isinstance(module, FusedBlock)]
    layers = [
        layer for wrapper in wrappers for layer in wrapper.modules() if isinstance(layer, nn.Conv2d)
    ]
    weights = sum(layer.weight.nbytes for layer in layers)
    # Each has a bias now; that of a 1×1 behind an average pool has zeros in its place as well.
    biases = sum(layer.weight.shape[0] * 4 for layer in layers)
    linear = sum(
        wrapper.weight.nbytes + wrapper.bias.nbytes
        for wrapper in wrappers
        if wrapper._match.kind == "linear"
    )
    folded = sum(b.nbytes for key, b in fused.named_buffers() if ".folded_" in key)
    assert weights + linear < folded <= weights + linear + 2 * biases
    own = sum(b.nbytes for b in model.buffers())
    assert sum(b.nbytes for b in fused.buffers()) == own + folded


# What is each package's own


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"act_layer": "silu"}, "BatchNormAct2d, takes torch.nn.BatchNorm2d, alone or with ReLU"),
        ({"norm_layer": "groupnorm1"}, "group_norm: not part of a known block"),
        ({"act_layer": "leaky_relu"}, "alone or with ReLU"),
    ],
    ids=["silu", "group-norm", "leaky-relu"],
)
@torch.no_grad()
def test_timm_with_other_layers_is_left_alone(options, reason):
    module("timm")
    try:
        model = timm("inception_v3", **options).eval()
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        pytest.skip(f"this timm cannot make it: {error!r}")
    fused = fuse(model)
    found = report(fused)
    assert set(kinds(found)) <= {"max_pool2d", "linear"}
    assert any(reason in text for _, text in found.skipped)
    x = small("timm-v3")
    assert torch.equal(fused(x), model(x))
    with pytest.raises(RuntimeError, match="not every block was understood"):
        fuse(model, strict=True)


class Silently(nn.BatchNorm2d):
    """A BatchNorm whose own forward is not only BatchNorm."""

    def forward(self, x):
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.last(x)

    def last(self, x):
        return nn.functional.relu(x) + 1


class OtherEps(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 0.5
        )


class Swapped(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.bias, self.weight, False, 0.1, self.eps
        )


class OfTheBatch(Silently):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps
        )


class Twice(Silently):
    def last(self, x):
        return nn.functional.relu(nn.functional.relu(x))


class Rectified(Silently):
    def last(self, x):
        return nn.functional.relu(x)


class Bare(Silently):
    def last(self, x):
        return x


@pytest.mark.parametrize("cls", [Silently, OtherEps, Swapped, OfTheBatch, Twice])
def test_a_batch_norm_that_does_more_is_left_alone(cls):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), cls(4)).eval()
    ((_, reason),) = report(fuse(model)).skipped
    assert re.search(r"takes torch.nn.BatchNorm2d, alone or with ReLU", reason)


@pytest.mark.parametrize("cls", [Rectified, Bare])
@torch.no_grad()
def test_a_batch_norm_with_a_forward_of_its_own_is_understood(cls):
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), cls(4))).eval()
    fused = fuse(model, strict=True)
    x = floats((9, 9))
    assert_agree([fused(x)], [model(x)], 2e-6)


@torch.no_grad()
def test_float64_stays_float64():
    # torch-fidelity 0.4 takes the name "float64" for float32, so it is set by hand.
    model = torch_fidelity("2048").double()
    model.feature_extractor_internal_dtype = torch.float64
    randomize(model)
    fused = fuse(model)
    seen = []
    for net in (model, fused):
        net.AvgPool.register_forward_hook(lambda module, args, output: seen.append(output))
        net(pixels((32, 32)))
    want, got = seen
    assert want.dtype is torch.float64
    assert_agree([got], [want], 1e-12)


@torch.no_grad()
def test_a_metric_in_float64():
    model = copy.deepcopy(made("torchmetrics-fid"))
    fused = fuse(model)
    for net in (model, fused):
        net.set_dtype(torch.float64)
    got, want = (net.inception(pixels((32, 32))) for net in (fused, model))
    assert got.dtype is torch.float64
    assert_agree([got], [want], 1e-12)


@torch.no_grad()
def test_a_metric_computes_the_same_distance():
    def distance(metric):
        metric.update(pixels((32, 32), 12), real=True)
        metric.update(255 - pixels((32, 32), 12), real=False)
        return metric.compute()

    model = randomize(torchmetrics("FrechetInceptionDistance", feature=64))
    want = distance(copy.deepcopy(model))
    got = distance(fuse(model))
    assert want > 0
    assert (got - want).abs() <= 1e-4 * want


def frechet(first, second):
    """The distance of two sets of features, (N, C) each, in float64."""
    (mean1, cov1), (mean2, cov2) = (
        (x.double().mean(0), x.double().T.cov()) for x in (first, second)
    )
    root = torch.linalg.eigvals(cov1 @ cov2).sqrt().real.sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root


@torch.no_grad()
def test_statistics_of_256_images():
    model = randomize(pytorch_fid(output_blocks=(0,), resize_input=False)).eval()
    fused = fuse(model)
    x = floats((24, 24), 256)
    third = floats((24, 24), 512)[256:] ** 2

    def features(net, x):
        return net(x)[0].mean((2, 3))

    want = frechet(features(model, x), features(model, third))
    got = frechet(features(fused, x), features(model, third))
    assert want > 0
    assert (got - want).abs() <= 1e-5 * want


@torch.no_grad()
def test_refresh_after_writes_through_data():
    model = copy.deepcopy(made("timm-v3"))
    fused = fuse(model)
    for net in (model, fused):
        for parameter in net.parameters():
            parameter.data.mul_(0.75)
    refresh(fused)
    assert_agree(outputs("timm-v3", fused, small("timm-v3")), [model(small("timm-v3"))])


# The page


PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
SNIPPETS = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)


def test_the_page_has_every_package():
    assert [title for title, _ in SNIPPETS] == [
        "torchvision",
        "timm",
        "pytorch-fid",
        "torch-fidelity",
        "torchmetrics",
        "The network of this package",
        "A network of your own",
    ]


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_the_page_runs(title, code):
    """As it stands, but for the weights, which are random instead of downloaded."""
    if title != "A network of your own":
        module("torchvision")
    for package in ("timm", "pytorch_fid", "torch_fidelity", "torchmetrics"):
        if f"{package}." in code or f"import {package}" in code:
            module(package)
    code = code.replace('weights="DEFAULT"', "weights=None").replace("pretrained=True", "")
    names = {}
    with random_hub_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, f"docs/adapters.md: {title}", "exec"), names)
    fused = [
        value for value in names.values() if isinstance(value, nn.Module) and report(value).replaced
    ]
    assert len(fused) == 1
    assert report(fused[0]).skipped == []


# On a GPU


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_features_are_bitwise_those_of_one_image_at_a_time():
    fused = fuse(made("torch-fidelity")).cuda()
    x = pixels((64, 64), 64).cuda()
    alone = torch.cat([fused(x[i : i + 1])[3] for i in range(64)])
    assert torch.equal(fused(x)[3], alone)
