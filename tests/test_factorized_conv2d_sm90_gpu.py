"""`factorized_conv2d` on wgmma, on a device of compute capability 9.0.

The properties are those of every backend, imported from the Triton backend's tests and put to each
configuration. `test_emulator_gpu.py` comes first: it holds the primitives that this stands on, row
shifts of wgmma's operands above all, against their definitions.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fused_inception
from fused_inception import _extension, testing
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.factorized_conv2d.cuda_launch import Configuration
from fused_inception.testing import PairShape
from tests import test_factorized_conv2d_gpu as shared
from tests.test_extension import problem_of, taken
from tests.test_factorized_conv2d_gpu import (  # noqa: F401
    test_a_cuda_graph_replays_on_new_inputs,
    test_a_thousand_repeats_give_the_same_bits,
    test_an_image_does_not_depend_on_its_batch,
    test_error_is_at_most_twice_cudnns,
    test_every_element_is_written,
    test_non_finite_inputs_come_out_as_pytorchs,
    test_strides_and_alignment_do_not_change_the_bits,
    test_the_current_stream_is_used,
    test_torch_compile_gives_the_same_bits,
)

pytestmark = pytest.mark.gpu

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PAIR, MIXED, DEVICE = shared.PAIR, shared.MIXED, shared.DEVICE
NUMBERS = range(7)  # rows of the table of sm_90a


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch):
    """The shared properties, put to the extension with the switch on."""
    error = _extension.build_info()["error"]
    if error is not None:
        pytest.skip(f"extension: {error}")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gpu: needs compute capability 9.0")
    monkeypatch.setattr(shared, "BACKEND", "cuda")
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", True)
    cuda_launch._plan.cache_clear()
    yield
    monkeypatch.undo()
    cuda_launch._plan.cache_clear()


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """(dtype, budget factor)."""
    return DTYPES[request.param], 2.0


def fitting(shape: PairShape) -> list[Configuration]:
    problem = problem_of(shape)._replace(batch=1, device=torch.device(DEVICE))
    limit = cuda_launch._device(torch.device("cuda:0")).shared_bytes
    return [c for c in cuda_launch.sm90_configurations(problem) if c.shared_bytes <= limit]


def force(monkeypatch: pytest.MonkeyPatch, configuration: Configuration) -> None:
    """Run every problem by one configuration."""
    monkeypatch.setattr(cuda_launch, "_plan", lambda problem: (configuration, 0))


@pytest.fixture(params=NUMBERS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each configuration, chosen by force."""
    configuration = fitting(PAIR)[request.param]
    force(monkeypatch, configuration)
    cluster = configuration.split * configuration.multicast
    return f"{configuration.block_n}x{configuration.block_m}-{cluster}"


def test_the_table_is_as_long_as_is_tested():
    assert len(fitting(PAIR)) == len(NUMBERS)


def test_the_switch_leads_here(precision):
    dtype, _ = precision
    sm80 = cuda_launch.configurations(PAIR.c_mid)
    for batch in (1, 8, 32, 128, 256):
        problem = problem_of(PAIR, dtype)._replace(batch=batch, device=torch.device("cuda:0"))
        assert cuda_launch._plan(problem)[0].number >= len(sm80)
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=2), dtype, DEVICE)
    assert torch.equal(fused_inception.factorized_conv2d(*inputs), shared.run(inputs))


def test_integers_are_exact(monkeypatch: pytest.MonkeyPatch, precision):
    """Inception's pairs, and shapes that are no round number, by every configuration that fits."""
    dtype, _ = precision
    pairs = [dataclasses.replace(shape, batch=9) for shape in testing.inception_v3_pairs(1)]
    for shape in (*pairs, MIXED, *(s for s in testing.ODD_PAIR_SHAPES if taken(s) and s.batch)):
        for configuration in fitting(shape):
            force(monkeypatch, configuration)
            inputs = testing.integer_pair(shape, dtype, DEVICE)
            assert shared.exact(inputs, dtype), (shape, configuration)


def test_all_configurations_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, precision):
    dtype, _ = precision
    for shape in (dataclasses.replace(PAIR, batch=5), MIXED):
        inputs = testing.random_pair(shape, dtype, DEVICE)
        results = []
        for configuration in fitting(shape):
            force(monkeypatch, configuration)
            results.append(shared.run(inputs))
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
def test_clusters_of_every_size_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, batch: int, precision
):
    """Also where a cluster has more blocks than bands, a thousand times each."""
    dtype, _ = precision
    inputs = testing.random_pair(dataclasses.replace(PAIR, batch=batch), dtype, DEVICE)
    table = fitting(PAIR)
    assert {c.split * c.multicast for c in table} == {1, 2, 3, 8}
    force(monkeypatch, table[0])
    expected = shared.run(inputs)
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for configuration in table[1:]:
        force(monkeypatch, configuration)
        for _ in range(1000):
            different += (shared.run(inputs) != expected).sum()
    assert different.item() == 0


def test_what_does_not_fit_goes_to_the_kernels_of_sm_80(precision):
    dtype, _ = precision
    shape = PairShape(2, 17, 17, 512, 512, 64, 7, 7, True)
    inputs = testing.integer_pair(shape, dtype, DEVICE)
    problem = problem_of(shape, dtype)._replace(device=torch.device("cuda:0"))
    assert "no band fits" in str(cuda_launch.sm90_refusal(problem))
    assert shared.exact(inputs, dtype)
