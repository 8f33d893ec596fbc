# SPDX-License-Identifier: Apache-2.0
"""Build script: everything but the optional CUDA extension is declared in pyproject.toml.

``FUSED_INCEPTION_CUDA`` says what becomes of the extension: ``0`` leaves it out, ``1`` requires it,
``auto`` (the default) builds it where ``nvcc`` is at hand. What was built, or why nothing was, is
written into the package as ``_build.json``, which ``fused_inception info`` shows.

One library serves every Python from 3.10 and every torch from 2.11, with CUDA or without: it uses
LibTorch's stable ABI, and any of those torches may be the one it is built with. nvcc does the
compiling and the linking, so that it is the only thing that has to be found.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OBJECTS = Path("build", "csrc")
# PTX of the last one lets newer devices compile for themselves.
DEFAULT_ARCHITECTURES = ("8.0", "9.0a", "10.0")
MIN_CAPABILITY = (8, 0)
MIN_CUDA = (12, 0)  # C++20 and sm_90a
PYTHON_INCLUDE = sysconfig.get_path("include")
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11.0
PY_LIMITED_API = "0x030a0000"  # 3.10
NO_TORCH = "torch was not installed where the package was built"


class Architecture(NamedTuple):
    """One entry of ``TORCH_CUDA_ARCH_LIST``: 8.0, 9.0a, 10.0+PTX."""

    major: int
    minor: int
    suffix: str
    ptx: bool

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def gencode(self) -> list[str]:
        number = f"{self.major}{self.minor}{self.suffix}"
        kinds = ("sm", "compute") if self.ptx else ("sm",)
        return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]


class Build(NamedTuple):
    """What the extension is built with."""

    nvcc: str
    cuda: str
    torch: str
    torch_root: Path
    architectures: list[Architecture]


def find_nvcc() -> str | None:
    """The nvcc of ``CUDA_HOME`` where that is set, else the first one on ``PATH``."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc")


def find_torch() -> Path | None:
    """The folder of the installed torch, which is not imported for its headers' sake."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def cuda_version(nvcc: str) -> str:
    """The release of `nvcc`, as in "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise SystemExit(f"error: {nvcc} --version names no release: {text!r}")
    return match[1]


