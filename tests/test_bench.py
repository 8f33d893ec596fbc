"""The bench harness: gates, times, results, comparisons, pictures and the command line.

Times come from a fake timer where numbers are looked at, from the host's clock where the plumbing
is. Left out: CUDA events and graphs, which need a device.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import adapters, environment, harness, peers, results, targets
from bench.environment import BenchError
from bench.harness import SUITES, Case, Policy, Run
from bench.timers import HostTimer
from fused_inception import testing
from tests import adapter_cases

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
# Microseconds of a call on the fake GPU, by variant and mode.
SPEEDS = {
    ("aten", "eager"): 20.0,
    ("aten", "graph"): 10.0,
    ("fused", "eager"): 40.0,
    ("fused", "graph"): 30.0,
    ("public", "eager"): 9.0,
    ("public", "graph"): 8.0,
    ("P0", "eager"): 5.0,  # the fastest of all, and no peer
    ("P1", "eager"): 50.0,
    ("P2", "graph"): 30.0,
    ("P3", "graph"): 25.0,
    ("P4", "graph"): 27.0,
}
CEILINGS = {f"{name}_flops": 8e14 for name in harness.DTYPES} | {"copy_bytes": 4e12}


class FakeTimer:
    """A GPU's modes, and times from a table instead of a clock; nothing but the gate runs."""

    modes = ("eager", "graph")

    def __init__(self, speeds: dict[tuple[str, str], float] = SPEEDS, jitter: float = 0.01) -> None:
        self.speeds = speeds
        self.jitter = jitter
        self.calls: list[tuple[str, str, int]] = []

    def inputs(self, bytes_per_call: int) -> int:
        return 3

    def sampler(
        self, name: str, function: object, inputs: Sequence[torch.Tensor], mode: str
    ) -> Callable[[], float]:
        self.calls.append((name, mode, len(inputs)))
        base = self.speeds[name, mode] * (1.0 if len(inputs) > 1 else 0.9)
        state = {"round": 0}

        def sample() -> float:
            state["round"] += 1
            return base * (1 + self.jitter * (state["round"] % 5 - 2))

        return sample


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are recorded as those of a GPU."""
    real = environment.identity(CPU)
    device = {"kind": "cuda", "name": "Fake GPU", "l2_bytes": 50_000_000}
    monkeypatch.setattr(harness, "identity", lambda _: {**real, "device": device})


def pair_cases(
    batches: Sequence[int] = (1,), dtype: str = "float32", *, quick: bool = True
) -> list[Case]:
    return harness.load_cases(
        ["factorized_conv2d"], CPU, quick=quick, batches=batches, dtypes=[dtype], only="^factorized"
    )


def make_run(path: Path, cases: Sequence[Case] | None = None, **options: object) -> Run:
    return Run(
        pair_cases() if cases is None else cases,
        CPU,
        path,
        **{
            "timer": FakeTimer(),
            "policy": Policy(rounds=6, without=frozenset({"P0", "P3"})),
            "measure_ceilings": lambda device: CEILINGS,
            **options,
        },  # type: ignore[arg-type]
    )


# ------------------------------------------------------------------------------------ cases


def test_every_suite_has_its_shapes():
    cases = harness.load_cases(SUITES, CPU)
    ops = [case.op for case in cases]
    assert ops.count("factorized_conv2d") == 2 * len(testing.inception_v3_pairs(1))
    assert ops.count("split_conv2d") == 2 * len(testing.inception_v3_splits(1))
    assert ops.count("grid_reduction") == 2 * len(testing.inception_reductions(1))
    assert ops.count("conv2d_act") == 2 * len(testing.inception_v3_convs(1))
    assert ops.count("network") == 2
    assert ops.count("overhead") == 1
    # The blocks that `fuse` replaces join by themselves.
    blocks = {case.op: [] for case in cases if case.op not in (*SUITES, "overhead")}
    for case in cases:
        if case.op in blocks and case.batch == 1:
            blocks[case.op].append(case.shape)
    assert blocks["inception_c"] == [f"Mixed_6{letter}-17x17-768" for letter in "bcde"]
    assert blocks.get("inception_e") == ["Mixed_7b-8x8-1280", "Mixed_7c-8x8-2048"]
    assert len({case.label for case in cases}) == len(cases)


def test_a_gpu_has_every_batch_and_dtype_and_begins_with_the_targets():
    cases = harness.load_cases(["factorized_conv2d"], torch.device("cuda"))
    assert {case.batch for case in cases if case.dtype == "bfloat16"} == {1, 8, 32, 64, 128, 256}
    assert {case.dtype for case in cases} == set(harness.DTYPES)
    wanted = [targets.asks_for(c.op, c.shape, c.batch, c.dtype) for c in cases]
    assert sum(wanted) == 15  # three shapes, five batches
    assert wanted == sorted(wanted, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "nothing has this"}, "no case is left to measure"),
        ({"only": "("}, "--only takes a regular expression"),
        ({"dtypes": ["int8"]}, "--dtype takes bfloat16, float16, float32, tf32, got 'int8'"),
    ],
)
def test_wrong_choices_are_refused(options: dict[str, object], message: str):
    with pytest.raises(BenchError, match=re.escape(message)):
        harness.load_cases(["split_conv2d"], CPU, **options)  # type: ignore[arg-type]


def test_an_unknown_suite_is_refused():
    with pytest.raises(BenchError, match="there is no bench 'pool', there are factorized_conv2d"):
        harness.load_cases(["pool"], CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "takes auto, cpu, cuda or cuda:N, got 'gpu'"), ("cuda:97", "cannot be used")],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str):
    with pytest.raises(BenchError, match=message):
        environment.resolve_device(name)


# ------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("suite", [*SUITES, "halving_branches", "pool2d"])
def test_every_script_measures_on_a_cpu(suite: str, tmp_path: Path):
    """The host's clock, PyTorch's own convolutions; nothing that only a GPU has is written down."""
    policy = Policy(rounds=1, without=frozenset({"P3"}))
    cases = harness.load_cases([suite], CPU, quick=True)
    run = Run(cases, CPU, tmp_path / "result.json", HostTimer(sample_seconds=0.0), policy)
    document = run()
    assert document["sessions"][0]["ceilings"] is None
    for row in document["rows"]:
        assert row["status"] == "ok", row.get("error")
        assert row["gates"][row["ours"]]["passed"]
        assert {mode for modes in row["times"].values() for mode in modes} == {"eager"}
        assert not {"tflops", "gbs", "roofline_percent"} & row["derived"].keys()
        line = harness.format_row(row)
        assert "TFLOP" not in line
        assert "roofline" not in line
    (first,) = [row for row in document["rows"] if row["op"] == suite][:1]
    if suite == "network":
        assert first["ours"] == "fused"
    else:
        assert first["ours"] == "aten"
        assert {"cuda", "triton"} <= first["refused"].keys()
    assert first["refused"].get("P4") == (
        "cuDNN needs a CUDA device" if suite == "conv2d_act" else None
    )


def test_the_clock_of_the_process_does_not_count_waiting():
    def wait(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return x

    inputs = [torch.ones(1)]
    wall, cpu = (
        HostTimer(0.0, clock).sampler("wait", wait, inputs, "eager")() for clock in ("wall", "cpu")
    )
    assert wall > 15_000
    assert cpu < wall / 4
    with pytest.raises(BenchError, match="--clock cpu is for --device cpu"):
        harness.make_timer(CUDA, "cpu")


def test_a_row_of_a_gpu(tmp_path: Path, fake_gpu: None):
    run = make_run(tmp_path / "result.json", pair_cases((32,)), policy=Policy(rounds=6))
    (row,) = run()["rows"]
    assert row["status"] == "ok"
    assert row["label"] == "factorized_conv2d/n32-17x17-192-192-192-row7col7/float32"
    assert set(row["times"]) == {"aten", "P0", "P1", "P2"}
    assert set(row["times"]["aten"]) == {"eager", "graph"}
    assert set(row["times"]["aten"]["graph"]) == {"rotated", "same"}
    assert row["refused"]["P3"] == "compiled only where a target is set"
    derived = row["derived"]
    assert derived["best_peer"] == "P2"  # P0 is never the denominator
    assert derived["ratio"] == pytest.approx(3.0)  # 30 us of P2 against 10 us of ours
    assert derived["ratio_p1_eager"] == pytest.approx(2.5)
    macs = 32 * 289 * 7 * 2 * 192 * 192
    assert row["work"]["macs"] == macs
    assert derived["tflops"] == pytest.approx(2 * macs / 10e-6 / 1e12, rel=1e-2)
    moved = 4 * (2 * 32 * 192 * 289 + 2 * 7 * 192 * 192 + 2 * 192)
    assert row["work"]["fused_bytes"] == moved
    assert derived["gbs"] == pytest.approx(moved / 10e-6 / 1e9, rel=1e-2)
    floor = max(2 * macs / 8e14, moved / 4e12)
    assert derived["roofline_percent"] == pytest.approx(100 * floor / 10e-6, rel=1e-2)
    low, high = derived["ratio_p20"], derived["ratio_p80"]
    assert low <= derived["ratio"] <= high
    assert "TFLOP/s" in harness.format_row(row)


def test_inputs_are_rotated_and_kept(tmp_path: Path, fake_gpu: None):
    timer = FakeTimer()
    make_run(tmp_path / "result.json", timer=timer)()
    assert ("aten", "graph", 3) in timer.calls
    assert ("aten", "graph", 1) in timer.calls
    assert ("P1", "graph", 3) not in timer.calls  # that is P2


def test_the_compiler_is_a_peer_where_a_target_asks(tmp_path: Path, monkeypatch, fake_gpu: None):
    monkeypatch.setattr(peers, "compile_frozen", lambda module, example: module)
    case = dataclasses.replace(pair_cases()[0], dtype="bfloat16")
    monkeypatch.setattr(harness, "check", lambda *args: {"passed": True, "error": 0, "limit": 1})
    run = make_run(tmp_path / "result.json", [case], policy=Policy(rounds=2))
    (row,) = run()["rows"]
    assert row["derived"]["best_peer"] == "P3"
    assert row["derived"]["ratio"] == pytest.approx(2.5)


@pytest.mark.slow
def test_the_compiler_is_a_peer_on_a_cpu(tmp_path: Path):
    """The real one: compiled, frozen, through its gate."""
    torch._dynamo.utils.counters.clear()
    policy = Policy(rounds=1, without=frozenset({"P0"}), compile_all=True)
    run = Run(pair_cases(), CPU, tmp_path / "result.json", HostTimer(0.0), policy)
    (row,) = run()["rows"]
    assert "P3" in row["times"], row["refused"]
    assert row["gates"]["P3"]["passed"]
    assert row["derived"]["ratio_p3"] > 0
    # Compiled once: a second program would not be a frozen one.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_a_compiler_can_read_the_older_switch(monkeypatch, precision: str):
    """Inductor's convolutions do so on a GPU, where it must not cost us the peer."""
    seen = []

    def compile(module: object, **options: object) -> Callable[[torch.Tensor], None]:
        return lambda example: seen.append(torch.backends.cudnn.allow_tf32)

    monkeypatch.setattr(torch, "compile", compile)
    with testing.fp32_precision(precision):
        peers.compile_frozen(torch.nn.Identity(), torch.ones(1))
        assert torch.backends.cudnn.conv.fp32_precision == precision
    assert seen == [precision == "tf32"]


