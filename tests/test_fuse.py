"""`fuse`, `report` and `refresh`, and the recognition of blocks behind them.

Most tests run on small blocks with random weights and statistics; the whole networks come last.
What does not depend on the kind of block is tested on the 17×17 block alone.
Left out: DataParallel's own scatter and gather (they need two GPUs; what it does to a module is
done by hand here), quantized modules (they are other types, of which several are tested), and what
the ops compute (their own files).
"""

import copy
import functools
import io
import pickle
import re
import sys
import threading
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, prune

from fused_inception import blocks
from fused_inception.folding import fold_batch_norm
from fused_inception.fuse import FusedBlock, FusionReport, fuse, refresh, report
from fused_inception.models import (
    BasicConv2d,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    inception_v3,
)
from fused_inception.models.torchvision_import import import_torchvision
from fused_inception.ops.common.dispatch import batch_invariance_refusal
from fused_inception.recognize import (
    NotRecognizedError,
    find_blocks,
    find_graphs,
    find_sequences,
    find_units,
    recognize,
)

CHANNELS = 8
MID = 4
# Each kind, and how to make one.
KINDS = {
    "inception_a": lambda: InceptionA(CHANNELS, 6),
    "inception_b": lambda: InceptionB(CHANNELS),
    "inception_c": lambda: InceptionC(CHANNELS, MID),
    "inception_d": lambda: InceptionD(CHANNELS),
    "inception_e": lambda: InceptionE(CHANNELS),
    "inception_e_max_pool": lambda: PooledByMaximum(CHANNELS),
    # Defined below.
    "inception_e_pair": lambda: Paired(),  # noqa: PLW0108
    "reduction": lambda: Halved(),  # noqa: PLW0108
    "reduction_pool_first": lambda: HalvedPoolFirst(),  # noqa: PLW0108
    "inception_d_double": lambda: DoubleReduction(),  # noqa: PLW0108
    "conv_graph": lambda: Residual(),  # noqa: PLW0108
    "conv2d_act": lambda: BasicConv2d(CHANNELS, 6, kernel_size=(3, 5), stride=2, padding=(1, 2)),
    "conv_sequence": lambda: nn.Sequential(
        BasicConv2d(CHANNELS, 5, kernel_size=1),
        BasicConv2d(5, 4, kernel_size=(1, 7), padding=(0, 3)),
        BasicConv2d(4, 6, kernel_size=(5, 1), padding=(2, 0)),
    ),
}
FILTERS = {
    "inception_a": 230,
    "inception_b": 480 + CHANNELS,
    "inception_c": 768,
    "inception_d": 512 + CHANNELS,
    "inception_e": 2048,
    "inception_e_max_pool": 2048,
    "inception_e_pair": 29,
    "reduction": 6 + CHANNELS,
    "reduction_pool_first": 6 + CHANNELS,
    "inception_d_double": 19 + CHANNELS,
    "conv2d_act": 6,
    "conv_sequence": 6,
    "conv_graph": CHANNELS,
}
# The op that most tells of a kind that has none of its own.
OPS = {"conv_sequence": "factorized_conv2d", "conv_graph": "factorized_conv2d"}
# The layers that stand beside blocks, which have tests of their own.
LAYERS = ("max_pool2d", "global_avg_pool2d", "linear")
every_kind = pytest.mark.parametrize("kind", KINDS)
UNITS = (
    "branch1x1",
    *(f"branch7x7_{i}" for i in (1, 2, 3)),
    *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
    "branch_pool",
)


def randomize(model, seed=0):
    """Weights that keep the signal's size, and statistics that make BatchNorm matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
    return model


def block(kind="inception_c"):
    return randomize(KINDS[kind]()).eval()


def network(seed=0, kind="inception_c"):
    """Two blocks in a row, around something else."""
    children = OrderedDict(
        first=KINDS[kind](),
        middle=nn.Conv2d(FILTERS[kind], CHANNELS, 1),
        second=KINDS[kind](),
    )
    if kind == "conv_sequence":
        children["last"] = nn.Flatten(2)  # or all of it were one
    return randomize(nn.Sequential(children), seed).eval()


def images(batch=2, height=9, width=7, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, CHANNELS, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(got, want, tolerance=2e-6):
    """Relative to the largest value; both finite, of one dtype."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert got.isfinite().all()
    if want.numel():
        assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning fails a test that does not expect one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# What fuse returns


def test_every_kind_is_tested():
    # The first layers have a file of their own: test_stem.py.
    assert {*KINDS, *LAYERS, "inception_stem"} == blocks.FUSED_BLOCKS.keys()


@every_kind
@torch.no_grad()
def test_float64_agrees_to_rounding(kind, fused_calls):
    model = network(kind=kind).double()
    assert_close(
        fuse(model)(images(dtype=torch.float64)), model(images(dtype=torch.float64)), 1e-14
    )
    assert fused_calls.took() == 2


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_error_is_at_most_twice_that_of_the_unfused_model(dtype, kind, fused_calls):
    model = network(kind=kind).to(dtype)
    x = images(dtype=dtype)
    oracle = copy.deepcopy(model).double()(x.double())
    fused = fuse(model)(x)
    assert fused_calls.took() == 2
    assert fused.dtype == dtype
    assert fused.isfinite().all()
    error = (fused.double() - oracle).abs().max()
    # In the fused one's layout: on a CPU, oneDNN's float32 sums over hundreds of channels have up
    # to three times the error in channels_last.
    model.to(memory_format=torch.channels_last)
    unfused = model(x.contiguous(memory_format=torch.channels_last))
    unfused_error = (unfused.double() - oracle).abs().max()
    assert error <= 2 * (unfused_error + torch.finfo(dtype).eps * oracle.abs().max())


# The reductions need one whole window.
REDUCTIONS = (
    "inception_b",
    "inception_d",
    "inception_d_double",
    "reduction",
    "reduction_pool_first",
)
SMALLEST = dict.fromkeys(REDUCTIONS, 3)
LAYOUTS = {
    "channels_last": lambda m: images().contiguous(memory_format=torch.channels_last),
    "sliced": lambda m: images(height=18, width=14)[:, :, ::2, 1::2],
    "expanded": lambda m: images(batch=1).expand(3, -1, -1, -1),
    "empty": lambda m: images(batch=0),
    "smallest": lambda m: images(batch=1, height=m, width=m),
    "flat": lambda m: images(batch=5, height=m + 1, width=17),
    "17x17": lambda m: images(height=17, width=17),
    "permuted": lambda m: images().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layouts_and_shapes(layout, kind, fused_calls):
    model = block(kind)
    x = LAYOUTS[layout](SMALLEST.get(kind, 1))
    before = x.clone()
    got = fuse(model)(x)
    assert fused_calls.took() == 1
    assert_close(got, model(x))
    assert torch.equal(x, before)
    assert got.numel() == 0 or got.is_contiguous(memory_format=torch.channels_last)


@every_kind
@torch.no_grad()
def test_special_values_come_out_where_they_do_unfused(kind):
    model = block(kind)
    x = images(height=17, width=17)
    x[0, 0, 0, 0], x[0, 1, 16, 16], x[1, 0, 8, 8] = float("nan"), float("inf"), -float("inf")
    got, want = fuse(model)(x), model(x)
    assert want.isnan().any()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("kind", REDUCTIONS)
@torch.no_grad()
def test_the_pool_of_a_reduction_is_bitwise_that_of_pytorch(kind):
    x = images(height=17, width=17)
    got = fuse(block(kind))(x)
    got = got[:, :CHANNELS] if kind == "reduction_pool_first" else got[:, -CHANNELS:]
    assert torch.equal(got, F.max_pool2d(x, 3, 2))


@every_kind
def test_keys_names_and_values_do_not_change(kind):
    model = network(kind=kind)
    fused = fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    for got, want in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want)
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]
    fused.load_state_dict(model.state_dict(), strict=True)
    network(kind=kind).load_state_dict(fused.state_dict(), strict=True)


def test_a_copy_is_fused_unless_in_place():
    model = network()
    before = [dict(vars(module)) for module in model.modules()]
    fused = fuse(model)
    assert type(model.first) is InceptionC
    assert [dict(vars(module)) for module in model.modules()] == before
    assert isinstance(fused.first, FusedBlock)
    assert fused.first.branch1x1.conv.weight is not model.first.branch1x1.conv.weight

    weight = model.first.branch1x1.conv.weight
    assert fuse(model, inplace=True) is model
    assert isinstance(model.first, FusedBlock)
    assert model.first.branch1x1.conv.weight is weight


@every_kind
@torch.no_grad()
def test_the_model_itself_may_be_a_block(kind, fused_calls):
    model = block(kind)
    fused = fuse(model)
    assert isinstance(fused, FusedBlock)
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1
    assert report(fused).replaced == [("", kind)]
    assert str(report(fused)).startswith(f"(the model itself)  fused as {kind}")
    in_place = fuse(model, inplace=True)
    assert list(in_place.children()) == list(model.children())


@torch.no_grad()
def test_a_shared_block_is_fused_once_and_stays_shared(fused_calls):
    one = block()
    model = nn.ModuleDict({"a": one, "b": nn.Sequential(one)})
    assert not report(fuse(model, filter_fn=lambda name, module: name == "a")).replaced
    fused = fuse(model)
    assert fused["a"] is fused["b"][0]
    assert report(fused).replaced == [("a", "inception_c"), ("b.0", "inception_c")]
    assert_close(fused["b"](images()), one(images()))
    assert fused_calls.took() == 1


@every_kind
def test_fusing_twice_does_nothing_more(kind):
    fused = fuse(network(kind=kind))
    first = fused.first
    again = fuse(fused, inplace=True)
    assert again.first is first
    assert report(again) == report(fused)
    assert isinstance(fuse(fused).first, FusedBlock)
    assert not isinstance(fuse(fused).first._original, FusedBlock)


def test_a_filter_excludes_by_name_and_module(fused_calls):
    seen = []

    def choose(name, module):
        seen.append((name, type(module)))
        return name != "second"

    model = fuse(network(), filter_fn=choose, strict=True)
    assert seen == [("first", InceptionC), ("second", InceptionC)]
    assert report(model) == FusionReport(
        [("first", "inception_c")], [("second", "excluded by filter_fn")]
    )
    # Known of copies too, and forgotten when the block is fused after all.
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert report(other) == report(model)
    assert len(report(fuse(model)).replaced) == 2
    model.second.branch1x1.conv.groups = 2
    assert report(fuse(model)).skipped == [
        ("second", "branch1x1.conv: groups 2, takes 1"),
        ("second.branch1x1", "conv: groups 2, takes 1"),
    ]


def test_strict_lists_what_was_not_understood_and_changes_nothing():
    model = network()
    model.first.branch7x7_2.conv.dilation = (2, 2)
    model.second.branch_pool.bn = nn.BatchNorm2d(192, track_running_stats=False)
    with pytest.raises(RuntimeError) as raised:
        fuse(model, inplace=True, strict=True)
    assert str(raised.value) == (
        "fuse(strict=True): not every block was understood\n"
        "  first: branch7x7_2.conv: dilation (2, 2), takes 1\n"
        "  second: branch_pool.bn: has no running statistics, takes track_running_stats=True\n"
        "  first.branch7x7_2: conv: dilation (2, 2), takes 1\n"
        "  second.branch_pool: bn: has no running statistics, takes track_running_stats=True"
    )
    assert type(model.first) is type(model.second) is InceptionC
    assert not any(isinstance(module, FusedBlock) for module in model.modules())
    # What the filter excludes need not be understood.
    fuse(model, inplace=True, strict=True, filter_fn=lambda name, module: False)


@pytest.mark.parametrize("function", [fuse, report, refresh])
def test_only_modules_are_taken(function):
    name = function.__name__
    with pytest.raises(TypeError, match=rf"{name}: model must be a torch.nn.Module, got dict"):
        function({})


def test_report_of_a_model_that_was_never_fused():
    model = network()
    model.second.branch1x1.conv.groups = 2
    assert report(model) == FusionReport(
        [],
        [
            ("first", "not fused yet: call fuse(model)"),
            ("second", "branch1x1.conv: groups 2, takes 1"),
            ("second.branch1x1", "conv: groups 2, takes 1"),
            *((f"second.{unit}", "not fused yet: call fuse(model)") for unit in UNITS[1:]),
        ],
    )
    assert report(nn.Linear(2, 2)) == FusionReport([], [])
    assert str(report(nn.Linear(2, 2))) == "0 fused, 0 skipped"


def test_report_prints_an_aligned_table():
    model = network()
    model.second = nn.Sequential(OrderedDict(conv=nn.Conv2d(8, 8, 1, groups=2), relu=nn.ReLU()))
    assert str(report(fuse(model))) == (
        "first   fused as inception_c, 5 to 8 launches\n"
        "second  skipped: conv: groups 2, takes 1\n"
        "1 fused, 1 skipped\n"
        "a forward, 5 to 8 launches on a GPU, beside what is not fused\n"
        "not batch-invariant:\n"
        "  first: runs on cpu through PyTorch's own kernels, as backend aten\n"
        "  middle and 1 more: is PyTorch's own kernel, which may choose its order of summation by "
        "batch"
    )


def test_names_are_relative_to_the_module_that_is_asked():
    model = nn.Sequential(OrderedDict(features=network()))
    fused = fuse(model)
    assert [n for n, _ in report(fused).replaced] == ["features.first", "features.second"]
    assert [n for n, _ in report(fused.features).replaced] == ["first", "second"]


# What is recognized


RELUS = {
    "F.relu": F.relu,
    "F.relu_": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method_": lambda x: x.relu_(),
}


class Unit(nn.Module):
    """Convolution, BatchNorm and ReLU in as many spellings as there are."""

    def __init__(self, channels, filters, *, relu="F.relu", bn=True, bn_options=None, **options):
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, **{"bias": False, **options})
        self.bn = nn.BatchNorm2d(filters, **(bn_options or {})) if bn else nn.Identity()
        self.act = nn.ReLU(inplace=True) if relu == "module" else RELUS[relu]

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Block(nn.Module):
    """The 17×17 block under names of its own, with hooks for variations."""

    def __init__(self, n=(7, 7), channels=CHANNELS, unit=Unit, same=False, **options):
        super().__init__()

        def make(channels, filters, rows, columns):
            padding = "same" if same else (rows // 2, columns // 2)
            return unit(channels, filters, kernel_size=(rows, columns), padding=padding, **options)

        first, last = n
        self.pool = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1)
        self.p = make(channels, 6, 1, 1)
        self.q = nn.ModuleList(
            [make(channels, MID, 1, 1), make(MID, MID, 1, first), make(MID, 6, last, 1)]
        )
        self.r = nn.Sequential(
            make(channels, MID, 1, 1),
            make(MID, 3, first, 1),
            make(3, MID, 1, last),
            make(MID, 5, last, 1),
            make(5, 6, 1, first),
        )
        self.s = make(channels, 5, 1, 1)

    def pair(self, x):
        for unit in self.q:
            x = unit(x)
        return x

    def join(self, parts):
        return torch.cat(parts, 1)

    def forward(self, x):
        return self.join([self.p(x), self.pair(x), self.r(x), self.s(self.pool(x))])


@torch.no_grad()
def assert_fuses(model, fused_calls):
    randomize(model).eval()
    fused = fuse(model, strict=True)
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1


@pytest.mark.parametrize("relu", [*RELUS, "module"])
def test_every_spelling_of_relu(relu, fused_calls):
    assert_fuses(Block(relu=relu), fused_calls)


@pytest.mark.parametrize("n", [(7, 7), (3, 3), (5, 3), (3, 31)], ids=str)
def test_every_odd_filter_up_to_31(n, fused_calls):
    assert_fuses(Block(n=n), fused_calls)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"bias": True, "bn": False},
        {"bn": False},
        {"bn_options": {"affine": False}},
        {"bn_options": {"eps": 0.1, "momentum": None}},
        {"same": True},
    ],
    ids=str,
)
def test_every_convolution_and_batch_norm_that_can_be_folded(options, fused_calls):
    assert_fuses(Block(**options), fused_calls)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)),
        lambda x: torch._C._nn.avg_pool2d(input=x, kernel_size=3, stride=1, padding=1),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    ],
    ids=["without-pad", "pairs", "keywords", "module", "module-without-pad"],
)
def test_every_spelling_of_the_average_pool(pool, fused_calls):
    model = Block()
    model.pool = pool
    assert_fuses(model, fused_calls)


