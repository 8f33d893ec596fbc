"""What the emulator says of each way to break a kernel on mbarriers, bulk copies and wgmma."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emulator import programs
from tests.emulator.programs import HOOKED, SANITIZED, Variant

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)
PROGRAM = "faults_sm90"
STEPS, COLUMNS, HALO = 4, 80, 3

# Of values that are wrong the emulator can say nothing else.
VALUES = "values"
UNWRITTEN = r"reads shared memory at offset \d+ .*, which nobody has written"
STUCK = r"deadlock: 1 thread in mbarrier_wait .*, 128 threads in mbarrier_wait"
UNFENCED = r"no fence_proxy_async: a product of warpgroup 0 reads .* after thread \d+, which writes"
BULK_RACE = r"race: a product of warpgroup 0 reads .* after a bulk copy of mbarrier 0, which writes"
EARLY = r"race: a bulk copy of mbarrier 0 writes .* after a product of warpgroup 0, which reads"
FAULTS = {
    "no_init_fence": r"mbarrier_init_fence is missing",
    "no_sync_after_init": r"race: thread 128 reads .* ordered after thread 0, which writes it",
    "initialised_twice": r"mbarrier_init of an mbarrier that is initialised already",
    "barrier_not_initialised": r"mbarrier_wait of an mbarrier that nobody has initialised",
    "misaligned_barrier": r"misaligned: mbarrier_init at shared address \d+, takes multiples of 8",
    "no_full_wait": BULK_RACE,
    "no_empty_wait": r"mbarrier_arrive_expect_tx: more arrivals in a phase than",
    "wrong_full_phase": BULK_RACE,
    "wrong_empty_phase": STUCK,
    "every_lane_arrives": STUCK,
    "one_warp_arrives": STUCK,
    "expects_half": STUCK,
    "expects_too_much": STUCK,
    "no_proxy_fence": UNFENCED,
    "proxy_fence_of_the_reader": UNFENCED,
    "proxy_fence_after_barrier": UNFENCED,
    "no_named_barrier": r"race: a product of warpgroup 0 reads .* after thread \d+, which writes",
    "swapped_strides": UNWRITTEN,
    "wrong_row_stride": VALUES,
    "eight_rows_too_far": UNWRITTEN,
    "rows_out_of_bounds": r"out of bounds: wgmma_m64k16 of 16 bytes at offset 20480 of shared",
    "halo_not_zeroed": UNWRITTEN,
    "swizzled_descriptor": r"a swizzled matrix descriptor must have whole patterns of rows apart",
    "disagreeing_descriptors": r"the threads of a warpgroup disagree on its operands",
    "no_wgmma_fence": r"wgmma_fence is missing since the accumulators were last touched",
    "no_wgmma_wait": r"exits with accumulators in flight: wgmma_finish is missing",
    "weak_wgmma_wait": EARLY,
    "no_wgmma_commit": EARLY,
    "released_before_wait": EARLY,
    "half_a_warpgroup": r"deadlock: .*64 threads in wgmma_m64k16",
    "misaligned_bulk_copy": r"misaligned: the source of bulk_copy",
    "ragged_bulk_copy": r"bulk_copy of 2040 bytes: takes multiples of 16",
    "bulk_copy_out_of_bounds": r"out of bounds: bulk_copy of 2048 bytes at offset \d+ of shared",
    "bulk_copy_from_out_of_bounds": r"out of bounds: reads 2048 bytes of global memory .* of a,",
    "bulk_copy_in_flight_at_exit": r"ends with bulk copies in flight",
    "misaligned_stmatrix": r"misaligned: stmatrix at shared address \d+, takes multiples of 16",
    "no_sync_after_stmatrix": r"race: thread \d+ reads .* ordered after thread \d+, which writes",
    "overwritten_while_read": r"race: thread 0 writes .* after a product of warpgroup 0, which",
}  # fmt: skip


def run_faulty(folder: Path, fault: str, variant: Variant = HOOKED, **options: Any):
    """The small kernel broken one way: (whether the values are right, the report)."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randint(-4, 5, (64, 16 * STEPS), generator=generator).half()
    b = torch.randint(-4, 5, (COLUMNS, 16 * STEPS), generator=generator).half()

    def in_memory(operand: torch.Tensor) -> torch.Tensor:  # [k / 8][row][8]
        return operand.view(len(operand), -1, 8).transpose(0, 1).contiguous()

    report = programs.run(
        programs.build(PROGRAM, variant),
        a=programs.save(in_memory(a), folder / "a"),
        b=programs.save(in_memory(b), folder / "b"),
        output=folder / "output",
        steps=STEPS,
        fault=fault,
        **options,
    )
    expected = torch.zeros(COLUMNS, 64)
    expected[HALO:] = (b.float() @ a.float().T)[:-HALO]
    right = (folder / "output").exists() and torch.equal(
        programs.load(folder / "output", torch.float16), expected.half().flatten()
    )
    return right, report


@pytest.mark.parametrize("schedule", ["lazy", "eager", "swarm"])
def test_the_kernel_that_is_not_broken_passes(schedule: str, tmp_path: Path):
    for seed in range(20) if schedule == "swarm" else (0,):
        right, report = run_faulty(tmp_path, "none", schedule=schedule, seed=seed)
        assert (right, report.fault) == (True, "")


@pytest.mark.skipif(
    programs.refusal() is None and programs.sanitizer_refusal() is not None,
    reason="emulator: g++ has no libasan or no libubsan",
)
def test_it_passes_the_sanitizers(tmp_path: Path):
    right, report = run_faulty(tmp_path, "none", SANITIZED)
    assert (right, report.fault) == (True, "")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_caught_by_name(fault: str, tmp_path: Path):
    right, report = run_faulty(tmp_path, fault)
    if FAULTS[fault] is VALUES:
        assert (right, report.fault) == (False, "")
    else:
        assert re.search(FAULTS[fault], report.fault), report.fault


def test_every_fault_is_in_the_table():
    listed = programs.run_lines(programs.build(PROGRAM), list=1)
    assert {line.removeprefix("fault ") for line in listed} == {"none", *FAULTS}


@pytest.mark.parametrize(
    "fault", ["no_full_wait", "weak_wgmma_wait", "released_before_wait", "overwritten_while_read"]
)
def test_some_schedule_shows_a_fault_in_the_values(fault: str, tmp_path: Path):
    """Without the race detector, wrong values or a deadlock must come of it in one of the seeds."""
    runs = (run_faulty(tmp_path, fault, schedule="swarm", seed=seed, races=0) for seed in range(40))
    assert any(not right or report.fault for right, report in runs)


def test_every_synchronizing_call_of_the_kernel_matters(tmp_path: Path):
    _, report = run_faulty(tmp_path, "none")
    survivors = []
    for site, primitive in report.sites.items():
        for weaken in (0, 1) if primitive == "wgmma_wait" else (0,):
            runs = [
                run_faulty(tmp_path, "none", mutate=site, weaken=weaken, schedule=schedule)
                for schedule in ("lazy", "eager")
            ]
            if all(right and not mutant.fault for right, mutant in runs):
                survivors.append((primitive, weaken))
    # The wait of the last step has waited for all that the last wait waits for.
    assert survivors == [("wgmma_wait", 0), ("wgmma_wait", 1)]