def architectures(nvcc: str) -> list[Architecture]:
    """What to compile for: ``TORCH_CUDA_ARCH_LIST``, or all that this nvcc knows of the default."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not listed.strip():
        command = [nvcc, "--list-gpu-code"]
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        names = [
            a for a in DEFAULT_ARCHITECTURES if f"sm_{a.replace('.', '').rstrip('a')}" in known
        ]
        listed = f"{';'.join(names)}+PTX"
    found = []
    for name in re.split(r"[;, ]+", listed.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(
                "error: TORCH_CUDA_ARCH_LIST takes compute capabilities such as 8.0, 9.0a and "
                f"10.0+PTX, got {name!r}"
            )
        architecture = Architecture(int(match[1]), int(match[2]), match[3], match[4] is not None)
        if (architecture.major, architecture.minor) < MIN_CAPABILITY:
            print(f"fused_inception: {name} is left out, the kernels need 8.0", file=sys.stderr)
        else:
            found.append(architecture)
    if not found:
        raise SystemExit(
            f"error: TORCH_CUDA_ARCH_LIST has no architecture from 8.0 on, got {listed!r}"
        )
    return found


def plan(mode: str) -> tuple[Build | None, str | None]:
    """What to build the extension with, or the reason why it is not built."""
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"error: FUSED_INCEPTION_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return None, "it was left out by FUSED_INCEPTION_CUDA=0"
    if sys.platform != "linux":
        return None, f"it is built on Linux only, this is {sys.platform}"
    nvcc, torch_root = find_nvcc(), find_torch()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME")
        place = f"in the bin of CUDA_HOME={home}" if home else "on PATH"
        return None, f"nvcc was not {place} when the package was built"
    if torch_root is None:
        return None, NO_TORCH
    cuda = cuda_version(nvcc)
    if tuple(map(int, cuda.split("."))) < MIN_CUDA:
        return None, f"{nvcc} is of CUDA {cuda}; takes {MIN_CUDA[0]}.{MIN_CUDA[1]} and later"
    version = importlib.metadata.version("torch")
    return Build(nvcc, cuda, version, torch_root, architectures(nvcc)), None


def refuse_obstacle() -> None:
    """End the build where the extension is required and cannot be built."""
    if MODE == "1" and OBSTACLE is not None:
        raise SystemExit(f"error: FUSED_INCEPTION_CUDA=1 cannot be met: {OBSTACLE}")


def compile_flags(build: Build) -> list[str]:
    """The options of nvcc for every source, the C++ ones too."""
    listed = " ".join(map(str, build.architectures))
    return [
        "-std=c++20",
        "-O3",
        "-Icsrc",
        *(f"-isystem={path}" for path in (build.torch_root / "include", PYTHON_INCLUDE)),
        "-DUSE_CUDA",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f"-DPy_LIMITED_API={PY_LIMITED_API}",
        f'-DFUSED_INCEPTION_ARCHITECTURES="{listed}"',
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
        *gencode(build),
    ]


def gencode(build: Build) -> list[str]:
    """The options of nvcc that name the architectures; its linker adds its default without them."""
    return [flag for architecture in build.architectures for flag in architecture.gencode]


def link_flags(build: Build) -> list[str]:
    """The options of nvcc for the library.

    libtorch.so is needed by name, for it brings libtorch_cuda.so along where torch has one. cudart
    is linked statically and its symbols are kept inside, away from those that torch loads. A symbol
    that nobody has is an error here already, unless it is weak.
    """
    return [
        "-shared",
        "-cudart=static",
        *gencode(build),
        f"-L{build.torch_root / 'lib'}",
        "-Xlinker=--no-as-needed,-ltorch,-ltorch_cpu,--as-needed",
        "-Xlinker=--exclude-libs,ALL",
        "-Xlinker=-z,defs",
    ]


def dependencies(rule: Path) -> list[Path] | None:
    """The files that a rule written by ``-MD`` names; None where there is no rule."""
    if not rule.is_file():
        return None
    text = rule.read_text().replace("\\\n", " ")
    return [Path(name) for name in text.partition(":")[2].split()]


def make(target: Path, command: list[str], needs: list[Path] | None) -> None:
    """Run `command`, which makes `target`, unless it made it already from what is there now."""
    said = target.with_name(target.name + ".command")
    line = shlex.join(command)
    if needs and target.is_file() and said.is_file() and said.read_text() == line:
        made = target.stat().st_mtime
        if all(path.is_file() and path.stat().st_mtime <= made for path in needs):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    said.unlink(missing_ok=True)
    print(f"{line}\n", end="", flush=True)  # one write: other threads print too
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        raise SystemExit(
            f"error: nvcc ended with {result.returncode} (FUSED_INCEPTION_CUDA=0 leaves the "
            f"extension out): {line}"
        )
    said.write_text(line)


def compile_source(build: Build, source: Path) -> Path:
    """The object file of `source`, compiled where it, a header or the options have changed."""
    target = OBJECTS / source.relative_to("csrc").with_suffix(f"{source.suffix}.o")
    rule = target.with_suffix(".d")
    command = [build.nvcc, "-c", str(source), "-o", str(target), "-MD", "-MF", str(rule)]
    make(target, [*command, *compile_flags(build)], dependencies(rule))
    return target


class BuildExtension(build_ext):
    """Compiles csrc/ with nvcc, as many sources at a time as there are cores (or ``MAX_JOBS``).

    Object files live in build/csrc whatever the kind of build, so that a second one finds them.
    """

    def build_extension(self, ext: Extension) -> None:
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        # The kernels first: they take the longest.
        sources = sorted(map(Path, ext.sources), key=lambda path: (path.suffix != ".cu", path))
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(lambda source: compile_source(BUILD, source), sources))
        library = OBJECTS / "_C.abi3.so"
        command = [BUILD.nvcc, *map(str, objects), "-o", str(library), *link_flags(BUILD)]
        make(library, command, objects)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)


class BuildPackage(build_py):
    """Adds ``_build.json``; where nothing is built, removes what an earlier build left in place."""

    def run(self) -> None:
        refuse_obstacle()
        super().run()
        package = ROOT / "fused_inception"
        folder = package if self.editable_mode else Path(self.build_lib, "fused_inception")
        if self.editable_mode and BUILD is None:
            for library in package.glob("_C*.so"):
                library.unlink()
        info = {
            "architectures": [str(a) for a in BUILD.architectures] if BUILD else [],
            "torch": BUILD.torch if BUILD else None,
            "cuda": BUILD.cuda if BUILD else None,
            "not_built_because": OBSTACLE,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(info, indent=2) + "\n")


MODE = os.environ.get("FUSED_INCEPTION_CUDA", "auto")
BUILD, OBSTACLE = plan(MODE)
if OBSTACLE != NO_TORCH:  # an isolated build first asks what it needs, by `setup_requires`
    refuse_obstacle()
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "csrc").rglob("*")
    if path.suffix in (".cpp", ".cu")
)

setup(
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage},
    ext_modules=[Extension("fused_inception._C", SOURCES, py_limited_api=True)] if BUILD else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if BUILD else {},
    setup_requires=["torch>=2.11"] if OBSTACLE == NO_TORCH else [],
)
