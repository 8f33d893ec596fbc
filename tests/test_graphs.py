"""CUDA graphs of a network: which inputs are replayed, and what a replay gives.

Without a GPU a stand-in for the capture runs the network into its static output when it is
replayed, which leaves everything around the capture as it is. What only a device shows comes last.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fused_inception
from fused_inception import graphs
from fused_inception.graphs import CudaGraphs
from fused_inception.models import InceptionC, inception_v3
from fused_inception.testing import channels_last
from tests.test_fuse import randomize

SHAPES = [(1, 8, 9, 7), (4, 8, 9, 7), (2, 8, 9, 7)]


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = InceptionC(8, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.block(x)


@pytest.fixture
def captures(monkeypatch):
    """Shapes that were captured, in order; graphs work without a device."""
    done = []

    def capture(model, input, pool):
        done.append((tuple(input.shape), pool))
        with torch.no_grad():
            output = model(input)

        def replay():
            with torch.no_grad():
                new = model(input)
            pairs = zip(new, output, strict=True) if isinstance(new, tuple) else [(new, output)]
            for now, held in pairs:
                held.copy_(now)

        return graphs._Captured(input, output, replay), "the pool"

    monkeypatch.setattr(graphs, "_check_device", lambda device: None)
    monkeypatch.setattr(graphs, "_busy", lambda device: torch.is_autocast_enabled("cpu"))
    monkeypatch.setattr(graphs, "_in_order", lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(graphs, "_capture", capture)
    return done


@pytest.fixture
def replays(monkeypatch, captures):
    """How often a graph was replayed."""
    count = []
    copied = graphs._copied

    def counted(value):
        count.append(1)
        return copied(value)

    monkeypatch.setattr(graphs, "_copied", counted)
    return count


def images(batch=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return channels_last(torch.randn(batch, 8, 9, 7, generator=generator).to(dtype))


def network():
    return randomize(Counted()).eval()


def test_shapes_are_captured_largest_first_in_one_pool(captures):
    CudaGraphs(network(), [*SHAPES, SHAPES[0]])
    assert [shape for shape, _ in captures] == [(4, 8, 9, 7), (2, 8, 9, 7), (1, 8, 9, 7)]
    assert [pool for _, pool in captures] == [None, "the pool", "the pool"]


@torch.no_grad()
def test_known_shapes_are_replayed_and_others_are_not(replays):
    model = network()
    graphed = CudaGraphs(model, SHAPES)
    for batch, replayed in ((1, 1), (2, 1), (4, 1), (3, 0), (5, 0)):
        replays.clear()
        x = images(batch)
        assert torch.equal(graphed(x), model(x))
        assert len(replays) == replayed


@torch.no_grad()
def test_inputs_are_copied_in_from_any_strides_and_results_out(replays):
    model = network()
    graphed = CudaGraphs(model, SHAPES)
    views = [images().contiguous(), images(seed=1)]
    views.append(images(4, seed=2)[::2])
    results = [graphed(x) for x in views]
    assert len(replays) == 3
    # The next replay does not change what was given out before.
    for x, result in zip(views, results, strict=True):
        assert torch.equal(result, model(channels_last(x)))


def test_a_network_that_cannot_be_replayed_is_called(replays):
    model = network()
    graphed = CudaGraphs(model, SHAPES)
    x = images()
    assert graphed(x).requires_grad
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            graphed(x)
        model.double()
        graphed(x.double())
        # The weights are elsewhere now; a graph would read where they were.
        model.float()
        graphed(x)
        assert not replays
        graphed.capture()
        model.train()
        graphed(x)
        model.eval()
        model.block.branch1x1.bn.train()
        graphed(x)
        assert not replays
        model.eval()
        graphed(x)
        assert len(replays) == 1
    model.requires_grad_(False)
    graphed(x)
    assert len(replays) == 2
    graphed(x.requires_grad_())
    assert len(replays) == 2


@torch.no_grad()
def test_a_replay_sees_a_refresh(captures):
    fused = fused_inception.fuse(network())
    graphed = CudaGraphs(fused, SHAPES)
    x = images()
    before = graphed(x)
    fused.block.branch1x1.conv.weight.data.mul_(2)
    fused_inception.refresh(fused)
    after = graphed(x)
    assert torch.equal(after, fused(x))
    assert not torch.equal(after, before)


@torch.no_grad()
def test_capture_again(captures):
    model = network()
    graphed = CudaGraphs(model, SHAPES[:1])
    graphed.capture()
    assert len(captures) == 2
    model.train()
    with pytest.raises(ValueError, match=r"evaluation mode: call model.eval\(\)"):
        graphed.capture()


class Outputs(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def test_outputs_of_any_structure_are_copied():
    x = torch.ones(2)
    value = {"a": [x, (x, 3)], "b": Outputs(x, x), "c": None}
    copied = graphs._copied(value)
    x.zero_()
    assert isinstance(copied["b"], Outputs)
    for part in (copied["a"][0], copied["a"][1][0], *copied["b"]):
        assert torch.equal(part, torch.ones(2))
    assert copied["a"][1][1] == 3
    assert copied["c"] is None


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([], "shapes must have at least one"),
        ([(1, 3, 4)], r"shapes must be \(N, C, H, W\) of at least 1, got \(1, 3, 4\)"),
        ([(0, 3, 4, 4)], r"shapes must be .* of at least 1, got \(0, 3, 4, 4\)"),
    ],
)
def test_shapes_that_are_none_are_refused(shapes, match, captures):
    with pytest.raises(ValueError, match=f"CudaGraphs: {match}"):
        CudaGraphs(network(), shapes)


def test_models_that_cannot_be_captured_are_refused(captures, monkeypatch):
    with pytest.raises(TypeError, match=r"CudaGraphs: model must be a torch.nn.Module, got dict"):
        CudaGraphs({}, SHAPES)
    with pytest.raises(ValueError, match="CudaGraphs: model must have parameters"):
        CudaGraphs(nn.ReLU(), SHAPES)
    with pytest.raises(ValueError, match="CudaGraphs: model must be in evaluation mode"):
        CudaGraphs(network().train(), SHAPES)
    model = network()
    model.block.branch_pool.to("meta")
    with pytest.raises(ValueError, match="CudaGraphs: model must be on one device, got cpu"):
        CudaGraphs(model, SHAPES)
    assert not captures


def test_a_cpu_is_refused():
    with pytest.raises(ValueError, match="CudaGraphs: model must be on a CUDA device, got cpu"):
        CudaGraphs(network(), SHAPES)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_gpu_a_whole_network_from_graphs_is_bitwise_the_network(dtype):
    model = randomize(inception_v3(init_weights=False)).eval().cuda().to(dtype)
    fused = fused_inception.fuse(model)
    graphed = CudaGraphs(fused, [(1, 3, 75, 75), (8, 3, 75, 75), (2, 3, 139, 107)])
    for shape in ((8, 3, 75, 75), (1, 3, 75, 75), (2, 3, 139, 107), (3, 3, 75, 75)):
        for _ in range(3):
            x = torch.randn(shape, device="cuda", dtype=dtype)
            assert torch.equal(graphed(x), fused(x))


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_graphs_share_memory_and_results_outlive_replays():
    fused = fused_inception.fuse(network().cuda())
    one = CudaGraphs(fused, SHAPES[1:2])
    x = [images(4, seed=i).cuda() for i in range(5)]
    results = [one(part) for part in x]
    for part, result in zip(x, results, strict=True):
        assert torch.equal(result, fused(part))
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    many = CudaGraphs(fused, [(n, 8, 9, 7) for n in range(1, 17)])
    assert torch.cuda.memory_reserved() - before < 16 * 2**21
    assert torch.equal(many(x[0]), results[0])


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_calls_on_two_streams_do_not_mix():
    fused = fused_inception.fuse(network().cuda())
    graphed = CudaGraphs(fused, SHAPES[1:2])
    x = [images(4, seed=i).cuda() for i in range(40)]
    expected = [fused(part) for part in x]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for index, part in enumerate(x):
        with torch.cuda.stream(streams[index % 2]):
            results.append(graphed(part))
    torch.cuda.synchronize()
    for result, want in zip(results, expected, strict=True):
        assert torch.equal(result, want)


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_a_replay_sees_a_refresh():
    fused = fused_inception.fuse(network().cuda())
    graphed = CudaGraphs(fused, SHAPES)
    x = images().cuda()
    before = graphed(x)
    fused.block.branch1x1.conv.weight.mul_(2)
    fused_inception.refresh(fused)
    assert torch.equal(graphed(x), fused(x))
    assert not torch.equal(graphed(x), before)
