"""The CUDA kernels of `halving_branches` in the emulator.

Every configuration, both dtypes: whole numbers exactly, random ones bit by bit what the kernels of
`conv2d_act` and of the max pool give in a launch each. Bounds, poison, races and deadlocks are
judged in every run. What a tile does by itself is `test_emulator_convolutions.py`'s.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fused_inception import testing
from fused_inception.ops.pool2d import cuda_launch as pool_launch
from fused_inception.testing import ConvShape
from tests import branch_cases
from tests.branch_cases import MIXED_7A, SHAPES, BranchInputs, BranchShape, expected, make
from tests.emulator import programs
from tests.emulator.branches import OP, configurations, part_sizes, run_branches
from tests.emulator.convolutions import run_conv
from tests.emulator.pair import padded
from tests.emulator.pools import run_pool
from tests.emulator.programs import SANITIZED, Report
from tests.pool_cases import special_maps
from tests.test_emulator_convolutions import DTYPES, LIMIT_99_KB
from tests.test_emulator_pools import assert_same_memory

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)

CONFIGURATIONS = ("tiles-128x128", "tiles-128x64", "tiles-64x32")
each_configuration = pytest.mark.parametrize(
    "configuration", range(len(CONFIGURATIONS)), ids=CONFIGURATIONS
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def parts(
    inputs: BranchInputs, output: torch.Tensor, offsets: tuple[int, ...] = ()
) -> torch.Tensor:
    """The output without the channels of padding between and behind its parts."""
    found, offset = [], 0
    for i, size in enumerate(part_sizes(inputs)):
        begin = offsets[i] if offsets else offset
        found.append(output[:, begin : begin + size])
        offset += padded(size)
    return torch.cat(found, 1)


def checked(inputs: BranchInputs, outcome: tuple[torch.Tensor, Report]) -> torch.Tensor:
    output, report = outcome
    assert report.fault == ""
    assert not report.refused
    return parts(inputs, output)


def whole_numbers(shape: BranchShape, dtype: str) -> BranchInputs:
    return make(shape, DTYPES[dtype], testing.integer_conv)


def random_numbers(shape: BranchShape, dtype: str) -> BranchInputs:
    return make(shape, DTYPES[dtype], testing.random_conv)


def test_every_configuration_is_tested():
    table = configurations()
    assert tuple(row.name for row in table) == CONFIGURATIONS
    assert all(row.shared_bytes <= LIMIT_99_KB for row in table)


@each_configuration
@every_dtype
def test_integers_are_exact(configuration: int, dtype: str, tmp_path: Path):
    for shape in SHAPES if dtype == "bf16" else SHAPES[:2]:
        inputs = whole_numbers(shape, dtype)
        for schedule in ("lazy", "eager") if shape is SHAPES[0] else ("lazy",):
            outcome = run_branches(tmp_path, inputs, configuration, schedule=schedule)
            assert torch.equal(checked(inputs, outcome), expected(inputs)), shape


@each_configuration
def test_mixed_7a_is_exact(configuration: int, tmp_path: Path):
    inputs = whole_numbers(MIXED_7A, "bf16")
    outcome = run_branches(tmp_path, inputs, configuration)
    assert torch.equal(checked(inputs, outcome), expected(inputs))


@each_configuration
def test_the_bits_are_those_of_a_launch_each(configuration: int, tmp_path: Path):
    for shape in SHAPES[:3]:
        inputs = random_numbers(shape, "bf16")
        kernel = (shape.kernel, shape.kernel)
        alone = []
        for conv, (c_in, c_out) in zip(inputs.convs, shape.convs, strict=True):
            size = (shape.batch, shape.height, shape.width)
            problem = ConvShape(*size, c_in, c_out, kernel, (2, 2), (0, 0))
            output, report = run_conv(tmp_path, problem, conv, 1)
            assert report.fault == ""
            alone.append(output[:, :c_out])
        pooled, report = run_pool(tmp_path, pool_launch.MAX, inputs.input, kernel, (2, 2))
        assert report.fault == ""
        alone.append(pooled[:, : shape.channels])
        together = checked(inputs, run_branches(tmp_path, inputs, configuration))
        assert_same_memory(together, torch.cat(alone, 1))


@each_configuration
def test_an_image_does_not_depend_on_its_batch(configuration: int, tmp_path: Path):
    inputs = random_numbers(SHAPES[0], "bf16")
    whole = checked(inputs, run_branches(tmp_path, inputs, configuration))
    for i in (0, 2):
        one = branch_cases.images(inputs, slice(i, i + 1))
        assert torch.equal(checked(one, run_branches(tmp_path, one, configuration))[0], whole[i])


@each_configuration
@every_dtype
def test_special_values(configuration: int, dtype: str, tmp_path: Path):
    """The pool keeps every bit; a NaN of one convolution reaches that one alone."""
    shape = BranchShape(3, 9, 8, ((16, 8), (8, 8)), 20)
    inputs = whole_numbers(shape, dtype)
    inputs.convs[1].input[1, 3, 4, 2] = math.nan
    inputs.input.copy_(special_maps(DTYPES[dtype])["special"])
    got = checked(inputs, run_branches(tmp_path, inputs, configuration))
    want = expected(inputs)
    assert_same_memory(got[:, :8], want[:, :8])
    assert want[:, 8:16].isnan().any()
    assert torch.equal(got[:, 8:16].nan_to_num(77.0), want[:, 8:16].nan_to_num(77.0))
    testing.assert_same_bits(got[:, 16:], want[:, 16:])
    assert_same_memory(got[:, 16:], testing.loop_max_pool2d(inputs.input, 3, 2))


@each_configuration
def test_some_convolutions_have_no_bias(configuration: int, tmp_path: Path):
    inputs = whole_numbers(SHAPES[0], "fp16")
    for without in ((0,), (1,), (0, 1)):
        convs = tuple(
            conv._replace(bias=None) if i in without else conv
            for i, conv in enumerate(inputs.convs)
        )
        some = inputs._replace(convs=convs)
        outcome = run_branches(tmp_path, some, configuration)
        assert torch.equal(checked(some, outcome), expected(some))


@each_configuration
def test_slices_of_the_output_and_of_the_batch(configuration: int, tmp_path: Path):
    """Only the images and channels of the launch are written; the rest keeps its NaN."""
    inputs = whole_numbers(SHAPES[0], "bf16")
    offsets = (48, 8, 192)
    output, report = run_branches(
        tmp_path, inputs, configuration, offsets=offsets, out_channels=224, first_image=1
    )
    assert report.fault == ""
    assert torch.equal(parts(inputs, output, offsets)[1:], expected(inputs)[1:])
    assert output[0].isnan().all()
    written = torch.zeros(224, dtype=torch.bool)
    for offset, size in zip(offsets, part_sizes(inputs), strict=True):
        written[offset : offset + padded(size)] = True
    assert output[:, ~written].isnan().all()


@each_configuration
def test_offsets_past_2_31_elements(configuration: int, tmp_path: Path):
    inputs = whole_numbers(BranchShape(2, 10, 7, ((9, 5),), 12, 5), "fp16")
    outcome = run_branches(tmp_path, inputs, configuration, input_image_stride=2**31 + 8)
    assert torch.equal(checked(inputs, outcome), expected(inputs))


@each_configuration
def test_swarm_of_schedules(configuration: int, tmp_path: Path):
    inputs = whole_numbers(SHAPES[2], "bf16")
    want = expected(inputs)
    for seed in range(4):
        outcome = run_branches(tmp_path, inputs, configuration, schedule="swarm", seed=seed)
        assert torch.equal(checked(inputs, outcome), want), f"seed {seed}"


@pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
def test_sanitizers(tmp_path: Path):
    """One configuration: nothing in a tile is this kernel's own."""
    inputs = whole_numbers(SHAPES[0], "bf16")
    outcome = run_branches(tmp_path, inputs, 2, variant=SANITIZED)
    assert torch.equal(checked(inputs, outcome), expected(inputs))


def test_every_synchronizing_call_matters(tmp_path: Path):
    """Each call is left out in turn, and each wait weakened by a group: all must be noticed."""
    shapes = (BranchShape(2, 17, 17, ((72, 40), (8, 8)), 16), BranchShape(2, 8, 8, ((8, 8),), 8, 1))
    problems = [whole_numbers(shape, "fp16") for shape in shapes]
    _, report = run_branches(tmp_path, problems[0], 2)

    def noticed(mutate: str, weaken: int) -> bool:
        for inputs in problems:
            for schedule in ("lazy", "eager"):
                options = {"schedule": schedule, "mutate": mutate, "weaken": weaken}
                output, mutant = run_branches(tmp_path, inputs, 2, **options)
                if mutant.fault or not torch.equal(parts(inputs, output), expected(inputs)):
                    return True
        return False

    assert report.sites
    assert programs.survivors(report, OP, noticed) == set()
