"""The compiled extension with no GPU: loading it or not, its symbols, what its host code checks.

The C++ side of the pair is called for real, with CPU tensors sent to its CUDA implementation: it
checks everything else first and refuses their device last. So a call that is refused for its device
alone is one that a GPU would run. Left out: the kernels (tests/emulator runs them on the host), and
what needs a device (test_factorized_conv2d_cuda_gpu.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_inception
from fused_inception import _extension
from fused_inception.ops.common import cuda_launching
from fused_inception.ops.common.configurations import padded
from fused_inception.ops.common.geometry import empty_channels_last
from fused_inception.ops.factorized_conv2d import cuda_launch
from fused_inception.ops.factorized_conv2d.cuda_launch import Configuration, Device
from fused_inception.ops.factorized_conv2d.op import Problem
from fused_inception.testing import (
    LAYOUTS,
    ODD_PAIR_SHAPES,
    PairInputs,
    PairShape,
    assert_channels_last,
    channels_last,
    inception_v3_pairs,
    integer_pair,
    nan_filled_memory,
    pair_oracle,
    random_pair,
)
from tests import cuda_stand_ins

PACKAGE = Path(fused_inception.__file__).parent
LIBRARY = PACKAGE / _extension.LIBRARY
INFO = _extension.build_info()
OPERATOR = cuda_launch._out_operator
NO_TOOL = shutil.which("nm") is None or shutil.which("readelf") is None

needs_library = pytest.mark.skipif(not INFO["loaded"], reason=f"extension: {INFO['error']}")
needs_tools = pytest.mark.skipif(NO_TOOL, reason="needs nm and readelf of binutils")

DTYPES = [pytest.param(torch.float16, id="float16"), pytest.param(torch.bfloat16, id="bfloat16")]
PAIR = PairShape(2, 8, 9, 16, 24, 8, 7, 5, True)


def taken(shape: PairShape) -> bool:
    return cuda_launch.shape_refusal(problem_of(shape)) is None


def problem_of(
    shape: PairShape, dtype: torch.dtype = torch.float16, device: str = "cuda"
) -> Problem:
    return Problem(
        shape.batch,
        shape.c_in,
        shape.c_mid,
        shape.c_out,
        shape.height,
        shape.width,
        shape.taps1,
        shape.taps2,
        shape.row_first,
        dtype,
        torch.device(device),
    )


def call(*operands) -> None:
    """The extension's CUDA implementation, whatever the device of the operands."""
    cuda_stand_ins.call(OPERATOR, *operands)


# Loading


def test_build_info_is_plain_data():
    assert list(INFO) == ["loaded", "architectures", "torch", "cuda", "error"]
    assert json.loads(json.dumps(INFO)) == INFO
    assert INFO["loaded"] == (INFO["error"] is None)


