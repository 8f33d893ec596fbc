"""`make gpu`: pieces that stop and go on, sanitizers, the summary. Commands and clocks are fake."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import environment, gpu, results, resume, sanitize, sm90
from bench.gpu import Driver
from bench.timers import HostTimer
from fused_inception import testing
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from tests import cuda_stand_ins

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")


# ------------------------------------------------------------------ tests that stop and go on

SUITE = """
import os, time, pytest

def test_one(): pass
def test_two(): time.sleep(0.3)
def test_three(): assert os.environ.get("GOOD")
@pytest.mark.skip(reason="no")
def test_four(): pass
def test_five():
    if os.environ.get("CRASH"):
        os._exit(7)
def test_six():
    if os.environ.get("FATAL"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_seven(): pass
"""


@pytest.fixture
def session(tmp_path: Path):
    """Runs pytest with the plugin on a small suite; returns (exit code, outcomes by name)."""
    (tmp_path / "test_small.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(*options: str, budget: float = 60, **variables: str) -> tuple[int, dict[str, str]]:
        path = tmp_path / "outcomes.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.resume", "--resume-file"]
        done = subprocess.run(
            [*command, str(path), "--resume-budget", str(budget), *options],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        outcomes = resume.read(path)
        return done.returncode, {name.rpartition("_")[2]: o for name, o in outcomes.items()}

    return run


def test_outcomes_are_kept_and_not_repeated(session):
    code, outcomes = session()
    assert code == 1
    assert outcomes == {
        "one": "passed", "two": "passed", "three": "failed", "four": "skipped", "five": "passed",
        "six": "passed", "seven": "passed",
    }  # fmt: skip
    code, again = session(GOOD="1")
    assert code == 5  # nothing left
    assert again == outcomes


def test_a_session_stops_at_its_budget_and_goes_on(session, tmp_path: Path):
    code, outcomes = session(budget=0.2, GOOD="1")
    assert code == 2
    assert 1 <= len(outcomes) < 7
    assert resume.left(tmp_path / "outcomes.jsonl") == 7 - len(outcomes)
    code, outcomes = session(GOOD="1")
    assert code == 0
    assert len(outcomes) == 7


def test_a_test_that_ends_the_process_twice_has_crashed(session):
    for known in (False, True):
        code, outcomes = session(GOOD="1", CRASH="1")
        assert code == 7
        assert ("five" in outcomes) is known
    code, outcomes = session(GOOD="1", CRASH="1")
    assert outcomes["five"] == "crashed"
    assert outcomes["seven"] == "passed"


def test_an_unusable_device_ends_the_session(session):
    code, outcomes = session(GOOD="1", FATAL="1")
    assert code == 2
    assert outcomes["six"] == "failed"
    assert "seven" not in outcomes
    assert session(GOOD="1")[1]["seven"] == "passed"


def test_a_file_that_cannot_be_collected_has_failed(session, tmp_path: Path):
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name")
    code, outcomes = session("--continue-on-collection-errors", GOOD="1")
    assert code == 1
    assert outcomes["broken.py"] == "failed"
    assert outcomes["seven"] == "passed"
    assert resume.left(tmp_path / "outcomes.jsonl") == 0


# ---------------------------------------------------------------------------------- pieces


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(CUDA, tmp_path, commit="abc")


class FakeCalls:
    """Stands for processes: each entry is an exit code and what the process has done by then."""

    def __init__(self, driver: Driver, plan: list[tuple[int, int]], clock: list[float]) -> None:
        self.driver, self.plan, self.clock = driver, plan, clock
        self.seconds: list[float] = []
        self.done = 0

    def __call__(self, command: list[str], seconds: float) -> int:
        code, progress = self.plan.pop(0)
        self.seconds.append(seconds)
        self.clock[0] += seconds
        self.done += progress
        return code


@pytest.fixture
def calls(driver: Driver, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def plan(*entries: tuple[int, int]) -> FakeCalls:
        fake = FakeCalls(driver, list(entries), clock)
        monkeypatch.setattr(gpu, "call", fake)
        monkeypatch.setattr(Driver, "_done", lambda self, piece: fake.done)
        return fake

    return plan


def test_a_piece_goes_on_until_it_is_done(driver: Driver, calls):
    fake = calls((3, 4), (3, 2), (0, 1))
    assert driver.run("network", None) == "done"
    assert fake.plan == []
    assert all(seconds < 9 * 60 for seconds in fake.seconds)


def test_a_piece_that_fails_is_not_repeated(driver: Driver, calls):
    fake = calls((1, 1), (0, 1))
    assert driver.run("sanitize", None) == "failed"
    assert len(fake.plan) == 1


def test_processes_in_vain_end(driver: Driver, calls):
    fake = calls(*[(3, 0)] * 9)
    assert driver.run("network", None) == "failed"
    assert len(fake.seconds) == 3


def test_a_budget_is_kept(driver: Driver, calls):
    fake = calls(*[(3, 1)] * 99)
    assert driver.run("network", 1000.0) == "left"
    assert sum(fake.seconds) <= 1000.0
    assert len(fake.seconds) >= 2


@pytest.mark.parametrize(("left", "state"), [(0, "failed"), (5, "done"), (None, "done")])
def test_failing_tests_do_not_hide_those_behind_them(
    driver: Driver, calls, monkeypatch, left: int | None, state: str
):
    calls((1, 3), (0, 2))
    monkeypatch.setattr(resume, "left", lambda path: left)
    assert driver.run("tests", None) == state


def test_the_commands_of_the_pieces(driver: Driver):
    exact, *_, tests = (" ".join(driver.command(piece, 100)) for piece in gpu.TESTS)
    assert "-m gpu" in exact
    assert "-k exact" in exact
    assert tests == exact.replace(" -k exact", "")
    bench = " ".join(driver.command("network", 100))
    assert "bench network --device cuda --budget 100" in bench
    assert "--commit abc" in bench
    assert "sanitize" in " ".join(driver.command("sanitize", 100))


def test_a_process_that_does_not_end_is_killed(capfd):
    code = gpu.call([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert code == 3
    assert "killed after 0 s" in capfd.readouterr().out


def test_a_dry_run(tmp_path: Path):
    """One bench and no test, for real, on a CPU: files, summary, targets, exit code."""
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--piece", "split_conv2d", "--folder", str(tmp_path), "--commit", "abc"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    summary = lines[lines.index("== summary") :]
    assert summary[1] == "A dry run on a CPU: the pieces run. Nothing was shown about a GPU."
    assert "benches: 1 rows measured, 0 failed" in summary
    assert "piece split_conv2d: done" in summary
    assert "targets: 1 not measured" in summary
    (path,) = tmp_path.glob("*/*/all.json")
    assert path.parent.name == environment.code()["sources"]
    assert len(results.load(path)["rows"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here; --device cpu is a dry run\n"
    assert sanitize.main([]) == 2
    assert "there is no GPU here" in capsys.readouterr().err


def test_what_misses_its_target_is_profiled_last(driver: Driver, calls, capsys):
    assert gpu.PIECES[-1] == gpu.PROFILE
    assert driver.run(gpu.PROFILE, None) == "done"
    assert "no bench has measured anything yet" in capsys.readouterr().out
    command = " ".join(driver.command(gpu.PROFILE, 100))
    assert (
        f"-m bench.profile --device cuda --budget 100 --folder {driver.folder}/profile" in command
    )
    assert command.endswith(f"--result {driver.folder}/all.json")


def test_an_unknown_piece_is_refused(capsys):
    assert gpu.main(["--device", "cpu", "--piece", "pair"]) == 2
    assert "--piece takes all, bench, exact, cuda, emulator, sm90," in capsys.readouterr().err


def test_the_summary_says_what_failed_and_what_missed(driver: Driver, capsys):
    lines = [("a", "passed"), ("b", "failed"), ("c", "skipped")]
    driver.outcomes.write_text(
        "".join(json.dumps({"test": test, "outcome": outcome}) + "\n" for test, outcome in lines)
    )
    (driver.folder / "sanitize").mkdir()
    found = {"memcheck split_conv2d": ["failed", "ERROR SUMMARY: 2 errors"]}
    (driver.folder / "sanitize" / "sanitize.json").write_text(json.dumps(found))
    row = {
        "label": "slow", "op": "split_conv2d", "shape": "8x8-384-x", "batch": 1, "session": 0,
        "dtype": "bfloat16", "status": "ok", "ours": "triton", "times": {"P3": {}},
        "derived": {"ratio": 1.0},
    }  # fmt: skip
    document = {"device": {"kind": "cuda"}, "rows": [row]}
    assert gpu.summarize(driver, {"tests": "failed"}, document) == 1
    out = capsys.readouterr().out
    assert "tests: 1 passed, 1 failed, 1 skipped" in out
    assert "  failed  b" in out
    assert "  failed  memcheck split_conv2d: ERROR SUMMARY: 2 errors" in out
    assert "  missed        split, batch 1: >= 2, is 1, 50% off (slow)" in out
    assert gpu.summarize(driver, {"tests": "done"}, None) == 1  # a failure of an earlier call
    driver.outcomes.unlink()
    assert gpu.summarize(driver, {"tests": "left"}, document) == 3
    assert gpu.summarize(driver, {"tests": "done"}, document) == 0  # a target is no failure


# ------------------------------------------------------------------------------- sanitizers


def test_the_small_set_of_calls_runs_here():
    for op in sanitize.OPS:
        assert sanitize.run_calls(op, CPU) == len(list(sanitize.calls(op)))


@pytest.fixture
def fake_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A compute-sanitizer that says what it is told to."""

    def install(code: int, output: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "compute-sanitizer"
        script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/seen\nenv > {tmp_path}/env\n')
        with script.open("a") as file:
            file.write(f"cat <<'END'\n{output}\nEND\nexit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.parametrize(
    ("op", "code", "output", "state"),
    [
        ("split_conv2d", 0, "9 calls\n========= ERROR SUMMARY: 0 errors", "passed"),
        ("split_conv2d", 86, "9 calls\n========= ERROR SUMMARY: 3 errors", "failed"),
        ("split_conv2d", 0, "0 calls\n========= ERROR SUMMARY: 0 errors", "nothing"),
        ("split_conv2d", 1, "Traceback\nRuntimeError: broken", "broken"),
        ("planted", 86, "========= ERROR SUMMARY: 4 errors", "passed"),
        ("planted", 0, "1 calls\n========= ERROR SUMMARY: 0 errors", "failed"),
    ],
)
def test_what_a_sanitizer_says(
    fake_sanitizer, tmp_path: Path, op: str, code: int, output: str, state: str
):
    fake_sanitizer(code, output)
    found, line = sanitize.check("memcheck", op, CUDA, tmp_path / "log")
    assert found == state
    assert line
    seen = (tmp_path / "seen").read_text()
    assert "--tool memcheck --error-exitcode 86" in seen
    assert f"-m bench.sanitize --calls {op} --device cuda" in seen
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in (tmp_path / "env").read_text()
    assert "SUMMARY" in (tmp_path / "log").read_text() or state == "broken"


def test_sanitizers_go_on_where_they_stopped(tmp_path: Path, monkeypatch):
    seen = []

    def check(tool: str, op: str, device: torch.device, log: Path) -> tuple[str, str]:
        seen.append((tool, op))
        return "passed", "fine"

    monkeypatch.setattr(sanitize, "check", check)
    assert sanitize.run(CUDA, tmp_path, -1.0) == {}
    outcomes = sanitize.run(CUDA, tmp_path, None)
    assert len(outcomes) == 1 + 4 * len(sanitize.OPS)
    assert seen[0] == ("memcheck", "planted")
    sanitize.run(CUDA, tmp_path, None)
    assert len(seen) == len(outcomes)


def test_without_a_sanitizer_it_says_so(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(environment.BenchError, match="compute-sanitizer is neither on PATH nor in"):
        sanitize.find_sanitizer()


# ------------------------------------------------------------------------- what is open on sm_90a


def test_what_is_open_on_sm_90a_is_left_out_elsewhere(tmp_path: Path, capsys):
    assert gpu.GROUPS["sm90"] == ("sm90", gpu.OPEN)
    assert sm90.main(["--device", "cpu", "--output", str(tmp_path / "times.json")]) == 0
    assert capsys.readouterr().out == "left out: needs a device of compute capability 9.0\n"


@pytest.mark.parametrize("same", [True, False])
def test_a_pair_is_timed_where_all_configurations_agree(same: bool, monkeypatch):
    table = tuple(
        cuda_launch.Configuration(6 + i, True, 160, 192, 10**5, 1, i + 1) for i in range(3)
    )
    calls = itertools.count()

    def launch(
        problem, configuration, images, x, w1, b1, w2, b2, output, mid_activation, activation
    ):
        output.fill_(0 if same else next(calls))

    monkeypatch.setattr(cuda_launch, "launch", launch)
    monkeypatch.setattr(cuda_launch, "sm90_configurations", lambda problem: table)
    monkeypatch.setattr(cuda_launch, "_device", lambda _: cuda_launch.Device(10**5, 132, 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: None)
    monkeypatch.setattr(sm90, "CudaTimer", lambda _: HostTimer(1e-4))
    rows = sm90.pair_rows(testing.PairShape(1, 17, 17, 8, 8, 8, 3, 3, True), CPU)
    assert [row["configuration"] for row in rows] == [
        "192x160", "192x160-multicast2", "192x160-multicast3",
    ]  # fmt: skip
    assert sum(row["chosen"] for row in rows) == 1
    assert [bool(row["error"]) for row in rows] == [not same] * 3
    assert [row["us"] is not None for row in rows] == [same] * 3


@pytest.mark.parametrize(
    ("op", "shape", "wrong"),
    [
        ("conv2d_act", testing.ConvShape(1, 9, 7, 16, 24, (3, 3), (2, 2), (1, 1)), None),
        ("grid_reduction", testing.ReductionShape(1, 9, 7, 16, 24, 3), None),
        ("split_conv2d", testing.SplitShape(2, 8, 8, 16, 24, 8, 3, 3), None),
        ("split_conv2d", testing.SplitShape(2, 8, 8, 16, 24, 8, 3, 3), "whole-128x192"),
    ],
    ids=["conv2d_act", "grid_reduction", "split_conv2d", "one-is-wrong"],
)
def test_ops_on_wgmma_are_timed_where_all_candidates_are_exact(
    op: str, shape: Any, wrong: str | None, monkeypatch
):
    """Convolutions of the CPU stand for the kernels, PyTorch's own for Triton's."""
    cuda_stand_ins.install(monkeypatch)
    limits = cuda_launching.Device(227 * 1024, 132, 1 << 20)
    monkeypatch.setattr(cuda_launching, "device_limits", lambda device: limits)
    monkeypatch.setattr(sm90, "CudaTimer", lambda _: HostTimer(1e-4))
    public = getattr(sm90, op)
    monkeypatch.setattr(sm90, op, lambda *args, **kw: public(*args, **{**kw, "backend": "aten"}))
    if wrong:
        launch = split_launch._out_operator

        def operator(*operands: Any) -> None:
            launch(*operands)
            if operands[-1] == 4:  # its number
                operands[5].add_(1)

        monkeypatch.setattr(split_launch, "_out_operator", operator)
    rows = sm90.op_rows(op, shape, CPU)
    assert {row["engine"] for row in rows} == {"mma.sync", "wgmma", "triton"}
    for engine in ("mma.sync", "wgmma", "triton"):
        assert sum(row["chosen"] for row in rows if row["engine"] == engine) == 1
    assert [row["configuration"] for row in rows if row["error"]] == ([wrong] if wrong else [])
    assert all((row["us"] is None) == bool(wrong) for row in rows)


def test_the_shapes_that_are_timed_are_inceptions():
    """Segments of one input are timed as one product."""
    convs = {(s.height, s.c_in, s.kernel, s.stride) for s in testing.inception_v3_convs(1)}
    for op, shape in sm90.op_shapes(1):
        if op == "conv2d_act":
            assert (shape.height, shape.c_in, shape.kernel, shape.stride) in convs, shape
