"""Pools, fused blocks and whole networks of them on a CUDA device, against cuDNN and bit by bit.

Run by `make gpu`; every test is skipped where there is no device. The interpreter suite runs the
same kernels on a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.peers import fold
from fused_inception import available_backends, conv2d_act, fuse, report, testing
from fused_inception.blocks import ConvWeights
from fused_inception.models import (
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    inception_v3,
)
from fused_inception.ops.halving_branches import cuda_launch as branches_cuda
from fused_inception.ops.halving_branches import launch as branches_launch
from fused_inception.ops.pool2d import launch as pool_launch
from fused_inception.ops.pool2d.op import Problem as PoolProblem
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d
from tests import branch_cases
from tests.test_blocks import AVERAGED, BLOCKS, fused, images, make_convs, unfused
from tests.test_fuse import (
    PooledByMaximum,
    RealDoubleReduction,
    RealHalved,
    RealHalvedPoolFirst,
    RealPaired,
    randomize,
)

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# name -> (dtype, float32 precision, factor of the error budget)
PRECISIONS = {
    "fp32-ieee": (torch.float32, "ieee", 2.0),
    "fp32-tf32": (torch.float32, "tf32", 4.0),
    "fp16": (torch.float16, "ieee", 2.0),
    "bf16": (torch.bfloat16, "ieee", 2.0),
}
BATCHES = (1, 2, 7, 32)
every_block = pytest.mark.parametrize("kind", BLOCKS)
# Each block in its real widths, with the side of its input: make, channels, side.
REAL = {
    "inception_a": (lambda: InceptionA(192, 32), 192, 35),
    "inception_b": (lambda: InceptionB(288), 288, 35),
    "inception_c": (lambda: InceptionC(768, 160), 768, 17),
    "inception_d": (lambda: InceptionD(768), 768, 17),
    "inception_e": (lambda: InceptionE(1280), 1280, 8),
    "inception_e_max_pool": (lambda: PooledByMaximum(2048), 2048, 8),
    "inception_e_pair": (RealPaired, 1536, 8),
    "inception_d_double": (RealDoubleReduction, 1088, 17),
    "reduction": (RealHalved, 192, 71),
    "reduction_pool_first": (RealHalvedPoolFirst, 64, 147),
}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[tuple[torch.dtype, float]]:
    """(dtype, budget factor), with the float32 switch set."""
    dtype, fp32, factor = PRECISIONS[request.param]
    with testing.fp32_precision(fp32):
        yield dtype, factor


def on_device(convs, dtype):
    return {role: ConvWeights(*(t.to(DEVICE, dtype) for t in w)) for role, w in convs.items()}


def test_every_block_has_a_real_size():
    assert set(REAL) == set(BLOCKS)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@pytest.mark.parametrize("size", [(9, 8), (3, 3), (17, 17)], ids=str)
@every_block
def test_error_is_at_most_twice_cudnns(kind, size, include_pad, precision):
    if not include_pad and kind not in AVERAGED:
        pytest.skip("has no average pool")
    dtype, factor = precision
    convs, x = make_convs(kind, dtype), images(2, *size, dtype=dtype)
    options = {"count_include_pad": include_pad} if kind in AVERAGED else {}
    wide = {role: ConvWeights(w.weight.double(), w.bias.double()) for role, w in convs.items()}
    oracle = unfused(kind, x.double(), wide, include_pad)
    convs, x = on_device(convs, dtype), x.to(DEVICE)
    got = fused(kind, x, convs, backend="triton", **options)
    testing.assert_within_budget(got, unfused(kind, x, convs, include_pad), oracle, factor)
    testing.assert_channels_last(got)


@every_block
@torch.no_grad()
def test_real_blocks_keep_within_twice_cudnns_error(kind, precision):
    dtype, factor = precision
    make, channels, side = REAL[kind]
    model = randomize(make()).eval().to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = testing.channels_last(torch.randn(2, channels, side, side, generator=generator).to(dtype))
    oracle = fuse(model).double()(x.double())
    model, x = model.to(DEVICE), x.to(DEVICE)
    testing.assert_within_budget(fuse(model)(x), model(x), oracle, factor)


@every_block
@torch.no_grad()
def test_real_blocks_do_not_depend_on_the_batch(kind, precision):
    dtype, _ = precision
    make, channels, side = REAL[kind]
    network = fuse(randomize(make()).eval().to(DEVICE, dtype))
    x = testing.channels_last(torch.randn(64, channels, side, side, device=DEVICE).to(dtype))
    whole = network(x)
    for batch in BATCHES:
        assert torch.equal(network(x[:batch]), whole[:batch]), batch
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x[order]), whole[order])
    assert torch.equal(network(x.contiguous()), whole)


@every_block
@torch.no_grad()
def test_a_thousand_repeats_give_the_same_bits(kind, precision):
    dtype, _ = precision
    make, channels, side = REAL[kind]
    network = fuse(randomize(make()).eval().to(DEVICE, dtype))
    x = testing.channels_last(torch.randn(4, channels, side, side, device=DEVICE).to(dtype))
    expected = network(x)
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(1000):
        different += (network(x) != expected).sum()
    assert different.item() == 0


@every_block
def test_every_element_is_written(kind, precision):
    dtype, _ = precision
    x, convs = images(dtype=dtype).to(DEVICE), on_device(make_convs(kind), dtype)
    expected = fused(kind, x, convs, backend="triton")
    with testing.nan_filled_memory():
        assert torch.equal(fused(kind, x, convs, backend="triton"), expected)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return randomize(inception_v3(init_weights=False)).eval()


def features_and_logits(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    hook = model.avgpool.register_forward_hook(lambda m, args, output: seen.append(output))
    logits = model(x)
    hook.remove()
    return [seen[0].flatten(1), logits]


@pytest.mark.parametrize("size", [(299, 299), (229, 171), (75, 75)], ids=str)
@torch.no_grad()
def test_a_whole_network_agrees_in_float32(size, network):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    want = network.double()(x.double())
    network.float()
    with testing.fp32_precision("ieee"):
        got = fuse(network).to(DEVICE)(x.to(DEVICE))
    assert (got.cpu() - want).abs().max() <= 2e-5


@pytest.mark.parametrize("size", [(299, 299), (75, 75)], ids=str)
@torch.no_grad()
def test_features_and_logits_do_not_depend_on_the_batch(size, network, precision):
    dtype, _ = precision
    model = fuse(network).to(DEVICE, dtype)
    assert report(model).batch_invariant
    x = torch.randn(64, 3, *size, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    whole = features_and_logits(model, x)
    for batch in BATCHES:
        for part, all_ in zip(features_and_logits(model, x[:batch]), whole, strict=True):
            assert torch.equal(part, all_[:batch]), batch
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for part, all_ in zip(features_and_logits(model, x[order]), whole, strict=True):
        assert torch.equal(part, all_[order])
    alone = features_and_logits(model, x[33:34].contiguous(memory_format=torch.channels_last))
    for part, all_ in zip(alone, whole, strict=True):
        assert torch.equal(part, all_[33:34])


@torch.no_grad()
def test_peak_memory_is_at_most_seven_tenths_of_the_folded_network(network):
    def peak(model: nn.Module, x: torch.Tensor) -> int:
        model(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    model = network.to(DEVICE, torch.bfloat16).to(memory_format=torch.channels_last)
    x = testing.channels_last(torch.randn(256, 3, 299, 299, device=DEVICE).bfloat16())
    try:
        assert peak(fuse(model), x) <= 0.7 * peak(fold(model), x)
    finally:
        network.to("cpu", torch.float32)


# Pools


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that has kernels for pools."""
    state = available_backends()[request.param]
    if state != "available":
        pytest.skip(f"{request.param}: {state}")
    return request.param