@pytest.mark.skipif(
    shutil.which("nvcc") is None or os.environ.get("FUSED_INCEPTION_CUDA") == "0",
    reason="no nvcc on PATH, or FUSED_INCEPTION_CUDA=0",
)
def test_the_extension_is_there_where_nvcc_is():
    """Without this the tests below would be skipped for a build that went wrong."""
    assert INFO["loaded"], INFO["error"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"the CUDA extension is not built: .* was never built or installed"),
        (
            {"_build.json": '{"not_built_because": "nvcc was on holiday"}'},
            r"the CUDA extension is not built: nvcc was on holiday$",
        ),
        ({"_build.json": "{"}, r"the CUDA extension is not built: .*_build.json cannot be read"),
        (
            {"_build.json": '{"architectures": ["8.0"]}'},
            r"the CUDA extension was built, but .*/_C.abi3.so is missing",
        ),
        (
            {"_build.json": '{"architectures": ["8.0"]}', "_C.abi3.so": "no library"},
            r"_C.abi3.so cannot be loaded: .*(invalid ELF header|file too short)",
        ),
    ],
    ids=["nothing", "not_built", "broken_json", "missing_library", "corrupt_library"],
)
def test_what_is_not_there_is_said(tmp_path: Path, files: dict[str, str], message: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    info = _extension.load(tmp_path)
    assert not info["loaded"]
    assert re.search(message, info["error"])


def test_a_corrupt_library_stops_nothing_else(tmp_path: Path):
    """`info` says why, the ops run, and the backend is refused in the same words."""
    package = tmp_path / "fused_inception"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    (package / "_C.abi3.so").write_bytes(b"\x7fELF and then nothing")
    build = {"architectures": ["8.0"], "torch": "2.11.0", "cuda": "13.0", "not_built_because": None}
    (package / "_build.json").write_text(json.dumps(build))
    script = """
import json, torch, fused_inception
from fused_inception.cli.info import collect
x, w = torch.ones(1, 8, 4, 4), torch.ones(8, 8, 1, 1)
shape = list(fused_inception.factorized_conv2d(x, w, None, w, None).shape)
try:
    x, w = x.half(), w.half()
    fused_inception.factorized_conv2d(x, w, None, w, None, backend="cuda")
    refusal = None
except RuntimeError as error:
    refusal = str(error)
print(json.dumps([fused_inception.__file__, shape, refusal, collect()]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    file, shape, refusal, info = json.loads(result.stdout)
    assert file.startswith(str(tmp_path))
    assert shape == [1, 8, 4, 4]
    error = info["extension"]["error"]
    assert "_C.abi3.so cannot be loaded: " in error
    assert info["extension"]["architectures"] == ["8.0"]
    assert info["backends"]["cuda"] == error
    assert refusal == f"factorized_conv2d: backend 'cuda' cannot run here: {error}"


@needs_library
def test_loading_leaves_cuda_alone():
    script = """
import json, sys, torch, fused_inception
from fused_inception import _extension
mapped = lambda: "_C.abi3.so" in open("/proc/self/maps").read()
before = mapped()
loaded = _extension.build_info()["loaded"]
print(json.dumps([before, loaded, mapped(), torch.cuda.is_initialized()]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == [False, True, True, False]


@needs_library
def test_the_library_is_a_python_module():
    import fused_inception._C as module

    assert Path(module.__file__) == LIBRARY


# Architectures


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not_run"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (8, 7), (9, 0), (12, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("8.7", [(8, 7), (8, 9)], [(8, 6)]),
        ("9.0a", [(9, 0)], [(8, 0), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0", [(10, 0), (10, 3)], [(9, 0), (11, 0), (12, 0)]),
        ("10.0a", [(10, 0)], [(10, 3), (11, 0), (12, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(11, 0), (12, 0)]),
        ("10.0+PTX", [(10, 0), (10, 3), (11, 0), (12, 0), (12, 1)], [(9, 0)]),
        ("8.0+PTX", [(8, 0), (8, 7), (9, 0), (12, 0)], [(7, 5)]),
        ("Hopper", [], [(9, 0)]),
    ],
)
def test_what_runs_where(architecture, runs, does_not_run):
    assert all(_extension.runs_on(architecture, capability) for capability in runs)
    assert not any(_extension.runs_on(architecture, capability) for capability in does_not_run)


def test_a_device_that_nothing_was_built_for_is_named_with_what_was():
    built = ["8.0", "9.0a"]
    assert _extension.capability_refusal((8, 6), built) is None
    assert _extension.capability_refusal((12, 0), built) == (
        "compute capability 12.0; the extension is built for 8.0, 9.0a"
    )
    assert _extension.capability_refusal((7, 5), built) == (
        "compute capability 7.5; takes 8.0 and later"
    )


@needs_library
def test_the_library_holds_the_code_it_claims():
    runtime = pytest.importorskip("triton.backends.nvidia")
    cuobjdump = Path(runtime.__file__).parent / "bin" / "cuobjdump"
    if not cuobjdump.is_file():
        pytest.skip("triton brings no cuobjdump")

    def listed(option: str) -> set[str]:
        command = [str(cuobjdump), option, str(LIBRARY)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name.rstrip("af") for name in re.findall(r"sm_(\w+)\.", text)}

    def numbers(names: list[str]) -> set[str]:
        # Without suffixes: the cuobjdump of triton 3.6 leaves them out.
        return {name.removesuffix("+PTX").replace(".", "").rstrip("af") for name in names}

    assert listed("--list-elf") == numbers(INFO["architectures"])
    assert listed("--list-ptx") == numbers([n for n in INFO["architectures"] if "+PTX" in n])


# Symbols


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_library
@needs_tools
def test_undefined_symbols():
    """LibTorch's stable C functions, the C and C++ runtimes (versioned symbols), and weak ones."""
    symbols = [line.split() for line in output_of("nm", "-D", "-u", str(LIBRARY)).splitlines()]
    strong = [name for kind, name in symbols if kind == "U"]
    ours = [name for name in strong if name.startswith(("aoti_torch_", "torch_"))]
    versioned = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
    assert len(ours) > 10
    assert [name for name in strong if name not in ours and not versioned.search(name)] == []
    weak = {name for kind, name in symbols if kind == "w"}
    assert {"aoti_torch_get_current_cuda_stream", "PyModuleDef_Init"} <= weak


@needs_library
def test_the_weak_symbol_is_found_where_torch_has_cuda():
    """Looked up as the loader does, through what the library needs; a null pointer would crash."""
    found = hasattr(ctypes.CDLL(str(LIBRARY)), "aoti_torch_get_current_cuda_stream")
    assert found == (torch.version.cuda is not None)


@needs_library
@needs_tools
def test_cudart_is_inside_and_stays_there():
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", str(LIBRARY)))
    assert "libtorch.so" in needed
    assert not [name for name in needed if "cuda" in name or "python" in name]
    defined = output_of("nm", "-D", "--defined-only", str(LIBRARY)).split()
    assert "PyInit__C" in defined
    assert not [name for name in defined if name.startswith(("cuda", "__cuda", "cu"))]


# The operators


def test_schemas_are_stable():
    assert str(OPERATOR._schema) == (
        "fused_inception::_factorized_conv2d_cuda_out(Tensor input, Tensor weight1, Tensor? bias1, "
        "Tensor weight2, Tensor? bias2, Tensor(a!)? mid, Tensor(b!) out, int channel_offset, "
        "bool mid_relu, bool relu, int configuration) -> ()"
    )
    assert str(cuda_launch._configurations_operator._schema) == (
        "fused_inception::_factorized_conv2d_cuda_configurations(int c_mid) -> int[]"
    )
    assert str(cuda_launch._sm90_configurations_operator._schema) == (
        "fused_inception::_factorized_conv2d_cuda_sm90_configurations(int c_in, int c_mid, "
        "int taps1, int taps2, int cross_size, int line_size) -> int[]"
    )


@needs_library
def test_the_library_implements_the_cuda_key_alone():
    name = "fused_inception::_factorized_conv2d_cuda_out"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


def test_a_cpu_tensor_is_refused_in_words():
    inputs = random_pair(PAIR, torch.float16)
    reason = INFO["error"] or r"input is on cpu; takes CUDA tensors"
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run here: ") as caught:
        fused_inception.factorized_conv2d(*inputs, backend="cuda")
    assert str(caught.value).endswith(reason)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (PAIR, torch.float32, r"dtype torch\.float32; takes float16 and bfloat16"),
        (
            PairShape(1, 9, 9, 8, 8, 8, 17, 3, True),
            torch.float16,
            r"filters of length 17 and 3; takes up to 15",
        ),
        (
            PairShape(1, 72, 9, 8, 8, 8, 3, 3, True),
            torch.float16,
            r"a map of 72x9; takes up to 71x71",
        ),
    ],
    ids=["dtype", "filter", "map"],
)
def test_what_the_kernels_do_not_take_is_refused_in_words(shape, dtype, message):
    with pytest.raises(RuntimeError, match=f"backend 'cuda' cannot run here: {message}"):
        fused_inception.factorized_conv2d(*random_pair(shape, dtype), backend="cuda")


def test_a_refusal_does_not_look_at_the_batch():
    for shape in (*ODD_PAIR_SHAPES, *inception_v3_pairs(1)):
        reasons = {
            cuda_launch.shape_refusal(problem_of(shape)._replace(batch=batch))
            for batch in (0, 1, 2, 1000)
        }
        assert len(reasons) == 1


# Configurations. Shared memory of a block: sm_86, 89 and 120; sm_80; sm_90 and 100.

DEVICES = [Device(99 * 1024, 84, 6 << 20), Device(163 * 1024, 108, 40 << 20)]
DEVICES.append(Device(227 * 1024, 132, 50 << 20))


@needs_library
def test_the_table_has_both_forms():
    table = cuda_launch.configurations(192)
    assert {c.bands for c in table} == {False, True}
    assert [c.number for c in table] == list(range(len(table)))
    assert len(set(table)) == len(table)


@needs_library
@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d.shared_bytes >> 10}KB")
@pytest.mark.parametrize("batch", [1, 4, 32, 256])
@pytest.mark.parametrize("shape", inception_v3_pairs(1), ids=str)
def test_a_configuration_fits_the_device(shape: PairShape, batch: int, device: Device):
    problem = problem_of(shape)._replace(batch=batch)
    chosen = cuda_launch.choose(cuda_launch.configurations(problem.c_mid), device, problem)
    assert chosen.shared_bytes <= device.shared_bytes
    lines = chosen.block_m // problem.line_size
    bands = -(-batch * problem.cross_size // max(lines, 1))
    assert chosen.bands == (bands >= 0.75 * device.multiprocessors)


@needs_library
@pytest.mark.parametrize("shape", [s for s in ODD_PAIR_SHAPES if taken(s)], ids=str)
@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d.shared_bytes >> 10}KB")
def test_odd_shapes_have_a_configuration_too(shape: PairShape, device: Device):
    for batch in (1, 1000):
        problem = problem_of(shape)._replace(batch=batch)
        table = cuda_launch.configurations(padded(shape.c_mid, 8))
        assert cuda_launch.choose(table, device, problem).shared_bytes <= device.shared_bytes


def test_two_launches_fill_the_device_with_the_largest_tile_that_does():
    large, small = Configuration(0, False, 128, 96, 0), Configuration(1, False, 64, 32, 0)
    problem = problem_of(PairShape(1, 17, 17, 192, 192, 192, 7, 7, True))
    chosen = [
        cuda_launch.choose((small, large), DEVICES[2], problem._replace(batch=batch))
        for batch in (1, 8, 32)
    ]
    # 3, 19 and 73 tiles of 128 pixels, times two blocks of 96 filters, for 132 multiprocessors
    assert chosen == [small, small, large]


# The configurations on wgmma.


@needs_library
@pytest.mark.parametrize("shape", inception_v3_pairs(1), ids=str)
def test_every_pair_of_inception_fits_sm_90a(shape: PairShape):
    problem = problem_of(shape)
    table = cuda_launch.sm90_configurations(problem)
    first = len(cuda_launch.configurations(shape.c_mid))
    assert [c.number for c in table] == list(range(first, first + 7))
    assert all(c.shared_bytes <= DEVICES[2].shared_bytes for c in table)
    for batch in (1, 8, 256):
        chosen = cuda_launch.choose_sm90(table, DEVICES[2], problem._replace(batch=batch))
        assert chosen in table


@needs_library
def test_a_line_longer_than_a_tile_has_fewer_configurations():
    tall = problem_of(PairShape(1, 100, 3, 8, 8, 8, 1, 3, True))
    assert {c.block_m for c in cuda_launch.sm90_configurations(tall)} == {160}
    taller = problem_of(PairShape(1, 161, 3, 8, 8, 8, 1, 3, True))
    assert cuda_launch.sm90_configurations(taller) == ()
    assert cuda_launch.choose_sm90((), DEVICES[2], taller) is None


@needs_library
def test_what_does_not_fit_wgmma_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", True)
    monkeypatch.setattr(cuda_launch, "_device", lambda device: DEVICES[2])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_extension, "build_info", lambda: {"architectures": ["9.0a"]})
    tall = problem_of(PairShape(1, 161, 3, 8, 8, 8, 1, 3, True))
    assert cuda_launch.sm90_refusal(tall) == "no band fits: a line of 161 pixels; takes up to 160"
    wide = problem_of(PairShape(1, 17, 17, 512, 512, 64, 7, 7, True))
    assert re.fullmatch(
        r"no band fits: 512 and 512 channels with 7 and 7 taps take \d+ bytes of shared memory a "
        r"block; cuda has 232448",
        str(cuda_launch.sm90_refusal(wide)),
    )


