"""`conv2d_act`, `split_conv2d` and `grid_reduction` on the Triton backend, run by the interpreter.

What holds for every op is tested for all of them; `factorized_conv2d` has a file of its own, with
its two forms. What only one op has (segments, pools) comes last. Left out: float64 (the backend
refuses it), and the largest maps of Inception V3, which take minutes here.
"""

from __future__ import annotations

import dataclasses
import zlib

import pytest
import torch
import torch.nn.functional as F

import fused_inception
from fused_inception import testing
from fused_inception.ops.common import launching
from fused_inception.ops.common.configurations import Tile, device_table
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.conv2d_act import launch as conv_launch
from fused_inception.ops.conv2d_act import segments as conv_segments
from fused_inception.ops.conv2d_act.op import _check as check_conv
from fused_inception.ops.grid_reduction import launch as reduction_launch
from fused_inception.ops.grid_reduction.op import _check as check_reduction
from fused_inception.ops.split_conv2d import launch as split_launch
from fused_inception.ops.split_conv2d.op import _check as check_split
from fused_inception.testing import ConvInputs, ConvShape, ReductionShape
from tests.op_cases import OP_CASES, OpCase, with_batch
from tests.pool_cases import special_maps

SHAPES = [
    pytest.param(case, shape, id=f"{case}-{shape}")
    for case in OP_CASES
    for shape in case.odd_shapes
]
every_case = pytest.mark.parametrize("case", OP_CASES, ids=str)
every_shape = pytest.mark.parametrize(("case", "shape"), SHAPES)


def run(case: OpCase, shape, inputs, **options: str) -> torch.Tensor:
    return case.run(shape, inputs, backend="triton", **options)


@every_shape
def test_integers_are_exact(case: OpCase, shape, precision):
    dtype, _ = precision
    inputs = case.integers(shape, dtype)
    expected = case.oracle(shape, inputs).to(dtype)
    assert expected.numel() < 20 or expected.abs().max() > 0
    result = run(case, shape, inputs)
    assert torch.equal(result, expected)
    testing.assert_channels_last(result)


@every_shape
def test_error_keeps_within_pytorchs(case: OpCase, shape, precision):
    dtype, factor = precision
    inputs = case.random(shape, dtype)
    oracle = case.oracle(shape, inputs)
    testing.assert_within_budget(
        run(case, shape, inputs), case.precise(shape, inputs), oracle, factor
    )


def real_shapes() -> list:
    """Those of Inception V3 on maps of up to 35×35, and its first convolution, on less."""
    stem = ConvShape(1, 41, 41, 3, 32, (3, 3), (2, 2))
    shapes = [(case, s) for case in OP_CASES for s in case.real_shapes(1) if s.height <= 35]
    shapes.append((OP_CASES[1], stem))
    return [pytest.param(case, shape, id=f"{case}-{shape}") for case, shape in shapes]


@pytest.mark.parametrize(("case", "shape"), real_shapes())
def test_inception_v3_shapes_are_exact(case: OpCase, shape):
    inputs = case.integers(shape, torch.float16)
    assert torch.equal(run(case, shape, inputs), case.oracle(shape, inputs).half())


@pytest.mark.parametrize("shape", [ConvShape(1, 8, 8, 2048, 64, (1, 1))], ids=str)
def test_long_sums_keep_within_pytorchs(shape: ConvShape, precision):
    dtype, factor = precision
    case = OP_CASES[0]
    inputs = case.random(shape, dtype)
    oracle = case.oracle(shape, inputs)
    testing.assert_within_budget(
        run(case, shape, inputs), case.precise(shape, inputs), oracle, factor
    )