@pytest.mark.parametrize(
    "join",
    [
        lambda parts: torch.cat(parts, dim=1),
        lambda parts: torch.cat(tuple(parts), -3),
        lambda parts: torch.concat(tensors=parts, dim=1),
        lambda parts: torch.concatenate(parts, axis=1),
    ],
    ids=["cat", "negative", "concat", "concatenate"],
)
def test_every_spelling_of_cat(join, fused_calls):
    model = Block()
    model.join = join
    assert_fuses(model, fused_calls)


@torch.no_grad()
def test_options_of_the_forward_keep_their_meaning(fused_calls):
    class Optional(Block):
        def forward(self, x, scale=None):
            out = super().forward(x)
            return out if scale is None else out * scale

    model = randomize(Optional()).eval()
    fused = fuse(model, strict=True)
    x = images()
    assert_close(fused(x), model(x))
    assert fused_calls.took() == 1
    for call in (lambda m: m(x, 2.0), lambda m: m(x=x), lambda m: m(x, scale=2.0)):
        assert torch.equal(call(fused), call(model))
    assert fused_calls.took() == 0


def test_training_only_and_recording_only_code_is_not_looked_at():
    class Conditional(Block):
        def forward(self, x):
            if self.training or torch.is_grad_enabled():
                x = x + 1
            return super().forward(x)

    model = Conditional().train()
    match = recognize(model)
    assert match.kind == "inception_c"
    assert model.training
    assert all(module.training for module in model.modules())


class TwoInputs(Block):
    def forward(self, x, y):
        return super().forward(x)


class Listed(Block):
    def join(self, parts):
        return parts


class Branches(Block):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Dropped(Block):
    def forward(self, x):
        self.p(x) * 2
        return super().forward(x)


class ReadsShape(Block):
    def forward(self, x):
        return super().forward(x).reshape(x.shape[0], -1)


class Remembers(Block):
    def forward(self, x):
        self.last = x
        return super().forward(x)


class Counts(Block):
    def __init__(self):
        super().__init__()
        self.history = []

    def forward(self, x):
        self.history.append(1)
        return super().forward(x)


class Reordered(Block):
    def join(self, parts):
        return super().join(parts[1:] + parts[:1])


class FiveBranches(Block):
    def join(self, parts):
        return super().join([*parts, parts[0]])


class Rows(Block):
    def join(self, parts):
        return torch.cat(parts, 2)


class Doubled(Block):
    def pair(self, x):
        return self.q[2](self.q[1](self.q[1](self.q[0](x))))


class Swapped(Block):
    def pair(self, x):
        return self.q[1](self.q[0](x))


class Chained(Block):
    def forward(self, x):
        y = self.p(x)
        parts = [y, self.pair(x), self.r(x), self.s(self.pool(x + 0))]
        return self.join(parts)


class ReadsMid(Block):
    def forward(self, x):
        mid = self.q[0].conv(x)
        pair = self.q[2](self.q[1](F.relu_(self.q[0].bn(mid))))
        return self.join([self.p(x), pair + mid.sum(), self.r(x), self.s(self.pool(x))])


class InPlaceTwice(Block):
    def forward(self, x):
        mid = self.q[0].bn(self.q[0].conv(x))
        pair = self.q[2](self.q[1](F.relu_(mid))) + mid.mean()
        return self.join([self.p(x), pair, self.r(x), self.s(self.pool(x))])


class RectifiesInput(Block):
    def forward(self, x):
        return super().forward(F.relu(x, inplace=True))


def with_pool(pool):
    def make():
        model = Block()
        model.pool = pool
        return model

    return make


def changed(change):
    def make():
        model = InceptionC(CHANNELS, MID)
        change(model)
        return model

    return make


def conv(*args, **kwargs):
    def change(model):
        model.branch7x7_2.conv = nn.Conv2d(MID, MID, *args, **kwargs)

    return changed(change)


def normalized(make_bn):
    def change(model):
        model.branch7x7_2.bn = make_bn(MID)

    return changed(change)


class Activated(nn.Module):
    def __init__(self, *args, activation=F.silu, bias=True, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)
        self.bn = nn.BatchNorm2d(self.conv.out_channels)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


def tensor_subclass(model):
    class Special(torch.Tensor):
        pass

    weight = model.branch1x1.conv.weight
    model.branch1x1.conv.weight = nn.Parameter(weight.detach().as_subclass(Special))


def replace_forward(model):
    model.branch1x1.bn.forward = lambda x: x


def script(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.branch1x1 = torch.jit.script(model.branch1x1)


REFUSALS = {
    "stride": (conv((1, 7), stride=2, padding=(0, 3)), r"7x7_2.conv: stride \(2, 2\), takes 1"),
    "padding": (conv((1, 7), padding=3), r"conv: padding \(3, 3\), takes \(0, 3\)"),
    "no-padding": (conv((1, 7), padding="valid"), r"conv: padding \(0, 0\), takes \(0, 3\)"),
    "dilation": (
        conv((1, 7), padding=(0, 6), dilation=2),
        r"branch7x7_2.conv: dilation \(2, 2\), takes 1",
    ),
    "groups": (conv((1, 7), padding=(0, 3), groups=2), "branch7x7_2.conv: groups 2, takes 1"),
    "padding_mode": (
        conv((1, 7), padding=(0, 3), padding_mode="circular"),
        "branch7x7_2.conv: padding_mode 'circular', takes 'zeros'",
    ),
    "kernel": (conv((3, 7), padding=(1, 3)), r"conv: kernel \(3, 7\), takes 1xn, n odd, 1 to 31"),
    "even-kernel": (conv((1, 8), padding=(0, 3)), r"conv: kernel \(1, 8\), takes 1xn, n odd"),
    "long-kernel": (conv((1, 33), padding=(0, 16)), r"conv: kernel \(1, 33\), takes 1xn, n odd"),
    "orientation": (conv((7, 1), padding=(3, 0)), r"conv: kernel \(7, 1\), takes 1xn, n odd"),
    "lazy": (
        changed(lambda m: setattr(m.branch7x7_2, "conv", nn.LazyConv2d(MID, (1, 7)))),
        "branch7x7_2.conv: has a forward pre hook",
    ),
    "other-dtype": (
        changed(lambda m: m.branch7x7dbl_2.conv.half()),
        r"7x7dbl_2.conv: torch.float16, takes branch1x1.conv's torch.float32",
    ),
    "other-device": (
        changed(lambda m: m.branch7x7dbl_2.bn.to("meta")),
        "branch7x7dbl_2.bn: on meta, takes branch1x1.conv's cpu",
    ),
    "complex": (
        conv((1, 7), padding=(0, 3), dtype=torch.complex64),
        r"branch7x7_2.conv.weight: torch.complex64, takes float64",
    ),
    "tensor-subclass": (
        changed(tensor_subclass),
        r"branch1x1.conv.weight: .*Special, takes a plain torch.nn.Parameter",
    ),
    "no-statistics": (
        normalized(lambda c: nn.BatchNorm2d(c, track_running_stats=False)),
        "branch7x7_2.bn: has no running statistics",
    ),
    "batch-norm-with-activation": (
        normalized(BatchNormAct),
        "branch7x7_2.bn: .*BatchNormAct, takes torch.nn.BatchNorm2d",
    ),
    "instance-norm": (
        normalized(nn.InstanceNorm2d),
        "branch7x7_2.bn: .*InstanceNorm2d, not part of a known block",
    ),
    "features": (
        changed(lambda m: setattr(m.branch7x7_2.bn, "num_features", 5)),
        "branch7x7_2.bn: 5 features, takes 4",
    ),
    "eps": (
        changed(lambda m: setattr(m.branch7x7_2.bn, "eps", float("nan"))),
        "branch7x7_2.bn: eps nan, takes",
    ),
    "parametrized": (
        changed(lambda m: parametrizations.spectral_norm(m.branch1x1.conv)),
        "branch1x1.conv: .*ParametrizedConv2d, takes torch.nn.Conv2d",
    ),
    "pruned": (
        changed(lambda m: prune.random_unstructured(m.branch1x1.conv, "weight", 0.5)),
        "branch1x1.conv: has a forward pre hook",
    ),
    "forward-replaced": (
        changed(replace_forward),
        "branch1x1.bn: its forward was replaced on the instance",
    ),
    "scripted": (changed(script), "branch1x1: is a ScriptModule"),
    "other-activation": (
        lambda: InceptionC(CHANNELS, MID, conv_block=Activated),
        "silu: not part of a known block",
    ),
    "no-activation": (
        lambda: InceptionC(
            CHANNELS, MID, conv_block=lambda *a, **k: Activated(*a, activation=nn.Identity(), **k)
        ),
        "branch1x1.conv: no ReLU behind it",
    ),
    "dropout": (
        lambda: InceptionC(
            CHANNELS, MID, conv_block=lambda *a, **k: Activated(*a, activation=nn.Dropout(), **k)
        ),
        "activation: .*Dropout, not part of a known block",
    ),
    "max-pool": (with_pool(lambda x: F.max_pool2d(x, 3, 1, 1)), "max_pool2d: kind max, takes avg"),
    "max-pool-module": (with_pool(nn.MaxPool2d(3, 1, 1)), "pool: kind max, takes avg"),
    "max-pool-indices": (
        with_pool(nn.MaxPool2d(3, 1, 1, return_indices=True)),
        "pool: return_indices True, takes False",
    ),
    "pool-window": (
        with_pool(lambda x: F.avg_pool2d(x, 5, 1, 2)),
        r"avg_pool2d: window \(5, 5\), takes \(3, 3\)",
    ),
    "pool-stride": (
        with_pool(lambda x: F.avg_pool2d(x, 3, padding=1)),
        r"avg_pool2d: stride \(3, 3\), takes \(1, 1\)",
    ),
    "pool-padding": (
        with_pool(lambda x: F.avg_pool2d(x, 3, 1)),
        r"avg_pool2d: padding \(0, 0\), takes \(1, 1\)",
    ),
    "pool-ceil": (
        with_pool(nn.AvgPool2d(3, 1, 1, ceil_mode=True)),
        "pool: ceil_mode True, takes False",
    ),
    "pool-divisor": (
        with_pool(lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=7)),
        "avg_pool2d: divisor_override 7, takes None",
    ),
    "pool-computed": (
        with_pool(lambda x: F.avg_pool2d(x, x.size(2), 1, 1)),
        "size: not part of a known block",
    ),
    "no-pool": (
        with_pool(lambda x: x),
        "s.conv: reads the block's input, takes an average pool 3x3",
    ),
    "adaptive-pool": (
        with_pool(lambda x: F.adaptive_avg_pool2d(x, 9)),
        "adaptive_avg_pool2d: not part of a known block",
    ),
    "two-inputs": (TwoInputs, "forward: does not take exactly one positional argument"),
    "list": (Listed, "forward: returns list, takes one tensor"),
    "control-flow": (Branches, "forward: could not be traced .TraceError"),
    "dropped": (Dropped, "forward: does not use the result of mul"),
    "reshape": (ReadsShape, "getattr: not part of a known block"),
    "remembers": (Remembers, "forward: writes the attribute last"),
    "counts": (Counts, "forward: writes the attribute history"),
    "order": (Reordered, r"kernel \(5?7?, 1\), takes 1x1"),
    "five-branches": (FiveBranches, "cat: 5 tensors, takes 4"),
    "cat-rows": (Rows, "cat: dimension 2, takes 1"),
    "conv-twice": (Doubled, r"q.1.conv: is used twice"),
    "conv-left-out": (Swapped, r"q.1.conv: kernel \(1, 7\), takes nx1"),
    "arithmetic": (Chained, "add: not part of a known block"),
    "reads-between": (ReadsMid, "sum: not part of a known block"),
    "in-place-with-two-readers": (
        InPlaceTwice,
        "relu_: ReLU in place on the output of q.0.conv, which is read elsewhere too",
    ),
    "relu-of-input": (RectifiesInput, "relu: ReLU of the block's input, takes a convolution"),
}


class Renamed(nn.Module):
    """Base of the other blocks under names of their own, with hooks for variations."""

    def __init__(self, unit=Unit, last=Unit):
        super().__init__()
        # `last` makes the last convolution of the first branch.
        self.unit, self.last = unit, last
        self.build()
        del self.unit, self.last

    def join(self, parts):
        return torch.cat(parts, 1)


class Reduction(Renamed):
    def build(self):
        self.p = self.last(CHANNELS, 6, kernel_size=3, stride=2)
        self.r = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1),
            self.unit(MID, 5, kernel_size=3, padding=1),
            self.unit(5, 6, kernel_size=3, stride=2),
        )
        self.pool = functools.partial(F.max_pool2d, kernel_size=3, stride=2)

    def forward(self, x):
        return self.join([self.p(x), self.r(x), self.pool(x)])


class FactorizedReduction(Renamed):
    def build(self):
        self.q = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1),
            self.last(MID, 6, kernel_size=3, stride=2),
        )
        self.r = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1),
            self.unit(MID, 5, kernel_size=(1, 5), padding=(0, 2)),
            self.unit(5, MID, kernel_size=(3, 1), padding=(1, 0)),
            self.unit(MID, 6, kernel_size=3, stride=2),
        )
        self.pool = functools.partial(F.max_pool2d, kernel_size=3, stride=2)

    def forward(self, x):
        return self.join([self.q(x), self.r(x), self.pool(x)])


class Expanded(Renamed):
    def build(self):
        def split(channels):
            return nn.ModuleList(
                [
                    self.unit(channels, 5, kernel_size=(1, 3), padding=(0, 1)),
                    self.unit(channels, 6, kernel_size=(5, 1), padding=(2, 0)),
                ]
            )

        self.p = self.last(CHANNELS, 6, kernel_size=1)
        self.q = self.unit(CHANNELS, MID, kernel_size=1)
        self.q_split = split(MID)
        self.r = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1), self.unit(MID, 7, kernel_size=3, padding=1)
        )
        self.r_split = split(7)
        self.s = self.unit(CHANNELS, 5, kernel_size=1)
        self.pool = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1)

    def forward(self, x):
        q, r = self.q(x), self.r(x)
        split = [unit(q) for unit in self.q_split] + [unit(r) for unit in self.r_split]
        return self.join([self.p(x), *split, self.s(self.pool(x))])


class Wide(Renamed):
    def build(self):
        self.p = self.last(CHANNELS, 6, kernel_size=1)
        self.q = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1), self.unit(MID, 5, kernel_size=5, padding=2)
        )
        self.r = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1),
            self.unit(MID, 7, kernel_size=3, padding=1),
            self.unit(7, 5, kernel_size=3, padding=1),
        )
        self.s = self.unit(CHANNELS, 5, kernel_size=1)
        self.pool = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1)

    def forward(self, x):
        return self.join([self.p(x), self.q(x), self.r(x), self.s(self.pool(x))])


class Paired(Renamed):
    """The 8×8 block of Inception-v4."""

    # Channels in; filters of the direct branch, the 1×1s, the split, the pair and the pool.
    widths = (CHANNELS, 6, MID, 5, (7, 5), 3)

    def build(self):
        channels, direct, reduced, split, (first, second), pool = self.widths
        self.p = self.last(channels, direct, kernel_size=1)
        self.q = self.unit(channels, reduced, kernel_size=1)
        self.q_row = self.unit(reduced, split, kernel_size=(1, 3), padding=(0, 1))
        self.q_col = self.unit(reduced, split, kernel_size=(3, 1), padding=(1, 0))
        self.r = nn.Sequential(
            self.unit(channels, reduced, kernel_size=1),
            self.unit(reduced, first, kernel_size=(3, 1), padding=(1, 0)),
            self.unit(first, second, kernel_size=(1, 3), padding=(0, 1)),
        )
        self.r_row = self.unit(second, split, kernel_size=(1, 3), padding=(0, 1))
        self.r_col = self.unit(second, split, kernel_size=(3, 1), padding=(1, 0))
        self.s = nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
            self.unit(channels, pool, kernel_size=1),
        )

    def forward(self, x):
        q, r = self.q(x), self.r(x)
        split = [self.q_row(q), self.q_col(q), self.r_row(r), self.r_col(r)]
        return self.join([self.p(x), *split, self.s(x)])


