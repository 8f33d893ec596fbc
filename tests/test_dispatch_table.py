"""Which backend serves which op: the tables, and that no choice looks at the batch.

That the tiles of one op give the same bits is shown where they run: those of the extension in
`test_emulator_convolutions.py` and `test_emulator_factorized_conv2d.py`, those of Triton in
`interpreter/test_ops.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_inception import _extension, testing
from fused_inception.blocks import layers
from fused_inception.ops.common import cuda_launching, dispatch, dispatch_table
from fused_inception.ops.common.configurations import DEVICE_CLASSES, load_table
from fused_inception.ops.common.cuda_launching import Device
from fused_inception.ops.conv2d_act import cuda_launch as conv_cuda_launch
from fused_inception.ops.conv2d_act import launch as conv_launch
from fused_inception.ops.conv2d_act.op import Problem as ConvProblem
from fused_inception.ops.factorized_conv2d import cuda_launch as pair_cuda_launch
from fused_inception.ops.factorized_conv2d import launch as pair_launch
from fused_inception.ops.factorized_conv2d.op import Problem as PairProblem
from fused_inception.ops.grid_reduction import cuda_launch as reduction_cuda_launch
from fused_inception.ops.grid_reduction import launch as reduction_launch
from fused_inception.ops.grid_reduction.op import Problem as ReductionProblem
from fused_inception.ops.halving_branches import launch as branches_launch
from fused_inception.ops.halving_branches.problem import Problem as BranchesProblem
from fused_inception.ops.pool2d import launch as pool_launch
from fused_inception.ops.pool2d.op import Problem as PoolProblem
from fused_inception.ops.split_conv2d import cuda_launch as split_cuda_launch
from fused_inception.ops.split_conv2d import launch as split_launch
from fused_inception.ops.split_conv2d.op import Problem as SplitProblem

ROOT = Path(__file__).resolve().parents[1]
CLASSES = sorted(set(DEVICE_CLASSES.values()))
FOLDER = Path(dispatch_table.__file__).parent / "configs"
PROBLEMS: dict[str, type] = {
    "conv2d_act": ConvProblem,
    "factorized_conv2d": PairProblem,
    "grid_reduction": ReductionProblem,
    "split_conv2d": SplitProblem,
    "linear": ConvProblem,
    "halving_branches": BranchesProblem,
    "max_pool2d": PoolProblem,
    "avg_pool2d_act": PoolProblem,
    "global_avg_pool2d": PoolProblem,
}
POOLS = {
    "max_pool2d": pool_launch.MAX_POOL_BACKENDS,
    "avg_pool2d_act": pool_launch.AVG_POOL_ACT_BACKENDS,
    "global_avg_pool2d": pool_launch.GLOBAL_AVG_POOL_BACKENDS,
}
BACKENDS = {
    "conv2d_act": conv_launch.BACKENDS,
    "factorized_conv2d": pair_launch.BACKENDS,
    "grid_reduction": reduction_launch.BACKENDS,
    "split_conv2d": split_launch.BACKENDS,
    "linear": layers._BACKENDS,
    "halving_branches": branches_launch.BACKENDS,
    **POOLS,
}
CUDA = torch.device("cuda", 0)
INFO = _extension.build_info()
needs_library = pytest.mark.skipif(not INFO["loaded"], reason=f"extension: {INFO['error']}")

each_class = pytest.mark.parametrize("name", CLASSES)


def problems(dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """(op, problem) of every shape of Inception V3 and of odd ones, for one image."""
    for conv in (*testing.inception_v3_convs(1), *testing.ODD_CONV_SHAPES):
        out = (
            (size + 2 * pad - taps) // step + 1
            for size, taps, step, pad in zip(
                (conv.height, conv.width), conv.kernel, conv.stride, conv.padding, strict=True
            )
        )
        yield "conv2d_act", ConvProblem(
            1, conv.c_in, conv.height, conv.width, conv.c_out, conv.kernel, conv.stride,
            conv.padding, *out, dtype, CUDA,
        )  # fmt: skip
    yield "linear", ConvProblem(1, 2048, 1, 1, 1000, (1, 1), (1, 1), (0, 0), 1, 1, dtype, CUDA)
    for pair in (*testing.inception_v3_pairs(1), *testing.ODD_PAIR_SHAPES):
        yield "factorized_conv2d", PairProblem(
            1, pair.c_in, pair.c_mid, pair.c_out, pair.height, pair.width, pair.taps1, pair.taps2,
            pair.row_first, dtype, CUDA,
        )  # fmt: skip
    for split in (*testing.inception_v3_splits(1), *testing.ODD_SPLIT_SHAPES):
        yield "split_conv2d", SplitProblem(
            1, split.c_in, split.height, split.width, split.c_row, split.c_col, split.taps_row,
            split.taps_col, dtype, CUDA,
        )  # fmt: skip
    for r in (*testing.inception_reductions(1), *testing.ODD_REDUCTION_SHAPES):
        yield "grid_reduction", ReductionProblem(
            1, r.c_in, r.height, r.width, r.c_out, r.kernel, (r.height - r.kernel) // 2 + 1,
            (r.width - r.kernel) // 2 + 1, "max", dtype, CUDA,
        )  # fmt: skip
    for sizes in (((192, 192), (320, 192)), ((5,), (3,))):
        yield "halving_branches", BranchesProblem(1, 17, 17, *sizes, 768, 3, 8, 8, dtype, CUDA)
    for op, window, stride, padding, size in (
        ("max_pool2d", (3, 3), (2, 2), (0, 0), (8, 8)),
        ("avg_pool2d_act", (3, 3), (1, 1), (1, 1), (17, 17)),
        ("global_avg_pool2d", (17, 17), (1, 1), (0, 0), (1, 1)),
    ):
        for channels in (768, 5):
            yield op, PoolProblem(1, channels, 17, 17, window, stride, padding, *size, dtype, CUDA)


# The tables.


def test_every_device_class_has_a_table_and_nothing_else_has():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == CLASSES


@each_class
def test_a_table_names_its_devices(name: str):
    data = json.loads((FOLDER / f"{name}.json").read_text())
    assert data["device_class"] == name
    capabilities = [f"{a}.{b}" for (a, b), of in DEVICE_CLASSES.items() if of == name]
    assert data["compute_capabilities"] == capabilities


@each_class
def test_entries_are_complete(name: str):
    """Every op has a last entry that takes all shapes; what was measured has a file to show."""
    table = dispatch_table.load(name)
    for op in PROBLEMS:
        last = [entry for entry in table if entry.op == op][-1]
        assert last.shape == {}, op
        wide = {torch.float32} if op in POOLS else set()
        assert set(last.dtypes) == {torch.float16, torch.bfloat16} | wide
    for entry in table:
        assert entry.op in PROBLEMS
        assert entry.block_k.keys() <= {"cuda", "triton", "aten"}
        assert entry.shape.keys() <= set(PROBLEMS[entry.op]._fields)
        assert entry.why
        assert entry.needs in (None, "wgmma")
    # What needs something stands before what serves otherwise.
    for op in PROBLEMS:
        needs = [entry.needs for entry in table if entry.op == op]
        assert needs == sorted(needs, key=lambda need: need is None)
        assert entry.measured is None or (ROOT / entry.measured).is_file()


@each_class
def test_k_blocks_are_those_that_the_backends_have(name: str):
    tile = (ROOT / "csrc" / "common" / "tile.h").read_text()
    assert f"constexpr int kBlockK = {cuda_launching.BLOCK_K};" in tile
    precisions = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    for entry in dispatch_table.load(name):
        if entry.op in POOLS:  # no sum over channels
            assert set(entry.block_k.values()) == {None}
            continue
        assert entry.block_k.get("cuda", cuda_launching.BLOCK_K) == cuda_launching.BLOCK_K
        block_k = entry.block_k.get("triton")
        if block_k is not None:
            op = "conv2d_act" if entry.op == "linear" else entry.op
            for dtype in entry.dtypes:
                tiles = load_table(op, name).tiles[precisions[dtype]]
                assert any(tile.block_k == block_k and not tile.whole for tile in tiles)


@pytest.mark.parametrize("field", dispatch_table.FORBIDDEN)
def test_an_entry_cannot_look_at_the_batch(field: str):
    row = {"op": "conv2d_act", "shape": {field: 1}}
    with pytest.raises(ValueError, match=f"an entry for conv2d_act must not look at {field}"):
        dispatch_table.parse({"entries": [row]})


def test_the_first_entry_that_fits_decides(monkeypatch: pytest.MonkeyPatch):
    def row(backend: str, shape: dict[str, Any], block_k: int | None = None) -> dict[str, Any]:
        return {
            "op": "conv2d_act",
            "shape": shape,
            "dtypes": ["float16"],
            "backends": [{"name": backend, "block_k": block_k}],
            "measured": None,
            "why": "a test",
        }

    table = dispatch_table.parse(
        {
            "entries": [
                row("aten", {"c_in": {"max": 8}}),
                row("triton", {"c_in": {"min": 16, "max": 32}, "kernel": [3, 3]}, 32),
                row("cuda", {"height": 7}),
            ]
        }
    )
    monkeypatch.setattr(dispatch_table, "load", lambda name: table)
    find = dispatch_table.entry.__wrapped__
    problem = ConvProblem(
        1, 8, 7, 7, 64, (3, 3), (1, 1), (0, 0), 5, 5, torch.float16, torch.device("cpu")
    )
    assert find("conv2d_act", problem) is table[0]
    assert find("conv2d_act", problem._replace(c_in=32)) is table[1]
    assert find("conv2d_act", problem._replace(c_in=32, kernel=(1, 3))) is table[2]
    assert find("conv2d_act", problem._replace(c_in=40, height=8)) is None
    assert find("conv2d_act", problem._replace(dtype=torch.bfloat16)) is None
    assert find("grid_reduction", problem) is None
    monkeypatch.setattr(dispatch_table, "entry", find)
    names = ("cuda", "triton", "aten")
    assert dispatch_table.order("conv2d_act", problem, names) == ("aten", "cuda", "triton")
    tiles = dispatch_table.tiles("conv2d_act", problem._replace(c_in=32), "float16")
    assert {tile.block_k for tile in tiles} == {32}
    assert len(dispatch_table.tiles("conv2d_act", problem, "float16")) > len(tiles)


# The choice, on devices that are not here.


@pytest.fixture(params=sorted(DEVICE_CLASSES), ids=lambda c: f"{c[0]}.{c[1]}")
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A device of this compute capability, as far as the choice of a backend asks."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    monkeypatch.setattr(_extension, "device_refusal", lambda device: None)
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", False)
    limits = Device(99 * 1024, 84, 6 << 20)
    for module in (cuda_launching, pair_cuda_launch):
        name = "_device" if module is pair_cuda_launch else "device_limits"
        monkeypatch.setattr(module, name, lambda device: limits)
    dispatch_table.entry.cache_clear()
    yield request.param
    dispatch_table.entry.cache_clear()


def chosen(op: str, problem: Any) -> str:
    return dispatch.select(op, "auto", BACKENDS[op], problem, problem.device).name


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_choice_does_not_depend_on_the_batch(capability: Any, dtype: torch.dtype):
    for op, problem in problems(dtype):
        batches = [problem._replace(batch=batch) for batch in (0, 1, 2, 7, 256, 100_000)]
        assert len({chosen(op, p) for p in batches}) == 1, problem
        entries = {id(dispatch_table.entry(op, p)) for p in batches}
        assert len(entries) == 1


@needs_library
def test_the_choice_is_the_tables(capability: Any):
    """On devices whose Triton has a matrix instruction of its own, pair and pools are compiled."""
    own = capability in ((9, 0), (10, 0), (10, 3))
    choices: dict[str, set[str]] = {}
    for op, problem in problems(torch.float16):
        if op == "conv2d_act" and problem.c_in <= 8:
            assert chosen(op, problem) == "triton"
        elif op != "factorized_conv2d" or pair_cuda_launch.shape_refusal(problem) is None:
            choices.setdefault(op, set()).add(chosen(op, problem))
    for op in POOLS:
        assert choices.pop(op) == {"cuda"}
    rest = {"triton"} if own else {"cuda"}
    assert choices.pop("factorized_conv2d") == {"cuda"}
    assert choices == dict.fromkeys(
        ("conv2d_act", "linear", "split_conv2d", "grid_reduction", "halving_branches"), rest
    )


# Kernels on wgmma, behind their switch.


@pytest.fixture
def switched_on(capability: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The device's capability, with the switch on and, in a block, the shared memory of an H100."""
    limits = Device(227 * 1024, 132, 50 << 20)
    for module in (cuda_launching, conv_cuda_launch, reduction_cuda_launch, split_cuda_launch):
        monkeypatch.setattr(module, "device_limits", lambda device: limits)
    monkeypatch.setattr(pair_cuda_launch, "_device", lambda device: limits)
    monkeypatch.setattr(cuda_launching, "SM90_ENABLED", True)
    monkeypatch.setattr(_extension, "build_info", lambda: {**INFO, "architectures": ["9.0a"]})
    return capability


