"""`fuse(differentiable=True)`: frozen statistics train through fused blocks, live ones as ever.

What a fused model does by default in training is in `test_fuse.py`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fused_inception import fuse, models, report
from tests.test_batch_norm import freeze, make, norms_of
from tests.test_fuse import (
    Block,
    assert_close,
    block,
    every_kind,
    images,
    network,
    randomize,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the result, the gradient of the input); those of the parameters are in place."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    result = model(x)
    result.square().mean().backward()
    return result.detach(), x.grad


def assert_steps_agree(
    fused: nn.Module, model: nn.Module, x: torch.Tensor, tolerance: float
) -> None:
    for got, want in zip(step(fused, x), step(model, x), strict=True):
        assert_close(got, want, tolerance)
    for (name, ours), theirs in zip(fused.named_parameters(), model.parameters(), strict=True):
        assert theirs.grad is not None, name
        assert_close(ours.grad, theirs.grad, tolerance)


@every_kind
def test_frozen_statistics_train_fused(kind, fused_calls):
    """In training mode and in evaluation mode; weights, gammas and betas get their gradients."""
    model = network(kind=kind).double()
    fused = fuse(model, strict=True, differentiable=True)
    keys = list(model.state_dict())
    x = images(dtype=torch.float64)
    for mode in (freeze, nn.Module.eval):
        mode(model), mode(fused)
        assert_steps_agree(fused, model, x, 1e-10)
        assert fused_calls.took() == 2
        assert report(fused).unfused == []
    assert list(fused.state_dict()) == keys


@every_kind
def test_batch_statistics_run_the_original_forward(kind, fused_calls):
    model = network(kind=kind)
    fused = fuse(model, strict=True, differentiable=True)
    for mode in (model, fused):
        mode.train()
    for got, want in zip(step(fused, images()), step(model, images()), strict=True):
        assert torch.equal(got, want)
    for ours, theirs in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert fused_calls.took() == 0
    reasons = dict(report(fused).unfused)
    assert list(reasons) == ["first", "second"]
    assert all("batch statistics in" in reason for reason in reasons.values())


def test_one_live_norm_is_enough_and_named(fused_calls):
    model = network()
    fused = fuse(model, differentiable=True)
    for mode in (model, fused):
        freeze(mode)
        mode.second.branch7x7dbl_3.bn.train()
    assert_steps_agree(fused, model, images(), 1e-5)
    assert fused_calls.took() == 1
    assert report(fused).unfused == [("second", "batch statistics in branch7x7dbl_3.bn")]
    assert "second  fused as inception_c" in str(report(fused))


@pytest.mark.parametrize("mode", [freeze, nn.Module.eval], ids=["training", "evaluation"])
@pytest.mark.parametrize("counted", [True, False])
def test_an_optimizer_is_followed_into_inference(mode, counted, fused_calls):
    """Also one whose writes PyTorch does not count, and without a call of `eval()` behind it."""
    model = mode(network())
    fused = mode(fuse(model, differentiable=True))
    x = images()
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.05, foreach=False, fused=not counted)
        for m in (fused, model)
    ]
    for _ in range(2):
        for m, optimizer in zip((fused, model), optimizers, strict=True):
            step(m, x)
            with torch.no_grad():
                m(x)  # between the forward that recorded and the step
            version = next(m.parameters())._version
            optimizer.step()
            assert (next(m.parameters())._version > version) == counted
        with torch.no_grad():
            assert_close(fused(x), model(x), 1e-4)
    assert fused_calls.took() == 12
    with torch.no_grad():
        assert_close(fused.eval()(x), model.eval()(x), 1e-4)
    assert fused_calls.took() == 2
    # From here on nothing is folded again.
    assert not fused.first._has_recorded


def test_a_forward_that_is_another_in_training_mode_is_not_fused():
    class Augments(Block):
        def forward(self, x):
            return super().forward(x + 1 if self.training else x)

    class Records(Block):
        def forward(self, x):
            return super().forward(x * 2 if torch.is_grad_enabled() else x)

    for kind in (Augments, Records):
        model = randomize(kind()).eval()
        assert report(fuse(model)).replaced == [("", "inception_c")]
        fused = fuse(model, differentiable=True)
        assert "inception_c" not in dict(report(fused).replaced).values()
        freeze(model), freeze(fused)
        assert_steps_agree(fused, model, images(), 1e-5)
        with pytest.raises(RuntimeError, match="the model itself: in training mode: "):
            fuse(model, strict=True, differentiable=True)


def test_a_forward_that_is_another_block_in_training_mode_is_not_fused():
    class Padded(Block):
        def forward(self, x):
            pooled = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=not self.training)
            return self.join([self.p(x), self.pair(x), self.r(x), self.s(pooled)])

    model = randomize(Padded()).eval()
    assert report(fuse(model, strict=True)).replaced == [("", "inception_c")]
    with pytest.raises(RuntimeError, match="forward: is another block in training mode"):
        fuse(model, strict=True, differentiable=True)


def test_copies_stay_differentiable_and_the_default_is_not(fused_calls):
    model = freeze(network())
    fused = fuse(model, differentiable=True)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_steps_agree(copied, model, images(), 1e-5)
        assert fused_calls.took() == 2
    plain = fuse(model)
    step(plain, images())
    assert fused_calls.took() == 0
    assert report(plain).unfused == [("first", "training mode"), ("second", "training mode")]
    assert report(plain.eval()).unfused == []


@torch.no_grad()
def test_sync_batch_norm_is_folded_in_evaluation(fused_calls):
    model = network()
    fused = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), strict=True)
    assert all(type(norm) is nn.SyncBatchNorm for norm in norms_of(fused))
    assert_close(fused(images()), model(images()))
    # Of a model that is fused already too.
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fuse(model))
    assert_close(converted(images()), model(images()))
    assert fused_calls.took() == 4


@pytest.mark.parametrize("kind", ["inception_c", "conv2d_act"])
def test_compiled(kind, fused_calls):
    model = freeze(block(kind))
    fused = freeze(fuse(model, strict=True, differentiable=True))
    torch.compiler.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert_steps_agree(compiled, model, images(), 1e-4)
    assert fused_calls.took() == 1
    for mode in (model, fused):
        mode.train()
    for got, want in zip(step(compiled, images()), step(model, images()), strict=True):
        assert_close(got, want, 1e-5)
    assert fused_calls.took() == 0


@pytest.mark.filterwarnings("error:Grad strides")
def test_distributed_data_parallel(one_process_group, fused_calls):
    """Gradients that arrive through folded weights are reduced as any others."""
    model = freeze(block())  # nothing but what is fused: PyTorch's own gradients may differ
    wrapped = nn.parallel.DistributedDataParallel(freeze(fuse(model, differentiable=True)))
    assert_steps_agree(wrapped, model, images(), 1e-5)
    assert fused_calls.took() == 1
    module, _ = make("FactorizedConv2d", torch.float32)
    twin = copy.deepcopy(module)
    wrapped = nn.parallel.DistributedDataParallel(module)
    x = torch.randn(3, 3, 9, 7)
    for mode in (nn.Module.train, freeze):
        assert_steps_agree(mode(wrapped), mode(twin), x, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision(dtype, device, fused_calls):
    model = freeze(network()).to(device)
    fused = freeze(fuse(model, strict=True, differentiable=True))
    true = copy.deepcopy(model).double()
    x = images().to(device)
    with torch.autocast(device, dtype):
        result, reference = fused(x), model(x)
    oracle = true(x.double())
    assert result.dtype == dtype
    error, bound = ((y.double() - oracle).abs().max() for y in (result, reference))
    assert error <= 3 * bound + torch.finfo(dtype).eps * oracle.abs().max()
    result.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters())
    assert all(p.grad.isfinite().all() for p in fused.parameters())
    assert fused_calls.took() == 2


def test_the_reference_network_is_fine_tuned_with_frozen_statistics(fused_calls):
    """At 79×79 in float64: every parameter's gradient, through all blocks, stem and head."""
    torch.manual_seed(0)
    model = randomize(
        models.inception_v3(num_classes=4, aux_logits=False, dropout=0.0, init_weights=False)
    )
    model = freeze(model.double())
    fused = freeze(fuse(model, strict=True, differentiable=True))
    x = torch.randn(1, 3, 79, 79, dtype=torch.float64)
    assert_steps_agree(fused, model, x, 1e-8)
    # The seven first layers run as one.
    assert fused_calls.took() == len(report(fused).replaced) - 7 == 14
    assert report(fused).unfused == []
    fused.train()
    unfused = dict(report(fused).unfused)
    assert {name for name in unfused if name.startswith("Mixed")} == {
        f"Mixed_{suffix}"
        for suffix in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    }
