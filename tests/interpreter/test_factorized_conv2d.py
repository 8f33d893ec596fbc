"""`factorized_conv2d` on the Triton backend, run by Triton's interpreter on the CPU.

Left out: float64 (the backend refuses it).
"""

from __future__ import annotations

import dataclasses
import zlib

import pytest
import torch

import fused_inception
from fused_inception import testing
from fused_inception.ops.common import launching, triton_runtime
from fused_inception.ops.common.configurations import Table, Tile, device_table, load_table
from fused_inception.ops.factorized_conv2d import launch
from fused_inception.ops.factorized_conv2d.op import _check
from fused_inception.testing import PairShape

FORMS = ("bands", "two_launches")
SMALL = PairShape(5, 7, 6, 10, 9, 12, 5, 3, True)
TALLEST_BAND = 64  # rows of the smallest tile in the tables


def choose_form(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(launch, "use_bands", lambda *args: form == "bands")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two forms of the op, chosen by force."""
    choose_form(monkeypatch, request.param)
    return request.param


def skip_if_too_tall(shape: PairShape, form: str) -> None:
    if form == "bands" and (shape.height if shape.row_first else shape.width) > TALLEST_BAND:
        pytest.skip("a line longer than a tile runs as two launches only")


def run(inputs: testing.PairInputs, **options: str) -> torch.Tensor:
    return fused_inception.factorized_conv2d(*inputs, backend="triton", **options)


@pytest.mark.parametrize("shape", testing.ODD_PAIR_SHAPES, ids=str)
def test_integers_are_exact(shape: PairShape, precision, form: str):
    skip_if_too_tall(shape, form)
    dtype, _ = precision
    inputs = testing.integer_pair(shape, dtype)
    expected = testing.pair_oracle(inputs).to(dtype)
    assert expected.numel() < 20 or expected.abs().max() > 0
    assert torch.equal(run(inputs), expected)


@pytest.mark.parametrize("shape", testing.ODD_PAIR_SHAPES, ids=str)
def test_error_keeps_within_pytorchs(shape: PairShape, precision, form: str):
    skip_if_too_tall(shape, form)
    dtype, factor = precision
    inputs = testing.random_pair(shape, dtype)
    oracle = testing.pair_oracle(inputs)
    result = run(inputs)
    testing.assert_within_budget(result, testing.precise_pair(inputs), oracle, factor)
    testing.assert_channels_last(result)


@pytest.mark.parametrize("shape", testing.inception_v3_pairs(1), ids=str)
def test_inception_v3_pairs_are_exact(shape: PairShape, form: str):
    inputs = testing.integer_pair(shape, torch.float16)
    assert torch.equal(run(inputs), testing.pair_oracle(inputs).half())


@pytest.mark.parametrize("shape", testing.inception_v3_pairs(1)[:1], ids=str)
def test_an_inception_v3_pair_in_every_precision(shape: PairShape, precision, form: str):
    dtype, factor = precision
    inputs = testing.random_pair(shape, dtype)
    oracle = testing.pair_oracle(inputs)
    testing.assert_within_budget(run(inputs), testing.precise_pair(inputs), oracle, factor)


def test_shapes_at_random(precision, form: str, request: pytest.FixtureRequest):
    """Other shapes in each precision and form."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    dtype, _ = precision
    odd = st.sampled_from([1, 3, 5, 7, 9, 15])
    side, channels = st.integers(1, 20), st.integers(1, 70)

    @hypothesis.seed(zlib.crc32(request.node.name.encode()))
    @hypothesis.settings(max_examples=6, deadline=None, database=None)
    @hypothesis.given(
        st.builds(
            PairShape,
            batch=st.integers(1, 4),
            height=side,
            width=side,
            c_in=channels,
            c_mid=channels,
            c_out=channels,
            taps1=odd,
            taps2=odd,
            row_first=st.booleans(),
        )
    )
    def check(shape: PairShape) -> None:
        inputs = testing.integer_pair(shape, dtype)
        assert torch.equal(run(inputs), testing.pair_oracle(inputs).to(dtype))

    check()


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("mid_activation", ["relu", "none"])
@pytest.mark.parametrize("biases", ["both", "first", "second", "neither"])
def test_biases_and_activations(mid_activation: str, activation: str, biases: str, form: str):
    inputs = testing.integer_pair(SMALL, torch.float16)
    if biases in ("second", "neither"):
        inputs = inputs._replace(bias1=None)
    if biases in ("first", "neither"):
        inputs = inputs._replace(bias2=None)
    options = {"mid_activation": mid_activation, "activation": activation}
    expected = testing.pair_oracle(inputs, **options).half()
    assert torch.equal(run(inputs, **options), expected)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_any_layout_gives_the_same_bits_and_is_not_written(layout: str, form: str):
    inputs = testing.random_pair(SMALL, torch.float32)
    expected = run(inputs)
    arrange = testing.LAYOUTS[layout]
    views = testing.PairInputs(
        *(arrange(t) if t is not None and t.dim() == 4 else t for t in inputs)
    )
    before = [t.clone() for t in views]
    assert torch.equal(run(views), expected)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_an_expanded_input_is_taken(form: str):
    inputs = testing.integer_pair(SMALL, torch.float16)
    expanded = inputs._replace(input=inputs.input[:1, :, :, :1].expand(3, -1, -1, 6))
    assert torch.equal(run(expanded), testing.pair_oracle(expanded).half())


def test_every_element_is_written_once_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, precision, form: str
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

    monkeypatch.setattr(launch, "empty_channels_last", guarded)
    inputs = testing.integer_pair(SMALL, dtype)
    with testing.nan_filled_memory():
        result = run(inputs)
    assert torch.equal(result, testing.pair_oracle(inputs).to(dtype))
    assert (marks[0][:guard] == 77).all()
    assert (marks[0][-guard:] == 77).all()


def test_an_empty_batch_gives_an_empty_map(form: str):
    inputs = testing.random_pair(dataclasses.replace(SMALL, batch=0), torch.float16)
    result = run(inputs)
    assert result.shape == (0, SMALL.c_out, SMALL.height, SMALL.width)
    testing.assert_channels_last(result)


# Bitwise properties. They hold whatever the tile, so they are shown with a product whose rounding
# does not depend on it.


@pytest.mark.usefixtures("sequential_product")
@pytest.mark.parametrize("row_first", [True, False])
def test_both_forms_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, precision, row_first: bool):
    dtype, _ = precision
    shape = dataclasses.replace(SMALL, row_first=row_first, c_in=70, c_mid=40)
    inputs = testing.random_pair(shape, dtype)
    results = []
    for form in FORMS:
        choose_form(monkeypatch, form)
        results.append(run(inputs))
    assert torch.equal(*results)