@needs_library
def test_the_batch_chooses_how_clusters_share_the_work():
    """Few bands share out their filters, many share their loads; of 192 filters on 132 SMs."""
    problem = problem_of(PairShape(1, 17, 17, 192, 192, 192, 7, 7, True))
    table = cuda_launch.sm90_configurations(problem)
    chosen = [
        cuda_launch.choose_sm90(table, DEVICES[2], problem._replace(batch=batch))
        for batch in (1, 8, 32, 128, 256)
    ]
    assert [(c.block_m, c.split, c.multicast) for c in chosen if c] == [
        (48, 8, 1), (80, 3, 1), (96, 1, 2), (160, 1, 2), (160, 1, 2),
    ]  # fmt: skip
    too_small = DEVICES[0]._replace(shared_bytes=-1)
    assert cuda_launch.choose_sm90(table, too_small, problem) is None


def test_larger_clusters_leave_multiprocessors_idle():
    """Some processing clusters of an H100 have 16 multiprocessors: five clusters of three."""
    counts = {c: cuda_launch.clusters_at_once(132, c) for c in (1, 2, 3, 8)}
    assert counts == {1: 132, 2: 66, 3: 40, 8: 16}
    assert cuda_launch.clusters_at_once(10, 8) == 1


def test_wgmma_is_off_without_its_switch(monkeypatch: pytest.MonkeyPatch):
    problem = problem_of(PairShape(1, 17, 17, 192, 192, 192, 7, 7, True))
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", False)
    assert cuda_launch.sm90_refusal(problem) == "the environment has no FUSED_INCEPTION_SM90=1"
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert cuda_launch.sm90_refusal(problem) == "takes compute capability 9.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_extension, "build_info", lambda: {"architectures": ["8.0+PTX"]})
    assert cuda_launch.sm90_refusal(problem) == "the extension is not built for 9.0a"


