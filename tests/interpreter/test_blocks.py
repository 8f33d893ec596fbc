"""The fused blocks, and networks of them, on the Triton backend, run by the interpreter.

Left out: real widths (minutes here); the network has an eighth of Inception V3's channels and the
smallest image that it takes.
"""

from __future__ import annotations

import functools
import importlib
import re
import weakref

import pytest
import torch
from torch import nn
from triton.runtime import interpreter

from fused_inception import _extension, blocks, fuse, report, testing
from fused_inception.blocks import FUSED_BLOCKS, ConvWeights, prepared
from fused_inception.blocks import launch as block_launch
from fused_inception.blocks.plan import INPUT, ImagesAtATime, sources
from fused_inception.models.inception_v3 import BasicConv2d, InceptionBlocks, InceptionV3
from fused_inception.ops.common import dispatch_table, launching
from fused_inception.ops.factorized_conv2d import launch as pair_launch
from tests import cuda_stand_ins, test_stem
from tests.test_blocks import AVERAGED, BLOCKS, CHANNELS, fused, images, make_convs, unfused
from tests.test_fuse import randomize

every_block = pytest.mark.parametrize("kind", BLOCKS)


def run(kind, x, convs, **options):
    return fused(kind, x, convs, backend="triton", **options)


def rounded(convs, dtype):
    """The same weights in another dtype, with operands of tf32 products rounded as they will be."""
    return {
        role: ConvWeights(w.weight.to(dtype), None if w.bias is None else w.bias.to(dtype))
        for role, w in convs.items()
    }


def check_error(kind, size, include_pad, precision):
    if not include_pad and kind not in AVERAGED:
        pytest.skip("has no average pool")
    dtype, factor = precision
    if torch.backends.cudnn.conv.fp32_precision == "tf32" and dtype == torch.float32:
        pytest.skip("a CPU has no tf32 to compare with; the ops' own tests do it by steps")
    x, convs = images(2, *size, dtype=dtype), make_convs(kind, dtype)
    options = {"count_include_pad": include_pad} if kind in AVERAGED else {}
    oracle = unfused(kind, x.double(), rounded(convs, torch.float64), include_pad)
    got = run(kind, x, convs, **options)
    testing.assert_within_budget(got, unfused(kind, x, convs, include_pad), oracle, factor)
    testing.assert_channels_last(got)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@every_block
def test_error_is_at_most_twice_that_of_pytorch(kind, include_pad, precision):
    check_error(kind, (9, 8), include_pad, precision)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@pytest.mark.parametrize("size", [(3, 3), (4, 17)], ids=str)
@every_block
def test_the_smallest_map_and_an_odd_one(kind, size, include_pad):
    check_error(kind, size, include_pad, (torch.float16, 2.0))


def whole_numbers(kind):
    """Weights and an input for which every map is exact, and every average whole."""
    generator = torch.Generator().manual_seed(0)

    def numbers(shape, low, high):
        return torch.randint(low, high, shape, generator=generator).double()

    convs = {
        role: ConvWeights(
            testing.channels_last(numbers(w.weight.shape, -1, 2)), numbers(w.bias.shape, -2, 3)
        )
        for role, w in make_convs(kind).items()
    }
    # 36 is a multiple of every number of pixels in a window.
    return 36 * numbers((2, CHANNELS, 7, 6), -1, 2), convs


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@every_block
def test_whole_numbers_are_exact(kind, include_pad):
    x, convs = whole_numbers(kind)
    expected = unfused(kind, x, convs, include_pad)
    assert 0 < expected.abs().max() < 2**24
    options = {"count_include_pad": include_pad} if kind in AVERAGED else {}
    with testing.fp32_precision("ieee"):
        result = run(kind, x.float(), rounded(convs, torch.float32), **options)
    assert torch.equal(result.double(), expected)