class RealPaired(Paired):
    widths = (1536, 256, 384, 256, (448, 512), 256)


class Narrow(Renamed):
    """The 35×35 block of Inception-v4: a 3×3 where that of Inception V3 has a 5×5."""

    def build(self):
        self.p = self.last(CHANNELS, 6, kernel_size=1)
        self.q = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1), self.unit(MID, 5, kernel_size=3, padding=1)
        )
        self.r = nn.Sequential(
            self.unit(CHANNELS, MID, kernel_size=1),
            self.unit(MID, 7, kernel_size=3, padding=1),
            self.unit(7, 5, kernel_size=3, padding=1),
        )
        self.s = nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
            self.unit(CHANNELS, 5, kernel_size=1),
        )

    def forward(self, x):
        return self.join([self.p(x), self.q(x), self.r(x), self.s(x)])


class Halved(Renamed):
    """As Mixed5a in the stem of Inception-v4."""

    widths = (CHANNELS, 6)

    def build(self):
        self.p = self.last(*self.widths, kernel_size=3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x):
        return self.join([self.p(x), self.pool(x)])


class HalvedPoolFirst(Halved):
    """As Mixed3a there."""

    def forward(self, x):
        return self.join([self.pool(x), self.p(x)])


class RealHalved(Halved):
    widths = (192, 192)


class RealHalvedPoolFirst(HalvedPoolFirst):
    widths = (64, 96)


class DoubleReduction(Renamed):
    """The second grid reduction of Inception-ResNet-v2."""

    # Channels in; filters of the three branches, one convolution after the other.
    widths = (CHANNELS, (MID, 6), (5, 7), (3, MID, 6))

    def build(self):
        channels, p, q, r = self.widths
        self.p = nn.Sequential(
            self.unit(channels, p[0], kernel_size=1), self.last(*p, kernel_size=3, stride=2)
        )
        self.q = nn.Sequential(
            self.unit(channels, q[0], kernel_size=1), self.unit(*q, kernel_size=3, stride=2)
        )
        self.r = nn.Sequential(
            self.unit(channels, r[0], kernel_size=1),
            self.unit(*r[:2], kernel_size=3, padding=1),
            self.unit(*r[1:], kernel_size=3, stride=2),
        )
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x):
        return self.join([self.p(x), self.q(x), self.r(x), self.pool(x)])


class RealDoubleReduction(DoubleReduction):
    widths = (1088, (256, 384), (256, 288), (256, 288, 320))


RENAMED = {
    "inception_a": Wide,
    "inception_b": Reduction,
    "inception_c": Block,
    "inception_d": FactorizedReduction,
    "inception_e": Expanded,
    "inception_e_pair": Paired,
    "reduction": Halved,
    "reduction_pool_first": HalvedPoolFirst,
    "inception_d_double": DoubleReduction,
}


@pytest.mark.parametrize("kind", RENAMED)
def test_blocks_are_found_by_their_filters(kind, fused_calls):
    model = RENAMED[kind]()
    assert_fuses(model, fused_calls)
    assert report(fuse(model)).replaced == [("", kind)]


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b, c, d, e, f: torch.cat([a, torch.cat([b, c], 1), torch.cat([d, e], 1), f], 1),
        lambda a, b, c, d, e, f: torch.cat([a, b, c, torch.cat((d, e), -3), f], 1),
        lambda a, b, c, d, e, f: torch.cat([torch.cat([torch.cat([a, b], 1), c], 1), d, e, f], 1),
    ],
    ids=["both", "one", "deep"],
)
def test_every_nesting_of_cat(join, fused_calls):
    model = Expanded()
    model.join = lambda parts: join(*parts)
    assert_fuses(model, fused_calls)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("make", [Wide, Expanded])
def test_the_average_pool_of_a_block_counts_as_it_did(make, include, fused_calls):
    model = make()
    model.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=include)
    assert_fuses(model, fused_calls)
    assert recognize(model).options == {"count_include_pad": include}


@pytest.mark.parametrize("kind", ["inception_b", "inception_d"])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2),
        lambda x: torch.max_pool2d(x, 3, 2),
        lambda x: F.max_pool2d(x, (3, 3), stride=(2, 2), padding=0, dilation=1, ceil_mode=False),
    ],
    ids=["module", "torch", "pairs"],
)
def test_every_spelling_of_the_max_pool(pool, kind, fused_calls):
    model = RENAMED[kind]()
    model.pool = pool
    assert_fuses(model, fused_calls)


def altered(make, **attributes):
    """A block with attributes of inner modules changed: names with `__` for the dots."""

    def build():
        model = make()
        for name, value in attributes.items():
            path, _, attribute = name.replace("__", ".").rpartition(".")
            setattr(model.get_submodule(path), attribute, value)
        return model

    return build


def joined(make, join):
    def build():
        model = make()
        model.join = join
        return model

    return build


def linear_unit(*args, **kwargs):
    return Activated(*args, activation=nn.Identity(), **kwargs)


class TwoMids(InceptionE):
    """The 3×1 of the first bank reads another 1×1 than the 1×3 does."""

    def __init__(self, channels):
        super().__init__(channels)
        self.other = BasicConv2d(channels, 384, kernel_size=1)

    def forward(self, x):
        split = [self.branch3x3_2a(self.branch3x3_1(x)), self.branch3x3_2b(self.other(x))]
        mid = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = [self.branch3x3dbl_3a(mid), self.branch3x3dbl_3b(mid)]
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), *split, *double, pool], 1)


class PoolReads(Reduction):
    """The pool reads what the convolution wrote."""

    def forward(self, x):
        return self.join([self.p(x), self.r(x), self.pool(self.r[0](x))])


def swapped(*order):
    return lambda parts: torch.cat([parts[i] for i in order], 1)


class PooledByMaximum(InceptionE):
    """As the network of the Fréchet Inception Distance ends: a max pool before the last 1×1."""

    padding = 1

    def forward(self, x):
        mid = self.branch3x3_1(x)
        split = torch.cat([self.branch3x3_2a(mid), self.branch3x3_2b(mid)], 1)
        mid = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat([self.branch3x3dbl_3a(mid), self.branch3x3dbl_3b(mid)], 1)
        pool = F.max_pool2d(x, 1 + 2 * self.padding, stride=1, padding=self.padding)
        return torch.cat([self.branch1x1(x), split, double, self.branch_pool(pool)], 1)


def max_pool_of_five():
    model = PooledByMaximum(CHANNELS)
    model.padding = 2
    return model


def B():
    return InceptionB(CHANNELS)


def D():
    return InceptionD(CHANNELS)


def E():
    return InceptionE(CHANNELS)


def A():
    return InceptionA(CHANNELS, 6)


