"""The first layers of Inception V3 as one op, and the networks whose forward runs it.

What `fuse` does with blocks and units is `test_fuse.py`'s; the Triton kernels run in
`interpreter/test_blocks.py`. Left out: real widths, which the networks have.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fused_inception
from bench.peers import fold
from fused_inception import fuse, report, stem, testing
from fused_inception.blocks import FUSED_BLOCKS, BlockWeights, ConvWeights, inception_stem
from fused_inception.blocks.inception_stem import PLAN
from fused_inception.blocks.plan import ImagesAtATime
from fused_inception.cli.compare import _cpu_peak
from fused_inception.models import inception_v3
from fused_inception.models.torchvision_import import import_torchvision
from fused_inception.ops.pool2d import aten as pools
from tests.test_fuse import randomize

# Filters, input channels, rows and columns.
SHAPES = {
    "conv1": (4, 3, 3, 3),
    "conv2": (3, 4, 3, 3),
    "conv3": (5, 3, 3, 3),
    "conv4": (2, 5, 1, 1),
    "conv5": (6, 2, 3, 3),
}
SMALLEST = 27
LAYERS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1",
    "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2",
)  # fmt: skip


def make_convs(dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def conv(shape):
        fan_in = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        shift = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        return ConvWeights(
            testing.channels_last(weight.to(dtype)), shift.to(dtype) if bias else None
        )

    return {role: conv(shape) for role, shape in SHAPES.items()}


def images(batch=2, height=29, width=33, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def fused(x, convs, **options):
    return inception_stem(x, PLAN.pack(convs), **options)


def unfused(x, convs):
    def conv(x, role, **options):
        return F.relu(F.conv2d(x, *convs[role], **options))

    x = conv(conv(x, "conv1", stride=2), "conv2")
    x = F.max_pool2d(conv(x, "conv3", padding="same"), 3, 2)
    return F.max_pool2d(conv(conv(x, "conv4"), "conv5"), 3, 2)


# The op


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", [(SMALLEST, SMALLEST), (29, 33), (75, 46)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_agrees_with_pytorch(batch, size, bias):
    x, convs = images(batch, *size), make_convs(bias=bias)
    before = x.clone()
    got, want = fused(x, convs), unfused(x, convs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    testing.assert_channels_last(got)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_is_at_most_twice_that_of_pytorch(dtype):
    x, convs = images(dtype=dtype), make_convs(dtype)
    wide = {role: ConvWeights(w.weight.double(), w.bias.double()) for role, w in convs.items()}
    oracle = unfused(x.double(), wide)
    testing.assert_within_budget(fused(x, convs), unfused(x, convs), oracle)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_takes_any_strides(layout):
    x, convs = images(4), make_convs()
    given = {
        "contiguous": x,
        "channels_last": testing.channels_last(x),
        "sliced": torch.cat([x, x], 3)[..., :33],
        "expanded": x[:1].expand(4, -1, -1, -1),
    }[layout]
    torch.testing.assert_close(fused(given, convs), unfused(given, convs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_a_time", [1, 2, 4, 5, 99])
def test_goes_through_a_few_images_at_a_time(at_a_time, monkeypatch):
    x, convs = images(5), make_convs()
    seen = []
    monkeypatch.setattr(PLAN, "images_at_a_time", ImagesAtATime(cpu=at_a_time, gpu=3))
    pool = pools.halving_max_pool2d_
    monkeypatch.setattr(
        pools, "halving_max_pool2d_", lambda x, out: (seen.append(x.shape[0]), pool(x, out))
    )
    got = fused(x, convs)
    monkeypatch.undo()
    torch.testing.assert_close(got, unfused(x, convs), rtol=1e-12, atol=1e-12)
    parts = [min(at_a_time, 5 - first) for first in range(0, 5, at_a_time)]
    assert seen == [size for size in parts for _ in range(2)]


def test_nan_stays_where_it_is_and_does_not_spread_over_images():
    x, convs = images(3), make_convs()
    x[1, 0, 5, 5] = float("nan")
    got, want = fused(x, convs), unfused(x, convs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert got[1].isnan().any()
    assert not got[[0, 2]].isnan().any()


def test_autocast_gives_its_dtype():
    x, convs = images(dtype=torch.float32), make_convs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = fused(x, convs)
    assert got.dtype == torch.bfloat16
    want = unfused(x, convs)
    assert (got.float() - want).abs().max() <= 8 * 2**-7 * want.abs().max()


def test_gradients_are_those_of_pytorch():
    grads = []
    for forward in (fused, unfused):
        x, convs = images().requires_grad_(), make_convs()
        leaves = [t.requires_grad_() for w in convs.values() for t in w]
        forward(x, convs).sin().sum().backward()
        grads.append([leaf.grad for leaf in (x, *leaves)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("height", "where"), [(2, "input"), (5, "conv1"), (12, "conv4"), (26, "conv5")]
)
def test_too_small_a_map_is_refused_by_its_name(height, where):
    with pytest.raises(ValueError, match=rf"inception_stem: ({where}) must have H and W of at "):
        fused(images(height=height), make_convs())


def test_wrong_arguments_are_refused():
    x, convs = images(), make_convs()
    weights, biases = PLAN.pack(convs)
    with pytest.raises(ValueError, match="inception_stem: conv1 must be 3x3, got 5x5"):
        inception_stem(x, BlockWeights((F.pad(weights[0], [1] * 4), *weights[1:]), biases))
    wide = torch.cat([weights[2], weights[2][:, :1]], 1)
    with pytest.raises(ValueError, match="inception_stem: conv3 must take 3 channels"):
        inception_stem(x, BlockWeights((*weights[:2], wide, *weights[3:]), biases))
    with pytest.raises(TypeError, match="inception_stem: conv1 must"):
        inception_stem(x.float(), PLAN.pack(convs))
    with pytest.raises(ValueError, match=r"backend .*'fastest'"):
        fused(x, convs, backend="fastest")
    with pytest.raises(RuntimeError, match=r"inception_stem: .*'triton' cannot run here"):
        fused(x, convs, backend="triton")
    with pytest.raises(ValueError, match="conv2 must take the 4 channels of conv1, got 3"):
        PLAN.pack({**convs, "conv2": convs["conv3"]})


def arguments(batch=2, device="cpu"):
    weights, biases = PLAN.pack(make_convs(torch.float32))
    on_device = [[t.to(device) for t in part] for part in (weights, biases)]
    return (images(batch, dtype=torch.float32).to(device), *on_device, "auto")


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_opcheck(batch):
    torch.library.opcheck(torch.ops.fused_inception.inception_stem.default, arguments(batch))


def test_meta_tensors_of_any_size():
    x, *others = arguments(batch=1, device="meta")
    huge = torch.ops.fused_inception.inception_stem.default(x.expand(2**31, -1, -1, -1), *others)
    assert huge.shape == (2**31, 6, *unfused(images(1), make_convs()).shape[2:])
    testing.assert_channels_last(huge)


def test_a_dynamic_batch_compiles_once():
    torch._dynamo.reset()
    operator = torch.ops.fused_inception.inception_stem.default
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(operator, fullgraph=True, backend=counter)
    for batch in (2, 5, 3):
        x, *others = arguments(batch)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x, *others), operator(x, *others))
    assert counter.frame_count == 1


# Networks


def make_reference(**options):
    return inception_v3(num_classes=10, init_weights=False, **options)


def make_torchvision(**options):
    torchvision = import_torchvision()
    return torchvision.models.inception.Inception3(num_classes=10, init_weights=False, **options)


@pytest.fixture(params=[make_reference, make_torchvision], ids=["reference", "torchvision"])
def make(request):
    return request.param


@pytest.fixture(scope="module", params=[make_reference, make_torchvision], ids=["ours", "theirs"])
def pair(request):
    """(unfused, fused); not to be changed."""
    model = randomize(request.param(transform_input=True)).eval().requires_grad_(False)
    return model, fuse(model)


@pytest.fixture
def calls(monkeypatch):
    """The batches that have gone through the op."""
    seen = []
    spec = FUSED_BLOCKS[stem.STEM]

    def forward(x, weights):
        seen.append(len(x))
        return spec.forward(x, weights)

    monkeypatch.setitem(FUSED_BLOCKS, stem.STEM, spec._replace(forward=forward))
    return seen


def photographs(batch=2, size=75):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def test_the_network_is_still_what_it_was(pair):
    model, fused = pair
    assert isinstance(fused, type(model))
    assert type(fused) is not type(model)
    assert stem.network_class(fused) is type(model) is stem.network_class(model)
    assert [*fused.state_dict()] == [*model.state_dict()]
    assert [name for name, _ in fused.named_children()] == [n for n, _ in model.named_children()]


def test_its_first_layers_run_as_one(pair, calls):
    model, fused = pair
    x = photographs()
    got, want = fused(x), model(x)
    assert calls == [2]
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_the_same_numbers_as_one_by_one(pair, calls):
    _, fused = pair
    x = photographs(1)
    whole = fused(x)
    seen = []
    hook = fused.Conv2d_2b_3x3.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    one_by_one = fused(x)
    hook.remove()
    assert calls == [1]
    assert seen == [(1, 64, 35, 35)]
    assert torch.equal(whole, one_by_one)


def test_report_names_it_once_and_counts_its_launches(pair):
    model, fused = pair
    found = report(fused)
    assert found.replaced[0] == ("", "inception_stem")
    assert [name for name, _ in found.replaced[1:8]] == list(LAYERS)
    assert dict(found.launches)[""] == (7, 7)
    assert not {*LAYERS} & {name for name, _ in found.launches}
    assert found.launches_per_forward == (61, 74)
    assert ("", "inception_stem") not in report(model).replaced


def test_a_network_inside_another_is_found(make, calls):
    outer = nn.Sequential(randomize(make()).eval().requires_grad_(False))
    fused = fuse(outer)
    assert ("0", "inception_stem") in report(fused).replaced
    fused(photographs())
    assert calls == [2]


def test_copies_and_pickles_do_the_same(pair, calls):
    _, fused = pair
    x = photographs(1)
    want = fused(x)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(other) is type(fused)
        assert torch.equal(other(x), want)
    assert calls == [1] * 3


def test_fusing_twice_changes_nothing(pair):
    _, fused = pair
    again = fuse(fused)
    assert type(again) is type(fused)
    assert report(again).replaced == report(fused).replaced


CHANGES = {
    "training": lambda m: m.maxpool1.train(),
    "batch norm in training": lambda m: m.Conv2d_2a_3x3.bn.train(),
    "hook on a layer": lambda m: m.maxpool2.register_forward_pre_hook(lambda m, args: None),
    "hook inside": lambda m: m.Conv2d_3b_1x1.conv.register_forward_hook(lambda m, a, o: None),
    "another stride": lambda m: setattr(m.Conv2d_1a_3x3.conv, "stride", (1, 1)),
    "another filter": lambda m: setattr(
        m.Conv2d_2b_3x3,
        "conv",
        nn.Conv2d(32, 64, 5, padding=1, bias=False).requires_grad_(False).eval(),
    ),
    "another layer": lambda m: setattr(m, "maxpool1", nn.MaxPool2d(3, 2)),
    "no pool": lambda m: setattr(m, "maxpool2", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_by_one_where_one_of_them_is_not_fused(change, make, calls):
    model = randomize(make()).eval().requires_grad_(False)
    fused = fuse(model)
    for network in (model, fused):
        torch.manual_seed(0)
        CHANGES[change](network)
    x = photographs(1, 99)
    got, want = fused(x), model(x)
    assert calls == []
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_the_original_runs_where_autograd_would_record(make, calls):
    model = randomize(make()).eval()
    fused = fuse(model)
    with pytest.warns(UserWarning, match="autograd would record"):
        got = fused(photographs(1))
    assert calls == []
    assert got.requires_grad
    with torch.no_grad():
        fused(photographs(1))
    assert calls == [1]


def test_gradients_reach_its_parameters_where_asked_for(make, calls):
    model = randomize(make()).eval().double()
    fused = fuse(model, differentiable=True)
    x = photographs(1).double()
    for network in (model, fused):
        network(x).sin().sum().backward()
    assert calls == [1]
    for name in ("Conv2d_1a_3x3.conv.weight", "Conv2d_2b_3x3.bn.weight", "Conv2d_4a_3x3.bn.bias"):
        got, want = fused.get_parameter(name).grad, model.get_parameter(name).grad
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


def test_follows_changes_of_its_weights(make, calls):
    model = randomize(make()).eval().requires_grad_(False)
    fused = fuse(model)
    x = photographs(1)
    fused(x)
    for network in (model, fused):
        network.Conv2d_1a_3x3.bn.running_mean.add_(1)
        network.Conv2d_4a_3x3.conv.weight.mul_(2)
    assert (fused(x) - model(x)).abs().max() <= 2e-5 * model(x).abs().max()
    model.double(), fused.double()
    got, want = fused(x.double()), model(x.double())
    assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    assert calls == [1] * 3


def test_layers_that_the_user_leaves_out_are_left_out(make, calls):
    model = randomize(make()).eval().requires_grad_(False)
    fused = fuse(model, filter_fn=lambda name, module: name != "Conv2d_2a_3x3")
    assert type(fused) is type(model)
    fused(photographs(1))
    assert calls == []


@pytest.mark.parametrize("image_size", [151, 79])
def test_other_first_layers_run_one_by_one(image_size, calls):
    model = make_reference(image_size=image_size, aux_logits=False).eval().requires_grad_(False)
    fused = fuse(model)
    assert type(fused) is type(model)
    fused(photographs(1, image_size // 2))
    assert calls == []


def test_a_forward_of_the_users_own_is_left_alone(make, calls):
    class Mine(type(make())):
        def forward(self, x):
            return self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)).mean()

    model = make().eval().requires_grad_(False)
    model.__class__ = Mine
    fused = fuse(model)
    assert type(fused) is Mine
    fused(photographs(1))
    model = make().eval().requires_grad_(False)
    model.forward = lambda x: x
    assert type(fuse(model)) is type(model)
    assert calls == []


def test_another_order_of_calls_in_torchvision_is_noticed(monkeypatch, calls):
    model = make_torchvision().eval().requires_grad_(False)

    def _forward(self, x):
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)) * 2
        x = self.maxpool1(self.Conv2d_2b_3x3(x))
        return self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))), None

    monkeypatch.setattr(type(model), "_forward", _forward)
    fused = fuse(model)
    assert type(fused) is type(model)
    fused(photographs(1))
    assert calls == []


def test_compiles_whole_and_exports(pair):
    _, fused = pair
    x = photographs()
    want = fused(x)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), want)
    exported = torch.export.export(fused, (x,))
    assert any("inception_stem" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), want)


def test_peak_memory_is_at_most_seven_tenths_of_the_folded_network():
    """On a CPU one of 8 images goes through the first layers at a time; on a GPU 32 of 256."""
    model = make_reference(aux_logits=False).eval().to(memory_format=torch.channels_last)
    fused = fuse(model)
    x = testing.channels_last(photographs(8, 299))
    peaks = []
    with torch.inference_mode():
        for network in (fold(model), fused):
            network(x)  # packs weights
            peaks.append(_cpu_peak(lambda n=network: n(x)))
    assert peaks[1] <= 0.7 * peaks[0]


def test_the_kind_is_in_the_table_of_blocks():
    assert FUSED_BLOCKS[stem.STEM].forward is inception_stem
    assert FUSED_BLOCKS[stem.STEM].roles == tuple(SHAPES)
    assert fused_inception.blocks.inception_stem is inception_stem