@every_block
def test_every_element_is_written_and_nothing_else(kind, monkeypatch: pytest.MonkeyPatch):
    """All maps lie inside guard words; memory that nobody wrote is NaN."""
    guard, marks = 64, []

    def guarded(shape, like):
        n, c, h, w = shape
        buffer = torch.full((n * c * h * w + 2 * guard,), 77.0, dtype=like.dtype)
        buffer[guard:-guard] = float("nan")
        marks.append(buffer)
        return buffer.as_strided(shape, (h * w * c, 1, w * c, c), guard)

    monkeypatch.setattr(block_launch, "empty_channels_last", guarded)
    monkeypatch.setattr(prepared, "empty_channels_last", guarded)
    x, convs = whole_numbers(kind)
    with testing.fp32_precision("ieee"):
        result = run(kind, x.float(), rounded(convs, torch.float32))
    assert torch.equal(result.double(), unfused(kind, x, convs))
    assert len(marks) > (0 if kind.startswith("reduction") else 2)  # the output and its maps
    for buffer in marks:
        assert (buffer[:guard] == 77).all()
        assert (buffer[-guard:] == 77).all()


@every_block
def test_launches_are_as_many_as_said(kind, monkeypatch: pytest.MonkeyPatch):
    """One for each step, and for each pair one or two: counted, not run."""
    ranges, launches = launching.image_ranges, []

    def counted(*args):
        launches.extend(ranges(*args))
        return ()

    ops = ("conv2d_act", "split_conv2d", "grid_reduction", "pool2d", "factorized_conv2d")
    for op in (*ops, "halving_branches"):
        module = importlib.import_module(f"fused_inception.ops.{op}.launch")
        monkeypatch.setattr(module, "image_ranges", counted)
    pairs = []
    for name in ("launch_bands", "launch_two"):
        original = getattr(pair_launch, name)
        monkeypatch.setattr(
            pair_launch, name, lambda call, o=original, n=name: (pairs.append(n), o(call))
        )
    # More channels: with up to eight, siblings are launched one by one.
    convs = {
        role: ConvWeights(w.weight.repeat(4, 4, 1, 1), w.bias.repeat(4))
        for role, w in make_convs(kind, torch.float32).items()
    }
    x = images(17, dtype=torch.float32).repeat(1, 4, 1, 1)
    low, high = FUSED_BLOCKS[kind].launches
    for bands in (True, False):
        launches.clear()
        pairs.clear()
        monkeypatch.setattr(pair_launch, "use_bands", lambda *args, b=bands: b)
        run(kind, x, convs)
        assert set(pairs) <= {"launch_bands" if bands else "launch_two"}
        # The two launches of a pair share one range of images.
        count = len(launches) + (0 if bands else len(pairs))
        assert count == (low if bands else high)


@every_block
def test_maps_are_given_back_as_soon_as_nobody_reads_them(kind, monkeypatch: pytest.MonkeyPatch):
    alive, most, read = [], [], []

    def watched(shape, like):
        map_ = torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)
        alive.append(weakref.ref(map_))
        return map_

    monkeypatch.setattr(block_launch, "empty_channels_last", watched)
    monkeypatch.setattr(prepared, "empty_channels_last", watched)
    launch = block_launch._launch

    def stepped(step, *args):
        launch(step, *args)
        read.append(sources(step))
        most.append(sum(ref() is not None for ref in alive))

    monkeypatch.setattr(block_launch, "_launch", stepped)
    result = run(kind, images(dtype=torch.float32), make_convs(kind, torch.float32))
    assert sum(ref() is not None for ref in alive) == 1
    assert result is alive[0]()
    # Behind the last step: the output and what that step read.
    assert most[-1] <= 1 + sum(name != INPUT for name in read[-1])


