"""The CUDA kernels of the pools in the emulator.

Every form and dtype. A maximum is compared with PyTorch's bit by bit, a mean with a float32 sum in
the order that the kernel states, bit by bit. Bounds, poison, races and deadlocks are judged in
every run. Left out: the time that anything takes, and what a device does in another order than the
emulator.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fused_inception import testing
from fused_inception.ops.pool2d import cuda_launch
from tests.emulator import programs
from tests.emulator.pools import OP, configurations, run_pool
from tests.emulator.programs import SANITIZED, Report
from tests.pool_cases import EDGES, special_maps

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)

MAX, AVERAGE, GLOBAL = cuda_launch.MAX, cuda_launch.AVERAGE, cuda_launch.GLOBAL_AVERAGE
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
INTEGERS = {2: torch.int16, 4: torch.int32}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# (batch, channels, height, width): channels that are no multiple of 8, tiles across images, more
# pieces of channels than a block of the mean of a map has, a map of one column.
SHAPES = [(3, 20, 9, 8), (2, 72, 7, 11), (1, 1, 3, 3), (2, 8, 5, 1), (1, 136, 8, 8)]
# (window, stride, padding): of the networks, and odd ones; the last looks at more than three
# pixels of a row.
WINDOWS = [
    ((3, 3), (2, 2), (0, 0)),
    ((3, 3), (1, 1), (1, 1)),
    ((1, 1), (1, 1), (0, 0)),
    ((3, 2), (2, 1), (1, 0)),
    ((2, 3), (1, 3), (1, 1)),
    ((3, 7), (5, 2), (0, 3)),
]


def maps(shape: tuple[int, ...], dtype: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DTYPES[dtype])


def edges(dtype: str) -> list[torch.Tensor]:
    cases = special_maps(DTYPES[dtype])
    return [cases[name] for name in EDGES]


def checked(outcome: tuple[torch.Tensor, Report], channels: int, start: int = 0) -> torch.Tensor:
    output, report = outcome
    assert report.fault == ""
    assert not report.refused
    return output[:, start : start + channels]


def assert_same_memory(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit by bit, also those of a NaN."""
    assert result.dtype == expected.dtype
    integers = INTEGERS[result.element_size()]
    assert torch.equal(result.contiguous().view(integers), expected.contiguous().view(integers))


def fits(shape: tuple[int, ...], window: Any) -> bool:
    kernel, _, padding = window
    return all(
        size + 2 * pad >= taps for size, pad, taps in zip(shape[2:], padding, kernel, strict=True)
    )


def largest(x: torch.Tensor, kernel: Any, stride: Any, padding: Any) -> torch.Tensor:
    """The maximum as PyTorch defines it, from a loop; pixels outside of the map replace nothing."""
    low = torch.tensor(-math.inf, dtype=x.dtype)
    rows, columns = (
        (size + 2 * pad - taps) // step + 1
        for size, pad, taps, step in zip(x.shape[2:], padding, kernel, stride, strict=True)
    )
    best = low.expand(*x.shape[:2], rows, columns).clone()
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            tap, inside = shifted(x, r, s, (rows, columns), stride, padding)
            best = torch.where(inside & ((tap > best) | tap.isnan()), tap, best)
    return best


