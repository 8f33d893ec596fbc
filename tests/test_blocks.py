"""The fused blocks as functions of folded weights, held against PyTorch's own convolutions.

That `fuse` finds a model's blocks and folds its weights into them is `test_fuse.py`'s; what the ops
compute is in their own files, and the Triton kernels run in `interpreter/test_blocks.py`. Left out:
real widths, which the whole networks of `test_fuse.py` have.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from fused_inception import blocks, testing
from fused_inception.blocks import FUSED_BLOCKS, BlockWeights, ConvWeights
from fused_inception.recognize import CONV_UNIT, KNOWN_BLOCKS, CatPattern, Input

CHANNELS = 5
# Filters, input channels, rows and columns of every convolution; n differs within a block.
SHAPES = {
    "inception_a": {
        "direct": (4, CHANNELS, 1, 1),
        "wide_reduce": (3, CHANNELS, 1, 1),
        "wide_last": (2, 3, 5, 5),
        "double_reduce": (2, CHANNELS, 1, 1),
        "double_mid": (6, 2, 3, 3),
        "double_last": (3, 6, 3, 3),
        "pool_project": (2, CHANNELS, 1, 1),
    },
    "inception_b": {
        "direct": (4, CHANNELS, 3, 3),
        "double_reduce": (3, CHANNELS, 1, 1),
        "double_mid": (6, 3, 3, 3),
        "double_last": (2, 6, 3, 3),
    },
    "inception_c": {
        "direct": (4, CHANNELS, 1, 1),
        "pair_reduce": (3, CHANNELS, 1, 1),
        "pair_row": (2, 3, 1, 7),
        "pair_col": (6, 2, 5, 1),
        "double_reduce": (3, CHANNELS, 1, 1),
        "double_col1": (4, 3, 3, 1),
        "double_row1": (2, 4, 1, 5),
        "double_col2": (3, 2, 7, 1),
        "double_row2": (5, 3, 1, 3),
        "pool_project": (2, CHANNELS, 1, 1),
    },
    "inception_d": {
        "direct_reduce": (3, CHANNELS, 1, 1),
        "direct_last": (4, 3, 3, 3),
        "pair_reduce": (2, CHANNELS, 1, 1),
        "pair_row": (4, 2, 1, 7),
        "pair_col": (3, 4, 5, 1),
        "pair_last": (2, 3, 3, 3),
    },
    "inception_d_double": {
        "direct_reduce": (3, CHANNELS, 1, 1),
        "direct_last": (4, 3, 3, 3),
        "other_reduce": (4, CHANNELS, 1, 1),
        "other_last": (5, 4, 3, 3),
        "double_reduce": (2, CHANNELS, 1, 1),
        "double_mid": (3, 2, 3, 3),
        "double_last": (2, 3, 3, 3),
    },
    "inception_e": {
        "direct": (4, CHANNELS, 1, 1),
        "split_reduce": (3, CHANNELS, 1, 1),
        "split_row": (2, 3, 1, 3),
        "split_col": (4, 3, 5, 1),
        "double_reduce": (2, CHANNELS, 1, 1),
        "double_mid": (3, 2, 3, 3),
        "double_row": (4, 3, 1, 5),
        "double_col": (2, 3, 3, 1),
        "pool_project": (3, CHANNELS, 1, 1),
    },
    "inception_e_pair": {
        "direct": (4, CHANNELS, 1, 1),
        "split_reduce": (3, CHANNELS, 1, 1),
        "split_row": (2, 3, 1, 3),
        "split_col": (4, 3, 5, 1),
        "double_reduce": (2, CHANNELS, 1, 1),
        "double_first": (4, 2, 3, 1),
        "double_second": (3, 4, 1, 5),
        "double_row": (4, 3, 1, 5),
        "double_col": (2, 3, 3, 1),
        "pool_project": (3, CHANNELS, 1, 1),
    },
    "conv2d_act": {"conv": (4, CHANNELS, 3, 2)},
}
SHAPES["inception_e_max_pool"] = SHAPES["inception_e"]
SHAPES["reduction"] = SHAPES["reduction_pool_first"] = {"direct": (4, CHANNELS, 3, 3)}
REDUCTIONS = (
    "inception_b",
    "inception_d",
    "inception_d_double",
    "reduction",
    "reduction_pool_first",
)
AVERAGED = ("inception_a", "inception_c", "inception_e", "inception_e_pair")
BLOCKS = tuple(kind for kind in SHAPES if kind != "conv2d_act")
every_kind = pytest.mark.parametrize("kind", SHAPES)
every_block = pytest.mark.parametrize("kind", BLOCKS)


def make_convs(kind, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def conv(shape):
        fan_in = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        shift = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return ConvWeights(weight.to(dtype), shift.to(dtype) if bias else None)

    return {role: conv(shape) for role, shape in SHAPES[kind].items()}


def fused(kind, x, convs, **options):
    spec = FUSED_BLOCKS[kind]
    return spec.forward(x, spec.pack(convs), **options)


def images(batch=2, height=9, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, CHANNELS, height, width, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def conv(x, weights, stride=1, padding="same"):
    return F.relu(F.conv2d(x, weights.weight, weights.bias, stride, padding))


def unfused(kind, x, w, include=True):
    """The block in PyTorch's own operators, one line for each branch."""
    w = SimpleNamespace(**w)
    if kind == "conv2d_act":
        return F.relu(F.conv2d(x, w.conv.weight, w.conv.bias))
    avg = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include)
    if kind == "inception_a":
        wide = conv(conv(x, w.wide_reduce), w.wide_last)
        double = conv(conv(conv(x, w.double_reduce), w.double_mid), w.double_last)
        return torch.cat([conv(x, w.direct), wide, double, conv(avg, w.pool_project)], 1)
    if kind == "inception_b":
        double = conv(conv(x, w.double_reduce), w.double_mid)
        branches = [conv(x, w.direct, 2, 0), conv(double, w.double_last, 2, 0)]
        return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    if kind == "inception_c":
        pair = conv(conv(conv(x, w.pair_reduce), w.pair_row), w.pair_col)
        double = conv(conv(conv(x, w.double_reduce), w.double_col1), w.double_row1)
        double = conv(conv(double, w.double_col2), w.double_row2)
        return torch.cat([conv(x, w.direct), pair, double, conv(avg, w.pool_project)], 1)
    if kind == "inception_d":
        pair = conv(conv(conv(x, w.pair_reduce), w.pair_row), w.pair_col)
        branches = [conv(conv(x, w.direct_reduce), w.direct_last, 2, 0)]
        branches.append(conv(pair, w.pair_last, 2, 0))
        return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    if kind == "inception_d_double":
        double = conv(conv(x, w.double_reduce), w.double_mid)
        branches = [conv(conv(x, w.direct_reduce), w.direct_last, 2, 0)]
        branches.append(conv(conv(x, w.other_reduce), w.other_last, 2, 0))
        branches.append(conv(double, w.double_last, 2, 0))
        return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    if kind in ("reduction", "reduction_pool_first"):
        branches = [conv(x, w.direct, 2, 0), F.max_pool2d(x, 3, 2)]
        return torch.cat(branches if kind == "reduction" else branches[::-1], 1)
    if kind == "inception_e_max_pool":
        avg = F.max_pool2d(x, 3, 1, 1)
    split = conv(x, w.split_reduce)
    double = conv(x, w.double_reduce)
    if kind == "inception_e_pair":
        double = conv(conv(double, w.double_first), w.double_second)
    else:
        double = conv(double, w.double_mid)
    branches = [conv(x, w.direct), conv(split, w.split_row), conv(split, w.split_col)]
    branches += [conv(double, w.double_row), conv(double, w.double_col)]
    return torch.cat([*branches, conv(avg, w.pool_project)], 1)


