"""A pytest plugin: a session that can be stopped at any test and goes on in another process.

    pytest -p bench.resume --resume-file outcomes.jsonl --resume-budget 480 ...

Every outcome is written down as it comes. A later session leaves out what has one, whatever it was.
A test that was begun twice and never ended counts as crashed. After an error that leaves the device
unusable the session stops, so that the next one begins with a new process.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# What CUDA says when nothing later in the process can be trusted.
_FATAL = (
    "CUDA driver error",
    "device-side assert",
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
)
_BEGINNINGS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("resume")
    group.addoption("--resume-file", type=Path, help="where outcomes are kept")
    group.addoption("--resume-budget", type=float, help="seconds after which no test is begun")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--resume-file")
    if path is not None:
        config.pluginmanager.register(_Resume(path, config.getoption("--resume-budget")))


def read(path: Path) -> dict[str, str]:
    """Test -> "passed", "failed", "skipped" or "crashed", of the tests that have an outcome."""
    outcomes: dict[str, str] = {}
    begun: Counter[str] = Counter()
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["outcome"] == "begun":
                begun[entry["test"]] += 1
            else:
                outcomes[entry["test"]] = entry["outcome"]
    for test, times in begun.items():
        if times >= _BEGINNINGS:
            outcomes.setdefault(test, "crashed")
    return outcomes


class _Resume:
    def __init__(self, path: Path, budget: float | None) -> None:
        self.path = path
        self.end = None if budget is None else time.monotonic() + budget
        self.outcome = "passed"
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        done = read(self.path)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome = "passed"
        self.write(test=nodeid, outcome="begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcome = "failed"
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.write(test=nodeid, outcome=self.outcome)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        # Checked here because only an item knows the session.
        if self.end is not None and time.monotonic() > self.end:
            item.session.shouldstop = "out of time; the same command goes on"

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        error = "" if call.excinfo is None else str(call.excinfo.value)
        if any(text in error for text in _FATAL):
            item.session.shouldstop = "the device is unusable; a new process goes on"
