"""What the build promises: the switch of the extension, and what wheels and sdists carry.

Builds run in a copy of the sources. Left out: building the whole extension, which making the
environment does; here a library of two small files stands for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
NVCC = shutil.which("nvcc")
NO_NVCC = "nvcc was not on PATH when the package was built"
KERNEL = """
#include "common/number.h"
__global__ void store(int* p) { *p = kNumber; }
"""

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")


@pytest.fixture(scope="module", autouse=True)
def setuptools_of_the_build():
    pytest.importorskip("setuptools", minversion="77", reason="the build requires setuptools 77")


@pytest.fixture
def no_nvcc(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has what a build may need, but no nvcc."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "env", "uname"):
        (tools / name).symlink_to(shutil.which(name))
    return {"PATH": str(tools), "CUDA_HOME": ""}


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> dict[str, str]:
    """An environment that finds an nvcc, which no test may run."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho nvcc was run; exit 1\n")
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(home)}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the build reads, with nothing built."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    ignored = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
    for name in ("fused_inception", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    return copy


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def decide(mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the build script as far as it decides on the extension."""
    return run(ROOT, "setup.py", "--version", FUSED_INCEPTION_CUDA=mode, **environment)


def hook(folder: Path, name: str, *arguments: str, **environment: str) -> str:
    """What a hook of the build backend returns, as pip calls it."""
    script = f"from setuptools import build_meta; print(build_meta.{name}(*{arguments!r}))"
    result = run(folder, "-c", script, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


# The switch


@pytest.mark.parametrize("mode", ["auto", "0"])
def test_the_package_builds_without_nvcc(mode: str, no_nvcc):
    result = decide(mode, **no_nvcc)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "0.1.0"


def test_mode_0_does_not_run_nvcc(fake_nvcc):
    result = decide("0", **fake_nvcc)
    assert result.returncode == 0, result.stderr


def test_a_required_extension_fails_loudly(no_nvcc):
    result = decide("1", **no_nvcc)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last == f"error: FUSED_INCEPTION_CUDA=1 cannot be met: {NO_NVCC}"


def test_cuda_home_goes_before_the_path(tmp_path: Path):
    result = decide("1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    reason = f"nvcc was not in the bin of CUDA_HOME={tmp_path} when the package was built"
    assert result.stderr.splitlines()[-1].endswith(f"cannot be met: {reason}")


def test_an_nvcc_that_is_too_old_is_an_obstacle(fake_nvcc):
    nvcc = Path(fake_nvcc["CUDA_HOME"], "bin", "nvcc")
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    assert decide("auto", **fake_nvcc).returncode == 0
    result = decide("1", **fake_nvcc)
    assert result.stderr.splitlines()[-1].endswith(f"{nvcc} is of CUDA 11.8; takes 12.0 and later")


def test_an_unknown_mode_is_refused():
    result = decide("yes")
    assert result.returncode != 0
    assert "FUSED_INCEPTION_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


@needs_nvcc
@pytest.mark.parametrize("value", ["Hopper", "90", "9.0b", "8.0;;9.0x"])
def test_an_unknown_architecture_is_refused(value: str):
    result = decide("auto", TORCH_CUDA_ARCH_LIST=value)
    assert result.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST takes compute capabilities such as 8.0" in result.stderr


@needs_nvcc
def test_architectures_that_the_kernels_do_not_take_are_left_out():
    result = decide("auto", TORCH_CUDA_ARCH_LIST="7.0 7.5;8.0")
    assert result.returncode == 0
    assert "7.5 is left out, the kernels need 8.0" in result.stderr
    result = decide("auto", TORCH_CUDA_ARCH_LIST="7.5+PTX")
    assert result.returncode != 0
    assert "has no architecture from 8.0 on, got '7.5+PTX'" in result.stderr


# pip's isolated builds

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # what an environment without it looks like
from setuptools import build_meta
"""


@pytest.mark.parametrize(
    ("mode", "requirements"), [("auto", ["torch>=2.11"]), ("1", ["torch>=2.11"]), ("0", [])]
)
def test_an_isolated_build_asks_for_torch(mode: str, requirements, sources: Path, fake_nvcc):
    script = WITHOUT_TORCH + "print(build_meta.get_requires_for_build_wheel())"
    result = run(sources, "-c", script, FUSED_INCEPTION_CUDA=mode, **fake_nvcc)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(requirements)


def test_an_isolated_build_without_nvcc_asks_for_nothing(sources: Path, no_nvcc):
    script = WITHOUT_TORCH + "print(build_meta.get_requires_for_build_wheel())"
    result = run(sources, "-c", script, **no_nvcc)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_required_extension_without_torch_fails_loudly(sources: Path, fake_nvcc):
    script = WITHOUT_TORCH + "build_meta.build_wheel('dist')"
    result = run(sources, "-c", script, FUSED_INCEPTION_CUDA="1", **fake_nvcc)
    assert result.returncode != 0
    assert "cannot be met: torch was not installed where the package was built" in result.stderr


# What is shipped


@pytest.mark.parametrize("mode", ["auto", "0"])
def test_a_wheel_without_the_extension_says_why(mode: str, sources: Path, tmp_path: Path, no_nvcc):
    """It is pure Python, and its installation runs and knows the reason."""
    reasons = {"auto": NO_NVCC, "0": "it was left out by FUSED_INCEPTION_CUDA=0"}
    name = hook(sources, "build_wheel", str(tmp_path), FUSED_INCEPTION_CUDA=mode, **no_nvcc)
    assert name == "fused_inception-0.1.0-py3-none-any.whl"
    installed = tmp_path / "installed"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(installed)
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fused_inception").rglob("*")
        if path.suffix in (".py", ".json") and path.name != "_build.json"
    }
    assert package | {"fused_inception/_build.json", "fused_inception/py.typed"} <= names
    assert not [name for name in names if name.startswith("csrc") or name.endswith(".so")]

    result = run(tmp_path, "-m", "fused_inception", "info", "--json", PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    extension = json.loads(result.stdout)["extension"]
    assert extension == {
        "loaded": False,
        "architectures": [],
        "torch": None,
        "cuda": None,
        "error": f"the CUDA extension is not built: {reasons[mode]}",
    }


def test_the_sdist_carries_the_sources_of_the_extension(sources: Path, tmp_path: Path, no_nvcc):
    name = hook(sources, "build_sdist", str(tmp_path), **no_nvcc)
    with tarfile.open(tmp_path / name) as sdist:
        names = {member.partition("/")[2] for member in sdist.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".cpp", ".cu", ".cuh", ".h")
    }
    assert {"csrc/registration.cpp", "csrc/factorized_conv2d/bf16.cu"} <= wanted
    assert wanted | {"setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith(("_build.json", ".so"))]


def test_an_editable_build_without_the_extension_removes_an_older_one(sources: Path, tmp_path):
    """Else it would still be loaded."""
    library = sources / "fused_inception" / "_C.abi3.so"
    library.touch()
    hook(sources, "build_editable", str(tmp_path), FUSED_INCEPTION_CUDA="0")
    assert not library.exists()
    build = json.loads((sources / "fused_inception" / "_build.json").read_text())
    assert build["not_built_because"] == "it was left out by FUSED_INCEPTION_CUDA=0"


# The rule that compiles


@pytest.fixture
def small(sources: Path) -> Path:
    """Sources with a small kernel in the place of the real ones."""
    shutil.rmtree(sources / "csrc")
    for name, text in (
        ("registration.cpp", (ROOT / "csrc" / "registration.cpp").read_text()),
        ("op/kernel.cu", KERNEL),
        ("common/number.h", "constexpr int kNumber = 1;\n"),
    ):
        path = sources / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sources


def compiled(folder: Path, architectures: str = "8.0") -> list[str]:
    """Build in place and name what was made, in no order."""
    environment = {"TORCH_CUDA_ARCH_LIST": architectures, "FUSED_INCEPTION_CUDA": "1"}
    result = run(folder, "setup.py", "build_ext", "--inplace", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(re.findall(r"^\S*nvcc .* -o \S*/(\S+) ", result.stdout, re.MULTILINE))


@needs_nvcc
def test_only_what_changed_is_made_again(small: Path):
    assert compiled(small) == ["_C.abi3.so", "kernel.cu.o", "registration.cpp.o"]
    assert compiled(small) == []
    (small / "csrc" / "common" / "number.h").write_text("constexpr int kNumber = 2;\n")
    assert compiled(small) == ["_C.abi3.so", "kernel.cu.o"]
    assert compiled(small, "8.6") == ["_C.abi3.so", "kernel.cu.o", "registration.cpp.o"]
    assert (small / "fused_inception" / "_C.abi3.so").is_file()


@needs_nvcc
@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("op/kernel.cu", "__global__ void store(int* p) { *p = nothing; }\n", "nothing"),
        ("registration.cpp", "void missing();\nvoid here() { missing(); }\n", "missing()"),
    ],
    ids=["compiler", "linker"],
)
def test_a_source_that_does_not_build_ends_the_build(small: Path, source, text, said):
    (small / "csrc" / source).write_text(text)
    environment = {"TORCH_CUDA_ARCH_LIST": "8.0", "FUSED_INCEPTION_CUDA": "auto"}
    for _ in range(2):
        result = run(small, "setup.py", "build_ext", "--inplace", **environment)
        assert result.returncode != 0
        assert said in result.stderr
        assert re.match(r"error: nvcc ended with \d+ ", result.stderr.splitlines()[-1])


@needs_nvcc
def test_a_wheel_with_the_extension_serves_every_python(small: Path, tmp_path: Path):
    name = hook(small, "build_wheel", str(tmp_path), TORCH_CUDA_ARCH_LIST="8.0;9.0a+PTX")
    assert re.fullmatch(r"fused_inception-0\.1\.0-cp310-abi3-linux_\w+\.whl", name)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert "fused_inception/_C.abi3.so" in wheel.namelist()
        build = json.loads(wheel.read("fused_inception/_build.json"))
    assert build["architectures"] == ["8.0", "9.0a+PTX"]
    assert build["not_built_because"] is None
    assert re.match(r"\d+\.\d+", build["torch"])
    assert re.fullmatch(r"\d+\.\d+", build["cuda"])


def test_every_pinned_tool_has_an_exact_version():
    pins = [
        line.split("#")[0].split(";")[0].strip() for line in CONSTRAINTS.read_text().splitlines()
    ]
    assert all("==" in pin for pin in pins if pin)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "triton", "torchvision", "ruff", "mypy", "clang-format"} <= names
