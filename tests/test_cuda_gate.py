"""The offline gate of the CUDA sources: no warnings, no spills, registers and memory that fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import cuda_gate
from tests.cuda_gate import Case
from tests.emulator.pair import configurations

pytestmark = pytest.mark.skipif(
    cuda_gate.refusal() is not None, reason=f"gate: {cuda_gate.refusal()}"
)
CASES = tuple(cuda_gate.cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gate(case: Case):
    table = cuda_gate.table_of(case.op)
    rows = cuda_gate.measure(case)
    wrong = {str(row): cuda_gate.faults(row, case.architecture, table) for row in rows}
    assert {row: found for row, found in wrong.items() if found} == {}
    sm90 = case.source.name.startswith("sm90")
    assert {row.configuration for row in rows} == {i for i, c in enumerate(table) if c.sm90 == sm90}


@pytest.mark.parametrize("architecture", cuda_gate.SHARED_LIMITS)
def test_both_forms_fit_every_device(architecture: str):
    table = configurations(cuda_gate.C_MID)
    assert cuda_gate.forms_that_fit(architecture, table) == {True, False}


def test_every_source_is_compiled():
    assert {case.source for case in CASES} == set((cuda_gate.ROOT / "csrc").rglob("*.cu"))
    assert CASES


def test_the_gate_sees_what_does_not_fit():
    """Held against the smallest device, and against more registers, a good row must fail."""
    table = configurations(cuda_gate.C_MID)
    pair = next(c for c in CASES if c.op == "factorized_conv2d" and c.architecture == "sm_80")
    row = next(r for r in cuda_gate.measure(pair) if r.configuration == 0)
    assert any("shared memory" in fault for fault in cuda_gate.faults(row, "sm_86", table))
    hungry = [table[0]._replace(min_blocks=2), *table[1:]]
    assert any("registers" in fault for fault in cuda_gate.faults(row, "sm_80", hungry))
    with_wgmma = next(Case(c.source, "sm_90a") for c in CASES if "sm90" in c.source.name)
    rows = cuda_gate.measure(with_wgmma)
    assert all(row.matrix_instructions for row in rows)
    assert cuda_gate.faults(rows[0], "sm_80", table) == ["has matrix instructions"]
    idle = dataclasses.replace(row, matrix_instructions=0)
    assert any("matrix" in fault for fault in cuda_gate.faults(idle, "sm_80", table))
    pool = dataclasses.replace(row, kernel="pool2d_kernel", narrow_accesses=1)
    assert any("less than 16" in fault for fault in cuda_gate.faults(pool, "sm_80", table))


SPILLING = """
__global__ void __launch_bounds__(1024, 2) spill_kernel(float* x) {
  float r[48];
#pragma unroll
  for (int i = 0; i < 48; ++i) r[i] = x[i * 7 + threadIdx.x];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 48; ++i) r[i] += r[(i + 7 * k + 1) % 48] * r[k];
  }
#pragma unroll
  for (int i = 0; i < 48; ++i) x[i * 7 + threadIdx.x] = r[i];
}
"""
# The accumulators of a product in flight are set on one of two ways.
SERIALIZED = """
#include "common/device.cuh"
using namespace fused_inception;
__global__ void __launch_bounds__(128) serial_kernel(float* x, int n, uint64_t a) {
  float d[40];
  for (int i = 0; i < 40; ++i) d[i] = x[i];
  device::wgmma_fence(d);
  for (int i = 0; i < n; ++i) {
    device::wgmma_m64k16<Float16>(d, a + i, a, true);
    if (x[i] > 0) d[i % 2] += 1;
  }
  device::wgmma_commit();
  device::wgmma_finish(d);
  for (int i = 0; i < 40; ++i) x[i] = d[i];
}
"""
WARNING = "__global__ void unused_kernel(float* x) { int unused; x[0] = 1.0f; }\n"


@pytest.mark.parametrize(
    ("code", "architecture", "complaint"),
    [
        (SPILLING, "sm_80", "spill"),
        (WARNING, "sm_80", "unused"),
        (SERIALIZED, "sm_90a", r"\(C75\d\d\)"),
    ],
    ids=["spill", "warning", "serialized"],
)
def test_the_gate_sees_what_the_compilers_say(
    code: str, architecture: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "csrc" / "broken.cu"
    source.parent.mkdir()
    source.write_text(code)
    (source.parent / "common").symlink_to(cuda_gate.ROOT / "csrc" / "common")
    monkeypatch.setattr(cuda_gate, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=complaint):
        cuda_gate.measure(Case(source, architecture))