def change_ours(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]):
    module = __import__("bench.factorized_conv2d", fromlist=["subject"])
    real = module.factorized_conv2d
    monkeypatch.setattr(
        module, "factorized_conv2d", lambda *args, **options: change(real(*args, **options))
    )


def spoil_one(image: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(out: torch.Tensor) -> torch.Tensor:
        if out.shape[0] > image:
            out[image, 0, 0, 0] += value
        return out

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil_one(0, 1e-3),
        spoil_one(1, 1e-3),  # an image that is not compared with float64
        spoil_one(0, float("nan")),
        lambda out: out[:, :-1],
    ],
    ids=["first image", "middle image", "nan", "shape"],
)
def test_a_wrong_result_has_no_time(tmp_path: Path, monkeypatch, change):
    change_ours(monkeypatch, change)
    run = make_run(tmp_path / "result.json", pair_cases((3,)))
    (row,) = run()["rows"]
    assert row["status"] == "failed"
    assert row["times"] == {}
    assert "failed its gate" in row["error"]
    assert harness.exit_code(run, results.load(run.path)) == 1
    assert "FAILED" in harness.format_row(row)


@pytest.mark.parametrize(("change", "is_peer"), [(1e-3, False), (1e-5, True)])
def test_a_wrong_peer_is_no_peer(tmp_path: Path, monkeypatch, change: float, is_peer: bool):
    """One that only rounds more than ours may (its limit is 6e-6 here) stays one."""
    monkeypatch.setattr(peers, "compile_frozen", lambda module, x: lambda x: module(x) + change)
    policy = Policy(rounds=2, compile_all=True)
    (row,) = make_run(tmp_path / "result.json", policy=policy)()["rows"]
    assert row["status"] == "ok"
    assert ("P3" in row["times"]) is is_peer
    assert is_peer or row["refused"]["P3"].startswith("failed its gate")
    assert (row["gates"]["P3"]["error"] > row["gates"][row["ours"]]["limit"]) is True


