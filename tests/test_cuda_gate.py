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
    table = configurations(cuda_gate.C_MID)
    rows = cuda_gate.measure(case)
    wrong = {str(row): cuda_gate.faults(row, case.architecture, table) for row in rows}
    assert {row: found for row, found in wrong.items() if found} == {}
    assert {row.configuration for row in rows} == set(range(len(table)))


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
    row = next(r for r in cuda_gate.measure(CASES[0]) if r.configuration == 0)
    assert any("shared memory" in fault for fault in cuda_gate.faults(row, "sm_86", table))
    hungry = [table[0]._replace(min_blocks=2), *table[1:]]
    assert any("registers" in fault for fault in cuda_gate.faults(row, "sm_80", hungry))
    idle = dataclasses.replace(row, matrix_instructions=0)
    assert any("matrix" in fault for fault in cuda_gate.faults(idle, "sm_80", table))


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
WARNING = "__global__ void unused_kernel(float* x) { int unused; x[0] = 1.0f; }\n"


@pytest.mark.parametrize(("code", "complaint"), [(SPILLING, "spill"), (WARNING, "unused")])
def test_the_gate_sees_a_spill_and_a_warning(
    code: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "csrc" / "broken.cu"
    source.parent.mkdir()
    source.write_text(code)
    monkeypatch.setattr(cuda_gate, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=complaint):
        cuda_gate.measure(Case(source, "sm_80"))
