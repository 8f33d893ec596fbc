"""Training with BatchNorm: the modules that keep it, live and frozen.

Blocks of fused networks are in `test_fuse_training.py`. Left out: SyncBatchNorm over several
processes, which PyTorch runs on GPUs only; in one process it is BatchNorm.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fused_inception
from fused_inception.folding import fold_batch_norm
from fused_inception.modules import Conv2dAct, FactorizedConv2d, GridReduction, SplitConv2d
from fused_inception.testing import channels_last

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHANNELS = 3


class Unfused(nn.Module):
    """What a module is made from, run by PyTorch alone."""

    def __init__(self, convs: list[nn.Conv2d], norms: list[nn.Module | None]) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)

    def unit(self, index: int, x: torch.Tensor) -> torch.Tensor:
        x = self.convs[index](x)
        norm = self.norms[index]
        return F.relu(x if norm is None else norm(x))


class UnfusedConv(Unfused):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(0, x)


class UnfusedPair(Unfused):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(1, self.unit(0, x))


class UnfusedSplit(Unfused):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.unit(0, x), self.unit(1, x)], 1)


class UnfusedReduction(Unfused):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.unit(0, x), F.max_pool2d(x, 3, 2)], 1)


# name -> (the module, the same unfused, its convolutions, the attributes of its BatchNorms)
MODULES: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "Conv2dAct": (
        Conv2dAct,
        UnfusedConv,
        lambda **kw: [nn.Conv2d(CHANNELS, 5, (3, 2), stride=2, padding=1, **kw)],
        ("bn",),
    ),
    "FactorizedConv2d": (
        FactorizedConv2d,
        UnfusedPair,
        lambda **kw: [
            nn.Conv2d(CHANNELS, 4, (5, 1), padding="same", **kw),
            nn.Conv2d(4, 5, (1, 3), padding="same", **kw),
        ],
        ("bn1", "bn2"),
    ),
    "SplitConv2d": (
        SplitConv2d,
        UnfusedSplit,
        lambda **kw: [
            nn.Conv2d(CHANNELS, 4, (1, 3), padding="same", **kw),
            nn.Conv2d(CHANNELS, 5, (3, 1), padding="same", **kw),
        ],
        ("bn_row", "bn_col"),
    ),
    "GridReduction": (
        GridReduction,
        UnfusedReduction,
        lambda **kw: [nn.Conv2d(CHANNELS, 4, 3, stride=2, **kw)],
        ("bn",),
    ),
}
every_module = pytest.mark.parametrize("name", MODULES)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "momentum": {"momentum": 0.3, "eps": 1e-3},
    "untracked": {"track_running_stats": False},
    "no-affine": {"affine": False},
}


def make(name: str, dtype=torch.float64, bias=False, **options: Any) -> tuple[nn.Module, Unfused]:
    """(the module that keeps BatchNorm, the same unfused), channels_last, in training mode."""
    torch.manual_seed(0)
    kind, unfused_kind, convs, _ = MODULES[name]
    convs = convs(bias=bias, dtype=dtype)
    norms = [nn.BatchNorm2d(conv.out_channels, dtype=dtype, **options) for conv in convs]
    for norm in norms:
        with torch.no_grad():
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
            if norm.track_running_stats:
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
    module = kind.from_unfused(*convs, *norms, keep_batch_norm=True)
    unfused = unfused_kind(convs, norms).to(memory_format=torch.channels_last)
    return module, unfused


def images(seed: int = 1, dtype=torch.float64, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, CHANNELS, 9, 7, generator=generator, dtype=torch.float64)
    return channels_last(values.to(dtype))


def norms_of(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def freeze(module: nn.Module) -> nn.Module:
    """Training mode, with the statistics frozen."""
    module.train()
    for norm in norms_of(module):
        norm.eval()
    return module


def step(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the result, the gradient of the input); those of the parameters are in place."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    result = module(x)
    result.backward(
        channels_last(torch.linspace(-1, 1, result.numel()).reshape(result.shape).to(x))
    )
    return result.detach(), x.grad


def parameters(module: nn.Module, unfused: Unfused) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of the module and of the same unfused, side by side."""
    _, _, _, norm_names = MODULES[type(module).__name__]
    pairs = []
    for (weight, bias), norm_name, conv, norm in zip(
        module._pairs, norm_names, unfused.convs, unfused.norms, strict=True
    ):
        pairs.append((getattr(module, weight), conv.weight))
        pairs.append((getattr(module, bias), conv.bias))
        ours = getattr(module, norm_name)
        if norm is not None:
            pairs += [(ours.weight, norm.weight), (ours.bias, norm.bias)]
    return [(ours, theirs) for ours, theirs in pairs if theirs is not None]


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == want.shape
    assert got.isfinite().all()
    assert (got.double() - want.double()).abs().max() <= tolerance * want.double().abs().max()


