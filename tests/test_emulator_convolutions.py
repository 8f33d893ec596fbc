"""The CUDA kernels of `conv2d_act`, `grid_reduction` and `split_conv2d` in the emulator.

Every configuration on either engine, both dtypes. Whole-number inputs make the result exact, so
values are compared with `torch.equal`; what is random here is compared bitwise between all
configurations, though between mma.sync and wgmma a device may differ. Bounds, poison, races and
deadlocks are judged in every run. Left out: the time that anything takes, and what the device does
in another order than the emulator.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fused_inception import testing
from fused_inception.testing import ConvShape, ReductionShape, SplitShape
from tests.emulator import programs
from tests.emulator.convolutions import (
    OPS,
    SegmentPlace,
    configurations,
    run_conv,
    run_reduction,
    run_split,
)
from tests.emulator.pair import padded
from tests.emulator.programs import SANITIZED, Report

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)

CONFIGURATIONS = {
    "conv2d_act": (
        "tiles-128x128", "tiles-128x96", "tiles-128x64", "tiles-64x32",
        "sm90-256x192", "sm90-256x96", "sm90-256x64", "sm90-128x128", "sm90-128x64", "sm90-64x32",
    ),
    "grid_reduction": (
        "tiles-128x128", "tiles-128x96", "tiles-64x32",
        "sm90-192x192", "sm90-128x96", "sm90-64x32",
    ),
    "split_conv2d": (
        "whole-64x128", "whole-64x32", "tiles-128x128", "tiles-64x32",
        "sm90-whole-128x192", "sm90-whole-64x64", "sm90-128x192", "sm90-64x64",
    ),
}  # fmt: skip
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WHOLE_ROWS = 64  # pixels of a tile of whole images
WHOLE_SIDE = 8  # of the map of a whole image on wgmma
LIMIT_99_KB, LIMIT_227_KB = 101376, 232448


class Subject(NamedTuple):
    """An op as the tests see it."""

    run: Callable[..., tuple[torch.Tensor, Report]]
    integers: Callable[..., Any]
    random: Callable[..., Any]
    oracle: Callable[..., torch.Tensor]  # (shape, inputs)
    unfused: Callable[..., torch.Tensor]
    sizes: Callable[[Any], tuple[int, int]]  # channels of the two parts of the output
    shapes: tuple[Any, ...]  # the first is the ragged one
    inception: Any


def conv_options(shape: ConvShape) -> dict[str, Any]:
    return {"stride": shape.stride, "padding": shape.padding}


SUBJECTS = {
    "conv2d_act": Subject(
        run_conv,
        testing.integer_conv,
        testing.random_conv,
        lambda shape, inputs: testing.conv_oracle(inputs, **conv_options(shape)),
        lambda shape, inputs: testing.unfused_conv(inputs, **conv_options(shape)),
        lambda shape: (shape.c_out, 0),
        (
            # Tiles across images, channels that end inside a K block, more filters than a tile has.
            ConvShape(3, 9, 11, 40, 136, (3, 3), (1, 1), (1, 1)),
            ConvShape(2, 8, 13, 17, 33, (5, 3), (3, 1), (2, 0)),
            ConvShape(2, 6, 8, 5, 3, (2, 4), (2, 2), (1, 1)),
            ConvShape(1, 4, 4, 3, 4, (1, 1), (2, 3), (1, 2)),  # padding beyond the filter
            ConvShape(1, 3, 3, 2, 2, (3, 3), (5, 7), (0, 0)),  # a stride beyond the map
            ConvShape(5, 7, 7, 72, 24, (1, 1)),
            ConvShape(1, 1, 1, 1, 1, (1, 1)),
        ),
        ConvShape(1, 35, 35, 64, 96, (3, 3), (1, 1), (1, 1)),
    ),
    "grid_reduction": Subject(
        run_reduction,
        testing.integer_conv,
        testing.random_conv,
        lambda shape, inputs: testing.reduction_oracle(inputs),
        lambda shape, inputs: testing.unfused_reduction(inputs),
        lambda shape: (shape.c_out, shape.c_in),
        (
            # More blocks of channels than tiles of filters, and the other way round below.
            ReductionShape(3, 11, 13, 104, 40, 3),
            ReductionShape(2, 8, 7, 24, 264, 3),
            ReductionShape(2, 10, 7, 3, 9, 5),
            ReductionShape(1, 4, 4, 5, 3, 3),
            ReductionShape(1, 6, 9, 12, 8, 1),
            ReductionShape(1, 3, 3, 8, 8, 3),
        ),
        ReductionShape(1, 17, 17, 192, 320, 3),
    ),
    "split_conv2d": Subject(
        run_split,
        testing.integer_split,
        testing.random_split,
        lambda shape, inputs: testing.split_oracle(inputs),
        lambda shape, inputs: testing.unfused_split(inputs),
        lambda shape: (shape.c_row, shape.c_col),
        (
            # Halves of unequal length, in filters and taps; several images in a tile.
            SplitShape(5, 5, 4, 40, 24, 104, 3, 5),
            SplitShape(2, 4, 6, 10, 90, 9, 5, 3),
            SplitShape(3, 8, 8, 72, 40, 40, 3, 3),
            SplitShape(2, 3, 3, 8, 5, 8, 1, 7),
            SplitShape(2, 9, 11, 24, 16, 40, 3, 3),  # larger than a tile of whole images
            SplitShape(2, 1, 1, 3, 5, 2, 7, 7),
        ),
        SplitShape(2, 8, 8, 384, 384, 384, 3, 3),
    ),
}


def is_sm90(op: str, configuration: int) -> bool:
    return CONFIGURATIONS[op][configuration].startswith("sm90")


EACH = [(op, i) for op in OPS for i in range(len(CONFIGURATIONS[op]))]
EACH_SM80 = [(op, i) for op, i in EACH if not is_sm90(op, i)]


def each(rows: list[tuple[str, int]]) -> pytest.MarkDecorator:
    names = [f"{op}-{CONFIGURATIONS[op][i]}" for op, i in rows]
    return pytest.mark.parametrize(("op", "configuration"), rows, ids=names)


each_configuration = each(EACH)


def taken(op: str, configuration: int, shape: Any) -> bool:
    if "whole" not in CONFIGURATIONS[op][configuration]:
        return True
    if is_sm90(op, configuration):
        return max(shape.height, shape.width) <= WHOLE_SIDE
    return shape.height * shape.width <= WHOLE_ROWS


def parts(op: str, shape: Any, output: torch.Tensor, start: int = 0) -> torch.Tensor:
    """The output without the channels of padding between and behind its two parts."""
    first, second = SUBJECTS[op].sizes(shape)
    middle = start + padded(first)
    return torch.cat([output[:, start : start + first], output[:, middle : middle + second]], 1)


def checked(op: str, shape: Any, outcome: tuple[torch.Tensor, Report]) -> torch.Tensor:
    output, report = outcome
    assert report.fault == ""
    assert not report.refused
    return parts(op, shape, output)


def expected(op: str, shape: Any, inputs: Any) -> torch.Tensor:
    return SUBJECTS[op].oracle(shape, inputs).to(inputs.input.dtype)


@pytest.mark.parametrize("op", OPS)
def test_every_configuration_is_tested(op: str):
    assert tuple(row.name for row in configurations(op, 64)) == CONFIGURATIONS[op]


@each_configuration
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_exact(op: str, configuration: int, dtype: str, tmp_path: Path):
    subject = SUBJECTS[op]
    schedules = ("lazy", "eager") if dtype == "fp16" else ("lazy",)
    if is_sm90(op, configuration):  # one kind of schedule with either dtype
        schedules = schedules[-1:]
    for shape in subject.shapes:
        inputs = subject.integers(shape, DTYPES[dtype])
        for schedule in schedules:
            outcome = subject.run(tmp_path, shape, inputs, configuration, schedule=schedule)
            if not taken(op, configuration, shape):
                assert outcome[1].refused
                continue
            result = checked(op, shape, outcome)
            assert torch.equal(result, expected(op, shape, inputs)), shape


@each(EACH_SM80)
def test_an_inception_shape_is_exact(op: str, configuration: int, tmp_path: Path):
    shape = SUBJECTS[op].inception
    inputs = SUBJECTS[op].integers(shape, torch.bfloat16)
    outcome = SUBJECTS[op].run(tmp_path, shape, inputs, configuration)
    assert torch.equal(checked(op, shape, outcome), expected(op, shape, inputs))


# What takes the most of Inception V3's time, by the configuration that a large batch has.
DOMINANT = (
    ("conv2d_act", "sm90-256x192", ConvShape(1, 73, 73, 80, 192, (3, 3))),
    ("conv2d_act", "sm90-256x96", ConvShape(1, 35, 35, 96, 96, (3, 3), (1, 1), (1, 1))),
    ("conv2d_act", "sm90-256x96", ConvShape(1, 35, 35, 96, 96, (3, 3), (2, 2))),
    ("conv2d_act", "sm90-256x64", ConvShape(1, 299, 299, 3, 32, (3, 3), (2, 2))),
    ("conv2d_act", "sm90-256x192", ConvShape(1, 35, 35, 288, 64 + 48 + 64, (1, 1))),
    ("grid_reduction", "sm90-192x192", ReductionShape(1, 35, 35, 288, 384, 3)),
    ("split_conv2d", "sm90-whole-128x192", SplitShape(2, 8, 8, 384, 384, 384, 3, 3)),
    ("split_conv2d", "sm90-whole-64x64", SplitShape(1, 8, 8, 384, 384, 384, 3, 3)),
)


@pytest.mark.parametrize(("op", "name", "shape"), DOMINANT, ids=str)
def test_what_dominates_is_exact_on_wgmma(op: str, name: str, shape: Any, tmp_path: Path):
    """Judging the order takes most of the time; smaller shapes have it judged."""
    inputs = SUBJECTS[op].integers(shape, torch.bfloat16)
    merged = op == "conv2d_act" and shape.kernel == (1, 1)
    places = [SegmentPlace(64, 0), SegmentPlace(48, 64), SegmentPlace(64, 112)]
    options: dict[str, Any] = {"segments": places} if merged else {}
    outcome = SUBJECTS[op].run(
        tmp_path, shape, inputs, CONFIGURATIONS[op].index(name), races=0, **options
    )
    assert torch.equal(checked(op, shape, outcome), expected(op, shape, inputs))


@each_configuration
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "none"])
def test_without_bias(op: str, configuration: int, relu: bool, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = subject.shapes[3]
    inputs = subject.integers(shape, torch.float16)
    inputs = inputs._replace(**{name: None for name in inputs._fields if "bias" in name})
    activation = "relu" if relu else "none"
    if op == "conv2d_act":
        options: dict[str, Any] = {"segments": [SegmentPlace(shape.c_out, 0, relu)]}
        want = testing.conv_oracle(inputs, **conv_options(shape), activation=activation)
    else:
        options = {"relu": relu}
        oracle = testing.split_oracle if op == "split_conv2d" else testing.reduction_oracle
        want = oracle(inputs, activation=activation)
    outcome = subject.run(tmp_path, shape, inputs, configuration, **options)
    assert torch.equal(checked(op, shape, outcome), want.to(torch.float16))


@each_configuration
def test_swarm_of_schedules(op: str, configuration: int, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = subject.shapes[2]
    inputs = subject.integers(shape, torch.bfloat16)
    want = expected(op, shape, inputs)
    for seed in range(3 if is_sm90(op, configuration) else 8):
        outcome = subject.run(tmp_path, shape, inputs, configuration, schedule="swarm", seed=seed)
        assert torch.equal(checked(op, shape, outcome), want), f"seed {seed}"


@pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
# Of those on wgmma, which differ in numbers alone, one of each form.
@each(
    [
        *EACH_SM80,
        ("conv2d_act", 4), ("grid_reduction", 3), ("split_conv2d", 4), ("split_conv2d", 7),
    ]
)  # fmt: skip
def test_sanitizers(op: str, configuration: int, tmp_path: Path):
    shape = SUBJECTS[op].shapes[0]
    inputs = SUBJECTS[op].integers(shape, torch.bfloat16)
    outcome = SUBJECTS[op].run(tmp_path, shape, inputs, configuration, variant=SANITIZED)
    assert torch.equal(checked(op, shape, outcome), expected(op, shape, inputs))


# Bitwise properties, on random inputs.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_configurations_agree_bitwise(op: str, dtype: str, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = subject.shapes[0]
    inputs = subject.random(shape, DTYPES[dtype])
    outputs = [
        checked(op, shape, subject.run(tmp_path, shape, inputs, configuration))
        for configuration in range(len(CONFIGURATIONS[op]))
    ]
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])
    testing.assert_within_budget(
        outputs[0], subject.unfused(shape, inputs), subject.oracle(shape, inputs)
    )


@each_configuration
def test_an_image_does_not_depend_on_its_batch(op: str, configuration: int, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = subject.shapes[0]
    inputs = subject.random(shape, torch.bfloat16)
    whole = checked(op, shape, subject.run(tmp_path, shape, inputs, configuration))
    alone = dataclasses.replace(shape, batch=1)
    for i in (shape.batch - 1,) if is_sm90(op, configuration) else (0, shape.batch - 1):
        one = inputs._replace(input=inputs.input[i : i + 1])
        output = checked(op, alone, subject.run(tmp_path, alone, one, configuration))
        assert torch.equal(output[0], whole[i])


# Special values.


@each_configuration
def test_nan_and_infinity(op: str, configuration: int, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = subject.shapes[0]
    inputs = subject.integers(shape, torch.bfloat16)
    inputs.input[0, 3, 4, 2], inputs.input[1, 5, 0, 1] = math.nan, math.inf
    inputs.input[2, 7, 2, 3] = -math.inf
    # Taps that meet an infinity with a zero weight make NaN of it, as they do in PyTorch.
    output = checked(op, shape, subject.run(tmp_path, shape, inputs, configuration)).float()
    want = expected(op, shape, inputs).float()
    assert want.isnan().any()
    assert torch.equal(output.nan_to_num(77.0), want.nan_to_num(77.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("configuration", range(len(CONFIGURATIONS["grid_reduction"])))
def test_the_pool_is_pytorchs(configuration: int, pool: str, dtype: str, tmp_path: Path):
    """Bit by bit: signed zeros, NaN with its bits, infinities, the smallest numbers."""
    shape = SUBJECTS["grid_reduction"].shapes[0]
    inputs = testing.random_conv(shape, DTYPES[dtype])
    special = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 1.0]).to(DTYPES[dtype])
    if pool == "max":
        special = torch.cat([special, torch.tensor([math.nan, math.inf, -math.inf]).to(special)])
    generator = torch.Generator().manual_seed(1)
    choice = torch.randint(len(special), inputs.input.shape, generator=generator)
    inputs.input.copy_(special[choice])
    outcome = run_reduction(tmp_path, shape, inputs, configuration, pool=pool)
    pooled = checked("grid_reduction", shape, outcome)[:, shape.c_out :]
    if pool == "max":
        want = testing.loop_max_pool2d(inputs.input, shape.kernel, 2)
        assert torch.equal(pooled.contiguous().view(torch.int16), want.view(torch.int16))
    else:
        # The sum in float32 in the order of the window, divided once.
        windows = inputs.input.float().unfold(2, 3, 2).unfold(3, 3, 2).flatten(4)
        total = windows[..., 0].clone()
        for i in range(1, 9):
            total += windows[..., i]
        testing.assert_same_bits(pooled, (total / 9.0).to(DTYPES[dtype]))


# Memory.


@each_configuration
def test_a_slice_of_the_output_and_of_the_batch(op: str, configuration: int, tmp_path: Path):
    """Only the images and channels of the launch are written; the rest keeps its NaN."""
    subject = SUBJECTS[op]
    shape = subject.shapes[0]
    inputs = subject.integers(shape, torch.bfloat16)
    first, second = map(padded, subject.sizes(shape))
    places: dict[str, Any] = {
        "conv2d_act": {"segments": [SegmentPlace(first, 16)]},
        "grid_reduction": {"conv_offset": 16},
        "split_conv2d": {"row_offset": 16},
    }[op]
    output, report = subject.run(
        tmp_path, shape, inputs, configuration, first_image=1,
        out_channels=16 + first + second + 8, **places,
    )  # fmt: skip
    assert report.fault == ""
    assert torch.equal(parts(op, shape, output, 16)[1:], expected(op, shape, inputs)[1:])
    assert output[0].isnan().all()
    assert output[:, :16].isnan().all()
    assert output[:, 16 + first + second :].isnan().all()


@each_configuration
def test_offsets_past_2_31_elements(op: str, configuration: int, tmp_path: Path):
    subject = SUBJECTS[op]
    shape = dataclasses.replace(subject.shapes[3], batch=2)
    inputs = subject.integers(shape, torch.float16)
    outcome = subject.run(tmp_path, shape, inputs, configuration, input_image_stride=2**32 + 8)
    assert torch.equal(checked(op, shape, outcome), expected(op, shape, inputs))


@pytest.mark.parametrize("configuration", range(len(CONFIGURATIONS["conv2d_act"])))
def test_segments(configuration: int, tmp_path: Path):
    """Four convolutions in one product, with and without ReLU, scattered over the output."""
    shape = ConvShape(2, 5, 6, 40, 40 + 104 + 8 + 16, (1, 1))
    places = [
        SegmentPlace(40, 120),
        SegmentPlace(104, 0, False),
        SegmentPlace(8, 112, False),
        SegmentPlace(16, 160),
    ]
    inputs = testing.integer_conv(shape, torch.float16)
    output, report = run_conv(tmp_path, shape, inputs, configuration, segments=places)
    assert report.fault == ""
    raw = testing.conv_oracle(inputs, activation="none")
    begin = 0
    for size, offset, relu in places:
        want = raw[:, begin : begin + size]
        begin += size
        want = (F.relu(want) if relu else want).half()
        assert torch.equal(output[:, offset : offset + size], want)
    assert output[:, 104:112].isnan().all()


# wgmma reads by its descriptors, where the emulator counts nothing.
@each(EACH_SM80)
def test_tiles_are_read_without_bank_conflicts(op: str, configuration: int, tmp_path: Path):
    """Rows that stand for the zeros beyond a map share their bank: with one tap there are none."""
    subject = SUBJECTS[op]
    shape = {
        "conv2d_act": ConvShape(2, 8, 8, 64, 128, (1, 1)),
        "grid_reduction": ReductionShape(2, 17, 17, 64, 128, 3),
        "split_conv2d": SplitShape(2, 8, 8, 64, 64, 64, 1, 1),
    }[op]
    inputs = subject.integers(shape, torch.bfloat16)
    _, report = subject.run(tmp_path, shape, inputs, configuration)
    assert report.matrices > 0
    assert report.conflicts == 0


@each_configuration
def test_a_block_fits_the_smallest_device(op: str, configuration: int, tmp_path: Path):
    """Every configuration fits the smallest of its devices with the channels of Inception."""
    limit = LIMIT_227_KB if is_sm90(op, configuration) else LIMIT_99_KB
    assert configurations(op, 384)[configuration].shared_bytes <= limit


# The mutation run.

# Calls that may be left out or weakened without anybody noticing, and why that is so.
EXPLAINED: dict[str, str] = {}

# Full tiles with more filters than one has, and the shortest sum: a step that is first and last.
MUTATED = {
    "conv2d_act": (
        ConvShape(2, 8, 8, 40, 136, (3, 3), (1, 1), (1, 1)),
        ConvShape(2, 8, 8, 8, 8, (1, 1)),
    ),
    "grid_reduction": (
        ReductionShape(2, 17, 17, 72, 136, 3),
        ReductionShape(2, 8, 8, 8, 8, 1),
    ),
    "split_conv2d": (SplitShape(2, 8, 8, 40, 72, 72, 3, 3), SplitShape(2, 8, 8, 8, 8, 8, 1, 1)),
}


@pytest.mark.parametrize(
    ("op", "configuration"),
    [
        ("conv2d_act", 3),
        ("grid_reduction", 0),
        ("split_conv2d", 0),
        ("split_conv2d", 2),
        ("conv2d_act", 7),
        ("grid_reduction", 4),
        ("split_conv2d", 4),
        ("split_conv2d", 6),
    ],
)
def test_every_synchronizing_call_matters(op: str, configuration: int, tmp_path: Path):
    """Each call is left out in turn, and each wait weakened by a group: all must be noticed."""
    subject = SUBJECTS[op]
    problems = [(shape, subject.integers(shape, torch.float16)) for shape in MUTATED[op]]
    wants = [expected(op, shape, inputs) for shape, inputs in problems]
    _, report = subject.run(tmp_path, *problems[0], configuration)

    def noticed(mutate: str, weaken: int) -> bool:
        for (shape, inputs), want in zip(problems, wants, strict=True):
            for schedule in ("lazy", "eager"):
                options = {"schedule": schedule, "mutate": mutate, "weaken": weaken}
                output, mutant = subject.run(tmp_path, shape, inputs, configuration, **options)
                if mutant.fault or not torch.equal(parts(op, shape, output), want):
                    return True
        return False

    assert report.sites
    assert programs.survivors(report, op, noticed) == set(EXPLAINED)


# What is said of a kernel on wgmma without one of its calls, the first of this name.
EARLY = r"race: an asynchronous copy of thread \d+ writes .* after a product of warpgroup 0"
NAMED = {
    "cp_async_wait": r"race: a product of warpgroup 0 reads .* after an asynchronous copy of",
    "fence_proxy_async": r"no fence_proxy_async: a product of warpgroup 0 reads .* after an async",
    "wgmma_wait": EARLY,
    "wgmma_commit": EARLY,
    "wgmma_fence": r"wgmma_fence is missing since the accumulators were last touched",
}


@pytest.mark.parametrize("primitive", NAMED)
@pytest.mark.parametrize(("op", "configuration"), [("grid_reduction", 4), ("split_conv2d", 4)])
def test_a_broken_kernel_on_wgmma_is_caught_by_name(
    op: str, configuration: int, primitive: str, tmp_path: Path
):
    subject, shape = SUBJECTS[op], MUTATED[op][0]
    inputs = subject.integers(shape, torch.float16)
    _, report = subject.run(tmp_path, shape, inputs, configuration)
    site = next(site for site, name in report.sites.items() if name == primitive)
    _, broken = subject.run(tmp_path, shape, inputs, configuration, mutate=site)
    assert re.search(NAMED[primitive], broken.fault), broken.fault