def test_a_peer_that_raises_is_no_peer(tmp_path: Path, monkeypatch):
    def broken(module: object, example: object) -> object:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(peers, "compile_frozen", broken)
    policy = Policy(rounds=2, compile_all=True)
    (row,) = make_run(tmp_path / "result.json", policy=policy)()["rows"]
    assert row["refused"]["P3"] == "RuntimeError: no compiler"


def test_folding_and_unfolding_keep_the_arithmetic():
    from bench.network import reference_network

    block = reference_network().get_submodule("Mixed_6b")
    images = testing.channels_last(
        testing.random_tensor((2, 768, 17, 17), torch.float32, CPU, 1, 0)
    )
    with torch.no_grad():
        expected, folded = block(images), peers.fold(block)(images)
    assert 0 < (folded - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in peers.fold(block).modules())
    conv = peers.same(torch.ones(2, 3, 1, 5), torch.ones(2))
    norms = [m for m in peers.unfold(conv).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 1
    assert peers.unfold(conv)(torch.ones(1, 3, 4, 4)).shape == (1, 2, 4, 4)


@pytest.mark.gpu
def test_a_row_measured_on_a_gpu(tmp_path: Path):
    """Events, graphs, ceilings: what the fake timer stands for elsewhere."""
    device = environment.resolve_device("cuda")
    cases = harness.load_cases(["factorized_conv2d"], device, quick=True, batches=[8])
    run = Run(cases, device, tmp_path / "r.json", harness.make_timer(device), harness.QUICK)
    document = run()
    (row,) = document["rows"]
    assert row["status"] == "ok", row.get("error")
    assert set(row["times"][row["ours"]]) == {"eager", "graph"}
    assert {"P1", "P2"} <= row["times"].keys()
    assert all(rate > 0 for rate in document["sessions"][0]["ceilings"].values())
    assert 0 < row["derived"]["roofline_percent"] < 100
    assert row["derived"]["matrix_percent"] < 100


@pytest.mark.gpu
def test_rotated_inputs_move_twice_the_cache():
    from bench.timers import CudaTimer

    timer = CudaTimer(environment.resolve_device("cuda"))
    for size in (10**6, 10**7, 10**9):
        assert timer.inputs(size) * size >= 2 * timer.l2_bytes
        assert timer.inputs(size) >= 2


# --------------------------------------------------------------------------------- sessions


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, fake_gpu: None):
    path = tmp_path / "result.json"
    cases = pair_cases((1, 2, 3))
    first = make_run(path, cases, budget=-1.0)
    document = first()
    assert document["rows"] == []
    assert harness.exit_code(first, document) == 3
    half = make_run(path, cases[:2])()
    assert [row["session"] for row in half["rows"]] == [0, 0]
    seen: list[tuple[str, int, int]] = []
    rest = make_run(
        path, cases, report=lambda row, done, total: seen.append((row["label"], done, total))
    )
    document = rest()
    assert seen == [(cases[2].label, 3, 3)]
    assert [row["session"] for row in document["rows"]] == [0, 0, 1]
    assert harness.exit_code(rest, document) == 0
    assert make_run(path, cases)() == document  # nothing is left: no session either


