"""`factorized_conv2d` of the compiled extension on a CUDA device.

The properties are those that the Triton backend is held to, and the same functions: imported, they
run here with the fixtures of this file and with `backend="cuda"`. What is the extension's own (its
configurations, what it refuses, padding) has tests of its own below.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fused_inception
from fused_inception import _extension, testing
from fused_inception.ops.common.configurations import padded
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.factorized_conv2d.cuda_launch import Configuration
from fused_inception.testing import PairShape
from tests import test_factorized_conv2d_gpu as shared
from tests.test_extension import problem_of, taken
from tests.test_factorized_conv2d_gpu import (  # noqa: F401
    test_a_cuda_graph_replays_on_new_inputs,
    test_a_tensor_on_the_second_device_is_computed_there,
    test_a_thousand_repeats_give_the_same_bits,
    test_an_image_does_not_depend_on_its_batch,
    test_both_forms_give_the_same_bits,
    test_error_is_at_most_twice_cudnns,
    test_every_element_is_written,
    test_four_threads_may_call_first,
    test_gradients_are_those_of_cudnn,
    test_non_finite_inputs_come_out_as_pytorchs,
    test_offsets_past_two_to_the_31_elements,
    test_strides_and_alignment_do_not_change_the_bits,
    test_the_current_stream_is_used,
    test_the_place_of_a_bias_in_memory_does_not_change_the_bits,
    test_torch_compile_gives_the_same_bits,
    test_two_streams_do_not_share_scratch,
)

pytestmark = pytest.mark.gpu

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PAIR, MIXED, DEVICE = shared.PAIR, shared.MIXED, shared.DEVICE


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared properties, put to the extension."""
    error = _extension.build_info()["error"]
    if error is not None:
        pytest.skip(f"extension: {error}")
    monkeypatch.setattr(shared, "BACKEND", "cuda")
    monkeypatch.setattr(shared, "choose_form", choose_form)


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """(dtype, budget factor)."""
    return DTYPES[request.param], 2.0


def fitting(c_mid: int) -> list[Configuration]:
    """The configurations that the device has the shared memory for."""
    limit = torch.cuda.get_device_properties(DEVICE).shared_memory_per_block_optin
    return [c for c in cuda_launch.configurations(c_mid) if c.shared_bytes <= limit]


def force(monkeypatch: pytest.MonkeyPatch, number: int, images: int | None = None) -> None:
    """Run every problem by one configuration, with a mid tensor of `images` images."""

    def plan(problem):
        table = cuda_launch.configurations(padded(problem.c_mid, 8))
        return table[number], images or problem.batch

    monkeypatch.setattr(cuda_launch, "_plan", plan)


def choose_form(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    bands = form == "bands"
    force(monkeypatch, next(c.number for c in fitting(PAIR.c_mid) if c.bands == bands))


@pytest.fixture(params=shared.FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two forms of the op, chosen by force."""
    choose_form(monkeypatch, request.param)
    return request.param


def numbers() -> list[int]:
    """Every configuration; none where there is no extension, and then nothing runs either."""
    loaded = _extension.build_info()["loaded"]
    return [c.number for c in cuda_launch.configurations(PAIR.c_mid)] if loaded else []


@pytest.mark.parametrize("shape", [s for s in testing.ODD_PAIR_SHAPES if taken(s)], ids=str)
def test_integers_are_exact(shape: PairShape, precision):
    dtype, _ = precision
    assert shared.exact(testing.integer_pair(shape, dtype, DEVICE), dtype)


@pytest.mark.parametrize("number", numbers())
def test_every_configuration_is_exact_on_integers(
    monkeypatch: pytest.MonkeyPatch, number: int, precision
):
    """Inception's pairs, and shapes that are no round number; the mid tensor in several pieces."""
    dtype, _ = precision
    if number not in [c.number for c in fitting(PAIR.c_mid)]:
        pytest.skip("gpu: the device has too little shared memory")
    pairs = [dataclasses.replace(shape, batch=9) for shape in testing.inception_v3_pairs(1)]
    for images in (None, 2):
        force(monkeypatch, number, images)
        for shape in (*pairs, MIXED, *(s for s in testing.ODD_PAIR_SHAPES if taken(s))):
            assert shared.exact(testing.integer_pair(shape, dtype, DEVICE), dtype), shape


def test_all_configurations_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, precision):
    dtype, _ = precision
    for shape in (dataclasses.replace(PAIR, batch=5), MIXED):
        inputs = testing.random_pair(shape, dtype, DEVICE)
        results = []
        for configuration in fitting(padded(shape.c_mid, 8)):
            force(monkeypatch, configuration.number)
            results.append(shared.run(inputs))
        assert all(torch.equal(result, results[0]) for result in results)


def test_auto_is_the_extension_for_what_it_takes(precision):
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=2), dtype, DEVICE)
    assert torch.equal(fused_inception.factorized_conv2d(*inputs), shared.run(inputs))


@pytest.mark.parametrize("shape", [s for s in testing.ODD_PAIR_SHAPES if not taken(s)], ids=str)
def test_auto_takes_another_backend_for_what_the_extension_refuses(shape: PairShape, precision):
    dtype, _ = precision
    inputs = testing.integer_pair(shape, dtype, DEVICE)
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run here: "):
        shared.run(inputs)
    result = fused_inception.factorized_conv2d(*inputs)
    assert torch.equal(result.cpu(), testing.pair_oracle(inputs).to(dtype))


def test_the_choice_and_the_table_fit_the_device():
    for shape in testing.inception_v3_pairs(1):
        for batch in (1, 8, 64, 256):
            problem = problem_of(shape)._replace(batch=batch, device=torch.device("cuda:0"))
            configuration, images = cuda_launch._plan(problem)
            assert configuration in fitting(problem.c_mid)
            assert 1 <= images <= batch
            assert cuda_launch.can_run(problem) is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
def test_the_current_device_is_put_back():
    """Also after a call on another device, and cudart's own idea of it does not linger."""
    for index in (1, 0, 1):
        inputs = testing.integer_pair(MIXED, torch.float16, f"cuda:{index}")
        with torch.cuda.device(1 - index):
            result = shared.run(inputs)
            assert torch.cuda.current_device() == 1 - index
        assert torch.equal(result.cpu(), testing.pair_oracle(inputs).half())