@every_case
def test_shapes_at_random(case: OpCase, precision, request: pytest.FixtureRequest):
    """Other shapes for each op and precision."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    dtype, _ = precision
    batch, side, channels = st.integers(1, 4), st.integers(1, 14), st.integers(1, 70)

    @st.composite
    def shapes(draw):
        few = case.name.endswith("few")
        c_in = draw(st.integers(1, 8) if few else st.integers(9, 70))
        if case.op == "split_conv2d":
            odd = st.sampled_from([1, 3, 5, 7, 9])
            return testing.SplitShape(
                draw(batch), draw(side), draw(side), c_in, draw(channels), draw(channels),
                draw(odd), draw(odd),
            )  # fmt: skip
        if case.op == "grid_reduction":
            kernel = draw(st.sampled_from([1, 3, 5]))
            size = [draw(st.integers(kernel, kernel + 9)) for _ in range(2)]
            return ReductionShape(draw(batch), *size, c_in, draw(channels), kernel)
        kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        size = [
            draw(st.integers(max(1, k - 2 * p), 14)) for k, p in zip(kernel, padding, strict=True)
        ]
        return ConvShape(draw(batch), *size, c_in, draw(channels), kernel, stride, padding)

    @hypothesis.seed(zlib.crc32(request.node.name.encode()))
    @hypothesis.settings(max_examples=8, deadline=None, database=None)
    @hypothesis.given(shapes())
    def check(shape) -> None:
        inputs = case.integers(shape, dtype)
        assert torch.equal(run(case, shape, inputs), case.oracle(shape, inputs).to(dtype))

    check()


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@every_case
def test_biases_and_activations(case: OpCase, bias: bool, activation: str):
    inputs = case.integers(case.small, torch.float16)
    if not bias:
        inputs = type(inputs)(*(None if t.dim() == 1 else t for t in inputs))
    expected = case.oracle(case.small, inputs, activation=activation).half()
    assert (expected < 0).any() == (activation == "none") or case.op == "grid_reduction"
    assert torch.equal(run(case, case.small, inputs, activation=activation), expected)


def test_one_half_of_a_split_may_have_no_bias():
    case = OP_CASES[2]
    inputs = case.integers(case.small, torch.float16)
    for missing in ("bias_row", "bias_col"):
        some = inputs._replace(**{missing: None})
        assert torch.equal(run(case, case.small, some), case.oracle(case.small, some).half())


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@every_case
def test_any_layout_gives_the_same_bits_and_is_not_written(case: OpCase, layout: str):
    inputs = case.random(case.small, torch.float32)
    expected = run(case, case.small, inputs)
    arrange = testing.LAYOUTS[layout]
    views = type(inputs)(*(arrange(t) if t.dim() == 4 else t for t in inputs))
    before = [t.clone() for t in views]
    assert torch.equal(run(case, case.small, views), expected)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


@every_case
def test_an_expanded_input_is_taken(case: OpCase):
    shape = with_batch(case.small, 3)
    inputs = case.integers(shape, torch.float16)
    x = inputs.input[:1, :, :, :1].expand(3, -1, -1, shape.width)
    inputs = inputs._replace(input=x)
    assert torch.equal(run(case, shape, inputs), case.oracle(shape, inputs).half())


@every_case
def test_every_element_is_written_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, precision, case: OpCase
):
    """The output lies inside guard words; memory that nobody wrote is NaN."""
    dtype, _ = precision
    guard, marks = 64, []

    def guarded(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        n, c, h, w = shape
        buffer = torch.full((n * c * h * w + 2 * guard,), 77.0, dtype=like.dtype)
        buffer[guard:-guard] = float("nan")
        marks.append(buffer)
        return buffer.as_strided(shape, (h * w * c, 1, w * c, c), guard)

    monkeypatch.setattr(case.launch, "empty_channels_last", guarded)
    inputs = case.integers(case.small, dtype)
    result = run(case, case.small, inputs)
    assert torch.equal(result, case.oracle(case.small, inputs).to(dtype))
    assert (marks[0][:guard] == 77).all()
    assert (marks[0][-guard:] == 77).all()


@every_case
def test_an_empty_batch_gives_an_empty_map(case: OpCase):
    shape = with_batch(case.small, 0)
    inputs = case.random(shape, torch.float16)
    result = run(case, shape, inputs)
    assert result.shape == case.unfused(shape, inputs).shape
    testing.assert_channels_last(result)


# Bitwise properties. They hold whatever the tile, so they are shown with a product whose rounding
# does not depend on it.


@pytest.mark.usefixtures("sequential_product")
@every_case
def test_an_image_does_not_depend_on_its_batch(case: OpCase, precision):
    """With more channels than a block of K has, where there may be: their order is part of it."""
    dtype, _ = precision
    shape = with_batch(case.small, 4)
    if not case.name.endswith("few"):
        shape = dataclasses.replace(shape, c_in=70)
    inputs = case.random(shape, dtype)
    whole = run(case, shape, inputs)
    for order in ([0], [3], [2, 0, 0]):
        part = inputs._replace(input=inputs.input[order])
        assert torch.equal(run(case, with_batch(shape, len(order)), part), whole[order])


@pytest.mark.usefixtures("sequential_product")
@pytest.mark.parametrize(
    "tile",
    [Tile(32, 16, 32, 4, 2), Tile(64, 64, 32, 4, 2), Tile(256, 32, 32, 4, 2)],
    ids=lambda t: f"{t.block_p}x{t.block_f}",
)
@every_case
def test_rows_and_filters_of_a_tile_do_not_change_the_bits(
    monkeypatch: pytest.MonkeyPatch, case: OpCase, tile: Tile
):
    inputs = case.random(case.small, torch.float32)
    monkeypatch.setattr(case.launch, "choose_tile", lambda *args: Tile(128, 32, 32, 4, 2))
    with testing.fp32_precision("ieee"):
        expected = run(case, case.small, inputs)
        monkeypatch.setattr(case.launch, "choose_tile", lambda *args: tile)
        assert torch.equal(run(case, case.small, inputs), expected)


@every_case
def test_a_large_batch_is_split_into_launches(monkeypatch: pytest.MonkeyPatch, case: OpCase):
    inputs = case.integers(case.small, torch.float16)
    expected = case.oracle(case.small, inputs).half()
    launches = []
    ranges = launching.image_ranges

    def counted(batch: int, images: int, first_image: int = 0):
        for launch in ranges(batch, images, first_image):
            launches.append(launch)
            yield launch

    pixels = expected.shape[2] * expected.shape[3]
    monkeypatch.setattr(launching, "MAX_ROWS", 2 * pixels)
    for module in (case.launch, conv_segments):
        monkeypatch.setattr(module, "size_refusal", lambda *args: None, raising=False)
    monkeypatch.setattr(case.launch, "image_ranges", counted)
    assert torch.equal(run(case, case.small, inputs), expected)
    assert launches == [(0, 2), (2, 2), (4, 1)]


@every_case
def test_offsets_past_two_to_the_31_elements(case: OpCase):
    """The last image of a batch of more than 2^31 elements; only its pages are ever touched."""
    few = case.name.endswith("few")
    c = 8 if few else 16
    shape = {
        "conv2d_act": ConvShape(1, 4, 4, c, 16, (1, 3), (1, 1), (0, 1)),
        "split_conv2d": testing.SplitShape(1, 4, 4, 16, 8, 8, 3, 3),
        "grid_reduction": ReductionShape(1, 4, 4, 16, 16, 1),
    }[case.op]
    inputs = case.integers(shape, torch.float16)
    expected = case.oracle(shape, inputs).half()
    last = 2**31 // min(inputs.input.numel(), expected.numel()) + 1
    memory_format = torch.channels_last
    x, y = (
        torch.empty((last + 1, *t.shape[1:]), dtype=torch.float16, memory_format=memory_format)
        for t in (inputs.input, expected)
    )
    x[last:] = inputs.input
    if case.op == "conv2d_act":
        problem = check_conv(*inputs, shape.stride, shape.padding, "relu", "triton")
        conv_launch.launch_segments(
            problem._replace(batch=last + 1), x, *inputs[1:],
            [conv_launch.Segment(y, "relu")], first_image=last,
        )  # fmt: skip
    elif case.op == "split_conv2d":
        problem = check_split(*inputs, "relu", "triton")._replace(batch=last + 1)
        split_launch.launch_split(problem, x, *inputs[1:], y, "relu", first_image=last)
    else:
        pool = case.name.rpartition("-")[2]
        problem = check_reduction(*inputs, pool, "relu", "triton")._replace(batch=last + 1)
        reduction_launch.launch_reduction(
            problem, x, *inputs[1:], y[:, :16], y[:, 16:], "relu", first_image=last
        )
    assert torch.equal(y[last:], expected)


# Special values.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_case
def test_non_finite_inputs_come_out_as_pytorchs(case: OpCase, value: float, precision):
    dtype, _ = precision
    inputs = case.random(case.small, dtype)
    inputs.input[1, 2, 3, 4] = value
    # In float32: PyTorch's bfloat16 convolution on a CPU spreads NaN to pixels outside the window.
    reference = type(inputs)(*(t.float() for t in inputs))
    for options in ({}, {"activation": "none"}):
        expected = case.unfused(case.small, reference, **options)
        result = run(case, case.small, inputs, **options)
        assert not expected.isfinite().all()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())


@every_case
def test_a_value_past_float16_becomes_infinite_as_unfused(case: OpCase):
    inputs = case.random(case.small, torch.float16)
    inputs = inputs._replace(input=inputs.input * 15000)
    weights = {n: t * 8 for n, t in inputs._asdict().items() if n.startswith("weight")}
    inputs = inputs._replace(**weights)
    expected = case.unfused(case.small, inputs, activation="none")
    assert expected.isinf().any()
    assert torch.equal(run(case, case.small, inputs, activation="none").isinf(), expected.isinf())


@every_case
def test_denormals_are_kept(case: OpCase):
    shape = {
        "conv2d_act": ConvShape(1, 3, 3, case.small.c_in, 1, (1, 1)),
        "split_conv2d": testing.SplitShape(1, 3, 3, 1, 1, 1, 1, 1),
        "grid_reduction": ReductionShape(1, 3, 3, 1, 1, 1),
    }[case.op]
    inputs = case.random(shape, torch.float32, bias=False)
    ones = type(inputs)(*(None if t is None else torch.zeros_like(t) for t in inputs))
    ones.input[:] = 1e-41
    for weight in ones[1:]:
        if weight is not None:
            weight[:, 0] = 1
    with testing.fp32_precision("ieee"):
        result = run(case, shape, ones)
    assert torch.equal(result, torch.full_like(result, 1e-41))


# The ops around the kernels.


@every_case
def test_auto_never_picks_the_interpreter(monkeypatch: pytest.MonkeyPatch, case: OpCase):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the Triton launcher was called")

    monkeypatch.setattr(case.launch, "on_device", refuse)
    inputs = case.random(case.small, torch.float32)
    expected = case.unfused(case.small, inputs)
    assert torch.allclose(case.run(case.small, inputs), expected, atol=1e-5)
    with pytest.raises(AssertionError):
        run(case, case.small, inputs)


@every_case
def test_float64_is_refused_with_the_reason(case: OpCase):
    inputs = case.random(case.small, torch.float64)
    with pytest.raises(
        RuntimeError, match=rf"{case.op}: .*'triton' cannot run here: dtype torch\.float64; takes"
    ):
        run(case, case.small, inputs)


def test_a_map_past_two_to_the_30_pixels_is_refused_with_the_reason():
    """Views of one element: nothing is allocated."""
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)
    w = torch.zeros(1, 1, 1, 1)
    match = "a map of 65536x32768; takes up to 2\\^30 pixels"
    with pytest.raises(RuntimeError, match=match):
        fused_inception.conv2d_act(x, w, None, backend="triton")
    with pytest.raises(RuntimeError, match=match):
        fused_inception.grid_reduction(x, w, None, backend="triton")
    with pytest.raises(RuntimeError, match=match):
        fused_inception.split_conv2d(x, w, None, w, None, backend="triton")
    small = torch.zeros(1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="a map of 65537x65537 with its padding; takes"):
        fused_inception.conv2d_act(small, w, None, padding=2**15, backend="triton")


@every_case
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_of_gradients_keeps_within_pytorchs(dtype, activation: str, case: OpCase):
    """Without tf32, which PyTorch does not have on a CPU to be compared with."""
    inputs = case.random(case.small, dtype)
    kind = type(inputs)
    fused, plain = ([t.detach().clone().requires_grad_() for t in inputs] for _ in range(2))
    oracle = [t.detach().double().requires_grad_() for t in inputs]
    with testing.fp32_precision("ieee"):
        result = run(case, case.small, kind(*fused), activation=activation)
        seed = testing.random_tensor(result.shape, dtype, "cpu", 1.0, 7)
        result.backward(seed)
    case.unfused(case.small, kind(*plain), activation=activation).backward(seed)
    case.unfused(case.small, kind(*oracle), activation=activation).backward(seed.double())
    for ours, theirs, true in zip(fused, plain, oracle, strict=True):
        testing.assert_within_budget(ours.grad, theirs.grad, true.grad, 3.0)


@every_case
def test_second_derivatives_are_those_of_aten(case: OpCase):
    seconds = []
    with testing.fp32_precision("ieee"):
        for backend in ("triton", "aten"):
            drawn = case.random(case.small, torch.float32)
            kind, inputs = type(drawn), [t.requires_grad_() for t in drawn]
            result = case.run(case.small, kind(*inputs), backend=backend)
            grads = torch.autograd.grad(result.square().mean(), inputs, create_graph=True)
            seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for ours, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@every_case
def test_autocast_reaches_the_kernel(case: OpCase):
    inputs = case.integers(case.small, torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        result = run(case, case.small, inputs)
    assert result.dtype == torch.float16
    assert torch.equal(result, case.oracle(case.small, inputs).half())


# conv2d_act: segments and few channels.


def segmented(sizes: list[int], c_in: int = 24, kernel: int = 1, seed: int = 0):
    """(problem, operands, the maps to write): filters of several convolutions as one product."""
    shape = ConvShape(3, 6, 5, c_in, sum(sizes), (kernel, kernel), (1, 1), (kernel // 2,) * 2)
    inputs = testing.integer_conv(shape, torch.float16, seed=seed)
    problem = check_conv(*inputs, shape.stride, shape.padding, "relu", "triton")
    oracle = testing.conv_oracle(inputs, padding=shape.padding, activation="none").half()
    return problem, inputs, oracle


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("c_in", [24, 3], ids=["channels", "few"])
@pytest.mark.parametrize("sizes", [[40], [64, 48], [7, 130, 33], [64, 48, 64, 32], [1, 1, 1, 1]])
def test_segments_go_where_they_belong(sizes: list[int], c_in: int, kernel: int):
    """Slices of one map and maps of their own by turns; every second one without ReLU."""
    problem, inputs, oracle = segmented(sizes, c_in, kernel)
    whole = torch.full((3, sum(sizes) + 20, 6, 5), 77.0, dtype=torch.float16)
    whole = testing.channels_last(whole)
    segments, expected, begin, place = [], [], 0, 10
    for i, size in enumerate(sizes):
        activation = "none" if i % 2 else "relu"
        if i % 2:
            out = empty_channels_last((3, size, 6, 5), whole)
        else:
            out, place = whole[:, place : place + size], place + size
        part = oracle[:, begin : begin + size]
        expected.append(F.relu(part) if activation == "relu" else part)
        segments.append(conv_launch.Segment(out, activation))
        begin += size
    conv_launch.launch_segments(problem, *inputs, segments)
    for segment, want in zip(segments, expected, strict=True):
        assert torch.equal(segment.output, want)
    assert (whole[:, :10] == 77).all()
    assert (whole[:, place:] == 77).all()


def test_segments_must_add_up_to_the_filters():
    problem, inputs, _ = segmented([8, 8])
    out = empty_channels_last((3, 8, 6, 5), inputs.input)
    for segments in ([], [out], [out] * 3, [out] * 5):
        with pytest.raises(ValueError, match="segments must be 1 to 4 that make 16 filters, got"):
            conv_launch.launch_segments(
                problem, *inputs, [conv_launch.Segment(s, "relu") for s in segments]
            )


def test_a_destination_must_be_a_slice_of_channels():
    problem, inputs, _ = segmented([8])
    for wrong in (torch.empty(3, 8, 6, 5), empty_channels_last((3, 8, 6, 10), inputs.input)):
        out = wrong[..., :5].half()
        with pytest.raises(ValueError, match="channels_last or a slice of its channels, got"):
            conv_launch.launch_segments(problem, *inputs, [conv_launch.Segment(out, "relu")])


@pytest.mark.parametrize("c_in", [16, 3])
@pytest.mark.parametrize("stride", [2**30, 2**31, 2**40])
def test_a_stride_beyond_any_map_leaves_one_position(stride: int, c_in: int):
    inputs = testing.integer_conv(ConvShape(2, 3, 3, c_in, 4, (3, 3)), torch.float16)
    result = fused_inception.conv2d_act(*inputs, stride=stride, padding=1, backend="triton")
    assert torch.equal(result, testing.conv_oracle(inputs, padding=(1, 1)).half()[..., :1, :1])


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_an_image_is_not_copied(monkeypatch: pytest.MonkeyPatch, layout: str):
    """Three channels in any strides: the kernel gets the caller's own memory."""
    copied = []
    original = launching.dense_channels_last

    def watched(tensor: torch.Tensor, *args: int) -> torch.Tensor:
        copied.append(tuple(tensor.shape))
        return original(tensor, *args)

    monkeypatch.setattr(launching, "dense_channels_last", watched)
    shape = ConvShape(2, 15, 11, 3, 32, (3, 3), (2, 2))
    inputs = testing.integer_conv(shape, torch.float16)
    inputs = inputs._replace(input=testing.LAYOUTS[layout](inputs.input))
    result = fused_inception.conv2d_act(*inputs, stride=2, backend="triton")
    assert torch.equal(result, testing.conv_oracle(inputs, (2, 2)).half())
    assert copied == [tuple(inputs.weight.shape)]


