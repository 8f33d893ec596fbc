"""The profiler's piece of the benches, with a stand-in for Nsight Compute."""

from __future__ import annotations

import json
import stat

import pytest
import torch

from bench import profile, targets
from bench.environment import BenchError

LABEL = "grid_reduction/n1-35x35-288-384+288-k3/float32"
OTHER = "inception_stem/n1-stem-299x299-3/float32"
COLUMNS = {
    "ID": ("", "0", "1"),
    "Kernel Name": ("", "reduce_kernel<int>(float *)", "pool_kernel"),
    "gpu__time_duration.sum": ("us", "1,234.50", "7"),
    "launch__grid_size": ("", "132", "4"),
    "launch__registers_per_thread": ("register/thread", "168", "32"),
    "launch__shared_mem_per_block_allocated": ("Kbyte/block", "200.5", ""),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "18.5", "60"),
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active": ("%", "41", "0"),
    "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active": ("%", "63.5", "0"),
    "lts__t_sectors.avg.pct_of_peak_sustained_elapsed": ("%", "33", "5"),
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "12", "81"),
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": ("", "3.5", "9"),
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": ("", "4.25", "0"),
}


def table():
    lines = [COLUMNS, *zip(*COLUMNS.values(), strict=True)]
    return "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)


def test_the_raw_page_becomes_kernels():
    kernels = profile.parse(f"==PROF== Connected\nran it\n{table()}\n")
    assert [kernel["name"] for kernel in kernels] == [*COLUMNS["Kernel Name"][1:]]
    first, second = kernels
    assert first["microseconds"] == 1234.5
    assert first["shared_memory"] == 200500
    assert first["matrix_units_percent"] == 63.5
    assert first["memory_percent"] == 12
    assert list(first["stalls"]) == ["barrier", "long_scoreboard"]
    assert first["waves"] is None
    assert second["shared_memory"] is None
    assert second["registers"] == 32


def test_no_table_is_an_error():
    with pytest.raises(BenchError, match="no table"):
        profile.parse("==ERROR== no permission (ERR_NVGPUCTRPERM)")


def test_a_row_in_words_begins_with_the_longest_kernel():
    lines = profile.describe("a row", profile.parse(table())[::-1])
    assert lines[0] == "a row: 2 launches, 1241.5 us in kernels"
    assert "1234.5 us | occupancy  18 % | matrix units  64 % | L2  33 %" in lines[1]
    assert "reduce_kernel | waits barrier 4.2, long_scoreboard 3.5" in lines[1]
    assert "pool_kernel" in lines[2]


@pytest.fixture
def ncu(tmp_path, monkeypatch):
    """A stand-in on PATH: it writes down its arguments and prints a table."""
    path = tmp_path / "bin" / "ncu"
    path.parent.mkdir()
    page, arguments = tmp_path / "page.csv", tmp_path / "arguments"
    page.write_text(table())
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {arguments}\ncat {page}\nexit $(cat {tmp_path}/code)\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return tmp_path


def test_profiles_one_call_without_touching_the_clocks(ncu):
    entries, left = profile.run([LABEL], torch.device("cuda"), ncu / "out", None)
    assert not left
    assert entries[LABEL]["kernels"] == profile.parse(table())
    arguments = (ncu / "arguments").read_text()
    assert "--clock-control none --profile-from-start off" in arguments
    assert f"-m bench.profile --call {LABEL} --device cuda" in arguments


def test_goes_on_where_it_stopped(ncu, monkeypatch):
    device, folder = torch.device("cuda"), ncu / "out"
    profile.run([LABEL], device, folder, None)
    entries, left = profile.run([LABEL, OTHER], device, folder, -1.0)
    assert left
    assert list(entries) == [LABEL]
    entries, left = profile.run([LABEL, OTHER], device, folder, None)
    assert not left
    assert (
        list(entries) == [LABEL, OTHER] == list(json.loads((folder / "profile.json").read_text()))
    )
    assert len((ncu / "arguments").read_text().splitlines()) == 2


def test_a_profiler_that_fails_is_one_line(ncu, capsys):
    (ncu / "code").write_text("1")
    entries, _ = profile.run([LABEL], torch.device("cuda"), ncu / "out", None)
    assert entries[LABEL]["error"].startswith(f"{LABEL}: exit code 1")
    assert "error: " in capsys.readouterr().out


def test_without_a_profiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BenchError, match="ncu is neither on PATH nor in"):
        profile.find_profiler()


def test_what_misses_its_target_is_profiled(monkeypatch):
    table = targets.table()
    standings = [
        targets.Standing(table[0], "missed", 1.0, LABEL),
        targets.Standing(table[1], "met", 9.0, "met"),
        targets.Standing(table[2], "missed", 1.0, LABEL),
        targets.Standing(table[2], "missed", None, "a row failed"),
        targets.Standing(table[2], "missed", 2.0, OTHER),
    ]
    monkeypatch.setattr(targets, "standings", lambda document: standings)
    rows = [{"label": label, "status": "ok"} for label in (LABEL, OTHER)]
    assert profile.missed({"rows": rows}) == [LABEL, OTHER]


@pytest.mark.parametrize("label", [LABEL, OTHER])
def test_a_label_finds_its_case(label):
    assert profile.find_case(label, torch.device("cpu")).label == label


def test_a_label_without_a_case_is_refused():
    with pytest.raises(BenchError, match="no case is left"):
        profile.find_case(LABEL.replace("k3", "k9"), torch.device("cpu"))
    with pytest.raises(BenchError, match="a label is OP/nBATCH-SHAPE/DTYPE"):
        profile.find_case("grid_reduction", torch.device("cpu"))


def test_the_call_runs_on_a_cpu(capsys):
    assert profile.main(["--device", "cpu", "--call", LABEL]) == 0
    assert capsys.readouterr().out == f"ran {LABEL} as aten\n"