@every_block
def test_auto_never_picks_the_interpreter(kind, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object) -> None:
        raise AssertionError("a Triton kernel was launched")

    monkeypatch.setattr(block_launch, "_launch", refuse)
    fused(kind, images(dtype=torch.float32), make_convs(kind, torch.float32))
    with pytest.raises(AssertionError):
        run(kind, images(dtype=torch.float32), make_convs(kind, torch.float32))


@pytest.mark.usefixtures("sequential_product")
@every_block
def test_an_image_does_not_depend_on_its_batch(kind, precision):
    dtype, _ = precision
    x, convs = images(3, dtype=dtype), make_convs(kind, dtype)
    whole = run(kind, x, convs)
    nchw = x[1:2].contiguous()
    assert torch.equal(run(kind, nchw, convs), whole[1:2])
    order = torch.tensor([2, 0])
    assert torch.equal(run(kind, x[order], convs), whole[order])


# The first layers


@pytest.mark.parametrize("size", [(27, 27), (29, 33)], ids=str)
def test_error_of_the_first_layers_is_at_most_twice_that_of_pytorch(size, precision):
    dtype, factor = precision
    if torch.backends.cudnn.conv.fp32_precision == "tf32" and dtype == torch.float32:
        pytest.skip("a CPU has no tf32 to compare with; the ops' own tests do it by steps")
    x, convs = test_stem.images(2, *size, dtype=dtype), test_stem.make_convs(dtype)
    oracle = test_stem.unfused(x.double(), rounded(convs, torch.float64))
    got = test_stem.fused(x, convs, backend="triton")
    testing.assert_within_budget(got, test_stem.unfused(x, convs), oracle, factor)
    testing.assert_channels_last(got)


@pytest.mark.usefixtures("sequential_product")
@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_the_first_layers_give_the_same_bits_however_many_images_at_a_time(
    at_a_time, precision, monkeypatch: pytest.MonkeyPatch
):
    dtype, _ = precision
    x, convs = test_stem.images(5, 27, 27, dtype=dtype), test_stem.make_convs(dtype)
    expected = [test_stem.fused(x[i : i + 1], convs, backend="triton") for i in range(5)]
    plan = test_stem.PLAN
    monkeypatch.setattr(plan, "images_at_a_time", ImagesAtATime(at_a_time, at_a_time))
    assert torch.equal(test_stem.fused(x, convs, backend="triton"), torch.cat(expected))


# On the compiled extension. CPU convolutions and pools stand in for its kernels.


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch):
    """The ops that run on the extension, in order."""
    ops: list[str] = []
    choices = block_launch._choices
    choices.cache_clear()
    cuda_stand_ins.install(monkeypatch, lambda op, operands: ops.append(op))
    yield ops
    choices.cache_clear()


@every_block
def test_every_step_runs_on_the_extension(kind, called):
    x, convs = images(2, dtype=torch.float16), make_convs(kind, torch.float16)
    got = fused(kind, x, convs, backend="cuda")
    oracle = unfused(kind, x.double(), rounded(convs, torch.float64))
    testing.assert_within_budget(got, unfused(kind, x, convs), oracle)
    testing.assert_channels_last(got)
    low, high = FUSED_BLOCKS[kind].launches
    assert len(called) == low
    assert called.count("factorized_conv2d") == high - low


def test_on_auto_a_step_has_the_backend_of_its_op(called, monkeypatch: pytest.MonkeyPatch):
    """The same block, its steps on one backend or the other as the table says."""
    asked = []
    choices = block_launch._choices

    def watched(*arguments):
        asked.append(arguments)
        return choices(*arguments)

    monkeypatch.setattr(block_launch, "_choices", watched)
    x, convs = images(2, dtype=torch.float16), make_convs("inception_e", torch.float16)
    fused("inception_e", x, convs, backend="cuda")
    _, plan, problems, size = asked[0]

    def order(op, problem, names):
        return names if op == "split_conv2d" else names[::-1]

    monkeypatch.setattr(dispatch_table, "order", order)
    launchers, reason = choices.__wrapped__("auto", plan, problems, size)
    assert reason is None
    for step, launcher in zip(plan.steps, launchers, strict=True):
        module = (type(step).__name__ == "Split" and "cuda_launch") or "launch"
        assert launcher.__module__.rpartition(".")[2] == module
    # What neither takes is said for both.
    monkeypatch.setattr(_extension, "refusal", lambda dtype, device: "no library")
    wide = tuple(p._replace(dtype=torch.float64) for p in problems)
    launchers, reason = choices.__wrapped__("auto", plan, wide, size)
    assert launchers == ()
    assert re.match(r"\w+: triton: dtype torch.float64; takes .*; cuda: no library$", reason)


