"""What the build promises: the switch of the extension, and the data that a wheel must carry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"


def build(mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the build script as far as it decides on the extension."""
    pytest.importorskip("setuptools", minversion="77", reason="the build requires setuptools 77")
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "FUSED_INCEPTION_CUDA": mode, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mode", ["auto", "0"])
def test_the_package_builds_without_the_extension(mode: str):
    result = build(mode)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "0.1.0"


def test_a_required_extension_fails_loudly():
    result = build("1")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "FUSED_INCEPTION_CUDA=1" in result.stderr.splitlines()[-1]


def test_an_unknown_mode_is_refused():
    result = build("yes")
    assert result.returncode != 0
    assert "FUSED_INCEPTION_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


def test_every_pinned_tool_has_an_exact_version():
    pins = [
        line.split("#")[0].split(";")[0].strip() for line in CONSTRAINTS.read_text().splitlines()
    ]
    assert all("==" in pin for pin in pins if pin)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "triton", "torchvision", "ruff", "mypy", "clang-format"} <= names