def roles(pattern):
    if isinstance(pattern, CatPattern):
        return set().union(*map(roles, pattern.sources))
    if isinstance(pattern, Input):
        return set()
    return {getattr(pattern, "role", None)} - {None} | roles(pattern.source)


def test_what_recognition_finds_is_what_runs():
    known = {known.kind: roles(known.pattern) for known in (*KNOWN_BLOCKS, CONV_UNIT)}
    assert known == {kind: set(FUSED_BLOCKS[kind].roles) for kind in SHAPES}
    assert known == {kind: set(shapes) for kind, shapes in SHAPES.items()}


@every_kind
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", [(9, 8), (3, 3), (4, 17), (17, 17)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_agrees_with_pytorch(batch, size, bias, kind):
    x, convs = images(batch, *size), make_convs(kind, bias=bias)
    before = x.clone()
    got, want = fused(kind, x, convs), unfused(kind, x, convs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    testing.assert_channels_last(got)
    assert torch.equal(x, before)


@every_block
def test_some_convolutions_may_have_a_bias_and_others_none(kind):
    x, convs = images(), make_convs(kind)
    for kept in (0, 1):
        some = {
            role: ConvWeights(w.weight, w.bias if index % 2 == kept else None)
            for index, (role, w) in enumerate(convs.items())
        }
        got, want = fused(kind, x, some), unfused(kind, x, some)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", AVERAGED)
def test_the_average_pool_counts_as_told(kind):
    x, convs = images(), make_convs(kind)
    results = [fused(kind, x, convs, count_include_pad=include) for include in (True, False)]
    for got, include in zip(results, (True, False), strict=True):
        want = unfused(kind, x, convs, include)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(*results)


def test_the_unit_passes_its_options_on():
    x, (conv,) = images(), make_convs("conv2d_act").values()
    weights = BlockWeights((conv.weight,), (conv.bias,))
    got = blocks.conv_unit(x, weights, stride=(2, 3), padding=(0, 4), activation="none")
    want = F.conv2d(x, conv.weight, conv.bias, (2, 3), (0, 4))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (want < 0).any()


@pytest.mark.parametrize("options", [{}, {"count_include_pad": False}], ids=["pad", "no-pad"])
@pytest.mark.parametrize("seed", range(3))
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_is_at_most_twice_that_of_pytorch(dtype, kind, seed, options):
    """Also behind an average pool, which is rounded in another place than unfused."""
    if options and kind not in AVERAGED:
        pytest.skip("has no average pool")
    x, convs = images(dtype=dtype), make_convs(kind, dtype, seed=seed)
    wide = {role: ConvWeights(w.weight.double(), w.bias.double()) for role, w in convs.items()}
    include = options.get("count_include_pad", True)
    got, theirs = fused(kind, x, convs, **options), unfused(kind, x, convs, include)
    assert got.dtype == dtype
    testing.assert_within_budget(got, theirs, unfused(kind, x.double(), wide, include))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_its_dtype_also_behind_a_pool(dtype, kind):
    x, convs = images(dtype=torch.float32), make_convs(kind, torch.float32)
    with torch.autocast("cpu", dtype):
        got = fused(kind, x, convs)
    assert got.dtype == dtype
    if kind in REDUCTIONS:
        place = slice(CHANNELS) if kind == "reduction_pool_first" else slice(-CHANNELS, None)
        assert torch.equal(got[:, place], F.max_pool2d(x, 3, 2).to(dtype))
    want = unfused(kind, x, convs)
    assert (got.float() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


@every_kind
def test_gradients_are_those_of_pytorch(kind):
    grads = []
    for forward in (fused, unfused):
        x, convs = images().requires_grad_(), make_convs(kind)
        leaves = [t.requires_grad_() for w in convs.values() for t in w]
        forward(kind, x, convs).sin().sum().backward()
        grads.append([leaf.grad for leaf in (x, *leaves)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_map_without_a_whole_window_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind}: input must have H and W of at least 3.*2x8"):
        fused(kind, images(height=2), make_convs(kind))


@every_kind
def test_an_unknown_backend_is_refused(kind):
    with pytest.raises(ValueError, match=r"backend .*'fastest'"):
        fused(kind, images(), make_convs(kind), backend="fastest")


@every_block
def test_a_backend_that_cannot_run_says_why(kind):
    with pytest.raises(RuntimeError, match=f"{kind}: .*'triton' cannot run here: dtype .*float64"):
        fused(kind, images(), make_convs(kind), backend="triton")
    with pytest.raises(RuntimeError, match=rf"{kind}: .*'cuda' cannot .*: \w+: dtype .*float64"):
        fused(kind, images(), make_convs(kind), backend="cuda")


# What is merged, moved and written in place


def test_siblings_are_one_weight_and_the_rest_is_not_copied():
    convs = make_convs("inception_c")
    spec = FUSED_BLOCKS["inception_c"]
    weights, biases = spec.pack(convs)
    assert spec.weight_names[0] == "siblings"
    siblings = ("direct", "pair_reduce", "double_reduce", "pool_project")
    assert torch.equal(weights[0], torch.cat([convs[role].weight for role in siblings]))
    testing.assert_channels_last(weights[0])
    # The pool adds the bias of its 1x1.
    shift = [convs[role].bias for role in siblings[:3]] + [torch.zeros(2, dtype=torch.float64)]
    assert torch.equal(biases[0], torch.cat(shift))
    assert biases[-1] is convs["pool_project"].bias
    for name, weight, bias in list(zip(spec.weight_names, weights, biases, strict=False))[1:]:
        assert weight is convs[name].weight
        assert bias is convs[name].bias


def test_siblings_without_biases_have_none():
    convs = make_convs("inception_c", bias=False)
    _, biases = FUSED_BLOCKS["inception_c"].pack(convs)
    assert biases[:-1] == (None,) * 7
    assert not biases[-1].any()


class Calls(TorchDispatchMode):
    """Counts what PyTorch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# Convolutions and, of these, products that several convolutions share.
PRODUCTS = {
    "inception_a": 4,
    "inception_b": 4,
    "inception_c": 7,
    "inception_d": 5,
    "inception_e": 6,
    "inception_e_max_pool": 7,
    "inception_e_pair": 7,
    "inception_d_double": 5,
    "reduction": 1,
    "reduction_pool_first": 1,
}


@every_block
def test_siblings_run_once_and_nothing_is_concatenated(kind):
    spec = FUSED_BLOCKS[kind]
    x = images().contiguous(memory_format=torch.channels_last)
    weights = spec.pack(make_convs(kind))
    # Below the op: what its implementation calls.
    op = getattr(torch.ops.fused_inception, kind).default
    options = (True, "aten") if kind in AVERAGED else ("aten",)
    with Calls() as calls, torch.no_grad():
        op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), x, *weights, *options)
    assert sum("convolution" in name for name in calls.names) == PRODUCTS[kind]
    assert not any("cat" in name.partition("::")[2] for name in calls.names)


@every_block
def test_the_pool_runs_over_the_filters_of_its_1x1(kind, monkeypatch):
    seen = []
    average = F.avg_pool2d

    def watched(x, *args, **options):
        seen.append(x.shape[1])
        return average(x, *args, **options)

    monkeypatch.setattr(F, "avg_pool2d", watched)
    fused(kind, images(), make_convs(kind))
    project = SHAPES[kind].get("pool_project", [None])[0]
    assert seen == ([project] if kind in AVERAGED else [])


# The op


def arguments(kind, batch=2, dtype=torch.float32, device="cpu"):
    weights = FUSED_BLOCKS[kind].pack(make_convs(kind, dtype))
    x, weights, biases = images(batch, dtype=dtype), list(weights.weights), list(weights.biases)
    x = x.to(device)
    weights, biases = ([t.to(device) for t in part] for part in (weights, biases))
    return (x, weights, biases, *([False] if kind in AVERAGED else []), "auto")


def operator(kind):
    return getattr(torch.ops.fused_inception, kind).default


@every_block
def test_schema_is_stable(kind):
    option = "bool count_include_pad, " if kind in AVERAGED else ""
    assert str(operator(kind)._schema) == (
        f"fused_inception::{kind}(Tensor input, Tensor[] weights, Tensor?[] biases, {option}"
        "str backend) -> Tensor"
    )
    assert torch.Tag.needs_exact_strides in operator(kind).tags


@pytest.mark.parametrize("batch", [0, 1, 3])
@every_block
def test_opcheck(kind, batch):
    torch.library.opcheck(operator(kind), arguments(kind, batch))


@every_block
def test_meta_tensors(kind):
    expected = operator(kind)(*arguments(kind))
    result = operator(kind)(*arguments(kind, device="meta"))
    assert result.device.type == "meta"
    assert result.shape == expected.shape
    assert result.stride() == expected.stride()
    huge = operator(kind)(*arguments(kind, batch=1, device="meta"))
    x, *others = arguments(kind, batch=1, device="meta")
    huge = operator(kind)(x.expand(2**31, -1, -1, -1), *others)
    assert huge.shape == (2**31, *expected.shape[1:])
    testing.assert_channels_last(huge)


@every_block
def test_a_dynamic_batch_compiles_once(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(operator(kind), fullgraph=True, backend=counter)
    _, *others = arguments(kind)
    for batch in (2, 5, 3):
        x = images(batch, dtype=torch.float32)
        torch._dynamo.mark_dynamic(x, 0)
        result = compiled(x, *others)
        torch.testing.assert_close(result, operator(kind)(x, *others))
        testing.assert_channels_last(result)
    assert counter.frame_count == 1


@every_block
def test_wrong_weights_are_refused_by_their_role(kind):
    spec = FUSED_BLOCKS[kind]
    x = images()
    weights, biases = spec.pack(make_convs(kind))
    for index, name in enumerate(spec.weight_names):
        weight = weights[index]
        for wrong, match in (
            (weight[0], "4-D"),
            (weight[..., :0], "non-empty"),
            (torch.cat([weight, weight], 2), "be 1x1|be 3x3|be 1xn|be nx1|odd filter length"),
        ):
            given = BlockWeights((*weights[:index], wrong, *weights[index + 1 :]), biases)
            with pytest.raises(ValueError, match=rf"{kind}: {name} must ({match}|.*({match}))"):
                spec.forward(x, given)
        for wrong in (weight.float(), weight.to("meta")):
            given = BlockWeights((*weights[:index], wrong, *weights[index + 1 :]), biases)
            with pytest.raises((TypeError, ValueError), match=f"{kind}: {name} must"):
                spec.forward(x, given)
        given = BlockWeights(
            weights, (*biases[:index], torch.zeros(99).double(), *biases[index + 1 :])
        )
        with pytest.raises(ValueError, match=rf"{kind}: the bias of {name} must be of shape"):
            spec.forward(x, given)
    with pytest.raises(ValueError, match=f"{kind}: weights and biases must be"):
        spec.forward(x, BlockWeights(weights[:-1], biases))
    with pytest.raises(ValueError, match=f"{kind}: input must be 4-D"):
        spec.forward(x[0], BlockWeights(weights, biases))


@every_block
def test_channels_that_do_not_fit_are_refused_by_the_role(kind):
    for role in SHAPES[kind]:
        convs = make_convs(kind)
        weight = torch.cat([convs[role].weight] * 2, 1)
        convs[role] = ConvWeights(weight, convs[role].bias)
        with pytest.raises(ValueError, match=rf"{kind}: (\w+) must (take|have filters).*\d"):
            fused(kind, images(), convs)


@pytest.mark.parametrize(
    "kind", [k for k in BLOCKS if k not in ("inception_b", "reduction", "reduction_pool_first")]
)
def test_siblings_must_have_filters_for_all(kind):
    spec = FUSED_BLOCKS[kind]
    weights, biases = spec.pack(make_convs(kind))
    sizes = {role: shape[0] for role, shape in SHAPES[kind].items() if "reduce" in role}
    few = weights[0][: sum(sizes.values()) - 1]
    given = BlockWeights((few, *weights[1:]), (biases[0][: len(few)], *biases[1:]))
    with pytest.raises(ValueError, match=f"{kind}: siblings must have filters for"):
        spec.forward(images(), given)