@pytest.mark.parametrize("window", [(3, 2, 0), (3, 1, 1), ((3, 2), (2, 1), (1, 0))], ids=str)
@pytest.mark.parametrize("shape", [(2, 768, 17, 17), (3, 20, 9, 8), (1, 64, 147, 147)], ids=str)
def test_the_maximum_is_bitwise_pytorchs(shape, window, precision, backend):
    dtype, _ = precision
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 1e-7])
    draw = values[torch.randint(len(values), shape, generator=generator)]
    for x in (draw, torch.randn(shape, generator=generator)):
        x = testing.channels_last(x.to(dtype)).to(DEVICE)
        result = max_pool2d(x, window[0], stride=window[1], padding=window[2], backend=backend)
        testing.assert_same_bits(result, F.max_pool2d(x, *window))


@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
@pytest.mark.parametrize("shape", [(2, 192, 17, 17), (3, 20, 9, 8), (2, 64, 35, 35)], ids=str)
def test_averages_are_within_twice_pytorchs_error(shape, include_pad, precision, backend):
    dtype, factor = precision
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(3)
    x = testing.channels_last(torch.randn(shape, generator=generator).to(dtype)).to(DEVICE)
    bias = torch.randn(c, generator=generator).to(DEVICE, dtype)
    problem = PoolProblem(n, c, h, w, (3, 3), (1, 1), (1, 1), h, w, dtype, x.device)
    candidate = next(b for b in pool_launch.AVG_POOL_ACT_BACKENDS if b.name == backend)
    output = candidate.run(problem, x, bias, include_pad)

    def reference(x, bias):
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include_pad)
        return F.relu(pooled + bias.reshape(1, -1, 1, 1))

    oracle = reference(x.double(), bias.double())
    testing.assert_within_budget(output, reference(x, bias), oracle, factor)