# Live: the statistics of the batch


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_module
def test_batch_statistics_train_as_pytorchs_to_the_bit(name: str, options):
    """Results, gradients and statistics, over three steps of SGD."""
    module, unfused = make(name, torch.float32, **options)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (module, unfused)]
    for seed in range(3):
        x = images(seed, torch.float32)
        for got, want in zip(step(module, x), step(unfused, x), strict=True):
            assert torch.equal(got, want)
        for ours, theirs in parameters(module, unfused):
            assert torch.equal(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(norms_of(module), unfused.norms, strict=True):
        for (key, got), want in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            assert torch.equal(got, want), key
            assert key != "num_batches_tracked" or got == 3
    assert "batch statistics" in module.unfused_reason()
    with torch.no_grad():
        assert_close(module.eval()(x), unfused.eval()(x), 1e-6)
    # Without running statistics there is nothing to fold, in evaluation too.
    assert (module.unfused_reason() is None) == bool(options.get("track_running_stats", True))


@every_module
def test_sync_batch_norm_takes_the_place(name: str):
    """In one process it is BatchNorm; live it is called, frozen it is folded."""
    module, unfused = make(name)
    keys = list(module.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    assert all(type(norm) is nn.SyncBatchNorm for norm in norms_of(converted))
    assert len(norms_of(converted)) == len(MODULES[name][3])
    assert list(converted.state_dict()) == keys
    for mode in (nn.Module.train, freeze):
        mode(converted), mode(unfused)
        assert ("batch statistics" in str(converted.unfused_reason())) == (mode is not freeze)
        for got, want in zip(step(converted, images()), step(unfused, images()), strict=True):
            assert_close(got, want)
        for ours, theirs in parameters(converted, unfused):
            assert_close(ours.grad, theirs.grad, 1e-10)
    assert_close(converted.folded()(images()), unfused(images()))


def test_one_live_norm_behind_a_pair_leaves_the_pair_fused():
    module, unfused = make("FactorizedConv2d")
    for norms in (module.bn1, unfused.norms[0]):
        norms.eval()
    assert module.unfused_reason() is None
    names = set()
    result = module(images().requires_grad_())
    assert_close(result, unfused(images()))
    pending = [result.grad_fn]
    while pending:
        node = pending.pop()
        names.add(node.name())
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    assert {"_FactorizedConv2dBackward", "NativeBatchNormBackward0"} <= names


def test_a_pair_with_batch_norm_behind_the_second_alone():
    torch.manual_seed(0)
    convs = MODULES["FactorizedConv2d"][2](dtype=torch.float64)
    norm = nn.BatchNorm2d(5, dtype=torch.float64)
    unfused = UnfusedPair(convs, [None, norm])
    module = FactorizedConv2d.from_unfused(*convs, None, norm, keep_batch_norm=True)
    assert module.bn1 is None
    for mode in (nn.Module.train, freeze):
        mode(module), mode(unfused)
        assert module.unfused_reason() is None
        for got, want in zip(step(module, images()), step(unfused, images()), strict=True):
            assert_close(got, want)
        for ours, theirs in parameters(module, unfused):
            assert_close(ours.grad, theirs.grad, 1e-10)


# Frozen: running statistics, folded


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 1e-3}], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@every_module
def test_frozen_statistics_train_through_the_fused_op(name: str, bias, options):
    """Gradients reach weight, bias, gamma and beta; the statistics stay what they are."""
    module, unfused = (freeze(m) for m in make(name, bias=bias, **options))
    before = [buffer.clone() for buffer in module.buffers()]
    for got, want in zip(step(module, images()), step(unfused, images()), strict=True):
        assert_close(got, want)
    pairs = parameters(module, unfused)
    assert len(pairs) == len(list(module.parameters()))
    for ours, theirs in pairs:
        assert theirs.grad.any()
        assert_close(ours.grad, theirs.grad, 1e-10)
        assert ours.grad.stride() == ours.stride()
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), before, strict=True))
    assert module.unfused_reason() is None
    # The op ran: its node is the last one.
    assert module(images().requires_grad_()).grad_fn.name() == f"_{name}Backward"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["live", "frozen"])