@needs_library
def test_on_wgmma_the_batch_chooses_the_configuration_alone(monkeypatch: pytest.MonkeyPatch):
    """The kind of kernel is a matter of one image, and so is whether there is one."""
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", True)
    monkeypatch.setattr(cuda_launch, "_device", lambda device: DEVICES[2])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_extension, "build_info", lambda: {"architectures": ["9.0a"]})
    for shape in (*inception_v3_pairs(1), *(s for s in ODD_PAIR_SHAPES if taken(s))):
        problem = problem_of(shape)
        first = len(cuda_launch.configurations(padded(shape.c_mid, 8)))
        refused = {cuda_launch.sm90_refusal(problem._replace(batch=b)) for b in (1, 2, 1000)}
        assert len(refused) == 1
        plan = cuda_launch._plan.__wrapped__
        numbers = {plan(problem._replace(batch=b))[0].number for b in (1, 2, 1000)}
        assert {number >= first for number in numbers} == {refused == {None}}


def test_a_mid_tensor_stays_in_l2():
    problem = problem_of(PairShape(64, 17, 17, 192, 192, 192, 7, 7, True))
    assert cuda_launch.images_of_mid(problem, 50 << 20) == 64
    assert cuda_launch.images_of_mid(problem, 1 << 20) == (1 << 20) // (17 * 17 * 192 * 2)
    assert cuda_launch.images_of_mid(problem, 0) == 1


