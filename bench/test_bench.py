"""The benches under pytest-benchmark: the quick rows, one test each, in groups by op.

pytest bench --benchmark-json out.json      microseconds, rates and ratios are in extra_info
pytest bench --benchmark-disable            each row once: does everything run, is it right
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import environment, harness, results
from bench.harness import QUICK, SUITES, Case, Policy
from bench.timers import CudaTimer, HostTimer, measure_ceilings

pytest.importorskip("pytest_benchmark")

DEVICE = environment.resolve_device("auto")
ONCE = Policy(rounds=1, without=frozenset({"P0", "P3"}))


@pytest.fixture(scope="session")
def ceilings() -> dict[str, float] | None:
    return measure_ceilings(DEVICE)


@pytest.mark.parametrize(
    "case", harness.load_cases(SUITES, DEVICE, quick=True), ids=lambda case: case.label
)
def test_row(case: Case, benchmark: Any, request: pytest.FixtureRequest):
    benchmark.group = case.op
    timer = harness.make_timer(DEVICE)
    if benchmark.disabled:
        timer = HostTimer(0.0) if DEVICE.type == "cpu" else CudaTimer(DEVICE, 0.0)
    row = harness.measure(case, DEVICE, timer, ONCE if benchmark.disabled else QUICK, 0)
    assert row["status"] == "ok", row["error"]

    dtype, precision = harness.DTYPES[case.dtype]
    with torch.no_grad(), harness.testing.fp32_precision(precision):
        subject = case.build(dtype, DEVICE)
        function = subject.ours[row["ours"]]

        def call() -> None:
            function(subject.input)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize(DEVICE)

        benchmark(call)
    if not benchmark.disabled:
        derived = results.derive(row, request.getfixturevalue("ceilings"))
        benchmark.extra_info.update(
            label=row["label"],
            ours=row["ours"],
            us={name: results.median_us(row, name) for name in row["times"]},
            **{
                key: derived[key]
                for key in ("best_peer", "ratio", "tflops", "gbs", "roofline_percent")
                if key in derived
            },
        )