@every_module
def test_autocast(name: str, frozen: bool, dtype, device: str):
    """Folding happens in float32; parameters and their gradients stay float32."""
    module, unfused = (m.to(device) for m in make(name, torch.float32))
    true = copy.deepcopy(unfused).double()
    if frozen:
        module, unfused, true = (freeze(m) for m in (module, unfused, true))
    x = images(dtype=torch.float32).to(device)
    with torch.autocast(device, dtype):
        result, reference = module(x), unfused(x)
    assert result.dtype == dtype
    oracle = true(x.double())
    bound = (
        3 * (reference.double() - oracle).abs().max() + torch.finfo(dtype).eps * oracle.abs().max()
    )
    assert (result.double() - oracle).abs().max() <= bound
    result.float().square().sum().backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in module.parameters())
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_differentiable_folding_is_in_float32_and_rounds_once():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 1, 3, dtype=torch.float16, requires_grad=True)
    norm = nn.BatchNorm2d(4).eval()
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    folded, shift = fold_batch_norm(weight, None, norm, differentiable=True)
    exact, exact_shift = fold_batch_norm(weight.detach().float(), None, norm)
    assert folded.dtype == shift.dtype == torch.float16
    # One unit of float32 may turn the rounding of a tie.
    assert (folded.float() - exact).abs().max() <= 2.0**-11 * exact.abs().max() * 1.001
    assert (shift.float() - exact_shift).abs().max() <= 2.0**-11 * exact_shift.abs().max() * 1.001
    grads = torch.autograd.grad(folded.sum() + shift.sum(), [weight, norm.weight, norm.bias])
    assert [grad.dtype for grad in grads] == [torch.float16, torch.float32, torch.float32]
    assert folded.is_contiguous(memory_format=torch.channels_last)


# gradcheck of everything