def test_a_budget_leaves_out_what_would_end_after_it(tmp_path: Path, monkeypatch, fake_gpu: None):
    clock = {"now": 0.0}
    monkeypatch.setattr(harness.time, "monotonic", lambda: clock["now"])

    def measure(case: Case, *_: object) -> dict[str, object]:
        clock["now"] += 40.0
        return {"label": case.label, "status": "failed", "error": "", "session": 0}

    monkeypatch.setattr(harness, "measure", measure)
    run = make_run(tmp_path / "result.json", pair_cases((1, 2, 3, 4)), budget=100.0)
    assert len(run()["rows"]) == 2  # a third would end at 120


def test_a_row_that_never_ended_is_measured_without_the_compiler(
    tmp_path: Path, monkeypatch, fake_gpu: None
):
    """As after a session that was killed, twice."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "result.json"
    policy = Policy(rounds=2, compile_all=True)
    monkeypatch.setattr(peers, "compile_frozen", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_run(path, policy=policy)()
    (row,) = make_run(path, policy=policy)()["rows"]
    assert row["refused"]["P3"] == "left out of this run"


def test_an_error_costs_its_own_row_only(tmp_path: Path, fake_gpu: None):
    def broken(dtype: object, device: object) -> object:
        raise MemoryError("no memory")

    cases = pair_cases((1, 2))
    run = make_run(
        tmp_path / "result.json", [dataclasses.replace(cases[0], build=broken), cases[1]]
    )
    document = run()
    assert [row["status"] for row in document["rows"]] == ["error", "ok"]
    assert document["rows"][0]["error"] == "MemoryError: no memory"
    assert harness.exit_code(run, document) == 1


def test_results_of_other_code_are_not_continued(tmp_path: Path):
    path = tmp_path / "result.json"
    make_run(path)()
    document = json.loads(path.read_text())
    document["code"]["sources"] = "other"
    path.write_text(json.dumps(document))
    with pytest.raises(BenchError, match=r"cannot be continued \(code sources: other and"):
        make_run(path, pair_cases((2,)))()
    assert len(make_run(path)(fresh=True)["rows"]) == 1


# ---------------------------------------------------------------------------------- results


def test_a_result_describes_itself(tmp_path: Path, fake_gpu: None):
    path = tmp_path / "result.json"
    make_run(path, command="python -m bench")()
    document = results.load(path)
    assert document["schema"] == 1
    assert document["device"]["name"] == "Fake GPU"
    assert document["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{16}", document["code"]["sources"])
    assert {"commit", "dirty"} <= document["code"].keys()
    assert set(document["peers"]) == {"P0", "P1", "P2", "P3", "P4"}
    (session,) = document["sessions"]
    assert session["command"] == "python -m bench"
    assert session["ceilings"] == CEILINGS
    assert document["rows"][0]["command"].startswith("python -m bench factorized_conv2d --device")
    lines = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert len(lines) == 2 * 2 + 2 + 2  # ours twice, P1 and P2 once, two kinds of input each
    assert {line["variant"] for line in lines} == {"aten", "P1", "P2"}


def test_the_command_of_a_row_measures_that_row_alone(tmp_path: Path):
    case = pair_cases((2,), quick=False)[0]
    words = case.command(CPU).split()
    only = words[words.index("--only") + 1].strip("'")
    found = harness.load_cases([words[3]], CPU, batches=[2], dtypes=["float32"], only=only)
    assert [c.label for c in found] == [case.label]


def test_parts_are_merged(tmp_path: Path, fake_gpu: None):
    parts = [make_run(tmp_path / f"{n}.json", pair_cases((n,)))() for n in (1, 2)]
    again = json.loads(json.dumps(parts[0]))
    again["rows"][0]["ours"] = "newer"
    merged = results.merge([*parts, again])
    assert [row["batch"] for row in merged["rows"]] == [1, 2]
    assert merged["rows"][0]["ours"] == "newer"
    assert [row["session"] for row in merged["rows"]] == [2, 1]
    assert len(merged["sessions"]) == 3
    path = tmp_path / "merged.json"
    assert results.main([str(path), str(tmp_path / "1.json"), str(tmp_path / "2.json")]) == 0
    assert len(results.load(path)["rows"]) == 2
    assert results.main([str(path)]) == 2
    other = {**parts[1], "device": {**parts[1]["device"], "name": "Other GPU"}}
    with pytest.raises(BenchError, match="not parts of one result: device name"):
        results.merge([parts[0], other])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "of schema None"),
        ('{"schema": 99}', "of schema 99, this reads"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(BenchError, match=message):
        results.load(path)


@pytest.mark.parametrize(
    ("factor", "p1_factor", "verdict"),
    [
        (1.0, 1.0, "within the noise"),
        (1.015, 1.0, "within the noise"),
        (1.2, 1.0, "slower"),
        (0.8, 1.0, "faster"),
        (1.2, 1.2, "within the noise"),  # the machine was slower, and P1 as well
    ],
)
def test_compare(tmp_path: Path, fake_gpu: None, factor: float, p1_factor: float, verdict: str):
    def run(name: str, ours: float, p1: float) -> results.Document:
        speeds = {
            key: us * (ours if key[0] == "aten" else p1 if key[0] in ("P1", "P2") else 1)
            for key, us in SPEEDS.items()
        }
        return make_run(tmp_path / name, timer=FakeTimer(speeds, jitter=0.004))()

    (line,) = results.compare(run("a.json", 1, 1), run("b.json", factor, p1_factor))
    assert line["verdict"] == verdict
    assert line["change"] == pytest.approx(factor)
    assert line["drift"] == pytest.approx(p1_factor)


def test_results_of_different_devices_are_not_compared(tmp_path: Path, fake_gpu: None):
    document = make_run(tmp_path / "a.json")()
    other = {**document, "device": {**document["device"], "name": "Other GPU"}}
    with pytest.raises(BenchError, match="Fake GPU and Other GPU"):
        results.compare(document, other)
    with pytest.raises(BenchError, match="share no timed case"):
        results.compare(document, {**document, "rows": []})


# ---------------------------------------------------------------------------------- targets


def test_the_targets_name_rows_that_exist():
    """Each line of the table covers at least one case at each of its batches."""
    for target in targets.table():
        cases = harness.load_cases(SUITES, torch.device(target.device))
        for batch in target.batches:
            assert any(
                target.covers(c.op, c.shape, batch, c.dtype) for c in cases if c.batch == batch
            ), (target.name, batch)


def target_rows(times: dict[int, float]) -> results.Document:
    rows = [
        {
            "label": f"row {batch}", "op": "split_conv2d", "shape": "8x8-384-x", "batch": batch,
            "dtype": "bfloat16", "status": "ok", "ours": "triton", "session": 0,
            "times": {"triton": {"graph": {"rotated": {"median_us": 1.0}}}, "P3": {}},
            "derived": {"ratio": ratio},
        }
        for batch, ratio in times.items()
    ]  # fmt: skip
    return {"device": {"kind": "cuda"}, "rows": rows}


def test_standings():
    document = target_rows({1: 2.5, 32: 1.35})
    better = {**document["rows"][1], "label": "better", "derived": {"ratio": 9.0}}
    document["rows"] += [better]  # the worst row counts
    found = {
        standing.target.name: standing
        for standing in targets.standings(document)
        if standing.target.op == "split_conv2d"
    }
    assert [found[f"split, batch {n}"].state for n in (1, 32, 256)] == [
        "met", "missed", "not measured",
    ]  # fmt: skip
    missed = str(found["split, batch 32"])
    assert missed == "missed        split, batch 32: >= 1.5, is 1.35, 10% off (row 32)"
    assert "no row of batch 256" in str(found["split, batch 256"])


def test_a_target_without_the_compiler_is_not_measured():
    document = target_rows({1: 9.0})
    del document["rows"][0]["times"]["P3"]
    (standing,) = [s for s in targets.standings(document) if s.target.name == "split, batch 1"]
    assert standing.state == "not measured"


def test_a_failed_row_misses_its_target():
    document = target_rows({1: 9.0})
    document["rows"][0]["status"] = "failed"
    (standing,) = [s for s in targets.standings(document) if s.target.name == "split, batch 1"]
    assert standing.state == "missed"


def test_metrics_of_a_row():
    row = {
        "batch": 256, "ours": "fused", "memory": {"fused": 60, "P1": 100},
        "times": {"fused": {"graph": {"rotated": {"median_us": 8000.0}}}},
        "derived": {"overhead_us": 2.0},
    }  # fmt: skip
    assert targets.value_of("milliseconds", row) == 8.0
    assert targets.value_of("images_per_second", row) == pytest.approx(32000)
    assert targets.value_of("memory_ratio", row) == 0.6
    assert targets.value_of("overhead_us", row) == 2.0
    assert targets.value_of("memory_ratio", {**row, "memory": None}) is None


# ------------------------------------------------------------------- command line and pictures


@pytest.fixture
def bench_cli(capsys):
    pytest.importorskip("rich")
    from fused_inception.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_line_measures_and_shows(bench_cli, tmp_path: Path):
    path = tmp_path / "result.json"
    options = ("--quick", "--device", "cpu", "--without", "P0,P1", "--only", "overhead")
    code, out, err = bench_cli("factorized_conv2d", *options, "--output", path)
    assert code == 0, err
    assert str(path) in out
    assert "overhead: microseconds a call" in out
    assert "only the ratios are a claim" in out
    assert "TFLOP" not in out
    assert bench_cli("--show", path)[0] == 0


def test_the_command_line_shows_a_gpu_and_its_targets(
    monkeypatch: pytest.MonkeyPatch, bench_cli, tmp_path: Path, fake_gpu: None
):
    monkeypatch.setenv("COLUMNS", "200")  # or cells are folded to the terminal's width
    path = tmp_path / "result.json"
    make_run(path, pair_cases((1, 8)))()
    code, out, _ = bench_cli("--show", path)
    assert code == 0
    assert "ceilings bfloat16 800 TFLOP/s" in out
    assert "3.00x" in out
    assert "not measured  Inception V3, images/s: >= 25000 (no row of batch 256)" in out


def test_the_command_line_compares(bench_cli, tmp_path: Path, fake_gpu: None):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    make_run(one)()
    slow = {key: us * (2 if key[0] == "aten" else 1) for key, us in SPEEDS.items()}
    make_run(two, timer=FakeTimer(slow))()
    code, out, _ = bench_cli("--compare", one, two)
    assert code == 1
    assert "+100.0%" in out
    assert "0 faster, 1 slower, 0 within the noise" in out
    assert bench_cli("--compare", two, one)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pool",), "there is no bench 'pool'"),
        (("--show", "missing.json"), "missing.json: cannot be read"),
        (("--batch", "0"), "takes a number of at least 1, got '0'"),
        (("--device", "tpu"), "--device takes auto, cpu, cuda or cuda:N"),
        (("--output", "x.txt"), "--output takes a path that ends in .json"),
        (("--without", "P9"), "--without takes P0, P1"),
        (("--quick", "--plot", "/proc/none"), "/proc/none"),
    ],
)
def test_the_command_line_refuses(bench_cli, arguments: tuple[str, ...], message: str):
    code, out, err = bench_cli(*arguments)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_without_a_checkout_the_command_line_says_so(bench_cli, monkeypatch, tmp_path: Path):
    from fused_inception.cli import bench

    monkeypatch.setattr(bench, "_ROOT", tmp_path)
    code, _, err = bench_cli("--quick")
    assert code == 2
    assert "the benches are not part of the installed package; run this in a checkout" in err


def test_pictures(tmp_path: Path, fake_gpu: None):
    """Each is a PNG of a readable size; what they look like is for eyes."""
    pytest.importorskip("matplotlib")
    from bench import plots

    cases = [
        *pair_cases((1, 8), quick=False),
        *harness.load_cases(["network"], CPU, quick=True, batches=[1, 2]),
    ]
    pictures = plots.draw(make_run(tmp_path / "result.json", cases)())
    assert set(pictures) == {
        "bars-factorized_conv2d", "network-over-batch", "roofline", "error-against-speed",
    }  # fmt: skip
    for picture in pictures.values():
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", picture[16:24])
        assert width >= 800
        assert height >= 500


def test_a_cpu_has_no_roofline(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from bench import plots

    policy = Policy(rounds=1, without=frozenset({"P0", "P3"}))
    document = Run(pair_cases(), CPU, tmp_path / "r.json", HostTimer(0.0), policy)()
    assert set(plots.draw(document)) == {"bars-factorized_conv2d", "error-against-speed"}


def test_the_scripts_run_alone(tmp_path: Path):
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.split_conv2d", "--quick", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--without", "P0,P3", "--output", str(path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[1/1] split_conv2d/n1-8x8-384-384+384-row3col3/float32: aten")
    assert results.load(path)["sessions"][0]["command"].startswith("python -m bench.split_conv2d")


# ------------------------------------------------------------------------------------ packages


def test_the_networks_of_other_packages_run_only_where_they_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert "adapters" not in SUITES
    for package in ("timm", "torch_fidelity"):
        adapter_cases.module(package)
    monkeypatch.setitem(adapters.NETWORKS, "pytorch-fid", "no_such_package")
    cases = harness.load_cases(["adapters"], CPU, batches=[1])
    assert [case.op for case in cases] == [n for n in adapters.NETWORKS if n != "pytorch-fid"]
    assert "pytorch-fid is left out, no_such_package is not installed" in capsys.readouterr().err


@torch.no_grad()
def test_the_peer_of_a_network_has_its_batch_norms_folded():
    model = adapter_cases.made("timm-v3")
    folded = peers.fold_units(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = adapter_cases.floats((75, 75))
    want = model(x)
    assert (folded(x) - want).abs().max() <= 2e-5 * want.abs().max()


def test_a_network_of_another_package_is_a_row(monkeypatch: pytest.MonkeyPatch):
    adapter_cases.module("pytorch_fid")
    monkeypatch.setattr(adapters, "IMAGE_SIZE", 75)
    (case,) = harness.load_cases(["adapters"], CPU, batches=[1], only="pytorch-fid")
    policy = Policy(rounds=1, without=frozenset({"P3"}))
    row = harness.measure(case, CPU, HostTimer(sample_seconds=0.0), policy, 0)
    assert row["status"] == "ok", row.get("error")
    assert row["label"] == "pytorch-fid/n1-75x75/float32"
    assert set(row["times"]) == {"fused", "P0", "P1"}
    assert row["command"].startswith("python -m bench adapters --device cpu --batch 1")