# A whole network.

DIVISOR = 8


def narrow_conv(channels: int, filters: int, **options) -> BasicConv2d:
    return BasicConv2d(
        channels if channels == 3 else channels // DIVISOR, filters // DIVISOR, **options
    )


def make_narrow_network(monkeypatch: pytest.MonkeyPatch, backend: str):
    """(unfused, fused) Inception V3 of an eighth of the width, the fused one on `backend`."""
    model = InceptionV3(
        num_classes=10,
        aux_logits=False,
        init_weights=False,
        blocks=InceptionBlocks(basic_conv=narrow_conv),
    )
    model.fc = nn.Linear(2048 // DIVISOR, 10)
    randomize(model).eval()
    for kind, spec in FUSED_BLOCKS.items():
        forward = functools.partial(spec.forward, backend=backend)
        monkeypatch.setitem(blocks.FUSED_BLOCKS, kind, spec._replace(forward=forward))
    return model, fuse(model, strict=True)


@pytest.fixture
def narrow_network(monkeypatch: pytest.MonkeyPatch):
    return make_narrow_network(monkeypatch, "triton")


def features_and_logits(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    hook = network.avgpool.register_forward_hook(lambda m, args, output: seen.append(output))
    logits = network(x)
    hook.remove()
    return [seen[0].flatten(1), logits]


def photographs(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 75, 75, generator=generator).to(dtype)


@torch.no_grad()
def test_a_whole_network_agrees_with_the_unfused_one(narrow_network):
    model, network = narrow_network
    x = photographs(torch.float32)[:2]
    with testing.fp32_precision("ieee"):
        for got, want in zip(
            features_and_logits(network, x), features_and_logits(model, x), strict=True
        ):
            assert (got - want).abs().max() <= 2e-5


@torch.no_grad()
def test_a_whole_network_runs_on_the_extension(called, monkeypatch: pytest.MonkeyPatch):
    """On "cuda" no kernel of Triton's runs, from the image to the logits."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a Triton kernel was launched")

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", refuse)
    model, network = make_narrow_network(monkeypatch, "cuda")
    x = photographs(torch.float16)[:1]
    got = features_and_logits(network.half(), x)
    assert len(called) == report(network).launches_per_forward[0]
    monkeypatch.undo()
    oracle = features_and_logits(model.double(), x.double())
    theirs = features_and_logits(model.half(), x)
    for mine, their, exact in zip(got, theirs, oracle, strict=True):
        testing.assert_within_budget(mine, their, exact)


@pytest.mark.slow
@pytest.mark.usefixtures("sequential_product")
@torch.no_grad()
def test_features_and_logits_do_not_depend_on_the_batch(narrow_network):
    """Bitwise the same alone, in two, in four, and in any place.

    In float32, where no rounding of the result hides another order of the sum. Each block by itself
    is held to it in all precisions above, the linear layer and the pools in their file.
    """
    _, network = narrow_network
    x = photographs(torch.float32)
    whole = features_and_logits(network, x)
    assert all(torch.unique(part, dim=0).shape[0] == 4 for part in whole)
    for order in ([2], [3, 1]):
        for part, all_ in zip(features_and_logits(network, x[order]), whole, strict=True):
            assert torch.equal(part, all_[order])