@pytest.mark.parametrize("norm", ["none", "live", "frozen", "first-frozen"])
@every_module
def test_gradcheck(name: str, norm: str):
    module, _ = make(name, bias=True)
    if norm == "none":
        module = module.eval().folded()
    elif norm == "frozen":
        freeze(module)
    elif norm == "first-frozen":
        norms_of(module)[0].eval()
    # Without statistics that an evaluation would move.
    state = {key: value.clone() for key, value in module.named_buffers()}
    names, values = zip(*module.named_parameters(), strict=True)

    def forward(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        buffers = {key: value.clone() for key, value in state.items()}
        return functional_call(module, {**buffers, **dict(zip(names, given, strict=True))}, (x,))

    x = images(batch=2)[:, :, :4, :4].requires_grad_()
    options = {"fast_mode": True, "check_undefined_grad": False}
    torch.manual_seed(3)
    assert torch.autograd.gradcheck(forward, (x, *values), **options)
    assert torch.autograd.gradgradcheck(forward, (x, *values), **options)


# Around training


@every_module
def test_folded_is_the_module_for_inference(name: str):
    module, unfused = (m.eval() for m in make(name, bias=True))
    folded = module.folded()
    assert not norms_of(folded)
    assert "bn" not in repr(folded)
    assert_close(folded(images()), unfused(images()))
    kind, _, _, _ = MODULES[name]
    plain = kind.from_unfused(*unfused.convs, *unfused.norms)
    for ours, theirs in zip(folded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(norms_of(module)) == len(MODULES[name][3])
    module.train()
    with pytest.raises(ValueError, match=r"bn\w*: in training mode, takes evaluation mode"):
        module.folded()
    untracked, _ = make(name, track_running_stats=False)
    with pytest.raises(ValueError, match=r"bn\w*: has no running statistics"):
        untracked.eval().folded()


@every_module
def test_copies_and_state_dicts(name: str):
    module, _ = make(name, torch.float32)
    step(module, images(dtype=torch.float32))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    other, _ = make(name, torch.float32)
    other.load_state_dict(module.state_dict())
    for mode in (nn.Module.train, freeze, nn.Module.eval):
        x = images(5, torch.float32)
        want = mode(copy.deepcopy(module))(x)
        for copied in (loaded, other, copy.deepcopy(module)):
            assert torch.equal(mode(copy.deepcopy(copied))(x), want)


@every_module
def test_compiles_without_a_graph_break(name: str):
    module, _ = make(name, torch.float32)
    for mode in (nn.Module.train, freeze):
        mode(module)
        twin = copy.deepcopy(module)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        x = images(dtype=torch.float32)
        for got, want in zip(step(compiled, x), step(twin, x), strict=True):
            torch.testing.assert_close(got, want)
        for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_what_cannot_be_folded_runs_as_itself():
    module, unfused = (m.eval() for m in make("Conv2dAct"))
    seen = []
    handle = module.bn.register_forward_hook(lambda *args: seen.append(1))
    assert module.unfused_reason() == "bn: has a hook"
    assert_close(module(images()), unfused(images()))
    assert seen == [1]
    handle.remove()
    assert module.unfused_reason() is None
    module.bn = unfused.norms[0] = nn.GroupNorm(5, 5, dtype=torch.float64)
    assert "GroupNorm is not folded" in module.unfused_reason()
    assert_close(module(images()), unfused(images()))
    with pytest.raises(TypeError, match=r"bn: torch.*GroupNorm, takes torch\.nn\.BatchNorm2d"):
        module.folded()


def test_what_is_kept_is_checked_as_what_is_folded():
    conv = nn.Conv2d(3, 5, 3)
    for bn, message in (
        (nn.BatchNorm2d(4), "bn: 4 features, takes 5"),
        (nn.GroupNorm(1, 5), r"bn: .*GroupNorm, takes torch\.nn\.BatchNorm2d"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Conv2dAct.from_unfused(conv, bn, keep_batch_norm=True)
    kept = Conv2dAct.from_unfused(conv, nn.BatchNorm2d(5), keep_batch_norm=True)
    assert kept.bn.training
    assert Conv2dAct.from_unfused(conv, keep_batch_norm=True).bn is None


def test_report_names_modules_and_what_runs_unfused():
    model = nn.Sequential(*(make(name)[0] for name in MODULES))
    found = fused_inception.report(model)
    ops = ["conv2d_act", "factorized_conv2d", "split_conv2d", "grid_reduction"]
    assert found.replaced == [(str(i), op) for i, op in enumerate(ops)]
    assert found.launches_per_forward == (4, 5)
    reasons = ["bn", "bn1", "bn_row", "bn"]
    assert found.unfused == [(str(i), f"{bn}: batch statistics") for i, bn in enumerate(reasons)]
    assert "fused as split_conv2d, 1 launch; unfused now: bn_row: batch statistics" in str(found)
    assert "4 run unfused in the mode in which they are now" in str(found)
    assert ("1.bn2", "normalizes by the statistics of the batch") in found.batch_dependent
    freeze(model)
    frozen = fused_inception.report(model)
    assert frozen == found
    assert frozen.unfused == []
    assert "unfused" not in str(frozen)
    model[0].backend = "aten"
    reasons = dict(fused_inception.report(model).batch_dependent)
    assert reasons["0"] == "runs as backend aten, which was asked for"