def shifted(
    x: torch.Tensor, r: int, s: int, size: tuple[int, int], stride: Any, padding: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What tap (r, s) of every window sees, and whether that is on the map."""
    h = torch.arange(size[0]) * stride[0] - padding[0] + r
    w = torch.arange(size[1]) * stride[1] - padding[1] + s
    inside = ((h >= 0) & (h < x.shape[2]))[:, None] & ((w >= 0) & (w < x.shape[3]))[None, :]
    return x[:, :, h.clamp(0, x.shape[2] - 1)][..., w.clamp(0, x.shape[3] - 1)], inside


def average(
    x: torch.Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    bias: Any,
    include_pad: bool,
    relu: bool,
) -> torch.Tensor:
    """In float32, in the order of the window, rounded once."""
    rows, columns = (
        (size + 2 * pad - taps) // step + 1
        for size, pad, taps, step in zip(x.shape[2:], padding, kernel, stride, strict=True)
    )
    total = torch.zeros(*x.shape[:2], rows, columns)
    count = torch.zeros(rows, columns)
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            tap, inside = shifted(x.float(), r, s, (rows, columns), stride, padding)
            total = torch.where(inside, total + tap, total)
            count += inside
    mean = total / (float(kernel[0] * kernel[1]) if include_pad else count)
    if bias is not None:
        mean = mean + bias.float().reshape(1, -1, 1, 1)
    return (F.relu(mean) if relu else mean).to(x.dtype)


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """In float32: 32 sums of every 32nd pixel, added up in order."""
    pixels = x.float().flatten(2)
    padded = F.pad(pixels, (0, -pixels.shape[2] % 32)).unflatten(2, (-1, 32))
    total = torch.zeros(*x.shape[:2])
    for i in range(32):
        part = torch.zeros(*x.shape[:2])
        for row in range(padded.shape[2]):
            part = part + padded[:, :, row, i]
        total = total + part
    return (total / pixels.shape[2]).to(x.dtype)[..., None, None]


def test_every_form_is_tested():
    names = [row.name for row in configurations()]
    assert names == ["max", "average", "global_average"]
    assert list(range(len(names))) == [MAX, AVERAGE, GLOBAL]


@every_dtype
def test_the_maximum_is_bitwise_pytorchs(dtype: str, tmp_path: Path):
    for shape in SHAPES:
        x = maps(shape, dtype)
        for window in WINDOWS:
            if fits(shape, window):
                got = checked(run_pool(tmp_path, MAX, x, *window), shape[1])
                assert_same_memory(got, F.max_pool2d(x, *window))


@every_dtype
def test_the_maximum_keeps_every_bit_of_special_values(dtype: str, tmp_path: Path):
    for x in edges(dtype):
        for window in WINDOWS[:3]:
            got = checked(run_pool(tmp_path, MAX, x, *window), x.shape[1])
            assert_same_memory(got, largest(x, *window))
            testing.assert_same_bits(got, F.max_pool2d(x, *window))


@every_dtype
@pytest.mark.parametrize("include_pad", [True, False], ids=["pad", "no-pad"])
def test_an_average_is_the_sum_in_the_order_of_the_window(
    dtype: str, include_pad: bool, tmp_path: Path
):
    for shape in SHAPES:
        x, bias = maps(shape, dtype), maps(shape[1:2], dtype, seed=1)
        for window in WINDOWS:
            if not fits(shape, window):
                continue
            for shift, relu in ((bias, True), (None, False)):
                outcome = run_pool(
                    tmp_path, AVERAGE, x, *window, bias=shift, include_pad=include_pad, relu=relu
                )
                want = average(x, *window, shift, include_pad, relu)
                testing.assert_same_bits(checked(outcome, shape[1]), want)


@every_dtype
def test_an_average_of_special_values_is_pytorchs(dtype: str, tmp_path: Path):
    """NaN and infinities come through the ReLU as they do in PyTorch."""
    for x in edges(dtype):
        window = ((3, 3), (1, 1), (1, 1))
        got = checked(run_pool(tmp_path, AVERAGE, x, *window, relu=True), x.shape[1])
        want = F.relu(F.avg_pool2d(x.double(), *window)).to(x.dtype)
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isinf(), want.isinf())


@every_dtype
def test_the_mean_of_a_map_has_one_order(dtype: str, tmp_path: Path):
    for shape in (*SHAPES, (2, 40, 1, 1), (1, 8, 17, 17)):
        x = maps(shape, dtype)
        got = checked(run_pool(tmp_path, GLOBAL, x, shape[2:]), shape[1])
        testing.assert_same_bits(got, global_mean(x))
        oracle = x.double().mean((2, 3), keepdim=True)
        testing.assert_within_budget(got, F.adaptive_avg_pool2d(x, 1), oracle)


CALLS: dict[int, Any] = {
    MAX: ((3, 3), (2, 2), (0, 0)),
    AVERAGE: ((3, 3), (1, 1), (1, 1)),
    GLOBAL: ((9, 8),),
}
each_form = pytest.mark.parametrize("form", CALLS, ids=["max", "average", "global_average"])


def options_of(form: int, dtype: str, channels: int) -> dict[str, Any]:
    """The bias of an average."""
    return {"bias": maps((channels,), dtype, seed=1), "relu": True} if form == AVERAGE else {}


@each_form
def test_an_image_does_not_depend_on_its_batch(form: int, tmp_path: Path):
    x = maps((3, 20, 9, 8), "bf16")
    options = options_of(form, "bf16", 20)
    whole = checked(run_pool(tmp_path, form, x, *CALLS[form], **options), 20)
    for i in (0, 2):
        alone = checked(run_pool(tmp_path, form, x[i : i + 1], *CALLS[form], **options), 20)
        assert_same_memory(alone[0], whole[i])


@each_form
@every_dtype
def test_a_slice_of_the_output_and_of_the_batch(form: int, dtype: str, tmp_path: Path):
    """Only the images and channels of the launch are written; the rest keeps its NaN."""
    x = maps((3, 20, 9, 8), dtype)
    options = options_of(form, dtype, 20)
    whole = checked(run_pool(tmp_path, form, x, *CALLS[form], **options), 20)
    outcome = run_pool(
        tmp_path, form, x, *CALLS[form], offset=16, out_channels=48, first_image=1, **options
    )
    output = checked(outcome, 48)
    assert_same_memory(output[1:, 16:36], whole[1:])
    assert output[0].isnan().all()
    assert output[:, :16].isnan().all()
    assert output[:, 40:].isnan().all()


@each_form
def test_offsets_past_2_31_elements(form: int, tmp_path: Path):
    x = maps((2, 20, 9, 8), "fp16")
    options = options_of(form, "fp16", 20)
    want = checked(run_pool(tmp_path, form, x, *CALLS[form], **options), 20)
    far = run_pool(tmp_path, form, x, *CALLS[form], input_image_stride=2**32 + 8, **options)
    assert_same_memory(checked(far, 20), want)


@pytest.mark.parametrize("schedule", ["eager", "swarm"])
def test_other_schedules(schedule: str, tmp_path: Path):
    """The sums of a map meet in shared memory."""
    x = maps((2, 72, 7, 11), "bf16")
    for seed in range(4 if schedule == "swarm" else 1):
        outcome = run_pool(tmp_path, GLOBAL, x, (7, 11), schedule=schedule, seed=seed)
        testing.assert_same_bits(checked(outcome, 72), global_mean(x))


@pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
@each_form
def test_sanitizers(form: int, tmp_path: Path):
    x = maps((3, 20, 9, 8), "bf16")
    options = options_of(form, "bf16", 20)
    want = checked(run_pool(tmp_path, form, x, *CALLS[form], **options), 20)
    outcome = run_pool(tmp_path, form, x, *CALLS[form], variant=SANITIZED, **options)
    assert_same_memory(checked(outcome, 20), want)


def test_every_synchronizing_call_matters(tmp_path: Path):
    """The barrier of the mean of a map; the other forms have none."""
    for form in (MAX, AVERAGE):
        _, report = run_pool(tmp_path, form, maps((1, 8, 9, 8), "fp16"), *CALLS[form])
        assert report.sites == {}
    x = maps((1, 72, 9, 8), "fp16")
    _, report = run_pool(tmp_path, GLOBAL, x, (9, 8))
    assert [programs.source_line(site, OP) for site in report.sites] == ["device::block_sync();"]
    for site in report.sites:
        _, mutant = run_pool(tmp_path, GLOBAL, x, (9, 8), mutate=site)
        assert "which nobody has written" in mutant.fault
