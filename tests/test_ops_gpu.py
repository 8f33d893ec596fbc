"""`conv2d_act`, `split_conv2d` and `grid_reduction` on a CUDA device, against cuDNN and bit by bit.

Run by `make gpu`; every test is skipped where there is no device. The interpreter suite runs the
same kernels on a CPU; what only a device can show is here: real tensor cores, streams, graphs,
repeats. `factorized_conv2d` has a file of its own.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import fused_inception
from fused_inception import testing
from fused_inception.ops.common.configurations import Tile
from fused_inception.ops.conv2d_act import launch as conv_launch
from fused_inception.ops.conv2d_act.op import _check as check_conv
from fused_inception.testing import ConvShape, ReductionShape
from tests.op_cases import OP_CASES, OpCase, all_tiles, with_batch

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# Of the properties below; test_ops_cuda_gpu.py puts them to the other backend.
BACKEND = "triton"
launch_segments = conv_launch.launch_segments
# name -> (dtype, float32 precision, factor of the error budget)
PRECISIONS = {
    "fp32-ieee": (torch.float32, "ieee", 2.0),
    "fp32-tf32": (torch.float32, "tf32", 2.0),
    "fp16": (torch.float16, "ieee", 2.0),
    "bf16": (torch.bfloat16, "ieee", 2.0),
}
every_case = pytest.mark.parametrize("case", OP_CASES, ids=str)
REAL = [
    pytest.param(case, shape, id=f"{case}-{shape}")
    for case in OP_CASES
    for shape in case.real_shapes(1)
]
# One shape of a network for each case: tiles without a mask.
TYPICAL = {
    "conv2d_act": ConvShape(1, 35, 35, 64, 96, (3, 3), (1, 1), (1, 1)),
    "conv2d_act-few": ConvShape(1, 75, 75, 3, 32, (3, 3), (2, 2)),
    "split_conv2d": testing.inception_v3_splits(1)[0],
    "grid_reduction-max": ReductionShape(1, 35, 35, 288, 384, 3),
    "grid_reduction-avg": ReductionShape(1, 35, 35, 288, 384, 3),
}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[tuple[torch.dtype, float]]:
    """(dtype, budget factor), with the float32 switch set."""
    dtype, fp32, factor = PRECISIONS[request.param]
    with testing.fp32_precision(fp32):
        yield dtype, factor


def run(case: OpCase, shape, inputs, **options: str) -> torch.Tensor:
    return case.run(shape, inputs, backend=BACKEND, **options)


def exact(case: OpCase, shape, dtype: torch.dtype) -> bool:
    inputs = case.integers(shape, dtype, DEVICE)
    return torch.equal(run(case, shape, inputs).cpu(), case.oracle(shape, inputs).to(dtype))


@pytest.mark.parametrize(
    ("case", "shape"),
    [pytest.param(c, s, id=f"{c}-{s}") for c in OP_CASES for s in c.odd_shapes],
)
def test_integers_are_exact(case: OpCase, shape, precision):
    assert exact(case, shape, precision[0])


@pytest.mark.parametrize(
    ("case", "name", "tile"),
    [pytest.param(c, n, t, id=f"{c}-{n}-{t}") for c in OP_CASES for n, t in all_tiles(c.op)],
)
def test_every_configuration_is_exact_on_integers(
    monkeypatch: pytest.MonkeyPatch, case: OpCase, name: str, tile: Tile
):
    dtype_name, _, fp32 = name.partition("_")
    dtype = getattr(torch, dtype_name)
    monkeypatch.setattr(case.launch, "choose_tile", lambda *args: tile)
    if tile.whole and case.name.endswith("few"):
        pytest.skip("a whole tile takes channels in whole K blocks")
    typical = with_batch(TYPICAL[case.name], 3)
    if tile.whole and typical.c_in % tile.block_k:
        typical = dataclasses.replace(typical, c_in=192)
    shapes = [typical] if tile.whole else [case.small, typical]
    with testing.fp32_precision(fp32 or "ieee"):
        for shape in shapes:
            assert exact(case, shape, dtype), shape


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("case", "shape"), REAL)
def test_error_is_at_most_twice_cudnns(case: OpCase, shape, batch: int, precision):
    dtype, factor = precision
    shape = with_batch(shape, batch)
    inputs = case.random(shape, dtype, DEVICE)
    oracle = case.oracle(shape, inputs)
    result = run(case, shape, inputs)
    testing.assert_within_budget(result, case.precise(shape, inputs), oracle, factor)
    testing.assert_channels_last(result)


@every_case
@pytest.mark.parametrize("kind", ["typical", "small"])
def test_an_image_does_not_depend_on_its_batch(case: OpCase, kind: str, precision):
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name] if kind == "typical" else case.small, 64)
    inputs = case.random(shape, dtype, DEVICE)
    whole = run(case, shape, inputs)
    for batch in (1, 2, 3, 7, 32, 63):
        part = inputs._replace(input=inputs.input[:batch])
        assert torch.equal(run(case, with_batch(shape, batch), part), whole[:batch]), batch
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0), device="cpu")
    part = inputs._replace(input=inputs.input[order])
    assert torch.equal(run(case, shape, part), whole[order])


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@every_case
@pytest.mark.parametrize("kind", ["typical", "small"])
def test_strides_and_alignment_do_not_change_the_bits(
    case: OpCase, kind: str, layout: str, precision
):
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name] if kind == "typical" else case.small, 3)
    inputs = case.random(shape, dtype, DEVICE)
    expected = run(case, shape, inputs)
    arrange = testing.LAYOUTS[layout]
    views = type(inputs)(*(arrange(t) if t.dim() == 4 else t for t in inputs))
    before = [t.clone() for t in views]
    assert torch.equal(run(case, shape, views), expected)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


@every_case
def test_the_place_of_a_bias_in_memory_does_not_change_the_bits(case: OpCase, precision):
    """Aligned first, then one element later, then strided: the kernel is not specialised on it."""
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name], 3)
    inputs = case.random(shape, dtype, DEVICE)
    expected = run(case, shape, inputs)
    for move in (lambda b: torch.cat([b[:1], b])[1:], lambda b: b.repeat_interleave(2)[::2]):
        moved = type(inputs)(*(move(t) if t.dim() == 1 else t for t in inputs))
        assert torch.equal(run(case, shape, moved), expected)


@every_case
def test_a_thousand_repeats_give_the_same_bits(case: OpCase, precision):
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name], 16)
    inputs = case.random(shape, dtype, DEVICE)
    expected = run(case, shape, inputs)
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(1000):
        different += (run(case, shape, inputs) != expected).sum()
    assert different.item() == 0


@every_case
def test_every_element_is_written(case: OpCase, precision):
    dtype, _ = precision
    inputs = case.integers(case.small, dtype, DEVICE)
    with testing.nan_filled_memory():
        result = run(case, case.small, inputs)
    assert torch.equal(result.cpu(), case.oracle(case.small, inputs).to(dtype))


@every_case
def test_offsets_past_two_to_the_31_elements(case: OpCase):
    """The last images of a batch of more than 2^31 elements equal the same images alone."""
    shape = with_batch(TYPICAL[case.name], 4)
    inputs = case.random(shape, torch.bfloat16, DEVICE)
    few = run(case, shape, inputs)
    per_image = min(inputs.input[0].numel(), few[0].numel())
    images = 2**31 // per_image + 8
    size = 2 * images * (inputs.input[0].numel() + few[0].numel())
    if torch.cuda.mem_get_info()[0] < 1.2 * size:
        pytest.skip(f"needs {1.2 * size / 1e9:.0f} GB of device memory")
    many = torch.empty(
        (images, *inputs.input.shape[1:]), dtype=torch.bfloat16, device=DEVICE,
        memory_format=torch.channels_last,
    )  # fmt: skip
    many[-4:] = inputs.input
    part = inputs._replace(input=many)
    assert torch.equal(run(case, with_batch(shape, images), part)[-4:], few)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_case
def test_non_finite_inputs_come_out_as_pytorchs(case: OpCase, value: float, precision):
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name], 2)
    inputs = case.random(shape, dtype, DEVICE)
    inputs.input[1, 2, 3, 4] = value
    reference = type(inputs)(*(t.float().cpu() for t in inputs))
    for options in ({}, {"activation": "none"}):
        expected = case.unfused(shape, reference, **options)
        result = run(case, shape, inputs, **options).cpu()
        assert not expected.isfinite().all()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())


@every_case
def test_a_value_past_float16_becomes_infinite_as_unfused(case: OpCase):
    inputs = case.random(case.small, torch.float16, DEVICE)
    large = {n: t * 8 for n, t in inputs._asdict().items() if n.startswith("weight")}
    inputs = inputs._replace(input=inputs.input * 15000, **large)
    expected = case.oracle(case.small, inputs, activation="none").half()
    result = run(case, case.small, inputs, activation="none").cpu()
    # On the edge of the range rounding decides.
    inside = (case.oracle(case.small, inputs, activation="none").abs() - 65520).abs() > 64
    assert (expected.isinf() & inside).any()
    assert torch.equal(result.isinf() & inside, expected.isinf() & inside)


@every_case
def test_denormals_are_kept(case: OpCase):
    """Of float16; float32's are multiplied by one and added to zero."""
    for dtype, tiny in ((torch.float16, 2.0**-24), (torch.float32, 1e-41)):
        inputs = case.random(with_batch(case.small, 1), dtype, DEVICE, bias=False)
        zero = type(inputs)(*(None if t is None else torch.zeros_like(t) for t in inputs))
        zero.input[:] = tiny
        for weight in zero[1:]:
            if weight is not None:
                weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] = 1
        with testing.fp32_precision("ieee"):
            result = run(case, with_batch(case.small, 1), zero)
        middle = result[:, :, 1:-1, 1:-1]
        testing.assert_same_bits(middle.cpu(), torch.full_like(middle.cpu(), tiny))