REFUSALS |= {
    "a-stride": (
        altered(A, branch5x5_2__conv__stride=(2, 2)),
        r"branch5x5_2.conv: stride \(2, 2\), takes 1",
    ),
    "a-padding": (
        altered(A, branch5x5_2__conv__padding=(1, 1)),
        r"branch5x5_2.conv: padding \(1, 1\), takes \(2, 2\)",
    ),
    "a-kernel": (
        altered(A, branch5x5_2__conv=nn.Conv2d(48, 64, 3, padding=1)),
        r"branch5x5_2.conv: kernel \(3, 3\), takes 5x5",
    ),
    "a-groups": (altered(A, branch3x3dbl_2__conv__groups=2), "3x3dbl_2.conv: groups 2, takes 1"),
    "a-dilation": (
        altered(A, branch3x3dbl_3__conv__dilation=(2, 2)),
        r"branch3x3dbl_3.conv: dilation \(2, 2\), takes 1",
    ),
    "a-no-relu": (lambda: Wide(last=linear_unit), "p.conv: no ReLU behind it, takes one"),
    "a-pool-kind": (altered(Wide, pool=nn.MaxPool2d(3, 1, 1)), "pool: kind max, takes avg"),
    "a-pool-window": (
        altered(Wide, pool=nn.AvgPool2d(5, 1, 2)),
        r"pool: window \(5, 5\), takes \(3, 3\)",
    ),
    "a-no-pool": (
        altered(Wide, pool=lambda x: x),
        "s.conv: reads the block's input, takes an average pool 3x3",
    ),
    "a-order": (joined(Wide, swapped(0, 2, 1, 3)), r"r.2.conv: kernel \(3, 3\), takes 5x5"),
    "b-stride": (altered(B, branch3x3__conv__stride=(1, 1)), r"3x3.conv: stride \(1, 1\), takes 2"),
    "b-double-stride": (
        altered(B, branch3x3dbl_3__conv__stride=(2, 1)),
        r"branch3x3dbl_3.conv: stride \(2, 1\), takes 2",
    ),
    "b-padding": (
        altered(B, branch3x3__conv__padding=(1, 1)),
        r"branch3x3.conv: padding \(1, 1\), takes \(0, 0\)",
    ),
    "b-mid-padding": (
        altered(B, branch3x3dbl_2__conv__padding=(0, 0)),
        r"branch3x3dbl_2.conv: padding \(0, 0\), takes \(1, 1\)",
    ),
    "b-kernel": (
        altered(B, branch3x3__conv=nn.Conv2d(CHANNELS, 384, 5, stride=2)),
        r"branch3x3.conv: kernel \(5, 5\), takes 3x3",
    ),
    "b-groups": (altered(B, branch3x3__conv__groups=2), "branch3x3.conv: groups 2, takes 1"),
    "b-dilation": (
        altered(B, branch3x3dbl_2__conv__dilation=(2, 2)),
        r"branch3x3dbl_2.conv: dilation \(2, 2\), takes 1",
    ),
    "b-no-relu": (lambda: Reduction(last=linear_unit), "p.conv: no ReLU behind it, takes one"),
    "b-pool-kind": (
        altered(Reduction, pool=lambda x: F.avg_pool2d(x, 3, 2)),
        "avg_pool2d: kind avg, takes max",
    ),
    "b-pool-window": (
        altered(Reduction, pool=lambda x: F.max_pool2d(x, 2, 2)),
        r"max_pool2d: window \(2, 2\), takes \(3, 3\)",
    ),
    "b-pool-stride": (
        altered(Reduction, pool=nn.MaxPool2d(3)),
        r"pool: stride \(3, 3\), takes \(2, 2\)",
    ),
    "b-pool-padding": (
        altered(Reduction, pool=nn.MaxPool2d(3, 2, 1)),
        r"pool: padding \(1, 1\), takes \(0, 0\)",
    ),
    "b-pool-dilation": (
        altered(Reduction, pool=lambda x: F.max_pool2d(x, 3, 2, 0, 2)),
        r"max_pool2d: dilation \(2, 2\), takes \(1, 1\)",
    ),
    "b-pool-ceil": (
        altered(Reduction, pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
        "pool: ceil_mode True, takes False",
    ),
    "b-pool-indices": (
        altered(Reduction, pool=nn.MaxPool2d(3, 2, return_indices=True)),
        "pool: return_indices True, takes False",
    ),
    "b-pool-reads-other": (PoolReads, "r.0.conv: is used twice"),
    "b-order": (joined(Reduction, swapped(1, 0, 2)), "r.2.conv: reads r.1.conv, takes the block's"),
    "b-pool-first": (
        joined(Reduction, swapped(2, 0, 1)),
        "cat: tensor 0 is max_pool2d, takes a convolution 3x3",
    ),
    "b-two": (joined(Reduction, swapped(0, 2)), "forward: does not use the result of relu"),
    "b-four": (joined(Reduction, swapped(0, 1, 2, 2)), "cat: 4 tensors, takes 3"),
    "d-stride": (
        altered(D, branch7x7x3_4__conv__stride=(1, 1)),
        r"branch7x7x3_4.conv: stride \(1, 1\), takes 2",
    ),
    "d-pair-stride": (
        altered(D, branch7x7x3_2__conv__stride=(1, 2)),
        r"branch7x7x3_2.conv: stride \(1, 2\), takes 1",
    ),
    "d-padding": (
        altered(D, branch3x3_2__conv__padding=(1, 1)),
        r"branch3x3_2.conv: padding \(1, 1\), takes \(0, 0\)",
    ),
    "d-pair-padding": (
        altered(D, branch7x7x3_3__conv__padding=(2, 0)),
        r"branch7x7x3_3.conv: padding \(2, 0\), takes \(3, 0\)",
    ),
    "d-orientation": (
        altered(D, branch7x7x3_2__conv=nn.Conv2d(192, 192, (7, 1), padding=(3, 0))),
        r"branch7x7x3_2.conv: kernel \(7, 1\), takes 1xn, n odd",
    ),
    "d-groups": (altered(D, branch3x3_1__conv__groups=4), "branch3x3_1.conv: groups 4, takes 1"),
    "d-no-relu": (
        lambda: FactorizedReduction(last=linear_unit),
        "q.1.conv: no ReLU behind it, takes one",
    ),
    "d-pool-kind": (
        altered(FactorizedReduction, pool=nn.AvgPool2d(3, 2)),
        "pool: kind avg, takes max",
    ),
    "d-pool-ceil": (
        altered(FactorizedReduction, pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
        "pool: ceil_mode True, takes False",
    ),
    "d-no-pool": (
        altered(FactorizedReduction, pool=lambda x: x),
        "cat: tensor 2 is the block's input, takes a max pool 3x3",
    ),
    "d-double-order": (
        joined(DoubleReduction, swapped(0, 2, 1, 3)),
        "r.2.conv: reads r.1.conv, takes a convolution 1x1|r.1.conv: kernel",
    ),
    "d-double-pool-first": (
        joined(DoubleReduction, swapped(3, 0, 1, 2)),
        "cat: tensor 0 is pool, takes a convolution 3x3",
    ),
    "d-double-stride": (
        altered(DoubleReduction, q__1__conv__stride=(2, 1)),
        r"q.1.conv: stride \(2, 1\), takes 2",
    ),
    "d-double-no-relu": (
        lambda: DoubleReduction(last=linear_unit),
        "p.1.conv: no ReLU behind it, takes one",
    ),
    "reduction-padding": (
        altered(Halved, p__conv__padding=(1, 1)),
        r"p.conv: padding \(1, 1\), takes \(0, 0\)",
    ),
    "reduction-groups": (altered(Halved, p__conv__groups=2), "p.conv: groups 2, takes 1"),
    "reduction-no-relu": (
        lambda: Halved(last=linear_unit),
        "p.conv: no ReLU behind it, takes one",
    ),
    "reduction-pool-ceil": (
        altered(Halved, pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
        "pool: ceil_mode True, takes False",
    ),
    "reduction-twice": (joined(Halved, swapped(0, 1, 1)), "cat: 3 tensors, takes 2"),
    "reduction-added": (
        joined(Halved, lambda parts: parts[0].sum() + parts[1]),
        "sum: not part of a known block",
    ),
    "d-order": (
        joined(FactorizedReduction, swapped(1, 0, 2)),
        r"r.2.conv: kernel \(3, 1\), takes 1x1",
    ),
    "e-max-pool": (max_pool_of_five, "max_pool2d: kind max, takes avg"),
    "e-stride": (altered(E, branch1x1__conv__stride=(2, 2)), r"1x1.conv: stride \(2, 2\), takes 1"),
    "e-padding": (
        altered(E, branch3x3dbl_2__conv__padding=(0, 0)),
        r"branch3x3dbl_2.conv: padding \(0, 0\), takes \(1, 1\)",
    ),
    "e-split-padding": (
        altered(E, branch3x3_2b__conv__padding=(0, 0)),
        r"branch3x3_2b.conv: padding \(0, 0\), takes \(1, 0\)",
    ),
    "e-kernel": (
        altered(E, branch3x3_2a__conv=nn.Conv2d(384, 384, 3, padding=1)),
        r"branch3x3_2a.conv: kernel \(3, 3\), takes 1xn, n odd",
    ),
    "e-groups": (altered(E, branch3x3dbl_1__conv__groups=2), "3x3dbl_1.conv: groups 2, takes 1"),
    "e-no-relu": (lambda: Expanded(last=linear_unit), "p.conv: no ReLU behind it, takes one"),
    "e-pool-window": (
        altered(Expanded, pool=nn.AvgPool2d(5, 1, 2)),
        r"pool: window \(5, 5\), takes \(3, 3\)",
    ),
    "e-pool-ceil": (
        altered(Expanded, pool=nn.AvgPool2d(3, 1, 1, ceil_mode=True)),
        "pool: ceil_mode True, takes False",
    ),
    "e-columns-first": (
        joined(Expanded, swapped(0, 2, 1, 3, 4, 5)),
        r"q_split.1.conv: kernel \(5, 1\), takes 1xn, n odd",
    ),
    "e-banks-swapped": (
        joined(Expanded, swapped(0, 3, 4, 1, 2, 5)),
        r"r.1.conv: kernel \(3, 3\), takes 1x1",
    ),
    "e-mixed-banks": (
        joined(Expanded, swapped(0, 1, 4, 3, 2, 5)),
        r"r.1.conv: kernel \(3, 3\), takes 1x1",
    ),
    "e-added-rows": (
        joined(Expanded, lambda p: torch.cat([p[0], torch.cat(p[1:3], 2), *p[3:]], 1)),
        "cat: 5 tensors, takes 6",
    ),
    "e-two-mids": (
        lambda: TwoMids(CHANNELS),
        "other.conv: takes branch3x3_1.conv in this place",
    ),
}


def states(modules):
    """What modules hold, one level into their dictionaries; a fused unit counts as its original."""

    def plain(value):
        return value._original if isinstance(value, FusedBlock) else value

    return [
        {
            name: [(key, plain(v)) for key, v in value.items()] if type(value) is dict else value
            for name, value in vars(module).items()
        }
        for module in modules
    ]


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_known_is_left_alone_with_a_reason(case):
    make, message = REFUSALS[case]
    inner = make().eval()
    model = nn.Sequential(inner)
    modules = list(model.modules())
    before = states(modules)
    units = [name for name, _ in find_units(model)]
    sequences = [name for name, _ in find_sequences(model)]
    with pytest.raises(RuntimeError, match=rf"  0: .*{message}"):
        fuse(model, inplace=True, strict=True)
    name, reason = report(model).skipped[0]
    assert name == "0"
    assert re.search(message, reason)
    # Neither looking nor reporting leaves a trace on a model that is not understood.
    assert states(modules) == before

    fuse(model, inplace=True)
    assert model[0] is inner
    found = report(model)
    assert found.skipped[0] == (name, reason)
    # Its sequences and units are looked at one by one, and nothing else is touched.
    kinds = dict(found.replaced)
    assert set(kinds.values()) <= {"conv2d_act", "conv_sequence"}
    fused_sequences = {path for path in sequences if path in kinds}
    alone = [u for u in units if not any(u.startswith(f"{path}.") for path in fused_sequences)]
    assert sorted([*kinds, *(path for path, _ in found.skipped[1:])]) == sorted(sequences + alone)
    fused = {id(module._original) for module in model.modules() if isinstance(module, FusedBlock)}
    for module, now, then in zip(modules, states(modules), before, strict=True):
        assert id(module) in fused or now == then


@pytest.mark.parametrize("case", ["dilation", "pool-window", "five-branches", "conv-twice"])
@torch.no_grad()
def test_the_units_of_a_block_that_is_not_known_are_fused(case, fused_calls):
    model = nn.Sequential(randomize(REFUSALS[case][0]())).eval()
    fused = fuse(model)
    assert_close(fused(images()), model(images()))
    wrappers = [module for module in fused.modules() if isinstance(module, FusedBlock)]
    units = sum(len(wrapper._match.units) for wrapper in wrappers)
    assert units == 9 if case == "dilation" else units == 10
    # One of them runs twice.
    assert fused_calls.took() == len(wrappers) + (case == "conv-twice")
    assert report(fuse(fused, inplace=True)) == report(fused)


def test_hidden_attributes_of_a_list_are_put_back():
    model = Counts()
    with pytest.raises(NotRecognizedError):
        recognize(model)
    assert model.history == []


def test_other_names_are_found_by_their_filters_and_other_modules_are_not_listed():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

    model = nn.Sequential(
        InceptionA(CHANNELS, 4),
        Block(),
        nn.Sequential(Around()),
        InceptionE(CHANNELS),
        Unit(3, 4, kernel_size=1),
        InceptionAux(CHANNELS, 4),
    )
    assert [name for name, _ in find_blocks(model)] == ["0", "1", "2.0.inner", "3"]


def test_recognizing_patches_nothing_that_other_threads_use():
    called = []

    class Watches(Block):
        def forward(self, x):
            called.append(nn.Module.__call__)
            return super().forward(x)

    original = nn.Module.__call__
    recognize(Watches())
    assert called == [original]


# When the original forward runs


@every_kind
def test_training_mode_trains(kind, fused_calls):
    torch.manual_seed(0)
    model = network(kind=kind)
    fused = fuse(model)
    x = images()
    for mode in (model, fused):
        mode.train()
    got, want = fused(x), model(x)
    assert torch.equal(got, want)
    got.square().mean().backward()
    want.square().mean().backward()
    for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for ours, theirs in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert fused_calls.took() == 0


@every_kind
@torch.no_grad()
def test_evaluation_after_training_uses_the_trained_weights(kind, fused_calls):
    model = network(kind=kind)
    fused = fuse(model)
    x = images()
    for mode in (model, fused):
        mode.train()
        # Frozen BatchNorm, so that nothing at all is counted.
        for bn in (module for module in mode.modules() if isinstance(module, nn.BatchNorm2d)):
            bn.eval()
        with torch.enable_grad():
            mode(x).square().mean().backward()
        for parameter in mode.parameters():
            # As an optimizer that PyTorch cannot see.
            parameter.data.sub_(0.1 * parameter.grad)
        mode.eval()
    assert_close(fused(x), model(x))
    assert fused_calls.took() == 2


@torch.no_grad()
def test_one_inner_module_in_training_mode_is_enough(fused_calls):
    model = network()
    fused = fuse(model)
    x = images()
    for mode in (model, fused):
        mode.second.branch7x7dbl_3.bn.train()
    assert torch.equal(fused.second(x), model.second(x))
    assert fused_calls.took() == 0
    assert_close(fused.first(x), model.first(x))
    assert fused_calls.took() == 1

    # The statistics have moved, which running_mean does not count.
    for mode in (model, fused):
        mode.second.branch7x7dbl_3.bn.eval()
    assert_close(fused.second(x), model.second(x))
    assert fused_calls.took() == 1


def test_the_mode_of_the_inner_original_keeps_step():
    fused = fuse(network())
    for mode in (True, False, True):
        fused.train(mode)
        assert fused.first.training is fused.first._original.training is mode
    fused.first.training = False
    assert fused.first._original.training is False


@every_kind
def test_gradients_are_the_original_ones_with_one_warning_for_the_model(kind, fused_calls):
    model = network(kind=kind)
    fused = fuse(model)
    x, y = images().requires_grad_(), images().requires_grad_()
    with pytest.warns(UserWarning, match=r"torch\.no_grad\(\) or torch\.inference_mode") as caught:
        got = [fused(x) for _ in range(2)][1]
    assert len(caught) == 1
    assert torch.equal(got, model(y))
    got.sum().backward()
    model(y).sum().backward()
    assert torch.equal(x.grad, y.grad)
    for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert fused_calls.took() == 0
    # Another model warns on its own account, a copy too.
    for other in (fuse(network(kind=kind)), copy.deepcopy(fused)):
        with pytest.warns(UserWarning, match="autograd would record"):
            other(x)


def test_an_input_that_wants_a_gradient_is_enough_and_nothing_that_does_is_fused(fused_calls):
    model = network().requires_grad_(False)
    fused = fuse(model)
    x = images()
    assert_close(fused(x), model(x))
    assert fused_calls.took() == 2
    with pytest.warns(UserWarning, match="autograd would record"):
        assert fused(images().requires_grad_()).requires_grad
    assert fused_calls.took() == 0
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(fuse(network())(x.requires_grad_()), network()(x))
        assert fused_calls.took() == 2


HOOKS = {
    "forward pre": lambda m, calls: m.register_forward_pre_hook(lambda *a: calls.append(1)),
    "forward": lambda m, calls: m.register_forward_hook(lambda *a: calls.append(1)),
    "forward with kwargs": lambda m, calls: m.register_forward_hook(
        lambda *a: calls.append(1), with_kwargs=True
    ),
    "forward always": lambda m, calls: m.register_forward_hook(
        lambda *a: calls.append(1), always_call=True
    ),
}
SILENT_HOOKS = {
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda *a: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *a: None),
}


@pytest.mark.parametrize("kind", HOOKS)
@torch.no_grad()
def test_hooks_on_a_block_are_called_once_in_both_forwards(kind, fused_calls):
    model, calls = network(), []
    before = HOOKS[kind](model.first, calls)
    fused = fuse(model, inplace=True)
    after = HOOKS[kind](fused.first, calls)
    fused(images())
    assert len(calls) == 2
    assert fused_calls.took() == 2
    fused.train()(images())
    assert len(calls) == 4
    before.remove()
    after.remove()
    fused.eval()(images())
    assert len(calls) == 4


@torch.no_grad()
def test_a_hook_on_a_block_sees_and_changes_what_goes_in_and_out():
    model = network()
    fused = fuse(model)
    fused.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    fused.first.register_forward_hook(lambda module, args, output: output + args[0].mean())
    x = images()
    assert_close(fused.first(x), model.first(x * 2) + (x * 2).mean())


@pytest.mark.parametrize("name", ["branch7x7_2", "branch7x7_2.conv", "branch_pool.bn"])
@pytest.mark.parametrize("kind", HOOKS)
@torch.no_grad()
def test_hooks_on_inner_modules_are_called(kind, name, fused_calls):
    model = network()
    fused = fuse(model)
    calls = []
    handle = HOOKS[kind](fused.first.get_submodule(name), calls)
    x = images()
    assert torch.equal(fused.first(x), model.first(x))
    assert len(calls) == 1
    assert fused_calls.took() == 0
    reason = f"runs its original forward: {name}: has a {kind.split(' w')[0].split(' a')[0]} hook"
    assert report(fused).skipped == [("first", reason)]
    handle.remove()
    fused.first(x)
    assert len(calls) == 1
    assert fused_calls.took() == 1
    assert not report(fused).skipped


@torch.no_grad()
def test_looking_at_a_changed_block_again_calls_no_hooks(fused_calls):
    fused = fuse(block())
    seen = []
    fused.branch1x1.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    fused.branch1x1.bn.eps = 0.1
    fused(images())
    assert seen == [torch.Tensor]
    assert fused_calls.took() == 0


@pytest.mark.parametrize("kind", SILENT_HOOKS)
@torch.no_grad()
def test_backward_hooks_on_inner_modules_are_left_to_the_original(kind, fused_calls):
    fused = fuse(network())
    SILENT_HOOKS[kind](fused.first.branch1x1)
    fused(images())
    assert fused_calls.took() == 1
    assert report(fused).skipped == [
        ("first", f"runs its original forward: branch1x1: has a {kind} hook")
    ]


@pytest.mark.parametrize("kind", [*HOOKS, *SILENT_HOOKS])
def test_a_block_with_inner_hooks_is_not_fused(kind):
    model = network()
    if kind in HOOKS:
        HOOKS[kind](model.first.branch1x1.conv, [])
    else:
        SILENT_HOOKS[kind](model.first.branch1x1.conv)
    found = report(fuse(model))
    assert found.replaced == [
        *((f"first.{unit}", "conv2d_act") for unit in UNITS[1:]),
        ("second", "inception_c"),
    ]
    kind = kind.split(" w")[0].split(" a")[0]
    assert found.skipped == [
        ("first", f"branch1x1.conv: has a {kind} hook"),
        ("first.branch1x1", f"conv: has a {kind} hook"),
    ]


@torch.no_grad()
def test_hooks_on_all_modules_are_called(fused_calls):
    fused = fuse(network())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module))
    )
    try:
        fused.first(images())
        assert seen.count(nn.Conv2d) == 10
        assert seen.count(FusedBlock) == 1
        assert fused_calls.took() == 0
        assert {why for _, why in report(fuse(network())).skipped} == {
            "a hook for all modules is installed"
        }
    finally:
        handle.remove()
    fused(images())
    assert fused_calls.took() == 2


# Staleness


def write(name):
    def change(model):
        with torch.no_grad():
            model.get_parameter(name).mul_(1.5)

    return change


def write_buffer(name):
    def change(model):
        model.get_buffer(name).mul_(1.5)

    return change


def write_in_inference_mode(model):
    with torch.inference_mode():
        model.branch7x7_3.conv.weight.mul_(1.5)


def replace_parameter(model):
    # Twice, so that the first one's memory and identity are free to be given to the second.
    for factor in (2.0, 0.75):
        bn = model.branch7x7dbl_5.bn
        bn.weight = nn.Parameter(bn.weight.detach() * factor)


def swap_data(model):
    for factor in (2.0, 0.75):
        conv = model.branch7x7dbl_4.conv
        conv.weight.data = conv.weight.data * factor


def replace_conv(model):
    conv = nn.Conv2d(CHANNELS, 192, 1, bias=True)
    with torch.no_grad():
        conv.weight.fill_(0.1)
        conv.bias.fill_(0.3)
    model.branch1x1.conv = conv.eval()


def replace_unit(model):
    model.branch_pool = randomize(Unit(CHANNELS, 192, kernel_size=1), seed=9).eval()


def replace_bn(model):
    model.branch1x1.bn = randomize(nn.Sequential(nn.BatchNorm2d(192)), seed=9)[0].eval()


def load(**options):
    def change(model):
        other = randomize(InceptionC(CHANNELS, MID), seed=5)
        model.load_state_dict(copy.deepcopy(other.state_dict()), **options)

    return change


def load_one_unit(model):
    other = randomize(InceptionC(CHANNELS, MID), seed=5)
    model.branch7x7_2.load_state_dict(copy.deepcopy(other.branch7x7_2.state_dict()))


def step(model):
    # Not in training mode, as with frozen BatchNorm.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images()).square().mean().backward()
    optimizer.step()


