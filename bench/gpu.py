"""Everything that needs a GPU, in pieces that can be stopped and go on: `make gpu`.

    python -m bench.gpu                     all pieces, one after the other
    python -m bench.gpu --piece exact       one of them
    python -m bench.gpu --budget 540        stop within nine minutes; the same command goes on
    python -m bench.gpu --device cpu        a dry run: that it runs, and nothing about a GPU

Each piece is a process of its own that ends within nine minutes; what it has not done by then, the
next one does. What is done is kept in build/gpu, by device and by the digest of the sources: other
code begins anew. Needs torch, triton and pytest; no network, no other package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import results, resume, sanitize, targets
from bench.environment import RESULTS, ROOT, BenchError, code, identity, resolve_device, slug
from bench.harness import EXIT_ERROR, EXIT_FAILED, EXIT_MORE, SUITES

# A process is asked to end after this many seconds, and killed a good minute later.
PIECE_SECONDS = 450.0
_GRACE = 70.0
# Processes in a row that bring nothing: the third may succeed, see `bench.harness`.
_IN_VAIN = 3
# Correctness tests, by what `-k` picks: first those that say most in the least time, then all.
TESTS = {
    "exact": ["-k", "exact"],
    "cuda": ["-k", "cuda_gpu"],
    "emulator": ["-k", "emulator"],
    "sm90": ["-k", "emulator_gpu or sm90"],
    "tests": [],
}
# What `bench.sm90` measures on Hopper.
OPEN = "sm90_times"
# Nsight Compute over what misses its target by then.
PROFILE = "profile"
PIECES = (*TESTS, "sanitize", OPEN, *SUITES, PROFILE)
GROUPS = {
    "all": PIECES,
    "bench": SUITES,
    **{piece: (piece,) for piece in PIECES},
    "sm90": ("sm90", OPEN),
}


@dataclass
class Driver:
    """One invocation.

    Attributes:
        device: where.
        folder: what is done.
        quick: benches in their short form.
        commit: of a copy without history.
        piece_seconds: after which a process is asked to end.
    """

    device: torch.device
    folder: Path
    quick: bool = False
    commit: str | None = None
    piece_seconds: float = PIECE_SECONDS

    @property
    def outcomes(self) -> Path:
        return self.folder / "tests.jsonl"

    def command(self, piece: str, seconds: float) -> list[str]:
        """The command of a piece."""
        python = [sys.executable, "-m"]
        if piece in TESTS:
            return [
                *python, "pytest", "tests", "--ignore", "tests/interpreter", "-m", "gpu",
                *TESTS[piece],
                "-p", "bench.resume", "--resume-file", str(self.outcomes),
                "--resume-budget", f"{seconds:.0f}", "-p", "no:cacheprovider",
                "--continue-on-collection-errors",
            ]  # fmt: skip
        device = ["--device", str(self.device), "--budget", f"{seconds:.0f}"]
        if piece == "sanitize":
            return [*python, "bench.sanitize", *device, "--folder", str(self.folder / "sanitize")]
        if piece == PROFILE:
            return [
                *python, "bench.profile", *device, "--folder", str(self.folder / PROFILE),
                "--result", str(self.folder / "all.json"),
            ]  # fmt: skip
        if piece == OPEN:
            return [*python, "bench.sm90", *device, "--output", str(self.folder / f"{OPEN}.json")]
        return [
            *python, "bench", piece, *device, "--output", str(self.folder / f"{piece}.json"),
            *(["--quick"] if self.quick else []),
            *(["--commit", self.commit] if self.commit else []),
        ]  # fmt: skip

    def run(self, piece: str, end: float | None) -> str:
        """Run a piece to its end, or to that of the budget.

        Returns:
            "done", "failed" (it ended, and not well) or "left".
        """
        if piece == PROFILE and self.merge() is None:
            print("profile: no bench has measured anything yet", flush=True)
            return "done"
        in_vain = 0
        while in_vain < _IN_VAIN:
            seconds = self.piece_seconds
            if end is not None:
                seconds = min(seconds, end - time.monotonic() - _GRACE)
                if seconds <= 0:
                    return "left"
            before = self._done(piece)
            exit_code = call(self.command(piece, seconds), seconds + _GRACE)
            in_vain = 0 if self._done(piece) > before else in_vain + 1
            if piece not in TESTS:
                if exit_code in (0, EXIT_FAILED, EXIT_ERROR):
                    return "done" if exit_code == 0 else "failed"
            # pytest: 0 is passed, 5 nothing left to run, others may have tests left.
            elif exit_code in (0, 5):
                return "done"
            elif resume.left(self.outcomes) == 0:
                return "failed"
        return "failed"

    def _done(self, piece: str) -> int:
        if piece in TESTS:
            return len(resume.read(self.outcomes))
        if piece in ("sanitize", PROFILE):
            path = self.folder / piece / f"{piece}.json"
            return len(json.loads(path.read_text())) if path.exists() else 0
        path = self.folder / f"{piece}.json"
        if piece == OPEN:
            return len(json.loads(path.read_text())) if path.exists() else 0
        return len(results.load(path)["rows"]) if path.exists() else 0

    def merge(self) -> results.Document | None:
        """What the benches have measured so far, as one document, or None."""
        paths = [self.folder / f"{suite}.json" for suite in SUITES]
        parts = [results.load(path) for path in paths if path.exists()]
        if not parts:
            return None
        merged = results.merge(parts)
        results.save(merged, self.folder / "all.json")
        return merged


def call(command: list[str], seconds: float) -> int:
    """Run a command; killed with all it has started after `seconds`.

    Returns:
        Its exit code, 3 where it was killed.
    """
    print(f"$ {' '.join(command)}", flush=True)
    environment = _environment()
    # Compiled once, whichever process needs it.
    for variable, name in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        environment.setdefault(variable, str(ROOT / "build" / "cache" / name))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"killed after {seconds:.0f} s", flush=True)
        return EXIT_MORE
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def summarize(driver: Driver, states: dict[str, str], document: results.Document | None) -> int:
    """Print what passed, what did not, and how the result stands to the targets.

    Returns:
        0; 1 where something failed; 3 where something is left. A missed target is no failure.
    """
    print("\n== summary")
    if driver.device.type == "cpu":
        print("A dry run on a CPU: the pieces run. Nothing was shown about a GPU.")
    failed = "failed" in states.values()
    tests = resume.read(driver.outcomes)
    if tests:
        counts = Counter(tests.values())
        print("tests: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
        for test, outcome in tests.items():
            if outcome in ("failed", "crashed"):
                print(f"  {outcome}  {test}")
        failed = failed or bool(counts["failed"] or counts["crashed"])
    path = driver.folder / "sanitize" / "sanitize.json"
    if path.exists():
        outcomes = json.loads(path.read_text())
        counts = Counter(state for state, _ in outcomes.values())
        total = len(sanitize.everything(driver.device))
        print(
            f"sanitizer: {len(outcomes)} of {total} run: "
            + ", ".join(f"{count} {state}" for state, count in counts.items())
        )
        for name, (state, line) in outcomes.items():
            if state in ("failed", "broken"):
                print(f"  {state}  {name}: {line}")
    if document is not None:
        rows = document["rows"]
        good = results.timed_rows(document)
        print(f"benches: {len(good)} rows measured, {len(rows) - len(good)} failed")
        for row in rows:
            if row["status"] != "ok":
                print(f"  {row['status']}  {row['label']}: {row['error'].splitlines()[0]}")
        failed = failed or len(good) < len(rows)
        print(f"result: {driver.folder / 'all.json'}")
    for piece, state in states.items():
        print(f"piece {piece}: {state}")
    if document is not None:
        standings = targets.standings(document)
        counts = Counter(standing.state for standing in standings)
        print("targets: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
        for standing in standings:
            print(f"  {standing}")
    if failed:
        return EXIT_FAILED
    return EXIT_MORE if "left" in states.values() else 0


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 when something failed, 2 after an error, 3 when something is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N; cpu is a dry run")
    parser.add_argument("--piece", default="all", help=", ".join(GROUPS))
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="end within this")
    parser.add_argument("--piece-seconds", type=float, default=PIECE_SECONDS, metavar="SECONDS")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--fresh", action="store_true", help="forget what is done")
    parser.add_argument("--quick", action="store_true", help="benches in their short form")
    parser.add_argument("--commit", help="of the code, for a copy without history")
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        if args.piece not in GROUPS:
            raise BenchError(f"--piece takes {', '.join(GROUPS)}, got {args.piece!r}")
        device = resolve_device(args.device)
        if device.type == "cpu" and args.device == "auto":
            raise BenchError("there is no GPU here; --device cpu is a dry run")
        name = slug(identity(device)["device"]["name"])
        folder = args.folder.resolve() / name / code()["sources"]
        if args.fresh and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        driver = Driver(device, folder, args.quick, args.commit, args.piece_seconds)
        end = None if args.budget is None else start + args.budget
        states = {piece: driver.run(piece, end) for piece in GROUPS[args.piece]}
        document = driver.merge()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    if document is not None and device.type == "cuda":
        path = RESULTS / name / ("all-quick.json" if args.quick else "all.json")
        results.save(document, path)
        print(f"written: {path}")
        profiles = folder / PROFILE / "profile.json"
        if profiles.exists():
            shutil.copy(profiles, path.with_name("profile.json"))
    return summarize(driver, states, document)


if __name__ == "__main__":
    sys.exit(main())