@pytest.mark.parametrize("shape", [(2, 2048, 8, 8), (3, 20, 9, 8), (5, 2048, 1, 1)], ids=str)
def test_the_global_mean_is_within_twice_pytorchs_error(shape, precision, backend):
    dtype, factor = precision
    x = testing.channels_last(torch.randn(shape).to(dtype)).to(DEVICE)
    result = global_avg_pool2d(x, backend=backend)
    oracle = x.double().mean((2, 3), keepdim=True)
    testing.assert_within_budget(result, F.adaptive_avg_pool2d(x, 1), oracle, factor)


@torch.no_grad()
def test_both_backends_give_the_same_bits(precision):
    """But the mean of a whole map, whose order is each backend's own."""
    dtype, _ = precision
    if available_backends()["cuda"] != "available":
        pytest.skip(f"cuda: {available_backends()['cuda']}")
    x = testing.channels_last(torch.randn(3, 200, 17, 17).to(dtype)).to(DEVICE)
    bias = torch.randn(200).to(DEVICE, dtype)
    problem = PoolProblem(3, 200, 17, 17, (3, 3), (1, 1), (1, 1), 17, 17, dtype, x.device)
    ours, theirs = pool_launch.AVG_POOL_ACT_BACKENDS
    for include_pad in (True, False):
        result = ours.run(problem, x, bias, include_pad)
        assert torch.equal(result, theirs.run(problem, x, bias, include_pad))
    cuda, triton = (max_pool2d(x, 3, stride=2, backend=name) for name in ("cuda", "triton"))
    assert torch.equal(cuda, triton)


# The end of a grid reduction as one launch


def run_branches(shape, inputs, backend):
    candidate = next(b for b in branches_launch.BACKENDS if b.name == backend)
    problem = branch_cases.problem_of(shape, inputs)
    refused = candidate.can_run(problem)
    if refused is not None:
        pytest.skip(f"{backend}: {refused}")
    return candidate.run(problem, *zip(*inputs.convs, strict=True), inputs.input)


@pytest.mark.parametrize(
    "shape", [*branch_cases.SHAPES, branch_cases.MIXED_7A, branch_cases.MIXED_7A_RESNET], ids=str
)
def test_branches_are_exact(shape, precision, backend, monkeypatch: pytest.MonkeyPatch):
    """Every configuration of the extension, which all give the same bits."""
    dtype, _ = precision
    shape = dataclasses.replace(shape, batch=3)
    whole = branch_cases.make(shape, dtype, testing.integer_conv)
    here = branch_cases.on(whole, DEVICE)
    random = branch_cases.on(branch_cases.make(shape, dtype, testing.random_conv), DEVICE)
    assert torch.equal(run_branches(shape, here, backend).cpu(), branch_cases.expected(whole))
    first = run_branches(shape, random, backend)
    for configuration in branches_cuda.configurations() if backend == "cuda" else ():
        monkeypatch.setattr(branches_cuda, "choose", lambda problem, c=configuration: c)
        assert torch.equal(run_branches(shape, random, backend), first)
        exact = run_branches(shape, here, backend).cpu()
        assert torch.equal(exact, branch_cases.expected(whole))


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_branches_have_the_bits_of_a_launch_each(batch, precision, backend):
    dtype, _ = precision
    shape = dataclasses.replace(branch_cases.MIXED_7A, batch=batch)
    inputs = branch_cases.on(branch_cases.make(shape, dtype, testing.random_conv), DEVICE)
    together = run_branches(shape, inputs, backend)
    alone = [conv2d_act(*conv, stride=2, backend=backend) for conv in inputs.convs]
    alone.append(max_pool2d(inputs.input, 3, stride=2, backend=backend))
    assert torch.equal(together, torch.cat(alone, 1))
    one = branch_cases.images(inputs, slice(batch - 1, batch))
    single = run_branches(dataclasses.replace(shape, batch=1), one, backend)
    assert torch.equal(single[0], together[batch - 1])