@pytest.mark.usefixtures("sequential_product")
def test_an_image_does_not_depend_on_its_batch(precision, form: str):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(SMALL, batch=7), dtype)
    whole = run(inputs)
    for i in range(7):
        assert torch.equal(run(inputs._replace(input=inputs.input[i : i + 1])), whole[i : i + 1])
    order = torch.tensor([3, 0, 6, 6, 1])
    assert torch.equal(run(inputs._replace(input=inputs.input[order])), whole[order])


@pytest.mark.usefixtures("sequential_product")
def test_an_image_does_not_depend_on_its_batch_as_the_op_chooses_the_form(precision):
    """From 1 image to many, past the point where the choice turns from two launches to bands."""
    dtype, _ = precision
    shape = PairShape(64, 7, 6, 10, 9, 12, 5, 3, True)
    inputs = testing.random_pair(shape, dtype)
    chosen = set()
    whole = run(inputs)
    for batch in (1, 2, 5, 64):
        part = inputs._replace(input=inputs.input[:batch])
        problem = _check(*part, "relu", "relu", "triton")
        table = device_table(launch.NAME, problem.device)
        tile = table.tiles["float16"][0]
        chosen.add(launch.use_bands(problem, table, tile))
        assert torch.equal(run(part), whole[:batch])
    assert chosen == {True, False}


@pytest.mark.usefixtures("sequential_product")
@pytest.mark.parametrize(
    "tile",
    [
        Tile(32, 16, 32, 4, 2),
        Tile(64, 64, 32, 4, 2),
        Tile(128, 16, 32, 4, 2),
        Tile(256, 32, 32, 4, 2),
    ],
    ids=lambda t: f"{t.block_p}x{t.block_f}",
)
def test_rows_and_filters_of_a_tile_do_not_change_the_bits(
    monkeypatch: pytest.MonkeyPatch, tile: Tile, form: str
):
    inputs = testing.random_pair(SMALL, torch.float32)
    with testing.fp32_precision("ieee"):
        expected = run(inputs)
        monkeypatch.setattr(launch, "choose_tile", lambda *args: tile)
        assert torch.equal(run(inputs), expected)


