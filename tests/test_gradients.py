"""Training through the ops: accuracy, memory, determinism, layout and AMP of their gradients.

What holds for all four is tested for all four. gradcheck and gradgradcheck, odd shapes, layouts and
subsets of gradients are in the ops' own files, backend "triton" in `tests/interpreter`, cuDNN in
`test_ops_gpu.py` and `test_factorized_conv2d_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import fused_inception
from fused_inception import modules, testing
from fused_inception.testing import ConvShape, PairShape, ReductionShape
from tests.op_cases import OP_CASES, OpCase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

PAIR_CASE = OpCase(
    "factorized_conv2d", "factorized_conv2d", None, (), testing.inception_v3_pairs,
    PairShape(5, 7, 6, 10, 9, 12, 5, 3, True), testing.random_pair, testing.integer_pair,
    lambda shape, inputs, **options: fused_inception.factorized_conv2d(*inputs, **options),
    lambda shape, inputs, **options: testing.unfused_pair(inputs, **options),
)  # fmt: skip
CASES = (PAIR_CASE, *OP_CASES)
# One shape of Inception V3 each.
REAL = {
    "factorized_conv2d": PairShape(1, 17, 17, 160, 160, 192, 7, 7, False),
    "conv2d_act": ConvShape(1, 17, 17, 768, 192, (1, 1)),
    "conv2d_act-few": ConvShape(1, 75, 75, 3, 32, (3, 3), (2, 2)),
    "split_conv2d": testing.inception_v3_splits(1)[0],
    "grid_reduction-max": ReductionShape(1, 35, 35, 288, 384, 3),
    "grid_reduction-avg": ReductionShape(1, 17, 17, 192, 320, 3),
}
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def leaves(inputs: Any) -> Any:
    """The operands with the same values and strides, wanting gradients."""
    return type(inputs)(*(t.detach().clone().requires_grad_() for t in inputs))


def cotangent(result: torch.Tensor) -> torch.Tensor:
    values = testing.random_tensor(result.shape, result.dtype, result.device, 1.0, 7)
    return testing.channels_last(values)


def operands_saved(result: Any) -> list[torch.Tensor]:
    """What the call of `result` kept for its backward."""
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result()
    return kept


@every_case
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_three_times_pytorchs(case: OpCase, activation: str, dtype):
    """At a shape of Inception V3; the ReLUs of all three turn where the forward's do."""
    shape = REAL[case.name]
    ours, theirs = leaves(case.random(shape, dtype)), leaves(case.random(shape, dtype))
    true = leaves(testing.to_float64(ours))
    result = case.run(shape, ours, activation=activation)
    seed = cotangent(result)
    result.backward(seed)
    case.unfused(shape, theirs, activation=activation).backward(seed)
    case.unfused(shape, true, activation=activation).backward(seed.double())
    for got, reference, oracle in zip(ours, theirs, true, strict=True):
        testing.assert_within_budget(got.grad, reference.grad, oracle.grad, 3.0)


@every_case
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_nothing_is_kept_but_the_operands_and_a_rectified_result(case: OpCase, activation: str):
    """The result costs nothing: the next layer keeps it as its operand."""
    inputs = leaves(case.random(case.small, torch.float32))
    results = []
    kept = operands_saved(
        lambda: results.append(case.run(case.small, inputs, activation=activation))
    )
    known = {t.data_ptr() for t in inputs}
    if activation == "relu":
        known.add(results[0].data_ptr())
    assert kept
    assert {tensor.data_ptr() for tensor in kept} <= known


def test_the_pair_keeps_less_than_unfused():
    """By the tensor between its factors, which the unfused pair keeps once."""
    shape = PAIR_CASE.small
    inputs = leaves(PAIR_CASE.random(shape, torch.float32))

    def kept_bytes(run: Any) -> int:
        kept = operands_saved(lambda: run(shape, inputs))
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in kept}.values())

    mid = shape.batch * shape.c_mid * shape.height * shape.width * 4
    bias1 = inputs.bias1.nbytes  # which a recomputation needs
    assert kept_bytes(PAIR_CASE.unfused) - kept_bytes(PAIR_CASE.run) == mid - bias1


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_case
def test_gradients_repeat_bitwise(case: OpCase, dtype, device: str, deterministic):
    """Where PyTorch is told to be deterministic: there is no operator that refuses."""
    shape = case.small if device == "cpu" else REAL[case.name]
    inputs = case.random(shape, dtype, device)
    runs = []
    for _ in range(3 if device == "cpu" else 50):
        operands = leaves(inputs)
        result = case.run(shape, operands)
        runs.append(torch.autograd.grad(result, operands, cotangent(result)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@every_case
def test_gradients_of_channels_last_are_channels_last(case: OpCase, dtype, device: str):
    """Of parameters, where they accumulate, and of activations on their way to the layer before."""
    if (device, dtype) == ("cuda", torch.float64):
        pytest.skip("PyTorch runs cuDNN in contiguous order for float64")
    inputs = case.random(case.small, dtype, device)
    operands = leaves(inputs)
    passed: list[torch.Tensor] = []
    activation = operands.input * 1
    activation.register_hook(passed.append)
    result = case.run(case.small, operands._replace(input=activation))
    result.backward(cotangent(result))
    for operand in operands:
        assert operand.grad.stride() == operand.stride()
        if operand.dim() == 4:
            testing.assert_channels_last(operand.grad)
    testing.assert_channels_last(passed[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_strides_of_1x1_gradients_are_the_parameters(dtype):
    """Also in dimensions of size 1, about which DistributedDataParallel would warn."""
    shape = ConvShape(2, 5, 5, 16, 24, (1, 1))
    drawn = testing.random_conv(shape, dtype)
    for strides in ((16, 1, 1, 1), (16, 1, 16, 16)):
        weight = drawn.weight.as_strided(drawn.weight.shape, strides).detach().requires_grad_()
        fused_inception.conv2d_act(drawn.input, weight, drawn.bias).sum().backward()
        assert weight.grad.stride() == weight.stride()


@every_case
def test_forward_mode_is_refused(case: OpCase):
    """The operators would drop the tangents without a word."""
    inputs = case.random(case.small, torch.float32)

    def call(input: torch.Tensor) -> torch.Tensor:
        return case.run(case.small, inputs._replace(input=input))

    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(call, (inputs.input,), (inputs.input,))
    with pytest.raises(NotImplementedError, match="forward mode AD"), forward_ad.dual_level():
        call(forward_ad.make_dual(inputs.input, inputs.input))


class Network(nn.Module):
    """Every op once."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            modules.Conv2dAct(3, 8, 3, padding=1),
            modules.FactorizedConv2d(8, 8, 8, 5),
            modules.SplitConv2d(8, 8, 8, 3),
            modules.GridReduction(16, 8),
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_trains(dtype, device: str):
    """float16 with scaled losses, bfloat16 without; weights and their gradients are float32."""
    torch.manual_seed(0)
    model = Network().to(device)
    images = torch.randn(16, 3, 9, 9, device=device)
    target = torch.arange(16, device=device) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=dtype == torch.float16)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            logits = model(images)
            assert logits.dtype == dtype
            loss = nn.functional.cross_entropy(logits.float(), target)
        scaler.scale(loss).backward()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@every_case
def test_an_overflowing_scale_is_found_and_skipped(case: OpCase):
    inputs = leaves(case.random(case.small, torch.float32))
    before = [t.detach().clone() for t in inputs]
    optimizer = torch.optim.SGD(inputs, lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    with torch.autocast("cpu", torch.float16):
        loss = case.run(case.small, inputs).float().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