# From a call to the kernels: everything but the launch


def install(monkeypatch: pytest.MonkeyPatch) -> list:
    """The stand-ins for the kernels, and the list of what they are called with."""
    calls: list = []
    cuda_stand_ins.install(monkeypatch, lambda op, operands: calls.append(operands))
    return calls


def launched(problem: Problem, configuration: Configuration, *operands) -> torch.Tensor:
    """The pair by `configuration`, with a mid tensor of one image."""
    *tensors, mid_activation, activation = operands
    output = empty_channels_last(problem.output_shape, tensors[0])
    arguments = (*tensors, output, mid_activation, activation)
    cuda_launch.launch(problem, configuration, 1, *arguments)
    return output


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [True, False], ids=["bands", "two_launches"])
@pytest.mark.parametrize("shape", [PAIR, *(s for s in ODD_PAIR_SHAPES if taken(s))], ids=str)
def test_the_extension_takes_what_the_launcher_hands_it(monkeypatch, shape, bands, dtype):
    calls = install(monkeypatch)
    inputs = integer_pair(shape, dtype)
    problem = problem_of(shape, dtype, "cpu")
    configuration = Configuration(3, bands, 128, 96, 0)
    for biases in (inputs, inputs._replace(bias1=None), inputs._replace(bias2=None)):
        with nan_filled_memory():
            result = launched(problem, configuration, *biases, "relu", "relu")
        assert torch.equal(result, pair_oracle(biases).to(dtype))
        assert_channels_last(result)
    assert len(calls) == 3
    mid = calls[0][5]
    if bands:
        assert mid is None
    else:
        channels = padded(shape.c_mid, 8)
        assert mid.shape == (1, problem.cross_size, problem.line_size, channels)


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_copied_to_what_the_extension_takes(monkeypatch, layout):
    calls = install(monkeypatch)
    inputs = integer_pair(PAIR, torch.float16)
    arrange = LAYOUTS[layout]
    views = PairInputs(*(arrange(t) if t is not None and t.dim() == 4 else t for t in inputs))
    before = [t.clone() for t in views]
    arguments = (problem_of(PAIR, device="cpu"), Configuration(0, True, 128, 192, 0))
    result = launched(*arguments, *views, "relu", "relu")
    assert torch.equal(result, pair_oracle(inputs).half())
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))
    handed = calls[0]
    if layout == "channels_last":  # and then nothing is copied
        for index, tensor in ((0, inputs.input), (1, inputs.weight1), (3, inputs.weight2)):
            assert handed[index].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("options", [("relu", "none"), ("none", "relu"), ("none", "none")])