def test_the_persistent_grid_reuses_its_scratch(monkeypatch: pytest.MonkeyPatch):
    """Many more bands than programs: what one leaves in the scratch must not reach the next."""
    choose_form(monkeypatch, "bands")
    shape = PairShape(40, 17, 9, 6, 5, 7, 7, 7, True)
    problem = _check(*testing.random_pair(shape, torch.float16), "relu", "relu", "triton")
    table = device_table(launch.NAME, problem.device)
    bands = -(-40 * 9 // launch.lines_per_band(problem, table.tiles["float16"][0]))
    assert bands > 5 * 3 * table.settings["programs_per_multiprocessor"]
    inputs = testing.integer_pair(shape, torch.float16)
    assert torch.equal(run(inputs), testing.pair_oracle(inputs).half())


def table_with(**settings: float) -> Table:
    table = load_table(launch.NAME, "sm_86")
    return dataclasses.replace(table, settings={**table.settings, **settings})


def test_every_program_has_a_scratch_band_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """The interpreter runs programs one after another and would not notice that they share one."""
    choose_form(monkeypatch, "bands")
    made = []
    original = torch.Tensor.new_empty

    def new_empty(tensor: torch.Tensor, *size: int, **options: object) -> torch.Tensor:
        empty = original(tensor, *size, **options)
        if not options:  # the interpreter's own calls have some
            made.append(empty.fill_(float("nan")))
        return empty

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    shape = dataclasses.replace(SMALL, batch=64)
    run(testing.random_pair(shape, torch.float16))
    (scratch,) = made
    programs = triton_runtime.multiprocessors(torch.device("cpu"))
    written = scratch.view(programs, -1).isfinite().any(1)
    assert written.all()


def test_a_result_goes_into_a_slice_of_channels(form: str):
    inputs = testing.integer_pair(SMALL, torch.float16)
    problem = _check(*inputs, "relu", "relu", "triton")
    n, c, h, w = problem.output_shape
    whole = testing.channels_last(torch.full((n, c + 25, h, w), 77.0, dtype=torch.float16))
    whole[:, 9 : 9 + c] = float("nan")
    launch.launch_pair(problem, *inputs, whole[:, 9 : 9 + c], "relu", "relu")
    assert torch.equal(whole[:, 9 : 9 + c], testing.pair_oracle(inputs).half())
    assert (whole[:, :9] == 77).all()
    assert (whole[:, 9 + c :] == 77).all()
    with pytest.raises(ValueError, match="channels_last or a slice of its channels, got"):
        launch.launch_pair(problem, *inputs, torch.empty(n, c, h, w).half(), "relu", "relu")


def test_a_large_batch_is_split_into_launches(monkeypatch: pytest.MonkeyPatch, form: str):
    monkeypatch.setattr(launching, "MAX_ROWS", 2 * SMALL.height * SMALL.width)
    inputs = testing.integer_pair(SMALL, torch.float16)
    assert torch.equal(run(inputs), testing.pair_oracle(inputs).half())


def test_the_intermediate_tensor_of_two_launches_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """With room for one image in L2, the launches go image by image, through one buffer."""
    choose_form(monkeypatch, "two_launches")
    monkeypatch.setattr(launch, "device_table", lambda *args: table_with(l2_bytes=1))
    inputs = testing.integer_pair(SMALL, torch.float16)
    assert torch.equal(run(inputs), testing.pair_oracle(inputs).half())


def test_offsets_past_two_to_the_31_elements(form: str):
    """The last image of a batch of more than 2^31 elements; only its pages are ever touched."""
    shape = dataclasses.replace(SMALL, batch=1, height=4, width=4, c_in=16, c_mid=16, c_out=16)
    inputs = testing.integer_pair(shape, torch.float16)
    last = 2**31 // (4 * 4 * 16) + 1
    memory_format = torch.channels_last
    x = torch.empty((last + 1, 16, 4, 4), dtype=torch.float16, memory_format=memory_format)
    y = torch.empty_like(x)
    x[last:] = inputs.input
    problem = _check(*inputs, "relu", "relu", "triton")._replace(batch=last + 1)
    call = launch.Call(problem, x, *inputs[1:], y, "relu", "relu")
    assert call.input.data_ptr() == x.data_ptr()
    launcher = {"bands": launch.launch_bands, "two_launches": launch.launch_two}[form]
    launcher(call, first_image=last)
    assert torch.equal(y[last:], testing.pair_oracle(inputs).half())


# Special values.


def special(value: float, dtype: torch.dtype = torch.float32) -> testing.PairInputs:
    inputs = testing.random_pair(SMALL, dtype)
    inputs.input[1, 2, 3, 4] = value
    return inputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_inputs_come_out_as_pytorchs(value: float, precision, form: str):
    dtype, _ = precision
    inputs = special(value, dtype)
    # In float32: PyTorch's bfloat16 convolution on a CPU spreads NaN to pixels outside the window.
    reference = testing.PairInputs(*(t.float() for t in inputs))
    for options in ({}, {"mid_activation": "none", "activation": "none"}):
        expected = testing.unfused_pair(reference, **options)
        result = run(inputs, **options)
        assert not expected.isfinite().all()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())