CHANGES = {
    "conv.weight": write("branch7x7_2.conv.weight"),
    "bn.weight": write("branch7x7dbl_1.bn.weight"),
    "bn.bias": write("branch7x7dbl_2.bn.bias"),
    "bn.running_mean": write_buffer("branch_pool.bn.running_mean"),
    "bn.running_var": write_buffer("branch7x7dbl_3.bn.running_var"),
    "inference-mode": write_in_inference_mode,
    "optimizer": step,
    "load_state_dict": load(),
    "load_state_dict-assign": load(assign=True),
    "load_state_dict-unit": load_one_unit,
    "data-swapped": swap_data,
    "parameter-replaced": replace_parameter,
    "conv-replaced": replace_conv,
    "bn-replaced": replace_bn,
    "unit-replaced": replace_unit,
    "eps": lambda model: setattr(model.branch1x1.bn, "eps", 0.5),
    "to-float64": lambda model: model.double(),
    "to-and-back": lambda model: model.bfloat16().float(),
    "memory-format": lambda model: model.to(memory_format=torch.channels_last),
    "unit-moved": lambda model: model.branch1x1.bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_followed(change, fused_calls):
    model = nn.Sequential(block())
    fused = fuse(model)
    assert_close(torch.no_grad()(fused)(images()), torch.no_grad()(model)(images()))
    change(model[0])
    change(fused[0])
    x = images(dtype=model[0].branch1x1.conv.weight.dtype)
    fused_calls.took()
    with torch.no_grad():
        assert_close(fused(x), model(x))
        assert fused_calls.took() == 1
        assert len(report(fused).replaced) == 1


@every_kind
@torch.no_grad()
def test_every_convolution_of_a_block_is_followed(kind):
    model = block(kind)
    fused = fuse(model)
    x = images()
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for index, name in enumerate(convs):
        before = fused(x)
        for mode in (model, fused):
            mode.get_submodule(name).weight.mul_(0.5 + index % 3)
            mode.get_submodule(name.replace("conv", "bn")).running_mean.add_(0.1)
        got = fused(x)
        assert_close(got, model(x))
        assert not torch.equal(got, before)


@torch.no_grad()
def test_channels_that_do_not_fit_are_left_to_the_original(fused_calls):
    model = block()
    fused = fuse(model)
    for mode in (model, fused):
        mode.branch7x7_2.conv = nn.Conv2d(MID + 1, MID, (1, 7), padding=(0, 3))
    for broken in (fused, fuse(model)):
        with pytest.raises(RuntimeError, match=r"expected input.* to have 5 channels, but got 4"):
            broken(images())
    assert fused_calls.took() == 0


@torch.no_grad()
def test_options_of_a_unit_are_followed(fused_calls):
    model = block("conv2d_act")
    fused = fuse(model)
    for mode in (model, fused):
        mode.conv.stride, mode.conv.padding = (1, 3), "valid"
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1


@torch.no_grad()
def test_a_child_deleted_from_a_sequence_is_noticed(fused_calls):
    # nn.Sequential makes a new dictionary for the rest.
    model = Block()
    model.r.append(nn.Identity())
    randomize(model).eval()
    fused = fuse(model)
    del fused.r[4]
    assert len(fused.r) == 5
    got = fused(images())
    # No Inception block any more, but still a forward with pairs, and folded as that alone.
    assert fused_calls.took() == 1
    assert report(fused).replaced == [("", "conv_graph")]
    assert len([name for name, _ in fused.named_buffers() if ".folded_" in f".{name}"]) == 18
    del model.r[4]
    assert_close(got, model(images()))


def dilate(model):
    conv = model.branch7x7_2.conv
    conv.dilation, conv.padding = (1, 2), (0, 6)


def replace_activation(model):
    unit = model.branch1x1
    model.branch1x1 = nn.Sequential(OrderedDict(conv=unit.conv, bn=unit.bn, act=nn.SiLU())).eval()


def parametrize_weight(model):
    parametrize.register_parametrization(model.branch1x1.conv, "weight", nn.Tanh())


def prune_weight(model):
    mask = torch.arange(192).reshape(-1, 1, 1, 1) % 2
    prune.custom_from_mask(model.branch1x1.conv, "weight", mask.expand(192, CHANNELS, 1, 1))


def patch_forward(model):
    conv = model.branch1x1.conv
    conv.forward = lambda x: F.conv2d(x, conv.weight * 2)


def subclass_parameter(model):
    weight = model.branch1x1.conv.weight.detach() * 2
    model.branch1x1.conv.weight = nn.Parameter(weight.as_subclass(SpecialTensor))


def swap_class(model):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model.branch1x1.conv.__class__ = Doubled


class SpecialTensor(torch.Tensor):
    pass


BREAKS = {
    "dilation": dilate,
    "padding_mode": lambda model: setattr(model.branch7x7_2.conv, "padding_mode", "reflect"),
    "activation": replace_activation,
    "class": swap_class,
    "parametrized": parametrize_weight,
    "pruned": prune_weight,
    "forward": patch_forward,
    "subclass": subclass_parameter,
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
@torch.no_grad()
def test_a_block_that_became_something_else_runs_its_original_forward(change, fused_calls):
    model = nn.Sequential(block())
    fused = fuse(model)
    change(model[0])
    change(fused[0])
    x = images()
    assert torch.equal(fused(x), model(x))
    assert fused_calls.took() == 0
    ((name, reason),) = report(fused).skipped
    assert name == "0"
    assert reason.startswith("runs its original forward: branch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
@torch.no_grad()
def test_weights_of_another_kind_behind_the_same_parameter_are_looked_at_again(dtype):
    model = block()
    fused = fuse(model)
    for mode in (model, fused):
        weight = mode.branch7x7_2.conv.weight
        # int32 is a view: the memory stays.
        weight.requires_grad_(False)
        weight.data = weight.data.view(dtype) if dtype == torch.int32 else weight.data.to(dtype)
    with pytest.raises(RuntimeError) as theirs:
        model(images())
    with pytest.raises(RuntimeError) as ours:
        fused(images())
    assert str(ours.value) == str(theirs.value)


@torch.no_grad()
def test_a_parametrization_that_is_removed_leaves_the_block_fused(fused_calls):
    fused = fuse(block())
    x = images()
    parametrize_weight(fused)
    fused(x)
    assert fused_calls.took() == 0
    ((_, reason),) = report(fused).skipped
    assert "ParametrizedConv2d" in reason
    parametrize.remove_parametrizations(fused.branch1x1.conv, "weight")
    assert_close(fused(x), fused._original.forward(x))
    assert fused_calls.took() == 1


@torch.no_grad()
def test_refresh_sees_writes_that_are_not_counted():
    model = network()
    fused = fuse(model)
    x = images()
    for mode in (model, fused):
        mode.first.branch1x1.conv.weight.data.mul_(1.5)
        mode.second.branch1x1.conv.weight.data.mul_(1.5)
    refresh(fused)
    assert_close(fused(x), model(x))


@torch.no_grad()
def test_folded_weights_are_rewritten_in_place():
    fused = fuse(network())
    held = {name: buffer for name, buffer in fused.named_buffers() if "folded_" in name}
    # Of four convolutions on one input, one weight; the average pool adds a bias of its own.
    assert len(held) == 2 * (2 * 7 + 1)
    before = {name: buffer.clone() for name, buffer in held.items()}
    fused.first.branch1x1.conv.weight.mul_(2)
    fused(images())
    fused.load_state_dict(network(seed=3).state_dict())
    fused.second.branch1x1.bn.eps = 0.1
    fused(images())
    after = dict(fused.named_buffers())
    for name, buffer in held.items():
        assert after[name] is buffer
        assert not torch.equal(buffer, before[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_conversion_folds_the_converted_weights_anew(dtype):
    fused = fuse(block()).to(dtype)
    unit = fused.branch7x7_2
    weight, bias = fold_batch_norm(unit.conv.weight, unit.conv.bias, unit.bn)
    got = fused.get_buffer("folded_pair_row_weight")
    # Before the first forward, and rounded once: not the old folded weight converted.
    assert got.dtype == dtype
    assert torch.equal(got, weight)
    assert got.stride() == weight.stride()
    assert torch.equal(fused.get_buffer("folded_pair_row_bias"), bias)


@torch.no_grad()
def test_folded_weights_are_no_part_of_the_state():
    fused = fuse(block())
    assert not any("folded" in key for key in fused.state_dict())
    assert not any("folded" in name for name, _ in fused.named_parameters())
    for name, buffer in fused.named_buffers():
        if "folded" in name and buffer.dim() == 4:
            assert buffer.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("counted", [True, False])
@torch.no_grad()
def test_a_failed_rebuild_is_done_again(counted, monkeypatch):
    model = block()
    fused = fuse(model)
    for mode in (model, fused):
        for parameter in mode.parameters():
            (parameter if counted else parameter.data).mul_(1.1)
    done = []

    def fail(*args, **options):
        if len(done) == 3:
            raise torch.OutOfMemoryError("no memory")
        done.append(1)
        return fold_batch_norm(*args, **options)

    with monkeypatch.context() as patch:
        patch.setitem(FusedBlock._fold.__globals__, "fold_batch_norm", fail)
        with pytest.raises(torch.OutOfMemoryError):
            refresh(fused)
    assert_close(fused(images()), model(images()))


def test_tensors_made_in_inference_mode(fused_calls):
    with torch.inference_mode():
        model = block()
        fused = fuse(model)
        assert_close(fused(images()), model(images()))
        assert not any(b.is_inference() for n, b in fused.named_buffers() if "folded" in n)
        for mode in (model, fused):
            mode.branch1x1.conv.weight.mul_(2)
        # Such tensors count nothing.
        refresh(fused)
        assert_close(fused(images()), model(images()))
        assert fused_calls.took() == 2
    with torch.no_grad():
        assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1


@torch.no_grad()
def test_a_model_converted_in_inference_mode_can_still_be_rewritten(fused_calls):
    model = network()
    fused = fuse(model)
    with torch.inference_mode():
        fused.double()
        model.double()
    x = images(dtype=torch.float64)
    assert_close(fused(x), model(x), 1e-12)
    for mode in (model, fused):
        mode.load_state_dict(network(seed=2).double().state_dict(), assign=True)
    assert_close(fused(x), model(x), 1e-12)
    assert fused_calls.took() == 4


# Copies


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_torch_save}


@every_kind
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@torch.no_grad()
def test_a_copy_is_fused_and_independent(make_copy, kind, fused_calls):
    model = network(kind=kind)
    fused = fuse(model)
    other = make_copy(fused)
    x = images()
    want = model(x)
    inner = other.first._original
    assert inner is not fused.first._original
    for name in ("_modules", "_parameters", "_buffers", "_forward_hooks", "_state_dict_hooks"):
        assert vars(other.first)[name] is vars(inner)[name]
        assert vars(other.first)[name] is not vars(fused.first)[name]
    assert report(other) == report(fused)
    # Nothing of the original's travels along.
    assert vars(other.first)["_snapshot"] is None
    assert_close(other(x), want)
    assert fused_calls.took() == 2

    for parameter in other.parameters():
        parameter.mul_(0.5)
    assert_close(fused(x), want)
    twin = network(kind=kind)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    assert_close(other(x), twin(x))
    other.train()
    assert not fused.first.training
    assert not fused.first._original.training
    other.first.register_forward_hook(lambda *a: None)
    assert not fused.first._forward_hooks


@torch.no_grad()
def test_a_copy_of_a_model_with_unfused_changes_follows_them(fused_calls):
    model = network()
    fused = fuse(model)
    for mode in (model, fused):
        mode.first.branch1x1.conv.weight.mul_(2)
    other = copy.deepcopy(fused)
    assert_close(other(images()), model(images()))
    assert fused_calls.took() == 2


@torch.no_grad()
def test_first_calls_from_four_threads():
    model = network()
    x = images()
    want = model(x)
    for _ in range(3):
        fused = copy.deepcopy(fuse(model))
        results, start = [None] * 4, threading.Barrier(4)

        def run(index, fused=fused, results=results, start=start):
            start.wait()
            with torch.no_grad():
                results[index] = fused(x)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for got in results:
            assert_close(got, want)


# Standing in for the original


class Flagged(InceptionC):
    """A block with attributes and methods of its own."""

    def __init__(self):
        super().__init__(CHANNELS, MID)
        self.scale = 1.0
        self.note = "text"

    def forward(self, x):
        out = super().forward(x)
        return out if self.scale == 1.0 else out * self.scale

    def describe(self):
        return f"{self.note} {self.scale}"


@torch.no_grad()
def test_attributes_and_methods_of_the_original_are_there(fused_calls):
    fused = fuse(randomize(Flagged()).eval())
    assert fused.describe() == "text 1.0"
    assert fused.note == "text"
    with pytest.raises(AttributeError, match="missing"):
        _ = fused.missing
    x = images()
    before = fused(x)
    assert fused_calls.took() == 1

    # The original's forward reads it, so the block is another one now, and back.
    fused.scale = 3.0
    assert fused.describe() == "text 3.0"
    assert_close(fused(x), before * 3)
    assert fused_calls.took() == 0
    fused.scale = 1.0
    assert_close(fused(x), before)
    assert fused_calls.took() == 1
    fused.extra = 1
    del fused.extra
    assert not hasattr(fused, "extra")


@torch.no_grad()
def test_an_attribute_that_overrides_the_class_is_noticed(fused_calls):
    class Switched(Block):
        scale = None

        def forward(self, x):
            out = super().forward(x)
            return out if self.scale is None else out * self.scale

    fused = fuse(randomize(Switched()).eval())
    before = fused(images())
    fused.scale = 2.0
    assert_close(fused(images()), before * 2)
    assert fused_calls.took() == 1


@torch.no_grad()
def test_a_forward_put_on_a_block_is_the_one_that_runs():
    fused = fuse(block())
    inner = fused.forward
    want = fused(images())
    fused.forward = lambda x: inner(x) + 1
    assert torch.equal(fused(images()), want + 1)


@torch.no_grad()
def test_a_class_put_over_the_block_runs_the_original(fused_calls):
    # FSDP, for one, does this to the modules that it is given.
    fused = fuse(block())
    fused.__class__ = type("Managed", (FusedBlock,), {})
    fused(images())
    assert fused_calls.took() == 0


def test_children_can_be_registered_and_removed():
    fused = fuse(block())
    fused.head = nn.Linear(1, 1)
    assert fused._original.head is fused.head
    fused.register_buffer("offset", torch.zeros(1))
    assert "offset" in fused.state_dict()
    del fused.head
    assert "head" not in dict(fused.named_children())
    assert not hasattr(fused._original, "head")


def test_repr_names_the_kind_and_the_original():
    assert "kind='inception_c', original=InceptionC" in repr(fuse(block()))


def test_no_method_is_called_fuse():
    assert not any(hasattr(module, "fuse") for module in fuse(network()).modules())


# Units


def sequence(*modules):
    return nn.Sequential(*modules)


def conv3(**options):
    return nn.Conv2d(CHANNELS, 6, 3, **options)


class Plain(nn.Module):
    """A unit as people write it, with variations of its forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def conv_bn_relu(forward, **options):
    modules = {"conv": conv3(), "bn": nn.BatchNorm2d(6), "act": nn.ReLU()}
    return Plain(forward, **{**modules, **options})


FUSED_UNITS = {
    "basic": (
        lambda: BasicConv2d(CHANNELS, 6, kernel_size=3),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "stride": (
        lambda: BasicConv2d(CHANNELS, 6, kernel_size=(1, 4), stride=(3, 2), padding=(2, 5)),
        {"stride": (3, 2), "padding": (2, 5), "activation": "relu"},
    ),
    "sequence": (
        lambda: sequence(conv3(padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        {"stride": (1, 1), "padding": (1, 1), "activation": "relu"},
    ),
    "no-relu": (
        lambda: sequence(conv3(bias=False, stride=2), nn.BatchNorm2d(6)),
        {"stride": (2, 2), "padding": (0, 0), "activation": "none"},
    ),
    "no-batch-norm": (
        lambda: sequence(conv3(), nn.ReLU()),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "no-bias": (
        lambda: sequence(conv3(bias=False), nn.ReLU()),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "same": (
        lambda: sequence(nn.Conv2d(CHANNELS, 6, (3, 5), padding="same"), nn.BatchNorm2d(6)),
        {"stride": (1, 1), "padding": (1, 2), "activation": "none"},
    ),
    "valid-even": (
        lambda: sequence(nn.Conv2d(CHANNELS, 6, (2, 4), padding="valid"), nn.ReLU()),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "identities": (
        lambda: sequence(nn.Identity(), conv3(), nn.Sequential(), nn.BatchNorm2d(6), nn.Identity()),
        {"stride": (1, 1), "padding": (0, 0), "activation": "none"},
    ),
    "nested": (
        lambda: sequence(nn.Sequential(conv3()), nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "listed": (
        lambda: Plain(
            lambda m, x: m.parts[1](m.parts[0](x)).relu_(),
            parts=nn.ModuleList([conv3(), nn.BatchNorm2d(6)]),
        ),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "own-class": (
        lambda: conv_bn_relu(lambda m, x: m.act(m.bn(m.conv(x)))),
        {"stride": (1, 1), "padding": (0, 0), "activation": "relu"},
    ),
    "relu-not-called": (
        lambda: conv_bn_relu(lambda m, x: m.bn(m.conv(x))),
        {"stride": (1, 1), "padding": (0, 0), "activation": "none"},
    ),
}


@pytest.mark.parametrize("case", FUSED_UNITS)
@torch.no_grad()
def test_units_are_fused_with_their_options(case, fused_calls):
    make, options = FUSED_UNITS[case]
    model = nn.ModuleDict({"unit": make()})
    randomize(model).eval()
    assert recognize(model["unit"]).options == options
    fused = fuse(model, strict=True)
    assert report(fused).replaced == [("unit", "conv2d_act")]
    x = images()
    assert_close(fused["unit"](x), model["unit"](x))
    assert fused_calls.took() == 1


REFUSED_UNITS = {
    "groups": (lambda: sequence(conv3(groups=2), nn.ReLU()), "0: groups 2, takes 1"),
    "dilation": (
        lambda: sequence(conv3(dilation=2), nn.ReLU()),
        r"0: dilation \(2, 2\), takes 1",
    ),
    "padding-mode": (
        lambda: sequence(conv3(padding=1, padding_mode="reflect"), nn.ReLU()),
        "0: padding_mode 'reflect', takes 'zeros'",
    ),
    "same-even": (
        lambda: sequence(nn.Conv2d(CHANNELS, 6, 2, padding="same"), nn.ReLU()),
        r"0: padding 'same' with kernel \(2, 2\), takes odd kernels there",
    ),
    "no-statistics": (
        lambda: sequence(conv3(), nn.BatchNorm2d(6, track_running_stats=False)),
        "1: has no running statistics",
    ),
    "batch-norm-subclass": (
        lambda: sequence(conv3(), BatchNormAct(6)),
        "1: .*BatchNormAct, takes torch.nn.BatchNorm2d",
    ),
    "batch-norm-in-front": (
        lambda: sequence(nn.BatchNorm2d(CHANNELS), nn.ReLU(), conv3()),
        "0: is not directly behind a convolution",
    ),
    "relu-in-front": (
        lambda: sequence(nn.ReLU(), conv3(), nn.BatchNorm2d(6)),
        "0: ReLU of the block's input, takes a convolution",
    ),
    "batch-norm-last": (
        lambda: sequence(conv3(), nn.ReLU(), nn.BatchNorm2d(6)),
        "2: is not directly behind a convolution",
    ),
    "batch-norm-twice": (
        lambda: sequence(conv3(), nn.BatchNorm2d(6), nn.BatchNorm2d(6)),
        "2: is not directly behind a convolution",
    ),
    "parametrized": (
        lambda: sequence(parametrizations.weight_norm(conv3()), nn.ReLU()),
        "0: .*ParametrizedConv2d, takes torch.nn.Conv2d",
    ),
    "conv-not-called": (
        lambda: conv_bn_relu(lambda m, x: F.relu(x)),
        "relu: ReLU of the block's input, takes a convolution",
    ),
    "nothing": (
        lambda: conv_bn_relu(lambda m, x: x),
        "output: is the block's input, takes a convolution",
    ),
    "conv-twice": (
        lambda: conv_bn_relu(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(8, 8, 1)),
        "conv: is used twice",
    ),
    "pooled-before": (
        lambda: conv_bn_relu(lambda m, x: m.act(m.conv(F.max_pool2d(x, 2)))),
        "conv: reads max_pool2d, takes the block's input",
    ),
    "pooled-behind": (
        lambda: conv_bn_relu(lambda m, x: F.max_pool2d(m.act(m.conv(x)), 2)),
        "output: is max_pool2d, takes a convolution",
    ),
    "residual": (
        lambda: conv_bn_relu(lambda m, x: x[:, :6] + m.act(m.bn(m.conv(x)))),
        "getitem: not part of a known block",
    ),
    "other-activation": (
        lambda: conv_bn_relu(lambda m, x: F.silu(m.bn(m.conv(x)))),
        "silu: not part of a known block",
    ),
    "list": (
        lambda: conv_bn_relu(lambda m, x: [m.act(m.bn(m.conv(x)))]),
        "forward: returns list, takes one tensor",
    ),
    "remembers": (
        lambda: conv_bn_relu(lambda m, x: setattr(m, "seen", x) or m.act(m.bn(m.conv(x)))),
        "forward: writes the attribute seen",
    ),
}


@pytest.mark.parametrize("case", REFUSED_UNITS)
def test_units_that_are_not_known_are_left_alone_with_a_reason(case):
    make, message = REFUSED_UNITS[case]
    inner = make().eval()
    model = nn.ModuleDict({"unit": inner})
    before = states(model.modules())
    with pytest.raises(RuntimeError, match=rf"  unit: {message}"):
        fuse(model, inplace=True, strict=True)
    fuse(model, inplace=True)
    ((name, reason),) = report(model).skipped
    assert name == "unit"
    assert re.match(message, reason)
    assert states(model.modules()) == before


def test_other_modules_with_a_convolution_are_no_units():
    model = nn.ModuleDict(
        {
            "conv": conv3(),
            "only": sequence(conv3()),
            "only_functional": Plain(lambda m, x: F.relu(m.conv(x)), conv=conv3()),
            "linear": sequence(conv3(), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)),
            "pool": sequence(conv3(), nn.BatchNorm2d(6), nn.MaxPool2d(2)),
            "dropout": sequence(conv3(), nn.BatchNorm2d(6), nn.Dropout()),
            "silu": sequence(conv3(), nn.BatchNorm2d(6), nn.SiLU()),
            "two": sequence(conv3(), nn.Conv2d(6, 6, 3), nn.ReLU()),
            "transposed": sequence(nn.ConvTranspose2d(CHANNELS, 6, 3), nn.ReLU()),
            "one_dimension": sequence(nn.Conv1d(CHANNELS, 6, 3), nn.BatchNorm1d(6), nn.ReLU()),
            "none": sequence(nn.BatchNorm2d(6), nn.ReLU()),
            "list": nn.ModuleList([conv3(), nn.BatchNorm2d(6)]),
            "holder": type("Holder", (nn.Module,), {})(),
            "dict": nn.ModuleDict({"conv": conv3(), "bn": nn.BatchNorm2d(6)}),
        }
    )
    model["holder"].conv, model["holder"].bn = conv3(), nn.BatchNorm2d(6)
    assert report(fuse(model, strict=True)) == FusionReport([], [])


def test_convolutions_of_other_strides_do_not_look_like_a_block():
    class Classifier(nn.Module):
        """The filters of a grid reduction, none with stride 2."""

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Conv2d(4, 4, 3) for _ in range(3)], nn.Conv2d(4, 4, 1))

    assert find_blocks(Classifier()) == []
    assert len(find_blocks(Reduction())) == 1


def test_the_innermost_candidate_is_the_unit():
    around = Plain(lambda m, x: m.unit(x).mean((2, 3)), unit=sequence(conv3(), nn.BatchNorm2d(6)))
    fused = fuse(nn.Sequential(around, nn.ReLU()), strict=True)
    assert report(fused).replaced == [("0.unit", "conv2d_act")]


def oblong(rows, columns, channels=6, filters=6, **options):
    options = {"padding": (rows // 2, columns // 2), **options}
    return nn.Conv2d(channels, filters, (rows, columns), **options)


# Each sequence and the ops that it runs as.
SEQUENCES = {
    "flat-pair": (
        lambda: sequence(oblong(1, 7, CHANNELS), nn.BatchNorm2d(6), nn.ReLU(), oblong(5, 1)),
        ["factorized_conv2d"],
    ),
    "columns-first": (
        lambda: sequence(oblong(3, 1, CHANNELS, padding="same"), nn.ReLU(), oblong(1, 3)),
        ["factorized_conv2d"],
    ),
    "two-pairs-and-one": (
        lambda: sequence(
            oblong(7, 1, CHANNELS), oblong(1, 7), oblong(7, 1), oblong(1, 7), oblong(7, 1)
        ),
        ["factorized_conv2d", "factorized_conv2d", "conv2d_act"],
    ),
    "pool": (
        lambda: sequence(
            conv3(padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            sequence(oblong(1, 3), nn.ReLU()),
            sequence(oblong(3, 1), nn.BatchNorm2d(6)),
        ),
        ["conv2d_act", "max_pool2d", "factorized_conv2d"],
    ),
    "flat": (
        lambda: sequence(
            conv3(), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.ReLU()
        ),
        ["conv2d_act", "max_pool2d", "conv2d_act"],
    ),
}


@pytest.mark.parametrize("case", SEQUENCES)
@torch.no_grad()
def test_sequences_are_fused(case, fused_calls):
    make, ops = SEQUENCES[case]
    model = nn.ModuleDict({"sequence": randomize(make())}).eval()
    assert [op for op, _ in recognize(model["sequence"]).options["steps"]] == ops
    fused = fuse(model, strict=True)
    found = report(fused)
    assert found.replaced == [("sequence", "conv_sequence")]
    pairs = ops.count("factorized_conv2d")
    assert found.launches == [("sequence", (len(ops), len(ops) + pairs))]
    x = images(height=11, width=13)
    assert_close(fused["sequence"](x), model["sequence"](x))
    assert fused_calls.took() == 1
    assert len(fused["sequence"]) == len(model["sequence"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequence(oblong(1, 7, CHANNELS, stride=(1, 2)), oblong(7, 1)),
        lambda: sequence(oblong(1, 7, CHANNELS), oblong(7, 1, padding=0)),
        lambda: sequence(oblong(1, 7, CHANNELS), oblong(1, 7)),
        lambda: sequence(oblong(1, 6, CHANNELS), oblong(6, 1)),
        lambda: sequence(oblong(1, 33, CHANNELS), oblong(33, 1)),
        lambda: sequence(oblong(1, 7, CHANNELS), nn.SiLU(), oblong(7, 1)),
        lambda: sequence(oblong(1, 7, CHANNELS), nn.Flatten(2)),
    ],
    ids=["stride", "padding", "rows-twice", "even", "too-long", "silu", "one"],
)
def test_what_is_no_sequence_is_not_listed(make):
    assert find_sequences(make()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sequence(oblong(1, 7, CHANNELS), oblong(7, 1, groups=2)),
            "1: groups 2, takes 1",
        ),
        (
            lambda: sequence(oblong(1, 7, CHANNELS), oblong(7, 1), nn.MaxPool2d(2, ceil_mode=True)),
            "2: takes a max pool without dilation and ceil_mode",
        ),
        (
            lambda: sequence(oblong(1, 7, CHANNELS), oblong(7, 1), BatchNormAct(6)),
            "2: .*BatchNormAct, takes torch.nn.BatchNorm2d",
        ),
    ],
    ids=["groups", "ceil", "batch-norm"],
)
def test_sequences_that_are_not_known_are_left_alone_with_a_reason(make, message):
    model = make().eval()
    ((name, reason),) = report(fuse(model)).skipped
    assert name == ""
    assert re.match(message, reason)


@torch.no_grad()
def test_a_pair_of_which_one_half_is_read_elsewhere_is_found_in_its_sequence_only(fused_calls):
    units = [sequence(oblong(1, 7, CHANNELS), nn.ReLU()), sequence(oblong(7, 1), nn.ReLU())]
    model = nn.ModuleDict({"both": sequence(*units), "alone": units[0]})
    randomize(model).eval()
    fused = fuse(model)
    assert report(fused).replaced == [("both", "conv_sequence"), ("alone", "conv2d_act")]
    x = images()
    assert_close(fused["both"](x), model["both"](x))
    assert_close(fused["alone"](x), model["alone"](x))
    assert fused_calls.took() == 2


@torch.no_grad()
def test_a_block_of_inception_v4_with_a_3x3_for_the_5x5(fused_calls):
    model = Narrow()
    assert_fuses(model, fused_calls)
    assert report(fuse(model)).replaced == [("", "inception_a")]


@pytest.mark.parametrize("name", ["conv", "bn"])
@pytest.mark.parametrize("kind", HOOKS)
@torch.no_grad()
def test_hooks_inside_a_unit_are_called(kind, name, fused_calls):
    model = network(kind="conv2d_act")
    fused = fuse(model)
    calls = []
    handle = HOOKS[kind](fused.first.get_submodule(name), calls)
    assert torch.equal(fused.first(images()), model.first(images()))
    assert len(calls) == 1
    assert fused_calls.took() == 0
    assert report(fused).skipped[0][0] == "first"
    handle.remove()
    HOOKS[kind](fused.first, calls)
    fused.first(images())
    assert len(calls) == 2
    assert fused_calls.took() == 1


@torch.no_grad()
def test_a_fused_sequence_is_still_a_sequence(fused_calls):
    model = nn.ModuleDict({"s": sequence(conv3(), nn.BatchNorm2d(6), nn.ReLU())})
    randomize(model).eval()
    fused = through_pickle(fuse(model))["s"]
    x = images()
    assert isinstance(fused, nn.Sequential)
    assert len(fused) == 3
    assert [type(layer) for layer in fused] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert fused[0] is fused._original[0]
    assert type(fused[:2]) is nn.Sequential
    assert torch.equal(fused[:2](x), model["s"][:2](x))
    assert_close(fused(x), model["s"](x))
    assert fused_calls.took() == 1

    # Changed as a sequence, it computes what it now is.
    del fused[2], model["s"][2]
    assert_close(fused(x), model["s"](x))
    assert fused_calls.took() == 1
    assert (fused(x) < 0).any()
    fused_calls.took()
    fused.append(nn.SiLU().eval())
    assert torch.equal(fused(x), F.silu(model["s"](x)))
    assert fused_calls.took() == 0
    assert list(dict(fused.named_children())) == ["0", "1", "2"]


# Pairs inside a forward of their own


class Residual(nn.Module):
    """A pair, another convolution and a parameter around a sum, as people write them."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        self.conv1 = oblong(1, 7, channels, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = oblong(5, 1, filters=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels).reshape(channels, 1, 1))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return F.relu(self.bn3(self.conv3(self.act(out) * self.scale)))


class Mixed(nn.Module):
    """A module with children and a forward given as a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        self.a = sequence(oblong(1, 7, CHANNELS), nn.BatchNorm2d(6), nn.ReLU())
        self.b = sequence(oblong(7, 1, filters=CHANNELS), nn.BatchNorm2d(CHANNELS))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def second_first(m, x):
    # What the pair reads is written to before its second half runs.
    x = x * 2
    mid = m.a(x)
    y = x.mul_(3)
    return m.b(mid) + y


def other_branch_between(m, x):
    mid = m.a(x)
    other = m.c(x)
    return m.b(mid) + other


def sliced(m, x):
    out = m.b(m.a(x))
    return torch.cat([out[:, :2], out[:, 2:, ...].clamp(min=0.1)], dim=1)


# Each forward, with what else is in the module, and the ops and other calls that it becomes.
GRAPHS = {
    "alone": (lambda m, x: m.b(m.a(x)), {}, ["factorized_conv2d"]),
    "residual": (lambda m, x: F.relu(m.b(m.a(x)) + x), {}, ["factorized_conv2d", "add", "relu"]),
    "relu-behind": (
        lambda m, x: torch.flatten(m.b(m.a(x)).relu_(), 1),
        {},
        ["factorized_conv2d", "flatten"],
    ),
    "written-between": (second_first, {}, ["mul", "factorized_conv2d", "mul_", "add"]),
    "branch-between": (
        other_branch_between,
        {"c": nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())},
        ["factorized_conv2d", "conv2d_act", "add"],
    ),
    "bare-convolution": (
        lambda m, x: m.c(m.b(m.a(x))),
        {"c": nn.Conv2d(CHANNELS, 3, 3)},
        ["factorized_conv2d", "c"],
    ),
    "bare-pair": (
        lambda m, x: m.d(m.c(x)).sigmoid(),
        {"c": oblong(3, 1, CHANNELS), "d": oblong(1, 3, filters=2)},
        ["factorized_conv2d", "sigmoid"],
    ),
    "slices": (
        sliced,
        {},
        ["factorized_conv2d", "getitem", "getitem", "clamp", "cat"],
    ),
    "module-list": (
        lambda m, x: m.c[1](m.c[0](m.a(x))).mean((2, 3)),
        {"c": nn.ModuleList([oblong(7, 1), oblong(1, 7)])},
        ["factorized_conv2d", "c.1", "mean"],
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
@torch.no_grad()
def test_pairs_in_a_forward_of_their_own_are_fused(case, fused_calls):
    forward, modules, names = GRAPHS[case]
    model = nn.ModuleDict({"graph": randomize(Mixed(forward, **modules))}).eval()
    match = recognize(model["graph"])
    calls = [
        call.target.__name__ if callable(call.target) else call.target or call.kind
        for call in match.options["calls"]
    ]
    assert calls == names
    fused = fuse(model, strict=True)
    found = report(fused)
    assert found.replaced == [("graph", "conv_graph")]
    ops = [name for name in names if name in ("factorized_conv2d", "conv2d_act")]
    assert found.launches == [("graph", (len(ops), len(ops) + 1))]
    x = images(height=11, width=13)
    before = x.clone()
    assert_close(fused["graph"](x), model["graph"](x))
    assert fused_calls.took() == 1
    assert torch.equal(x, before)
    assert report(fuse(fused, inplace=True)) == found


NO_GRAPHS = {
    "parallel": lambda m, x: m.b(m.c(x)) + m.a(x)[:, :1],
    "mid-read-twice": lambda m, x: m.b(m.a(x)) + m.a(x).mean(),
    "pooled-between": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 1, 1)),
}


@pytest.mark.parametrize("case", NO_GRAPHS)
@torch.no_grad()
def test_where_there_is_no_pair_the_units_are_fused(case, fused_calls):
    model = nn.Sequential(Mixed(NO_GRAPHS[case], c=nn.Conv2d(CHANNELS, 6, 1)))
    randomize(model).eval()
    fused = fuse(model, strict=True)
    assert report(fused).replaced == [("0.a", "conv2d_act"), ("0.b", "conv2d_act")]
    assert_close(fused(images()), model(images()))


def reads_the_middle(m, x):
    mid = m.a(x)
    return m.b(mid) + mid.mean()


@torch.no_grad()
def test_a_middle_that_is_read_elsewhere_is_computed(fused_calls):
    model = nn.Sequential(Mixed(reads_the_middle))
    randomize(model).eval()
    assert report(fuse(model)).replaced == [("0.a", "conv2d_act"), ("0.b", "conv2d_act")]


@torch.no_grad()
def test_what_stays_inside_a_graph_is_reported(fused_calls):
    def forward(m, x):
        return m.d(F.relu(m.c(m.b(m.a(x)))))

    model = nn.Sequential(
        Mixed(
            forward,
            c=oblong(3, 1, CHANNELS, CHANNELS, padding=(2, 0), dilation=(2, 1)),
            d=sequence(oblong(1, 3, CHANNELS, groups=2), nn.ReLU()),
        )
    )
    randomize(model).eval()
    fused = fuse(model)
    left = [("0.c", "dilation (2, 1), takes 1"), ("0.d.0", "groups 2, takes 1")]
    assert report(fused) == FusionReport([("0", "conv_graph")], left)
    assert_close(fused(images()), model(images()))
    with pytest.raises(RuntimeError, match=r"  0.c: dilation \(2, 1\), takes 1\n  0.d.0: groups"):
        fuse(model, strict=True)


@torch.no_grad()
def test_of_a_convolution_that_is_called_twice_there_is_no_folded_copy(fused_calls):
    model = nn.Sequential(
        Mixed(lambda m, x: m.c(m.c(m.b(m.a(x)))), c=sequence(nn.Conv2d(8, 8, 1), nn.ReLU()))
    )
    randomize(model).eval()
    fused = fuse(model)
    assert report(fused) == FusionReport([("0", "conv_graph")], [("0.c.0", "is used twice")])
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1


REFUSED_GRAPHS = {
    "control-flow": (
        lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x,
        "forward: could not be traced .TraceError",
    ),
    "shape": (lambda m, x: m.b(m.a(x)).view(len(x), -1), "forward: could not be traced"),
    "two-outputs": (lambda m, x: (m.b(m.a(x)), x), "forward: returns tuple, takes one tensor"),
    "unused": (lambda m, x: (x.sum(), m.b(m.a(x)))[1], "forward: does not use the result of sum"),
    "remembers": (
        lambda m, x: setattr(m, "seen", x) or m.b(m.a(x)),
        "forward: writes the attribute seen",
    ),
    "type": (
        lambda m, x: m.b(m.a(x if torch.is_tensor(x) else x[0])),
        "forward: asks is_tensor, which a trace cannot answer",
    ),
    "foreign-function": (
        lambda m, x: torch.overrides.handle_torch_function(LOCAL, (x,), m.b(m.a(x))),
        "cannot be pickled, takes functions that can",
    ),
}


def make_local():
    def local(x):
        return x

    return local


LOCAL = make_local()


@pytest.mark.parametrize("case", REFUSED_GRAPHS)
def test_a_forward_that_is_not_understood_keeps_its_pair_with_a_reason(case):
    forward, message = REFUSED_GRAPHS[case]
    model = nn.Sequential(Mixed(forward)).eval()
    before = states(model.modules())
    with pytest.raises(RuntimeError, match=f"  0: .*{message}"):
        fuse(model, inplace=True, strict=True)
    assert states(model.modules()) == before
    found = report(fuse(model))
    assert found.replaced == [("0.a", "conv2d_act"), ("0.b", "conv2d_act")]
    ((name, reason),) = found.skipped
    assert name == "0"
    assert re.search(message, reason)


@torch.no_grad()
def test_a_pair_beside_what_is_fused_on_its_own_stays(fused_calls):
    model = nn.Sequential(
        Mixed(lambda m, x: m.b(m.a(m.inner(x))), inner=Mixed(lambda m, x: m.b(m.a(x)) + x))
    )
    randomize(model).eval()
    fused = fuse(model)
    found = report(fused)
    assert found.replaced == [
        ("0.a", "conv2d_act"),
        ("0.b", "conv2d_act"),
        ("0.inner", "conv_graph"),
    ]
    assert found.skipped == [("0", "inner: is fused on its own, beside a pair")]
    assert report(fuse(fused, inplace=True)) == found
    assert_close(fused(images()), model(images()))


def test_filters_and_names_of_graphs():
    model = nn.ModuleDict({"one": Residual(), "two": Mixed(lambda m, x: m.b(m.a(x)))}).eval()
    assert [name for name, _ in find_graphs(model)] == ["one", "two"]
    seen = []
    fused = fuse(model, filter_fn=lambda name, module: seen.append(name) or name != "two")
    assert seen == ["one", "two"]
    assert report(fused) == FusionReport(
        [("one", "conv_graph")], [("two", "excluded by filter_fn")]
    )


@pytest.mark.usefixtures("on_gpu")
def test_of_a_graph_only_its_convolutions_are_known_not_to_depend_on_the_batch():
    assert report(fuse(nn.Sequential(Mixed(GRAPHS["alone"][0])).eval())).batch_invariant
    found = report(fuse(nn.Sequential(Residual()).eval()))
    assert found.batch_dependent == [
        ("0", "calls more than its convolutions, which is not looked at")
    ]


# Blocks and the units inside them


def test_a_filter_that_excludes_a_block_excludes_what_is_in_it():
    seen = []

    def choose(name, module):
        seen.append(name)
        return name != "first"

    model = network()
    model.first.branch7x7_2.conv.dilation = (2, 2)
    model.second.branch1x1.conv.groups = 2
    fused = fuse(model, filter_fn=choose)
    assert seen == ["first", "second", *(f"second.{unit}" for unit in UNITS)]
    assert report(fused) == FusionReport(
        [(f"second.{unit}", "conv2d_act") for unit in UNITS[1:]],
        [
            ("first", "excluded by filter_fn"),
            ("second", "branch1x1.conv: groups 2, takes 1"),
            ("second.branch1x1", "conv: groups 2, takes 1"),
        ],
    )


def test_a_filter_excludes_single_units():
    model = network()
    model.first.branch1x1.conv.groups = model.second.branch1x1.conv.groups = 2
    fused = fuse(model, filter_fn=lambda name, module: not name.endswith("_pool"))
    assert ("first.branch_pool", "excluded by filter_fn") in report(fused).skipped
    assert len(report(fused).replaced) == 16
    assert ("first.branch_pool", "conv2d_act") in report(fuse(fused)).replaced


# Of one convolution nothing is fused while it has a hook.
@pytest.mark.parametrize("kind", [kind for kind in RENAMED if not kind.startswith("reduction")])
@torch.no_grad()
def test_a_block_that_is_understood_later_is_fused_as_a_whole(kind, fused_calls):
    model = nn.Sequential(randomize(RENAMED[kind]()).eval())
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *args: None)
    fused = fuse(model)
    convs = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    wrappers = [module for module in fused.modules() if isinstance(module, FusedBlock)]
    assert sum(len(wrapper._match.units) for wrapper in wrappers) == convs - 1
    x = images()
    want = model(x)
    assert_close(fused(x), want)
    assert fused_calls.took() == len(wrappers)
    for module in fused.modules():
        module._forward_hooks.clear()
    name, reason = report(fused).skipped[0]
    assert (name, reason) == ("0", "not fused yet: call fuse(model)")

    keys = list(fused.state_dict())
    unit = next(module for module in fused.modules() if isinstance(module, FusedBlock))
    for whole in (fuse(fused), fuse(fused, inplace=True)):
        assert report(whole) == FusionReport([("0", kind)], [])
        assert sum(isinstance(module, FusedBlock) for module in whole.modules()) == 1
        folded = [name for name, _ in whole.named_buffers() if "folded" in name]
        spec = blocks.FUSED_BLOCKS[kind]
        assert len(folded) == len(spec.weight_names) + len(spec.bias_names)
        assert list(whole.state_dict()) == keys
        assert_close(whole(x), want)
        assert fused_calls.took() == 1
    # A unit that somebody still holds goes on working.
    y = torch.randn(1, unit.conv.in_channels, 9, 7)
    assert_close(unit(y), unit._original.forward(y))


@torch.no_grad()
def test_a_unit_put_into_a_fused_block_runs_fused_on_its_own(fused_calls):
    model = block()
    fused = fuse(model)
    unit = randomize(BasicConv2d(CHANNELS, 192, kernel_size=1), seed=8).eval()
    model.branch1x1 = unit
    fused.branch1x1 = fuse(unit)
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 1
    assert report(fused) == FusionReport(
        [("branch1x1", "conv2d_act")],
        [("", "runs its original forward: branch1x1: is fused on its own")],
    )


@torch.no_grad()
def test_a_unit_shared_with_a_block_is_fused_where_it_stands_alone(fused_calls):
    whole = block()
    model = nn.ModuleDict({"block": whole, "unit": whole.branch1x1})
    fused = fuse(model)
    assert report(fused).replaced == [("block", "inception_c"), ("unit", "conv2d_act")]
    x = images()
    for _ in range(2):
        assert_close(fused["block"](x), model["block"](x))
        assert_close(fused["unit"](x), model["unit"](x))
        assert fused_calls.took() == 2
        for mode in (fused, model):
            mode["unit"].conv.weight.mul_(1.5)


# Layers beside a block


class Head(nn.Sequential):
    """A block with the layers around it that a network has."""

    def __init__(self):
        super().__init__(
            OrderedDict(
                first=nn.MaxPool2d((3, 2), stride=2, padding=(1, 0)),
                block=InceptionC(CHANNELS, MID),
                second=nn.MaxPool2d(2),
                average=nn.AdaptiveAvgPool2d((1, 1)),
                flat=nn.Flatten(),
                drop=nn.Dropout(),
                linear=nn.Linear(768, 10),
            )
        )


HEAD = [
    ("first", "max_pool2d"),
    ("block", "inception_c"),
    ("second", "max_pool2d"),
    ("average", "global_avg_pool2d"),
    ("linear", "linear"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_layers_beside_a_block_are_fused(dtype, fused_calls):
    model = randomize(Head()).eval().to(dtype)
    fused = fuse(model, strict=True)
    assert report(fused).replaced == HEAD
    x = images(height=17, width=19, dtype=dtype)
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]
    assert_close(fused(x), model(x), tolerance)
    assert fused_calls.took() == len(HEAD)
    assert torch.equal(fused.first(x), model.first(x))
    assert list(fused.state_dict()) == list(model.state_dict())
    for batch in (0, 1):
        assert_close(fused(x[:batch]), model(x[:batch]), tolerance)
    assert report(fuse(fused, inplace=True)) == report(fused)
    assert fused.linear.in_features == 768
    assert fused.first.kernel_size == (3, 2)


@torch.no_grad()
def test_layers_with_other_options_or_elsewhere_are_left_alone():
    model = Head()
    model.first.dilation = 2
    model.second.ceil_mode = True
    model.average.output_size = (1, 2)
    model.linear = nn.Sequential(nn.Linear(1536, 10))
    fused = fuse(randomize(model).eval(), strict=True)
    assert report(fused) == FusionReport([("block", "inception_c")], [])
    alone = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 8), BasicConv2d(3, 4, 1))
    assert report(fuse(alone)).replaced == [("3", "conv2d_act")]


@torch.no_grad()
def test_a_filter_excludes_layers():
    fused = fuse(Head().eval(), filter_fn=lambda name, module: not isinstance(module, nn.Linear))
    assert report(fused) == FusionReport(HEAD[:-1], [("linear", "excluded by filter_fn")])
    assert type(fused.linear) is nn.Linear


@torch.no_grad()
def test_changes_of_layers_are_followed(fused_calls):
    model = randomize(Head()).eval()
    fused = fuse(model)
    x = images(height=17, width=19)
    fused(x)
    for mode in (model, fused):
        mode.linear.weight.mul_(2)
        mode.linear.bias.add_(1)
        mode.first.padding = 1
        mode.first.kernel_size = 3
    fused_calls.took()
    assert_close(fused(x), model(x))
    assert fused_calls.took() == len(HEAD)
    for mode in (model, fused):
        mode.second.ceil_mode = True
        mode.linear = nn.Linear(768, 3)
        mode.linear.load_state_dict({"weight": torch.ones(3, 768), "bias": torch.zeros(3)})
    assert_close(fused(x), model(x))
    assert fused_calls.took() == len(HEAD) - 2
    reason = "runs its original forward: does not look like a known block"
    assert report(fused).skipped[0] == ("second", reason)


def test_layers_with_gradients_or_other_inputs_run_their_original_forward(fused_calls):
    fused = fuse(randomize(Head()).eval())
    x = torch.randn(2, 5, 768)
    with torch.no_grad():
        assert torch.equal(fused.linear(x), F.linear(x, fused.linear.weight, fused.linear.bias))
        assert fused.first(images()[0]).shape == (CHANNELS, 5, 3)
    with pytest.warns(UserWarning, match="no_grad"):
        out = fused.linear(torch.randn(2, 768))
    assert out.requires_grad
    assert fused_calls.took() == 0


@torch.no_grad()
def test_layers_compile_and_export(fresh_compiler):
    model = randomize(Head()).eval()
    fused = fuse(model)
    x = images(height=17, width=19)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, backend=counter, fullgraph=True)
    for _ in range(2):
        assert_close(compiled(x), model(x))
    assert counter.frame_count == 1
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: batch},))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ours = [name for name in names if name.startswith("fused_inception.")]
    assert ours == [f"fused_inception.{kind}.default" for _, kind in HEAD]
    assert torch.equal(program.module()(x), fused(x))


# Batch invariance


@pytest.fixture
def on_gpu(monkeypatch):
    """The report as it is where every fused part runs on a batch-invariant backend."""
    # The package's attribute `fuse` is the function.
    module = sys.modules["fused_inception.fuse"]
    monkeypatch.setattr(module, "batch_invariance_refusal", lambda *args: None)


def test_a_cpu_is_not_batch_invariant():
    found = report(fuse(Head().eval()))
    assert not found.batch_invariant
    # Max pools compare and never add.
    assert [name for name, _ in found.batch_dependent] == ["block", "average", "linear"]
    assert all("runs on cpu" in reason for _, reason in found.batch_dependent)


@pytest.mark.usefixtures("on_gpu")
def test_report_says_what_is_not_batch_invariant():
    assert report(fuse(Head().eval())).batch_invariant
    assert str(report(fuse(Head().eval()))).endswith("\nbatch-invariant")
    assert not report(Head()).batch_invariant

    class Calls(Head):
        def forward(self, x):
            return super().forward(x)

    fused = fuse(Calls().eval(), filter_fn=lambda name, module: name != "linear")
    fused.add_module("norm", nn.LayerNorm(10))
    kernel = "is PyTorch's own kernel, which may choose its order of summation by batch"
    assert report(fused).batch_dependent == [
        ("", "its forward may call functions, which are not looked at"),
        ("linear", kernel),
        ("norm", kernel),
    ]
    assert "(the model itself): its forward may call" in str(report(fused))
    assert f"linear and 1 more: {kernel}" in str(report(fused))


def test_float64_is_not_batch_invariant_on_any_device():
    refusal = batch_invariance_refusal(torch.float64, torch.device("cuda"))
    assert refusal.startswith("runs as backend aten: dtype torch.float64")


# Other programs that take a model


@every_kind
@torch.no_grad()
def test_compiles_whole_and_once(kind, fresh_compiler):
    model = network(kind=kind)
    fused = fuse(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, backend=counter, fullgraph=True)
    for seed in range(3):
        x = images(seed=seed)
        assert_close(compiled(x), model(x))
    assert counter.frame_count == 1
    names = [str(node.target) for node in counter.graphs[0].graph.nodes]
    assert names.count(f"fused_inception.{OPS.get(kind, kind)}.default") == 2
    for batch in (3, 5, 7):
        assert_close(compiled(images(batch=batch)), model(images(batch=batch)))
    assert counter.frame_count == 2


@torch.no_grad()
def test_compiled_code_sees_a_refresh_and_a_load(fresh_compiler):
    model = network()
    fused = fuse(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, backend=counter, fullgraph=True)
    x = images()
    compiled(x)
    for mode in (model, fused):
        mode.first.branch1x1.conv.weight.mul_(2)
    refresh(fused)
    assert_close(compiled(x), model(x))
    for mode in (model, fused):
        mode.load_state_dict(network(seed=4).state_dict())
    assert_close(compiled(x), model(x))
    for mode in (model, fused):
        mode.first.branch1x1.conv.weight.mul_(2)
        mode.eval()
    assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


def test_compiled_training_and_gradients_are_the_original_ones(fresh_compiler):
    model = block()
    fused = fuse(model)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = images()
    for mode in (False, True):
        for each in (model, fused):
            each.train(mode)
            each.zero_grad()
        got, want = compiled(x), model(x)
        assert_close(got, want)
        got.sum().backward()
        want.sum().backward()
        for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    model.eval()
    fused.eval()
    with torch.no_grad():
        assert_close(compiled(x), model(x))


@torch.no_grad()
def test_a_copy_compiles_before_its_first_forward(fresh_compiler):
    model = network()
    compiled = torch.compile(copy.deepcopy(fuse(model)), backend="eager", fullgraph=True)
    assert_close(compiled(images()), model(images()))


@torch.no_grad()
def test_a_fused_sequence_compiles_and_exports(fresh_compiler):
    model = nn.Sequential(
        sequence(conv3(), nn.BatchNorm2d(6), nn.ReLU()), nn.MaxPool2d(2), nn.Flatten()
    )
    randomize(model).eval()
    fused = fuse(model)
    x = images()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), model(x))
    program = torch.export.export(fused, (x,))
    assert "fused_inception.conv2d_act.default" in [str(n.target) for n in program.graph.nodes]
    assert_close(program.module()(x), model(x))


@torch.no_grad()
def test_compiling_respects_an_inner_module_in_training_mode(fresh_compiler):
    model = network()
    fused = fuse(model)
    for mode in (model, fused):
        mode.first.branch1x1.bn.train()
    assert_close(torch.compile(fused, backend="eager")(images()), model(images()))


def check_export(kind, strict):
    model = network(kind=kind)
    fused = fuse(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fused, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count(f"fused_inception.{OPS.get(kind, kind)}.default") == 2
    # A block is one op, and nothing of it is left beside it.
    others = [name for name in names if name.startswith("aten.") and "flatten" not in name]
    calls = ["aten.add.Tensor", "aten.relu_.default", "aten.mul.Tensor"]
    calls = calls if kind == "conv_graph" else []
    assert others == [*calls, "aten.conv2d.default", *calls]
    for size in (2, 5):
        assert_close(program.module()(images(batch=size)), model(images(batch=size)))
    # Exporting leaves the model as it was.
    assert_close(fused(images()), model(images()))


@every_kind
@torch.no_grad()
def test_exports_the_fused_forward(kind, fresh_compiler):
    check_export(kind, strict=False)


# A strict export goes through Dynamo, which every kind passes when it is compiled.
@pytest.mark.parametrize("kind", ["inception_c", "conv_sequence"])
@torch.no_grad()
def test_exports_the_fused_forward_strictly(kind, fresh_compiler):
    check_export(kind, strict=True)


@torch.no_grad()
def test_tracers_get_the_original_forward(fused_calls):
    model = network()
    fused = fuse(model)
    x = images()
    traced = torch.fx.symbolic_trace(fused)
    assert torch.equal(traced(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(fused, (x,), check_trace=False)
    assert torch.equal(scripted(x), model(x))
    assert fused_calls.took() == 0


# PyTorch's own forward-mode rules are TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@torch.no_grad()
def test_function_transforms_get_the_original_forward(fused_calls):
    model = network()
    fused = fuse(model)
    x = images()
    assert_close(torch.vmap(fused)(x[:, None])[:, 0], model(x))
    got, want = (torch.func.jvp(m, (x,), (x,)) for m in (fused, model))
    assert torch.equal(got[1], want[1])
    with forward_ad.dual_level():
        got, want = (
            forward_ad.unpack_dual(m(forward_ad.make_dual(x, x))).tangent for m in (fused, model)
        )
    assert torch.equal(got, want)
    with torch.enable_grad():
        got, want = (torch.func.grad(lambda x, m=m: m(x).sum())(x) for m in (fused, model))
    assert torch.equal(got, want)
    assert fused_calls.took() == 0


@torch.no_grad()
def test_functional_call_uses_the_given_parameters(fused_calls):
    model = network()
    fused = fuse(model)
    x = images()
    want = model(x)
    given = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    assert_close(
        torch.func.functional_call(fused, given, (x,)),
        torch.func.functional_call(model, given, (x,)),
    )
    assert_close(fused(x), want)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_autocast_gives_its_dtype(dtype, kind, fused_calls):
    # The convolution in front, as everywhere in a network, has made the input of that dtype.
    model = randomize(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), KINDS[kind]())).eval()
    fused = fuse(model)
    x = images()
    oracle = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", dtype):
        got, want = fused(x), model(x)
    assert fused_calls.took() == 1
    assert got.dtype == want.dtype == dtype
    error = (got.double() - oracle).abs().max()
    unfused_error = (want.double() - oracle).abs().max()
    assert error <= 2 * (unfused_error + torch.finfo(dtype).eps * oracle.abs().max())


@torch.no_grad()
def test_a_model_on_meta_is_fused_before_its_weights_arrive(fused_calls):
    with torch.device("meta"):
        empty = network()
    fused = fuse(empty, strict=True)
    assert fused(images().to("meta")).shape == (2, 768, 9, 7)
    model = network()
    fused.to_empty(device="cpu").load_state_dict(model.state_dict())
    fused_calls.took()
    assert_close(fused(images()), model(images()))
    assert fused_calls.took() == 2


@torch.no_grad()
def test_a_data_parallel_replica_runs_on_its_own_children(fused_calls):
    # What torch.nn.parallel.replicate does, without the copies to other devices.
    fused = fuse(block())
    want = fused._original.forward(images())
    before = dict(vars(fused._original))
    replica = fused._replicate_for_data_parallel()
    for name, child in fused.named_children():
        setattr(replica, name, copy.deepcopy(child))
    replica.branch1x1.conv.weight.zero_()
    fused_calls.took()
    got = replica(images())
    assert fused_calls.took() == 0
    assert torch.equal(got[:, 192:], want[:, 192:])
    assert not torch.equal(got[:, :192], want[:, :192])
    assert dict(vars(fused._original)) == before
    assert_close(fused(images()), want)


def test_distributed_data_parallel_wraps_a_fused_model(one_process_group, fused_calls):
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(fuse(model))
    x = images()
    with torch.no_grad():
        assert_close(wrapped(x), model(x))
        assert_close(wrapped(x), model(x))
    assert fused_calls.took() == 4
    assert [name for name, _ in report(wrapped).replaced] == ["module.first", "module.second"]
    wrapped.train()
    model.train()
    wrapped(x).sum().backward()
    model(x).sum().backward()
    for ours, theirs in zip(wrapped.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("place", ["model", "block"])
@torch.no_grad()
def test_fully_sharded_weights_are_left_to_the_original(place, one_process_group, fused_calls):
    # FSDP gathers into the same tensors without counting: a folded copy would never be rebuilt.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = network()
    fused = fuse(model)
    fully_shard(fused if place == "model" else fused.first, mesh=mesh)
    x = images()
    fused_calls.took()
    assert_close(fused(x), model(x))
    for mode in (model, fused):
        for parameter in mode.first.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            local.mul_(0.5)
    assert_close(fused(x), model(x))
    assert fused_calls.took() == (0 if place == "model" else 2)
    assert "managed by FSDP" in report(fused).skipped[0][1]
    later = fully_shard(network(), mesh=mesh)
    assert not report(fuse(later, inplace=True)).replaced


# Whole networks


FIRST_LAYERS = 7  # which run as one
STEM = [f"Conv2d_{layer}" for layer in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
REPLACED = [
    *((name, "conv2d_act") for name in STEM[:3]),
    ("maxpool1", "max_pool2d"),
    *((name, "conv2d_act") for name in STEM[3:]),
    ("maxpool2", "max_pool2d"),
    *((f"Mixed_5{block}", "inception_a") for block in "bcd"),
    ("Mixed_6a", "inception_b"),
    *((f"Mixed_6{block}", "inception_c") for block in "bcde"),
    ("AuxLogits.conv0", "conv2d_act"),
    ("AuxLogits.conv1", "conv2d_act"),
    ("Mixed_7a", "inception_d"),
    ("Mixed_7b", "inception_e"),
    ("Mixed_7c", "inception_e"),
    ("avgpool", "global_avg_pool2d"),
    ("fc", "linear"),
]


@pytest.fixture(scope="module", params=["reference", "torchvision"])
def whole_network(request):
    if request.param == "reference":
        model = inception_v3(init_weights=False)
    else:
        try:
            torchvision = import_torchvision()
        except ImportError as error:
            pytest.skip(str(error))
        model = torchvision.models.inception_v3(weights=None, init_weights=False)
    return randomize(model).eval()


def calibrated(model):
    """Statistics from one training-mode forward, as a trained network's fit its activations."""
    torch.manual_seed(0)
    bns = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for bn in bns:
        bn.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 299, 299))
    return model.eval()


def outputs(model, x):
    """The output of every child on the way, and the logits."""
    seen = {}

    def watch(name):
        return lambda module, args, output: seen.update({name: output.clone()})

    children = [n for n, _ in model.named_children() if n.startswith(("Conv2d", "Mixed", "avg"))]
    hooks = [model.get_submodule(n).register_forward_hook(watch(n)) for n in children]
    seen["logits"] = model(x)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(children) + 1
    return seen


# Of torchvision's network `fuse` makes the same modules (test_whole_network_report).
fused_to_the_same_modules = pytest.mark.parametrize("whole_network", ["reference"], indirect=True)


def test_whole_network_report(whole_network):
    # "skipped" is the rest of all convolution units, of which there is none.
    fused = fuse(whole_network, strict=True)
    assert report(fused) == FusionReport([("", "inception_stem"), *REPLACED], [])
    assert list(fused.state_dict()) == list(whole_network.state_dict())
    units = [n for n, m in whole_network.named_modules() if type(m).__name__ == "BasicConv2d"]
    assert len(units) == 96
    for unit in units:
        assert sum(f"{unit}.".startswith(f"{name}.") for name, _ in REPLACED) == 1
    assert report(whole_network) == FusionReport(
        [], [(name, "not fused yet: call fuse(model)") for name, _ in REPLACED]
    )
    found = report(fused)
    # The auxiliary head runs in training only. A pair is one launch or two.
    behind = [name for name, _ in REPLACED[FIRST_LAYERS:] if "Aux" not in name]
    assert [name for name, _ in found.launches] == ["", *behind]
    assert found.launches_per_forward == (5 + 2 + 3 * 5 + 4 + 4 * 5 + 3 + 2 * 5 + 2, 61 + 13)
    assert "a forward, 61 to 74 launches on a GPU" in str(found)


@pytest.mark.usefixtures("on_gpu")
def test_whole_network_is_batch_invariant_where_its_parts_are(whole_network):
    assert report(fuse(whole_network)).batch_invariant
    fused = fuse(whole_network, filter_fn=lambda name, module: name != "Mixed_6b")
    units = [name for name, _ in report(fused).batch_dependent]
    assert units
    assert all(name.startswith("Mixed_6b") for name in units)


@pytest.mark.parametrize("size", [(299, 299), (229, 171), (75, 75)], ids=str)
@torch.no_grad()
def test_whole_network(size, whole_network, fused_calls):
    fused = fuse(whole_network, strict=True)
    torch.manual_seed(1)
    x = torch.randn(2, 3, *size)
    got, want = outputs(fused, x), outputs(whole_network, x)
    # The two units of the auxiliary head do not run.
    assert fused_calls.took() == len(REPLACED) - 2
    for name in want:
        assert_close(got[name], want[name], 5e-6)
    got, want = got["logits"], want["logits"]
    assert 1 < want.abs().max() < 10
    assert (got - want).abs().max() <= 2e-5
    assert torch.equal(got.topk(5).indices, want.topk(5).indices)


@fused_to_the_same_modules
@torch.no_grad()
def test_whole_network_compiles_once_and_exports(whole_network, fresh_compiler):
    fused = fuse(whole_network)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 75, 75)
    want = fused(x)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, backend=counter, fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(x), want)
    assert counter.frame_count == 1
    program = torch.export.export(fused, (x,))
    assert torch.equal(program.module()(x), want)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ours = [name for name in names if name.startswith("fused_inception.")]
    behind = [kind for name, kind in REPLACED[FIRST_LAYERS:] if "Aux" not in name]
    kinds = ["inception_stem", *behind]
    assert ours == [f"fused_inception.{kind}.default" for kind in kinds]


