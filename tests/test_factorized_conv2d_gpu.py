"""`factorized_conv2d` on a CUDA device, against cuDNN and against itself bit by bit.

Run by `make gpu`; every test is skipped where there is no device. The interpreter suite runs the
same kernels on a CPU; what only a device can show is here: real tensor cores, streams, graphs,
repeats.
"""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

import fused_inception
from fused_inception import testing
from fused_inception.ops.common.configurations import DEVICE_CLASSES, Tile
from fused_inception.ops.factorized_conv2d import launch
from fused_inception.testing import PairInputs, PairShape
from tests.op_cases import all_tiles

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# What `run` runs; test_factorized_conv2d_cuda_gpu.py puts the same properties to the other backend.
BACKEND = "triton"
# name -> (dtype, float32 precision, factor of the error budget)
PRECISIONS = {
    "fp32-ieee": (torch.float32, "ieee", 2.0),
    "fp32-tf32": (torch.float32, "tf32", 2.0),
    "fp16": (torch.float16, "ieee", 2.0),
    "bf16": (torch.bfloat16, "ieee", 2.0),
}
FORMS = ("bands", "two_launches")
PAIR = testing.inception_v3_pairs(1)[-3]  # 192 -> 192 -> 192, row first
MIXED = PairShape(5, 19, 13, 37, 41, 29, 5, 3, True)  # nothing is a round number


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest):
    """(dtype, budget factor), with the float32 switch set."""
    dtype, fp32, factor = PRECISIONS[request.param]
    with testing.fp32_precision(fp32):
        yield dtype, factor


