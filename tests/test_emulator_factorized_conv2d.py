"""The CUDA kernels of `factorized_conv2d` in the emulator: every configuration, both dtypes.

Whole-number inputs make the result exact, so values are compared with `torch.equal`; what is random
here is compared bitwise between configurations. Bounds, poison, races and deadlocks are judged in
every run. Left out: the time that anything takes, and what the device does in another order than
the emulator, which `test_emulator_gpu.py` is for.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from fused_inception import testing
from fused_inception.testing import PairInputs, PairShape
from tests.emulator import programs
from tests.emulator.pair import configurations, run_pair
from tests.emulator.programs import SANITIZED, Report

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)

CONFIGURATIONS = (
    "bands-128x192", "bands-128x160", "bands-128x128", "bands-128x96", "two-64x32", "two-128x96",
    "sm90-192x160", "sm90-192x160-multicast2", "sm90-128x160-multicast2",
    "sm90-192x96-multicast2", "sm90-128x160-split2", "sm90-64x80-split3", "sm90-64x48-split8",
)  # fmt: skip
BANDS = [i for i, name in enumerate(CONFIGURATIONS) if name.startswith("bands")]
SM80 = [i for i, name in enumerate(CONFIGURATIONS) if not name.startswith("sm90")]
SM90 = [i for i, name in enumerate(CONFIGURATIONS) if name.startswith("sm90")]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LIMIT_99_KB = 101376

# Bands that cross the border between images, the last one ragged; unequal channels, none a multiple
# of a K block, more filters than one tile of 96 has.
RAGGED = PairShape(3, 9, 5, 24, 40, 104, 3, 5, True)
# More filters in both factors than the widest tile.
WIDE = PairShape(1, 4, 5, 8, 200, 208, 3, 3, False)
# One image, one band, one step a tap.
TINY = PairShape(1, 5, 7, 16, 16, 16, 3, 3, True)
SHAPES = (
    RAGGED,
    PairShape(2, 5, 9, 40, 24, 8, 5, 3, False),
    WIDE,
    PairShape(1, 1, 1, 8, 8, 8, 7, 7, True),
    PairShape(2, 7, 3, 72, 8, 16, 15, 15, False),  # filters longer than the map
    PairShape(1, 71, 4, 8, 16, 8, 7, 3, True),
    PairShape(5, 3, 2, 10, 13, 11, 1, 1, True),  # channels that are no multiple of 8
)

each_configuration = pytest.mark.parametrize(
    "configuration", range(len(CONFIGURATIONS)), ids=CONFIGURATIONS
)


def checked(outcome: tuple[torch.Tensor, Report], shape: PairShape) -> torch.Tensor:
    """The output without the channels of padding, after a run without a fault."""
    output, report = outcome
    assert report.fault == ""
    assert not report.refused
    return output[:, : shape.c_out]


def expected(inputs: PairInputs, mid_activation: str = "relu", activation: str = "relu"):
    return testing.pair_oracle(inputs, mid_activation, activation).to(inputs.input.dtype)


def longest_line(configuration: int) -> float:
    """Pixels of a line that the configuration takes."""
    if configuration in SM90:
        return int(CONFIGURATIONS[configuration].split("-")[1].rpartition("x")[2])
    return 128 if configuration in BANDS else math.inf


def test_every_configuration_is_tested():
    assert [row.name for row in configurations(192)] == list(CONFIGURATIONS)


@each_configuration
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_exact(configuration: int, shape: PairShape, dtype: str, tmp_path: Path):
    inputs = testing.integer_pair(shape, DTYPES[dtype])
    line_size = shape.height if shape.row_first else shape.width
    for schedule in ("lazy", "eager"):
        outcome = run_pair(tmp_path, shape, inputs, configuration, schedule=schedule)
        if line_size > longest_line(configuration):
            assert outcome[1].refused
        else:
            assert torch.equal(checked(outcome, shape), expected(inputs))


@each_configuration
def test_inception_pair_is_exact(configuration: int, tmp_path: Path):
    shape = testing.inception_v3_pairs(1)[-1]
    assert (shape.c_mid, shape.height) == (192, 17)
    inputs = testing.integer_pair(shape, torch.bfloat16)
    outcome = run_pair(tmp_path, shape, inputs, configuration)
    assert torch.equal(checked(outcome, shape), expected(inputs))


@pytest.mark.parametrize("configuration", SM90, ids=lambda i: CONFIGURATIONS[i])
@pytest.mark.parametrize("shape", dict.fromkeys(testing.inception_v3_pairs(1)), ids=str)
def test_every_inception_pair_is_exact_on_wgmma(
    configuration: int, shape: PairShape, tmp_path: Path
):
    inputs = testing.integer_pair(shape, torch.float16)
    # Judging the order among eight blocks takes the time; smaller shapes, and the first of these
    # pairs, have it judged.
    races = int(not CONFIGURATIONS[configuration].endswith("split8"))
    outcome = run_pair(tmp_path, shape, inputs, configuration, multiprocessors=1, races=races)
    assert torch.equal(checked(outcome, shape), expected(inputs))


@pytest.mark.parametrize("configuration", [3, 4, 6, 9, 11], ids=lambda i: CONFIGURATIONS[i])
@pytest.mark.parametrize(
    "shape",
    [
        *(s for s in testing.ODD_PAIR_SHAPES if max(s.taps1, s.taps2) <= 15),
        PairShape(1, 71, 71, 8, 16, 8, 7, 7, True),
        PairShape(2, 35, 71, 16, 8, 8, 3, 5, False),
    ],
    ids=str,
)
def test_odd_and_large_maps(configuration: int, shape: PairShape, tmp_path: Path):
    inputs = testing.integer_pair(shape, torch.bfloat16)
    outcome = run_pair(tmp_path, shape, inputs, configuration)
    line_size = shape.height if shape.row_first else shape.width
    if line_size > longest_line(configuration):
        assert outcome[1].refused
    else:
        assert torch.equal(checked(outcome, shape), expected(inputs))


@each_configuration
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("mid_activation", ["relu", "none"])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_bias_and_activations(
    configuration: int, bias: bool, mid_activation: str, activation: str, tmp_path: Path
):
    inputs = testing.integer_pair(TINY, torch.float16)
    if not bias:
        inputs = inputs._replace(bias1=None, bias2=None)
    outcome = run_pair(
        tmp_path,
        TINY,
        inputs,
        configuration,
        mid_relu=mid_activation == "relu",
        relu=activation == "relu",
    )
    assert torch.equal(checked(outcome, TINY), expected(inputs, mid_activation, activation))


@each_configuration
def test_swarm_of_schedules(configuration: int, tmp_path: Path):
    shape = PairShape(2, 5, 7, 72, 40, 16, 3, 3, True)
    inputs = testing.integer_pair(shape, torch.bfloat16)
    want = expected(inputs)
    for seed in range(20):
        outcome = run_pair(tmp_path, shape, inputs, configuration, schedule="swarm", seed=seed)
        assert torch.equal(checked(outcome, shape), want), f"seed {seed}"


@pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
@each_configuration
@pytest.mark.parametrize("shape", [RAGGED, WIDE], ids=str)
def test_sanitizers(configuration: int, shape: PairShape, tmp_path: Path):
    inputs = testing.integer_pair(shape, torch.bfloat16)
    outcome = run_pair(tmp_path, shape, inputs, configuration, variant=SANITIZED)
    assert torch.equal(checked(outcome, shape), expected(inputs))


# Bitwise properties, on random inputs.


@pytest.mark.parametrize("kind", [SM80, SM90], ids=["sm80", "sm90"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_configurations_agree_bitwise(dtype: str, kind: list[int], tmp_path: Path):
    """Of one kind of matrix instruction: between the two the device may differ."""
    inputs = testing.random_pair(RAGGED, DTYPES[dtype])
    outputs = [
        checked(run_pair(tmp_path, RAGGED, inputs, configuration), RAGGED) for configuration in kind
    ]
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])
    testing.assert_within_budget(
        outputs[0], testing.unfused_pair(inputs), testing.pair_oracle(inputs)
    )


@each_configuration
def test_an_image_does_not_depend_on_its_batch(configuration: int, tmp_path: Path):
    inputs = testing.random_pair(RAGGED, torch.bfloat16)
    whole = checked(run_pair(tmp_path, RAGGED, inputs, configuration), RAGGED)
    alone = dataclasses.replace(RAGGED, batch=1)
    for i in range(RAGGED.batch):
        one = inputs._replace(input=inputs.input[i : i + 1])
        output = checked(run_pair(tmp_path, alone, one, configuration), alone)
        assert torch.equal(output[0], whole[i])


# Special values.


@each_configuration
def test_nan_and_infinity(configuration: int, tmp_path: Path):
    inputs = testing.integer_pair(RAGGED, torch.bfloat16)
    inputs.input[0, 3, 4, 2], inputs.input[1, 5, 0, 1] = math.nan, math.inf
    inputs.input[2, 7, 8, 4] = -math.inf
    # Taps that meet an infinity with a zero weight make NaN of it, as they do in PyTorch.
    outcome = run_pair(tmp_path, RAGGED, inputs, configuration)
    output, want = checked(outcome, RAGGED).float(), expected(inputs).float()
    assert want.isnan().any()
    assert torch.equal(output.nan_to_num(77.0), want.nan_to_num(77.0))


@each_configuration
def test_channels_of_padding_stay_zero_beside_an_infinity(configuration: int, tmp_path: Path):
    """13 mid channels in 16: the three between are zero, or infinity times zero spoils the sum."""
    shape = PairShape(1, 3, 4, 8, 13, 8, 1, 3, True)
    inputs = testing.integer_pair(shape, torch.float16)
    inputs = inputs._replace(
        weight1=inputs.weight1.abs() + 1, bias1=None, weight2=inputs.weight2.abs() + 1
    )
    inputs.input.abs_()[0, 0, 1, 1] = math.inf
    output = checked(run_pair(tmp_path, shape, inputs, configuration), shape)
    assert not output.isnan().any()
    assert output.isinf().any()


@each_configuration
def test_the_mid_tensor_is_rounded(configuration: int, tmp_path: Path):
    """2049 is no float16: the second factor sees 2048."""
    inputs = PairInputs(
        torch.full((1, 8, 5, 7), 1.0, dtype=torch.float16),
        torch.zeros(16, 8, 1, 1, dtype=torch.float16),
        torch.full((16,), 1.0, dtype=torch.float16),
        torch.full((16, 16, 1, 1), 0.0625, dtype=torch.float16),
        None,
    )
    inputs.weight1[:, :] = 256.0
    shape = PairShape(1, 5, 7, 8, 16, 16, 1, 1, True)
    output = checked(run_pair(tmp_path, shape, inputs, configuration), shape)
    assert torch.equal(output, torch.full_like(output, 2048.0))


# Memory.


@each_configuration
def test_a_slice_of_the_output_and_of_the_batch(configuration: int, tmp_path: Path):
    """Only the images and channels of the launch are written; the rest keeps its NaN."""
    inputs = testing.integer_pair(RAGGED, torch.bfloat16)
    output, report = run_pair(
        tmp_path, RAGGED, inputs, configuration, first_image=1, channel_offset=16, out_channels=136
    )
    assert report.fault == ""
    end = 16 + RAGGED.c_out
    assert torch.equal(output[1:, 16:end], expected(inputs)[1:])
    assert output[0].isnan().all()
    assert output[:, :16].isnan().all()
    assert output[:, end:].isnan().all()


@each_configuration
def test_offsets_past_2_31_elements(configuration: int, tmp_path: Path):
    shape = PairShape(2, 3, 4, 8, 8, 8, 3, 3, True)
    inputs = testing.integer_pair(shape, torch.float16)
    outcome = run_pair(tmp_path, shape, inputs, configuration, input_image_stride=2**32 + 8)
    assert torch.equal(checked(outcome, shape), expected(inputs))


@pytest.mark.parametrize("configuration", SM80, ids=lambda i: CONFIGURATIONS[i])
def test_a_block_is_held_to_99_kilobytes(configuration: int, tmp_path: Path):
    """With the channels of Inception, one configuration of either form has to fit."""
    shape = PairShape(1, 2, 2, 8, 192, 8, 1, 1, True)
    inputs = testing.integer_pair(shape, torch.float16)
    _, report = run_pair(tmp_path, shape, inputs, configuration, shared_limit=LIMIT_99_KB)
    small = CONFIGURATIONS[configuration] in ("bands-128x96", "two-64x32", "two-128x96")
    assert ("bytes of shared memory, the limit is" in report.fault) == (not small)


def test_what_a_configuration_cannot_take_is_refused(tmp_path: Path):
    tall = PairShape(1, 161, 1, 8, 8, 8, 1, 3, True)
    inputs = testing.integer_pair(tall, torch.float16)
    for configuration in range(-1, len(CONFIGURATIONS) + 1):
        _, report = run_pair(tmp_path, tall, inputs, configuration)
        taken = configuration in SM80 and configuration not in BANDS
        assert report.refused == (not taken)


@pytest.mark.parametrize("configuration", SM80, ids=lambda i: CONFIGURATIONS[i])
def test_tiles_are_read_without_bank_conflicts(configuration: int, tmp_path: Path):
    """Only rows that stand for the zeros beyond a line may share a bank with others."""
    shape = PairShape(1, 16, 8, 64, 96, 64, 7, 1, True)
    inputs = testing.integer_pair(shape, torch.bfloat16)
    _, report = run_pair(tmp_path, shape, inputs, configuration)
    assert report.matrices > 0
    assert report.conflicts == 0


# The mutation run.

# Calls that may be left out or weakened without anybody noticing, and why that is so.
EXPLAINED: dict[str, str] = {}

# Full tiles with more filters than one has, and the shortest sum, a step that is first and last, in
# two warpgroups, one of which may be a band ahead.
MUTATED_SHAPES = (
    PairShape(3, 8, 16, 40, 72, 16, 3, 3, False),
    PairShape(1, 8, 16, 8, 200, 208, 3, 3, False),
    PairShape(3, 8, 16, 8, 72, 72, 1, 1, True),
)


@pytest.mark.parametrize("configuration", [0, 4, 6, 9, 11], ids=lambda i: CONFIGURATIONS[i])
def test_every_synchronizing_call_matters(configuration: int, tmp_path: Path):
    """Each call is left out in turn, and each wait weakened by a group: all must be noticed."""
    problems = [(shape, testing.integer_pair(shape, torch.float16)) for shape in MUTATED_SHAPES]
    wants = [expected(inputs) for _, inputs in problems]
    few = {"multiprocessors": 1}  # so that a persistent block has more than one band
    _, report = run_pair(tmp_path, *problems[0], configuration, **few)

    def noticed(mutate: str, weaken: int) -> bool:
        for (shape, inputs), want in zip(problems, wants, strict=True):
            for schedule in ("lazy", "eager"):
                options = {"schedule": schedule, "mutate": mutate, "weaken": weaken, **few}
                output, mutant = run_pair(tmp_path, shape, inputs, configuration, **options)
                if mutant.fault or not torch.equal(output[:, : shape.c_out], want):
                    return True
        return False

    assert programs.survivors(report, "factorized_conv2d", noticed) == set(EXPLAINED)