@needs_library
def test_activations_reach_the_extension(monkeypatch, options):
    calls = install(monkeypatch)
    inputs = integer_pair(PAIR, torch.float16)
    arguments = (problem_of(PAIR, device="cpu"), Configuration(0, True, 128, 192, 0))
    result = launched(*arguments, *inputs, *options)
    assert torch.equal(result, pair_oracle(inputs, *options).half())
    assert calls[0][8:10] == tuple(option == "relu" for option in options)


def test_batch_0_launches_nothing(monkeypatch):
    monkeypatch.setattr(cuda_launch, "_out_operator", None)
    inputs = random_pair(PAIR, torch.float16)
    inputs = inputs._replace(input=inputs.input[:0])
    problem = problem_of(PAIR, device="cpu")._replace(batch=0)
    result = launched(problem, Configuration(0, True, 128, 192, 0), *inputs, "relu", "relu")
    assert result.shape == (0, PAIR.c_out, PAIR.height, PAIR.width)
    assert_channels_last(result)


# What the C++ side refuses


def half(*size: int) -> torch.Tensor:
    tensor = torch.zeros(size, dtype=torch.float16)
    return channels_last(tensor) if len(size) == 4 else tensor


GOOD = {
    "input": half(2, 16, 9, 5),
    "weight1": half(20, 16, 1, 7),
    "bias1": half(20),
    "weight2": half(12, 24, 5, 1),
    "bias2": half(12),
    "mid": torch.zeros(1, 5, 9, 24, dtype=torch.float16),
    "out": half(2, 40, 9, 5),
    "channel_offset": 24,
    "mid_relu": True,
    "relu": True,
    "configuration": 5,
}
LATE = torch.zeros(16 * 16 * 7 + 1, dtype=torch.float16)[1:]
BAD = {
    "dtype": ({"input": GOOD["input"].float()}, r"input must be float16 or bfloat16, got float32"),
    "mixed": (
        {"weight1": GOOD["weight1"].bfloat16()},
        r"weight1 must be float16 as input is, got bfloat16",
    ),
    "rank": ({"input": half(16, 9)}, r"input must be 4-D, got shape \(16, 9\)"),
    "no_pair": (
        {"weight2": half(12, 24, 1, 5)},
        r"must be a 1xn filter and an mx1 one, .* got shapes \(20, 16, 1, 7\) and "
        r"\(12, 24, 1, 5\)",
    ),
    "even": ({"weight1": half(20, 16, 1, 6)}, r"filters must have odd lengths, got 6 and 5"),
    "channels": (
        {"input": half(2, 12, 9, 5)},
        r"channels in multiples of 8 .* got shape \(2, 12, 9, 5\)",
    ),
    "unpadded_mid": (
        {"weight2": half(12, 20, 5, 1)},
        r"weight2 must take 24 channels, got shape \(12, 20, 5, 1\)",
    ),
    "weight_strides": (
        {"weight1": GOOD["weight1"].contiguous()},
        r"weight1 of shape \(20, 16, 1, 7\) must have strides \(112, 1, 112, 16\), got "
        r"\(112, 7, 7, 1\)",
    ),
    "weight_alignment": (
        {"weight1": LATE[: 16 * 16 * 7].view(16, 1, 7, 16).permute(0, 3, 1, 2), "bias1": half(16)},
        r"weight1 must start on a multiple of 16 bytes, got address 0x",
    ),
    "bias_size": ({"bias1": half(24)}, r"bias1 must have 20 values, got 24"),
    "bias_strides": ({"bias2": half(24)[::2]}, r"bias2 of shape \(12\) must have strides \(1\)"),
    "out_map": ({"out": half(2, 40, 9, 6)}, r"out must have the batch and the map of input"),
    "out_room": (
        {"channel_offset": 32},
        r"out must have room for 16 channels .* channel_offset 32",
    ),
    "out_offset": ({"channel_offset": 4}, r"at a multiple of 8, .* channel_offset 4"),
    "out_negative": ({"channel_offset": -8}, r"channel_offset -8"),
    "input_strides": (
        {"input": GOOD["input"].contiguous()},
        r"input must be channels_last with strides in multiples of 8, got shape \(2, 16, 9, 5\) "
        r"and strides \(720, 45, 5, 1\)",
    ),
    "out_strides": (
        {"out": half(2, 44, 9, 5)},
        r"out must be channels_last with strides in multiples of 8",
    ),
    "mid_shape": (
        {"mid": torch.zeros(1, 9, 5, 24, dtype=torch.float16)},
        r"mid must have the shape \(images, 5, 9, 24\), got \(1, 9, 5, 24\)",
    ),
    "mid_strides": (
        {"mid": torch.zeros(1, 5, 9, 48, dtype=torch.float16)[..., ::2]},
        r"mid must be contiguous, got strides \(2160, 432, 48, 2\)",
    ),
}


@needs_library
def test_the_good_call_is_refused_for_its_device_alone():
    with pytest.raises(RuntimeError, match="input must be on a CUDA device, got cpu"):
        call(*GOOD.values())


@needs_library
@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_refused_with_its_values(name: str):
    changes, message = BAD[name]
    with pytest.raises(RuntimeError, match=f"^factorized_conv2d: .*{message}"):
        call(*{**GOOD, **changes}.values())


@needs_library
def test_mid_channels_of_the_table_are_checked():
    with pytest.raises(RuntimeError, match="c_mid must be 1 to 2\\^20, got 0"):
        cuda_launch._configurations_operator(0)