def choose_form(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(launch, "use_bands", lambda *args: form == "bands")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two forms of the op, chosen by force."""
    choose_form(monkeypatch, request.param)
    return request.param


def run(inputs: PairInputs, **options: str) -> torch.Tensor:
    return fused_inception.factorized_conv2d(*inputs, backend=BACKEND, **options)


def with_batch(inputs: PairInputs, batch: torch.Tensor) -> PairInputs:
    return inputs._replace(input=batch)


def exact(inputs: PairInputs, dtype: torch.dtype) -> bool:
    return torch.equal(run(inputs).cpu(), testing.pair_oracle(inputs).to(dtype))


def test_the_device_has_a_table_of_its_own():
    assert torch.cuda.get_device_capability() in DEVICE_CLASSES


@pytest.mark.parametrize("shape", testing.ODD_PAIR_SHAPES, ids=str)
def test_integers_are_exact(shape: PairShape, precision):
    dtype, _ = precision
    assert exact(testing.integer_pair(shape, dtype, DEVICE), dtype)


@pytest.mark.parametrize(("name", "tile"), all_tiles(launch.NAME), ids=str)
def test_every_configuration_is_exact_on_integers(
    monkeypatch: pytest.MonkeyPatch, name: str, tile: Tile, form: str
):
    dtype_name, _, fp32 = name.partition("_")
    dtype = getattr(torch, dtype_name)
    monkeypatch.setattr(launch, "choose_tile", lambda *args: tile)
    shapes = [dataclasses.replace(PAIR, batch=9)]
    if not tile.whole:
        shapes.append(MIXED)
    with testing.fp32_precision(fp32 or "ieee"):
        for shape in shapes:
            assert exact(testing.integer_pair(shape, dtype, DEVICE), dtype), shape


@pytest.mark.parametrize("batch", [1, 2, 32])
@pytest.mark.parametrize("shape", testing.inception_v3_pairs(1), ids=str)
def test_error_is_at_most_twice_cudnns(shape: PairShape, batch: int, precision):
    dtype, factor = precision
    inputs = testing.random_pair(dataclasses.replace(shape, batch=batch), dtype, DEVICE)
    oracle = testing.pair_oracle(inputs)
    result = run(inputs)
    testing.assert_within_budget(result, testing.precise_pair(inputs), oracle, factor)
    testing.assert_channels_last(result)


@pytest.mark.parametrize("shape", [PAIR, MIXED], ids=str)
def test_both_forms_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, shape: PairShape, precision
):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(shape, batch=40), dtype, DEVICE)
    results = []
    for form in FORMS:
        choose_form(monkeypatch, form)
        results.append(run(inputs))
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [*testing.inception_v3_pairs(1), MIXED], ids=str)
def test_an_image_does_not_depend_on_its_batch(shape: PairShape, precision):
    """Batches on both sides of the point where the op turns from two launches to bands."""
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(shape, batch=256), dtype, DEVICE)
    whole = run(inputs)
    for batch in (1, 2, 3, 32, 63, 64, 65, 128):
        assert torch.equal(run(with_batch(inputs, inputs.input[:batch])), whole[:batch]), batch
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0), device="cpu")
    assert torch.equal(run(with_batch(inputs, inputs.input[order])), whole[order])


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("shape", [PAIR, MIXED], ids=str)
def test_strides_and_alignment_do_not_change_the_bits(shape: PairShape, layout: str, precision):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(shape, batch=3), dtype, DEVICE)
    expected = run(inputs)
    arrange = testing.LAYOUTS[layout]
    views = PairInputs(*(arrange(t) if t is not None and t.dim() == 4 else t for t in inputs))
    before = [t.clone() for t in views]
    assert torch.equal(run(views), expected)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_the_place_of_a_bias_in_memory_does_not_change_the_bits(precision, form: str):
    """Aligned first, then one element later, then strided: the kernel is not specialised on it."""
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=3), dtype, DEVICE)
    expected = run(inputs)
    late = [torch.cat([b[:1], b])[1:] for b in (inputs.bias1, inputs.bias2)]
    strided = [b.repeat_interleave(2)[::2] for b in (inputs.bias1, inputs.bias2)]
    for bias1, bias2 in (late, strided):
        assert torch.equal(run(inputs._replace(bias1=bias1, bias2=bias2)), expected)


def test_a_thousand_repeats_give_the_same_bits(precision, form: str):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=16), dtype, DEVICE)
    expected = run(inputs)
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(1000):
        different += (run(inputs) != expected).sum()
    assert different.item() == 0


def test_every_element_is_written(precision, form: str):
    dtype, _ = precision
    inputs = testing.integer_pair(MIXED, dtype, DEVICE)
    with testing.nan_filled_memory():
        result = run(inputs)
    assert torch.equal(result.cpu(), testing.pair_oracle(inputs).to(dtype))


def test_offsets_past_two_to_the_31_elements(form: str):
    """The last images of a batch of more than 2^31 elements equal the same images alone."""
    shape = dataclasses.replace(PAIR, batch=4)
    inputs = testing.random_pair(shape, torch.bfloat16, DEVICE)
    images = 2**31 // (192 * 17 * 17) + 8
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * images * 192 * 17 * 17 * 2:
        pytest.skip("needs 13 GB of device memory")
    many = torch.zeros((images, 192, 17, 17), dtype=torch.bfloat16, device=DEVICE).to(
        memory_format=torch.channels_last
    )
    many[-4:] = inputs.input
    assert torch.equal(run(with_batch(inputs, many))[-4:], run(inputs))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_inputs_come_out_as_pytorchs(value: float, precision, form: str):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=2), dtype, DEVICE)
    inputs.input[1, 2, 3, 4] = value
    reference = PairInputs(*(None if t is None else t.float().cpu() for t in inputs))
    for options in ({}, {"mid_activation": "none", "activation": "none"}):
        expected = testing.unfused_pair(reference, **options)
        result = run(inputs, **options).cpu()
        assert not expected.isfinite().all()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())


def test_a_cuda_graph_replays_on_new_inputs(form: str):
    shape = dataclasses.replace(PAIR, batch=4)
    inputs, other = (testing.random_pair(shape, torch.bfloat16, DEVICE, seed=s) for s in (0, 1))
    expected = run(with_batch(inputs, other.input))
    static = inputs.input.clone(memory_format=torch.preserve_format)
    run(with_batch(inputs, static))  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(with_batch(inputs, static))
    static.copy_(other.input)
    graph.replay()
    assert torch.equal(captured, expected)


def test_the_current_stream_is_used(form: str):
    """The input is made late on a side stream; another stream would read it too early."""
    shape = dataclasses.replace(PAIR, batch=64)
    inputs = testing.random_pair(shape, torch.bfloat16, DEVICE)
    expected = run(inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.full_like(inputs.input, float("nan"))
        torch.cuda._sleep(50_000_000)
        late.copy_(inputs.input)
        result = run(with_batch(inputs, late))
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(result, expected)


def test_two_streams_do_not_share_scratch(form: str):
    """Weak where one grid fills the device: then the two overlap at their ends only."""
    shape = dataclasses.replace(PAIR, batch=128)
    sets = [testing.random_pair(shape, torch.bfloat16, DEVICE, seed=s) for s in (0, 1)]
    expected = [run(inputs) for inputs in sets]
    streams = [torch.cuda.Stream() for _ in sets]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for inputs, stream in zip(sets, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(inputs))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_four_threads_may_call_first():
    """Shapes that nobody has compiled yet, from four threads at once."""
    shape = PairShape(3, 11, 17, 48, 80, 96, 9, 11, False)
    inputs = testing.integer_pair(shape, torch.float16, DEVICE)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(run(inputs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = testing.pair_oracle(inputs).half()
    assert len(results) == 4
    assert all(torch.equal(result.cpu(), expected) for result in results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
def test_a_tensor_on_the_second_device_is_computed_there():
    inputs = testing.integer_pair(MIXED, torch.float16, "cuda:1")
    result = run(inputs)
    assert result.device == torch.device("cuda:1")
    assert torch.equal(result.cpu(), testing.pair_oracle(inputs).half())


def test_auto_is_triton_for_what_the_extension_does_not_take():
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=2), torch.float32, DEVICE)
    assert torch.equal(fused_inception.factorized_conv2d(*inputs), run(inputs))


def test_gradients_are_those_of_cudnn(precision):
    dtype, _ = precision
    shape = dataclasses.replace(PAIR, batch=2)
    fused = [t.requires_grad_() for t in testing.random_pair(shape, dtype, DEVICE)]
    plain = [t.detach().clone().requires_grad_() for t in fused]
    oracle = [t.detach().double().cpu().requires_grad_() for t in fused]
    seed = torch.randn(2, shape.c_out, 17, 17, generator=torch.Generator().manual_seed(0))
    # Without ReLU: one that turns at rounding in one of the three is not an error of the gradient.
    options = {"mid_activation": "none", "activation": "none"}
    run(PairInputs(*fused), **options).backward(seed.to(DEVICE, dtype))
    testing.unfused_pair(PairInputs(*plain), **options).backward(seed.to(DEVICE, dtype))
    testing.unfused_pair(PairInputs(*oracle), **options).backward(seed.to(dtype).double())
    for ours, theirs, true in zip(fused, plain, oracle, strict=True):
        testing.assert_within_budget(ours.grad, theirs.grad, true.grad, 3.0)


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["default", "graphs"])
def test_torch_compile_gives_the_same_bits(options: dict[str, str]):
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=2), torch.bfloat16, DEVICE)
    compiled = torch.compile(fused_inception.factorized_conv2d, fullgraph=True, **options)
    for _ in range(3):
        assert torch.equal(compiled(*inputs), fused_inception.factorized_conv2d(*inputs))