# grid_reduction: the pool.


@pytest.mark.parametrize("case", ["special", "zeros", "noise", "holes", "low"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_maximum_is_bitwise_pytorchs(kernel: int, case: str, precision):
    dtype, _ = precision
    x = special_maps(dtype)[case]
    weight = testing.channels_last(torch.ones(70, 20, kernel, kernel, dtype=dtype))
    result = fused_inception.grid_reduction(x, weight, None, backend="triton")[:, 70:]
    testing.assert_same_bits(result, F.max_pool2d(x, kernel, 2))
    testing.assert_same_bits(result, testing.loop_max_pool2d(x, kernel, 2))


@pytest.mark.parametrize("c_in", [16, 20, 70, 150])
@pytest.mark.parametrize("c_out", [1, 40, 300])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_every_block_of_channels_is_pooled_once(pool: str, c_out: int, c_in: int):
    """More blocks of filters than of channels, and the other way round."""
    case = OP_CASES[3 if pool == "max" else 4]
    shape = ReductionShape(2, 5, 7, c_in, c_out, 3)
    inputs = case.integers(shape, torch.float16)
    assert torch.equal(run(case, shape, inputs), case.oracle(shape, inputs).half())


def test_both_halves_go_into_given_slices():
    """As in Mixed_6a: the convolution, a gap for another branch, the pool."""
    shape = ReductionShape(2, 7, 9, 20, 24, 3)
    inputs = testing.integer_conv(shape, torch.float16)
    problem = check_reduction(*inputs, "max", "relu", "triton")
    whole = testing.channels_last(torch.full((2, 24 + 16 + 20, 3, 4), 77.0, dtype=torch.float16))
    reduction_launch.launch_reduction(problem, *inputs, whole[:, :24], whole[:, 40:], "relu")
    expected = testing.reduction_oracle(inputs).half()
    assert torch.equal(torch.cat([whole[:, :24], whole[:, 40:]], 1), expected)
    assert (whole[:, 24:40] == 77).all()


def test_the_tables_of_the_interpreter_are_those_that_fit_every_device():
    assert device_table("conv2d_act", torch.device("cpu")).device_class == "sm_86"


def test_inputs_are_taken_as_they_are_where_they_fit(monkeypatch: pytest.MonkeyPatch):
    """channels_last operands with channels in multiples of 16 are not copied."""
    shape = ConvShape(1, 3, 3, 16, 16, (1, 1))
    inputs: ConvInputs = testing.random_conv(shape, torch.float16)
    for tensor in (inputs.input, inputs.weight):
        assert launching.operand(tensor, 16).data_ptr() == tensor.data_ptr()