def test_an_intermediate_value_past_float16_becomes_infinite_as_unfused(form: str):
    inputs = testing.random_pair(SMALL, torch.float16)
    inputs = inputs._replace(input=inputs.input * 30000)
    expected = testing.unfused_pair(inputs, activation="none")
    assert expected.isinf().any()
    result = run(inputs, activation="none")
    assert torch.equal(result.isinf(), expected.isinf())


def test_denormals_are_kept(form: str):
    shape = PairShape(1, 3, 3, 1, 1, 1, 1, 1, True)
    one = torch.ones(1, 1, 1, 1)
    tiny = torch.full((1, 1, 3, 3), 1e-41)
    with testing.fp32_precision("ieee"):
        result = run(testing.PairInputs(tiny, one, None, one, None))
    assert torch.equal(result, tiny), shape


# The op around the kernel.


def test_auto_never_picks_the_interpreter(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object) -> None:
        raise AssertionError("the Triton launcher was called")

    monkeypatch.setattr(launch, "launch_bands", refuse)
    monkeypatch.setattr(launch, "launch_two", refuse)
    inputs = testing.random_pair(SMALL, torch.float32)
    assert torch.allclose(
        fused_inception.factorized_conv2d(*inputs), testing.unfused_pair(inputs), atol=1e-5
    )


def test_float64_is_refused_with_the_reason():
    inputs = testing.random_pair(SMALL, torch.float64)
    with pytest.raises(
        RuntimeError, match=r"'triton' cannot run here: dtype torch\.float64; takes"
    ):
        run(inputs)


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_of_gradients_keeps_within_pytorchs(dtype, activation: str, form: str):
    """Without tf32, which PyTorch does not have on a CPU to be compared with."""
    options = {"mid_activation": activation, "activation": activation}
    inputs = testing.random_pair(SMALL, dtype)
    fused, plain = ([t.detach().clone().requires_grad_() for t in inputs] for _ in range(2))
    oracle = [t.detach().double().requires_grad_() for t in inputs]
    with testing.fp32_precision("ieee"):
        result = run(testing.PairInputs(*fused), **options)
        seed = testing.random_tensor(result.shape, dtype, "cpu", 1.0, 7)
        result.backward(seed)
    testing.unfused_pair(testing.PairInputs(*plain), **options).backward(seed)
    testing.unfused_pair(testing.PairInputs(*oracle), **options).backward(seed.double())
    for ours, theirs, true in zip(fused, plain, oracle, strict=True):
        testing.assert_within_budget(ours.grad, theirs.grad, true.grad, 3.0)


def test_second_derivatives_are_those_of_aten():
    seconds = []
    with testing.fp32_precision("ieee"):
        for backend in ("triton", "aten"):
            inputs = [t.requires_grad_() for t in testing.random_pair(SMALL, torch.float32)]
            result = fused_inception.factorized_conv2d(*inputs, backend=backend)
            grads = torch.autograd.grad(result.square().mean(), inputs, create_graph=True)
            seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for ours, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_autocast_reaches_the_kernel():
    inputs = testing.integer_pair(SMALL, torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        result = run(inputs)
    assert result.dtype == torch.float16
    assert torch.equal(result, testing.pair_oracle(inputs).half())
