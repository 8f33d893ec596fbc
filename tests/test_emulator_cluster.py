"""What the emulator says of each way to break a kernel on clusters, tensor copies and swizzles."""

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
PROGRAM = "faults_cluster"
CHANNELS, COLUMNS, ROUNDS = 120, 80, 2

# Of values that are wrong the emulator can say nothing else.
VALUES = "values"
REFUSED = "refused"
STUCK = r"deadlock: .*threads? in mbarrier_wait"
EARLY = r"in another block, before any wait for the cluster's barrier"
LATE = r"ends while another block may still be at work in its shared memory \(faults_cluster"
MAPPED = r"at an address of map_rank: takes one of the block itself"
FAULTS = {
    "no_cluster_barrier_at_start": r"of an mbarrier that nobody has initialised",
    "block_barrier_at_start": EARLY,
    "no_cluster_wait_at_start": r"race: thread 32 of rank 0 reads .* after thread 0 of rank",
    "no_cluster_barrier_at_end": LATE,
    "exit_between_arrive_and_wait": r"exits between cluster_arrive and cluster_wait",
    "wait_without_arrive": r"cluster_wait without cluster_arrive",
    "late_producer": r"deadlock: 62 threads in cluster_arrive .*, 448 threads in cluster_wait",
    "one_block_leaves_early": r"in block 0, which has ended",
    "rank_of_nobody": r"map_rank to rank [23] of a cluster of 2",
    "own_rank": r"bulk_push to the block itself: takes another",
    "mapped_twice": r"map_rank of an address of map_rank",
    "local_arrival_at_a_mapped": r"mbarrier_arrive " + MAPPED,
    "remote_arrival_at_a_local": r"mbarrier_arrive_remote at an address of the block itself",
    "wait_at_a_mapped": r"mbarrier_wait " + MAPPED,
    "plain_access_to_another_block": r"a plain access to the shared memory of another block \(",
    "remote_store_race": r"race: thread 0 of rank [01] writes .* after thread 0 of rank [01], wh",
    "remote_load_out_of_bounds": r"out of bounds: remote_load of 4 bytes at offset \d+ of shared",
    "no_exchange_wait": r"race: a product of .* after a bulk copy of mbarrier \d+, which writes",
    "no_exchange_empty_wait": r"race: a bulk copy of mbarrier \d+ writes .* after a product of wa",
    "no_fence_before_push": r"no fence_proxy_async: a bulk copy .* after thread \d+ of rank [01]",
    "no_barrier_before_push": r"race: a bulk copy .* reads .* after thread 1 of rank [01], which",
    "push_with_own_mbarrier": r"with an mbarrier of another block than the destination's",
    "push_of_too_little": STUCK,
    "ragged_push": r"bulk_push of 10232 bytes: takes multiples of 16",
    "source_overwritten": r"race: thread 0 of rank [01] writes .* after a bulk copy of mbarrier",
    "no_multicast": STUCK,
    "mask_too_wide": r"tensor_copy_multicast to mask 7: a cluster of 2",
    "own_empty_only": STUCK,
    "empty_counts_own_only": r"race|more arrivals in a phase than the mbarrier was made for",
    "expects_what_it_copies_itself": r"race: a product of warpgroup \d reads .* after a bulk copy",
    "expects_the_inside_of_the_box": STUCK,
    "no_full_wait": r"race: a product of .* after a bulk copy of mbarrier \d+, which writes",
    "no_empty_wait": r"mbarrier_arrive_expect_tx: more arrivals in a phase than",
    "misaligned_box": r"misaligned: tensor_copy_multicast at shared address \d+, takes .* 512",
    "box_off_the_pattern": r"misaligned: tensor_copy_multicast at shared address \d+, .* 512",
    "box_out_of_bounds": r"out of bounds: tensor_copy_multicast of 2048 bytes at offset \d+ of",
    "map_that_nobody_made": r"tensor_copy_multicast by a tensor map that nobody has made",
    "map_of_ragged_strides": REFUSED,
    "map_of_wide_rows": REFUSED,
    "descriptor_without_swizzle": VALUES,
    "descriptor_of_another_swizzle": VALUES,
    "descriptor_off_the_pattern": r"must start in the first row of its pattern, with 32 bytes",
    "descriptor_with_a_base_offset": r"a matrix descriptor with a base offset or unknown bits",
    "descriptor_past_its_span": r"must start in the first row of its pattern, with 32 bytes",
    "too_many_blocks": r"a cluster of 9 blocks in a grid of 2: takes 1 to 8, and whole clusters",
    "half_a_cluster": r"a cluster of 2 blocks in a grid of 3: takes 1 to 8, and whole clusters",
}  # fmt: skip


def run_faulty(folder: Path, fault: str, variant: Variant = HOOKED, **options: Any):
    """The small kernel broken one way: (whether the values are right, the report)."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randint(-4, 5, (64, CHANNELS), generator=generator).half()
    b = torch.randint(-4, 5, (ROUNDS, COLUMNS, 128), generator=generator).half()
    report = programs.run(
        programs.build(PROGRAM, variant),
        a=programs.save(a, folder / "a"),
        b=programs.save(b.view(ROUNDS, COLUMNS, 16, 8).transpose(1, 2), folder / "b"),
        output=folder / "output",
        fault=fault,
        **options,
    )
    product = torch.einsum("mk, rnk -> rmn", a.float(), b[..., :CHANNELS].float())
    right = (folder / "output").exists() and torch.equal(
        programs.load(folder / "output", torch.float32), product.expand(2, -1, -1, -1).flatten()
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
    elif FAULTS[fault] is REFUSED:
        assert report.refused
    else:
        assert re.search(FAULTS[fault], report.fault), report.fault


def test_every_fault_is_in_the_table():
    listed = programs.run_lines(programs.build(PROGRAM), list=1)
    assert {line.removeprefix("fault ") for line in listed} == {"none", *FAULTS}


@pytest.mark.parametrize("fault", ["no_exchange_wait", "no_full_wait", "no_exchange_empty_wait"])
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
    assert survivors == []
