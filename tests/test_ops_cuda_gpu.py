"""`conv2d_act`, `split_conv2d` and `grid_reduction` of the compiled extension on a CUDA device.

The properties are those that the Triton backend is held to, and the same functions: imported, they
run here with the fixtures of this file and with `backend="cuda"`, once on mma.sync and once, on a
device of compute capability 9.0, on wgmma. What is the extension's own (its configurations, whole
blocks on it) has tests of its own below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fused_inception import _extension, testing
from fused_inception.blocks.layers import linear
from fused_inception.blocks.plan import BlockWeights
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.common.cuda_launching import TileConfiguration, device_limits, of_engine
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.conv2d_act.op import _check as check_conv
from fused_inception.ops.conv2d_act.segments import Segment
from fused_inception.ops.factorized_conv2d import cuda_launch as pair_launch
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from tests import test_ops_gpu as shared
from tests.op_cases import OP_CASES, OpCase, with_batch
from tests.test_blocks import BLOCKS, fused, images, make_convs, unfused
from tests.test_ops_gpu import (  # noqa: F401
    test_a_cuda_graph_replays_on_new_inputs,
    test_a_tensor_on_the_second_device_is_computed_there,
    test_a_thousand_repeats_give_the_same_bits,
    test_a_value_past_float16_becomes_infinite_as_unfused,
    test_an_image_does_not_depend_on_its_batch,
    test_denormals_are_kept,
    test_error_is_at_most_twice_cudnns,
    test_every_element_is_written,
    test_gradients_are_those_of_cudnn,
    test_integers_are_exact,
    test_non_finite_inputs_come_out_as_pytorchs,
    test_offsets_past_two_to_the_31_elements,
    test_segments_go_where_they_belong,
    test_strides_and_alignment_do_not_change_the_bits,
    test_the_current_stream_is_used,
    test_the_maximum_is_bitwise_pytorchs,
    test_the_place_of_a_bias_in_memory_does_not_change_the_bits,
    test_torch_compile_gives_the_same_bits,
    test_where_a_slice_begins_does_not_change_the_bits,
)

pytestmark = pytest.mark.gpu

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE = torch.device("cuda", 0)
every_case = pytest.mark.parametrize("case", OP_CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True, params=["sm80", "sm90"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shared properties, put to the extension on either engine."""
    error = _extension.build_info()["error"]
    if error is not None:
        pytest.skip(f"extension: {error}")
    wgmma = request.param == "sm90"
    if wgmma and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gpu: needs compute capability 9.0")
    monkeypatch.setattr(shared, "BACKEND", "cuda")
    monkeypatch.setattr(shared, "launch_segments", conv_launch.launch_segments)
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", wgmma)
    pair_launch._plan.cache_clear()
    yield request.param
    monkeypatch.undo()
    pair_launch._plan.cache_clear()


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """(dtype, budget factor)."""
    return DTYPES[request.param], 2.0


def fitting(case: OpCase, shape: Any) -> list[TileConfiguration]:
    """The configurations of the engine that take the shape and fit the device's shared memory."""
    if case.op == "split_conv2d":
        channels = -(-shape.c_in // 8) * 8
        table = split_launch.configurations(channels, shape.taps_row, shape.taps_col)
        size = shape.height, shape.width
        table = tuple(c for c in table if not c.whole or split_launch.whole_images(c, *size))
    else:
        module = conv_launch if case.op == "conv2d_act" else reduction_launch
        table = module.configurations()
    limit = device_limits(DEVICE).shared_bytes
    return [c for c in of_engine(table, DEVICE) if c.shared_bytes <= limit]


def force(monkeypatch: pytest.MonkeyPatch, case: OpCase, configuration: TileConfiguration) -> None:
    module = {
        "conv2d_act": conv_launch,
        "split_conv2d": split_launch,
        "grid_reduction": reduction_launch,
    }[case.op]
    monkeypatch.setattr(module, "choose", lambda *args: configuration)


@every_dtype
@every_case
def test_every_configuration_is_exact_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, case: OpCase, dtype: str
):
    for shape in (with_batch(shared.TYPICAL[case.name], 3), case.small):
        random = case.random(shape, DTYPES[dtype], DEVICE)
        results = []
        for configuration in fitting(case, shape):
            force(monkeypatch, case, configuration)
            assert shared.exact(case, shape, DTYPES[dtype]), configuration
            results.append(shared.run(case, shape, random))
        assert len(results) >= 2
        assert all(torch.equal(result, results[0]) for result in results)


@every_dtype
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_runs_on_the_extension(kind: str, dtype: str):
    x = images(3, dtype=DTYPES[dtype])
    convs = make_convs(kind, DTYPES[dtype])
    exact = {role: type(w)(w.weight.double(), w.bias.double()) for role, w in convs.items()}
    oracle = unfused(kind, x.double(), exact)
    here = {role: type(w)(w.weight.to(DEVICE), w.bias.to(DEVICE)) for role, w in convs.items()}
    got = fused(kind, x.to(DEVICE), here, backend="cuda")
    testing.assert_within_budget(got.cpu(), unfused(kind, x, convs), oracle)
    testing.assert_channels_last(got)
    for i in range(3):
        assert torch.equal(
            fused(kind, x[i : i + 1].to(DEVICE), here, backend="cuda"), got[i : i + 1]
        )


@every_dtype
def test_the_linear_layer_runs_on_the_extension(dtype: str):
    shape = testing.ConvShape(64, 1, 1, 2048, 1000, (1, 1))
    x, weight, bias = testing.integer_conv(shape, DTYPES[dtype], DEVICE)
    got = linear(x.flatten(1), BlockWeights((weight,), (bias,)), backend="cuda")
    want = torch.nn.functional.linear(
        x.flatten(1).double(), weight.flatten(1).double(), bias.double()
    )
    assert torch.equal(got.double(), want)


def test_a_segment_that_is_no_slice_is_refused():
    shape = testing.ConvShape(2, 5, 6, 16, 16, (1, 1))
    inputs = testing.random_conv(shape, torch.float16, DEVICE)
    problem = check_conv(*inputs, (1, 1), (0, 0), "relu", "cuda")
    nchw = torch.empty(2, 16, 5, 6, dtype=torch.float16, device=DEVICE)
    with pytest.raises(ValueError, match="an output must be channels_last"):
        conv_launch.launch_segments(problem, *inputs, [Segment(nchw, "relu")])