# Of the shared product; the pair has kernels of its own on wgmma, the branches have none.
ON_BOTH_ENGINES = ("conv2d_act", "grid_reduction", "split_conv2d")


@needs_library
def test_with_the_switch_hopper_has_the_extension(switched_on: tuple[int, int]):
    """For all but the image's three channels; other devices are as they were."""
    own = switched_on in ((10, 0), (10, 3))
    for op, problem in problems(torch.bfloat16):
        if op not in ON_BOTH_ENGINES:
            continue
        few = op == "conv2d_act" and problem.c_in <= 8
        assert chosen(op, problem) == ("triton" if own or few else "cuda"), problem
        batches = [problem._replace(batch=batch) for batch in (0, 2, 256, 100_000)]
        assert {chosen(op, p) for p in batches} == {chosen(op, problem)}


def tile_of(op: str, problem: Any) -> cuda_launching.TileConfiguration:
    if op == "split_conv2d":
        table = cuda_launching.of_engine(split_cuda_launch.table_of(problem), problem.device)
        limits = cuda_launching.device_limits(problem.device)
        return split_cuda_launch.choose(table, limits, problem)
    if op == "grid_reduction":
        return reduction_cuda_launch.choose(problem)
    return conv_cuda_launch.choose(problem, [problem.c_out])


@needs_library
def test_the_engine_does_not_depend_on_the_batch(switched_on: tuple[int, int]):
    """Bits may differ between mma.sync and wgmma; the tiles of either give the same."""
    for op, problem in problems(torch.float16):
        if op not in ON_BOTH_ENGINES:
            continue
        tiles = [tile_of(op, problem._replace(batch=batch)) for batch in (1, 2, 7, 256, 100_000)]
        assert {tile.wgmma for tile in tiles} == {switched_on == (9, 0)}, problem


@needs_library
def test_what_the_extension_refuses_goes_to_the_next(capability: Any):
    for op, problem in problems(torch.float16):
        counted = "channels" if op in (*POOLS, "halving_branches") else "c_in"
        wide = problem._replace(**{counted: 2**20 + 8})
        assert re.search(r"takes up to (2\^20|15|71x71)$", BACKENDS[op][0].can_run(wide))
        assert chosen(op, wide) == "triton"


@needs_library
def test_products_in_float32_are_tritons(capability: Any):
    for op, problem in problems(torch.float32):
        assert chosen(op, problem) == ("cuda" if op in POOLS else "triton")