@fused_to_the_same_modules
@torch.no_grad()
def test_whole_network_with_statistics_that_fit_it(whole_network):
    # Normalizing by the statistics of its own activations makes a network of random weights so
    # sensitive that float32 keeps only four digits of the last block, fused or not.
    model = calibrated(copy.deepcopy(whole_network))
    x = torch.randn(2, 3, 299, 299)
    got, want = fuse(model)(x), model(x)
    oracle = model.double()(x.double())
    assert (got - oracle).norm() <= 2 * (want - oracle).norm()
    assert (got - oracle).abs().max() <= 2 * (want - oracle).abs().max()
    assert (got - oracle).abs().max() <= 1e-4 * oracle.abs().max()


@torch.no_grad()
def test_whole_network_in_training_mode_has_its_auxiliary_head(whole_network, fused_calls):
    fused = fuse(whole_network).train()
    outputs = fused(torch.randn(2, 3, 299, 299))
    assert outputs.aux_logits.shape == (2, 1000)
    assert fused_calls.took() == 0


# On a GPU


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_moving_folds_anew_and_agrees():
    model = network()
    fused = fuse(model).cuda()
    assert fused.first.get_buffer("folded_direct_weight").is_cuda
    oracle = copy.deepcopy(model).double()(images().double())
    got = fused(images().cuda())
    want = copy.deepcopy(model).cuda()(images().cuda())
    error = (got.cpu().double() - oracle).abs().max()
    unfused_error = (want.cpu().double() - oracle).abs().max()
    eps = torch.finfo(torch.float32).eps
    assert error <= 2 * (unfused_error + eps * oracle.abs().max())


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_a_captured_graph_sees_new_inputs_and_a_refresh():
    fused = fuse(network().cuda())
    x = images().cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            fused(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused(x)
    x.copy_(images(seed=5))
    graph.replay()
    assert torch.equal(out, fused(x))
    fused.first.branch1x1.conv.weight.mul_(2)
    refresh(fused)
    graph.replay()
    assert torch.equal(out, fused(x))