@every_case
def test_a_cuda_graph_replays_on_new_inputs(case: OpCase):
    shape = with_batch(TYPICAL[case.name], 4)
    inputs, other = (case.random(shape, torch.bfloat16, DEVICE, seed=s) for s in (0, 1))
    expected = run(case, shape, inputs._replace(input=other.input))
    static = inputs._replace(input=inputs.input.clone(memory_format=torch.preserve_format))
    run(case, shape, static)  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, shape, static)
    static.input.copy_(other.input)
    graph.replay()
    assert torch.equal(captured, expected)


@every_case
def test_the_current_stream_is_used(case: OpCase):
    """The input is made late on a side stream; another stream would read it too early."""
    shape = with_batch(TYPICAL[case.name], 32)
    inputs = case.random(shape, torch.bfloat16, DEVICE)
    expected = run(case, shape, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.full_like(inputs.input, float("nan"))
        torch.cuda._sleep(50_000_000)
        late.copy_(inputs.input)
        result = run(case, shape, inputs._replace(input=late))
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(result, expected)


@every_case
def test_four_threads_may_call_first(monkeypatch: pytest.MonkeyPatch, tmp_path, case: OpCase):
    """A shape that nobody has compiled yet, from four threads at once."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = {
        "conv2d_act": ConvShape(3, 11, 9, 5 if "few" in case.name else 48, 20, (5, 2), (2, 1)),
        "split_conv2d": testing.SplitShape(3, 11, 17, 48, 80, 96, 9, 11),
        "grid_reduction": ReductionShape(3, 15, 17, 48, 80, 7),
    }[case.op]
    inputs = case.integers(shape, torch.float32, DEVICE)
    results: list[torch.Tensor] = []

    def call() -> None:
        results.append(run(case, shape, inputs))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = case.oracle(shape, inputs).float()
    assert len(results) == 4
    assert all(torch.equal(result.cpu(), expected) for result in results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
@every_case
def test_a_tensor_on_the_second_device_is_computed_there(case: OpCase):
    inputs = case.integers(case.small, torch.float16, "cuda:1")
    result = run(case, case.small, inputs)
    assert result.device == torch.device("cuda:1")
    assert torch.equal(result.cpu(), case.oracle(case.small, inputs).half())


@every_case
def test_auto_is_a_backend_with_kernels(case: OpCase):
    """Which one is the table's business; see test_dispatch_table.py."""
    shape = with_batch(TYPICAL[case.name], 2)
    inputs = case.random(shape, torch.bfloat16, DEVICE)
    available = fused_inception.available_backends()
    results = [
        case.run(shape, inputs, backend=name)
        for name in ("cuda", "triton")
        if available[name] == "available"
    ]
    assert any(torch.equal(case.run(shape, inputs), result) for result in results)


@every_case
def test_gradients_are_those_of_cudnn(case: OpCase, precision):
    dtype, _ = precision
    shape = with_batch(TYPICAL[case.name], 2)
    inputs = case.random(shape, dtype, DEVICE)
    kind = type(inputs)
    fused = [t.requires_grad_() for t in inputs]
    plain = [t.detach().clone().requires_grad_() for t in fused]
    oracle = [t.detach().double().cpu().requires_grad_() for t in fused]
    # Without ReLU: one that turns at rounding in one of the three is not an error of the gradient.
    result = run(case, shape, kind(*fused), activation="none")
    seed = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    result.backward(seed.to(DEVICE, dtype))
    case.unfused(shape, kind(*plain), activation="none").backward(seed.to(DEVICE, dtype))
    case.unfused(shape, kind(*oracle), activation="none").backward(seed.to(dtype).double())
    for ours, theirs, true in zip(fused, plain, oracle, strict=True):
        testing.assert_within_budget(ours.grad, theirs.grad, true.grad, 3.0)


@every_case
def test_torch_compile_gives_the_same_bits(case: OpCase):
    shape = with_batch(TYPICAL[case.name], 2)
    inputs = case.random(shape, torch.bfloat16, DEVICE)
    compiled = torch.compile(lambda *args: case.run(shape, type(inputs)(*args)), fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(*inputs), case.run(shape, inputs))


# What only one op has.


@pytest.mark.parametrize("sizes", [[40], [64, 48], [7, 130, 33], [64, 48, 64, 32]], ids=str)
def test_segments_go_where_they_belong(sizes: list[int], precision):
    """The sibling 1×1 convolutions of a block: each result as that convolution alone gives it."""
    dtype, _ = precision
    shape = ConvShape(3, 17, 17, 192, sum(sizes), (1, 1))
    inputs = testing.integer_conv(shape, dtype, DEVICE)
    problem = check_conv(*inputs, shape.stride, shape.padding, "relu", BACKEND)
    whole = testing.channels_last(torch.zeros(3, sum(sizes) + 16, 17, 17, dtype=dtype)).to(DEVICE)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    slices = [slice(8 + end - size, 8 + end) for size, end in zip(sizes, ends, strict=True)]
    segments = [
        conv_launch.Segment(whole[:, part], "none" if i % 2 else "relu")
        for i, part in enumerate(slices)
    ]
    launch_segments(problem, *inputs, segments)
    oracle = testing.conv_oracle(inputs, activation="none").to(dtype)
    for i, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        part = oracle[:, end - sizes[i] : end]
        assert torch.equal(segment.output.cpu(), part if i % 2 else F.relu(part))
    assert not whole[:, :8].any()
    assert not whole[:, 8 + ends[-1] :].any()


def test_where_a_slice_begins_does_not_change_the_bits(precision):
    """Aligned destinations are stored 16 bytes at a time, others by the element."""
    dtype, _ = precision
    shape = ConvShape(3, 17, 17, 192, 64, (1, 1))
    inputs = testing.random_conv(shape, dtype, DEVICE)
    problem = check_conv(*inputs, shape.stride, shape.padding, "relu", BACKEND)
    results = []
    for offset in (0, 1, 8):
        whole = testing.channels_last(torch.zeros(3, 80, 17, 17, dtype=dtype, device=DEVICE))
        place = whole[:, offset : offset + 64]
        launch_segments(problem, *inputs, [conv_launch.Segment(place, "relu")])
        results.append(place)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("c_in", [20, 288])
def test_the_maximum_is_bitwise_pytorchs(kernel: int, c_in: int, precision):
    dtype, _ = precision
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 1e-7])
    draw = values[torch.randint(len(values), (3, c_in, 19, 18), generator=generator)]
    noise = torch.randn(3, c_in, 19, 18, generator=generator)
    weight = testing.channels_last(torch.ones(70, c_in, kernel, kernel, dtype=dtype)).to(DEVICE)
    for x in (draw, noise, torch.where(noise < -1, values[0], noise)):
        x = testing.channels_last(x.to(dtype)).to(DEVICE)
        result = fused_inception.grid_reduction(x, weight, None, backend=BACKEND)[:, 70:]
        testing.assert_same_bits(result, F.max_pool2d(x, kernel, 2))
