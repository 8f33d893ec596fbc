"""The ops beside the pair, the branches of a reduction and the pools in the extension, with no GPU.

From a call to the kernels, which CPU convolutions stand in for behind the extension's own checks;
what these refuse; and the choice of a configuration. `test_extension.py` has what concerns the
library as a whole, and the pair. Left out: the kernels (tests/emulator runs them on the host), and
what needs a device (test_ops_gpu.py).
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fused_inception import _extension, testing
from fused_inception.ops.common.cuda_launching import (
    Device,
    TileConfiguration,
    choose_tile_configuration,
)
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.conv2d_act.segments import Segment
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.halving_branches import cuda_launch as branches_launch
from fused_inception.ops.halving_branches.launch import BACKENDS as BRANCHES_BACKENDS
from fused_inception.ops.pool2d import cuda_launch as pool_launch
from fused_inception.ops.pool2d.launch import AVG_POOL_ACT_BACKENDS
from fused_inception.ops.pool2d.op import Problem as PoolProblem
from fused_inception.ops.pool2d.op import global_avg_pool2d, max_pool2d
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from fused_inception.testing import (
    LAYOUTS,
    ConvShape,
    channels_last,
    nan_filled_memory,
)
from tests import branch_cases, cuda_stand_ins
from tests.op_cases import OP_CASES, OpCase

INFO = _extension.build_info()
needs_library = pytest.mark.skipif(not INFO["loaded"], reason=f"extension: {INFO['error']}")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MODULES = {
    "conv2d_act": conv_launch,
    "grid_reduction": reduction_launch,
    "split_conv2d": split_launch,
}
OPERATORS = {name: module._out_operator for name, module in MODULES.items()}
OPERATORS["pool2d"] = pool_launch._out_operator
OPERATORS["halving_branches"] = branches_launch._out_operator
# Shared memory of a block: sm_86, 89 and 120; sm_80; sm_90 and 100.
DEVICES = [
    Device(99 * 1024, 84, 6 << 20),
    Device(163 * 1024, 108, 40 << 20),
    Device(227 * 1024, 132, 50 << 20),
]
each_device = pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d.shared_bytes >> 10}KB")
every_case = pytest.mark.parametrize("case", OP_CASES, ids=str)


# From a call to the kernels


def run(case: OpCase, shape: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The public op on the backend "cuda", in memory that holds NaN."""
    cuda_stand_ins.install(monkeypatch)
    with nan_filled_memory():
        return case.run(shape, inputs, backend="cuda")


@needs_library
@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_extension_takes_what_the_launcher_hands_it(
    monkeypatch: pytest.MonkeyPatch, case: OpCase, dtype: str
):
    for shape in (*case.odd_shapes, case.small):
        inputs = case.integers(shape, DTYPES[dtype])
        result = run(case, shape, inputs, monkeypatch)
        assert torch.equal(result, case.oracle(shape, inputs).to(DTYPES[dtype])), shape
        testing.assert_channels_last(result)
        monkeypatch.undo()


@needs_library
@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_copied_to_what_the_extension_takes(
    monkeypatch: pytest.MonkeyPatch, case: OpCase, layout: str
):
    inputs = case.integers(case.small, torch.float16)
    views = type(inputs)(
        *(LAYOUTS[layout](t) if t is not None and t.dim() == 4 else t for t in inputs)
    )
    before = [t.clone() for t in views]
    result = run(case, case.small, views, monkeypatch)
    assert torch.equal(result, case.oracle(case.small, inputs).half())
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


@every_case
def test_batch_0_launches_nothing(monkeypatch: pytest.MonkeyPatch, case: OpCase):
    inputs = case.random(case.small, torch.float16)
    empty = inputs._replace(input=inputs.input[:0])
    monkeypatch.setattr(_extension, "build_info", lambda: {"loaded": False})
    monkeypatch.setattr(MODULES[case.op], "can_run", lambda problem: None)
    monkeypatch.setattr(MODULES[case.op], "_out_operator", None)
    module = MODULES[case.op]
    names = {"conv2d_act": "launch_segments", "grid_reduction": "launch_reduction"}
    launch = getattr(module, names.get(case.op, "launch_split"))
    problem = type("Problem", (), {"batch": 0, "c_out": 8})()
    if case.op == "conv2d_act":
        launch(problem, *empty, [Segment(torch.empty(0, 8, 1, 1), "relu")])
    elif case.op == "grid_reduction":
        launch(problem, *empty, None, None, "relu")
    else:
        launch(problem, *empty, None, "relu")


@needs_library
@pytest.mark.parametrize("sizes", [[16, 8, 24], [13, 8, 27]], ids=["whole", "ragged"])
def test_segments_go_where_they_belong(monkeypatch: pytest.MonkeyPatch, sizes: list[int]):
    """Slices are written in place where 16-byte pieces allow it, else through a copy."""
    from fused_inception.ops.conv2d_act.op import _check

    handed: list[Any] = []
    cuda_stand_ins.install(monkeypatch, lambda op, operands: handed.append(operands))
    shape = ConvShape(2, 5, 6, 10, sum(sizes), (1, 1))
    inputs = testing.integer_conv(shape, torch.float16)
    problem = _check(*inputs, (1, 1), (0, 0), "none", "auto")
    whole = channels_last(torch.full((2, 96, 5, 6), float("nan"), dtype=torch.float16))
    segments, offset = [], 8
    for i, size in enumerate(sizes):
        place = whole[:, offset : offset + size]
        segments.append(Segment(place, "relu" if i != 1 else "none"))
        offset += size + 8
    conv_launch.launch_segments(problem, *inputs, segments)
    in_place = [out.data_ptr() for out in handed[0][3]] == [s.output.data_ptr() for s in segments]
    assert in_place == all(size % 8 == 0 for size in sizes)
    raw = testing.conv_oracle(inputs, activation="none").split(sizes, 1)
    for segment, want in zip(segments, raw, strict=True):
        want = want.relu() if segment.activation == "relu" else want
        assert torch.equal(segment.output, want.half())
    assert whole.isnan().sum() == 2 * 30 * (96 - sum(sizes))


# The branches of a grid reduction


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_extension_takes_the_branches_that_the_launcher_hands_it(
    monkeypatch: pytest.MonkeyPatch, dtype: str
):
    cuda_stand_ins.install(monkeypatch)
    shapes = (*branch_cases.SHAPES, branch_cases.MIXED_7A, branch_cases.MIXED_7A_RESNET)
    for shape in shapes:
        inputs = branch_cases.make(shape, DTYPES[dtype], testing.integer_conv)
        problem = branch_cases.problem_of(shape, inputs)
        with nan_filled_memory():
            result = BRANCHES_BACKENDS[0].run(
                problem, *zip(*inputs.convs, strict=True), inputs.input
            )
        assert torch.equal(result, branch_cases.expected(inputs)), shape
        testing.assert_channels_last(result)


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_branches_are_copied(monkeypatch: pytest.MonkeyPatch, layout: str):
    cuda_stand_ins.install(monkeypatch)
    shape, change = branch_cases.SHAPES[0], LAYOUTS[layout]
    inputs = branch_cases.make(shape, torch.float16, testing.integer_conv)
    operands = [
        (change(conv.input), change(conv.weight), None if i == 1 else conv.bias)
        for i, conv in enumerate(inputs.convs)
    ]
    convs = (inputs.convs[0], inputs.convs[1]._replace(bias=None))
    result = BRANCHES_BACKENDS[0].run(
        branch_cases.problem_of(shape, inputs),
        *zip(*operands, strict=True),
        change(inputs.input),
    )
    assert torch.equal(result, branch_cases.expected(inputs._replace(convs=convs)))


def test_branches_of_batch_0_launch_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(branches_launch, "_out_operator", None)
    shape = branch_cases.SHAPES[0]
    inputs = branch_cases.make(shape, torch.float16, testing.integer_conv)
    empty = branch_cases.images(inputs, slice(0))
    problem = branch_cases.problem_of(shape, empty)
    result = BRANCHES_BACKENDS[0].run(problem, *zip(*empty.convs, strict=True), empty.input)
    assert result.shape == (0, sum(shape.sizes), 4, 5)


def test_what_the_branches_do_not_take_is_refused_in_words():
    shape = branch_cases.SHAPES[0]
    inputs = branch_cases.make(shape, torch.float16, testing.integer_conv)
    good = branch_cases.problem_of(shape, inputs)
    for changes, message in (
        ({"dtype": torch.float32}, r"dtype torch.float32; takes float16 and bfloat16"),
        ({"c_out": (8, 2**20 + 1)}, r"1048577 channels; takes up to 2\^20"),
        ({"channels": 2**20 + 1}, r"1048577 channels; takes up to 2\^20"),
        ({"c_in": (8,) * 4, "c_out": (8,) * 4}, r"4 convolutions; takes 1 to 3"),
        ({"height": 2**16, "width": 2**15}, r"a map of 65536x32768; takes up to 2\^30 pixels"),
        ({}, r"input is on cpu; takes CUDA tensors|the CUDA extension"),
    ):
        assert re.match(message, str(branches_launch.can_run(good._replace(**changes))))


@needs_library
def test_few_images_have_small_tiles():
    table = branches_launch.configurations()
    few, many = (
        choose_tile_configuration(table, DEVICES[1], 64 * batch, [320, 192]) for batch in (1, 256)
    )
    assert (few.block_m, few.block_n) == (64, 32)
    assert few.block_m * few.block_n < many.block_m * many.block_n


# The pools, float32 included


POOL_DTYPES = {**DTYPES, "fp32": torch.float32}


def average(x: torch.Tensor, bias: torch.Tensor, include_pad: bool) -> torch.Tensor:
    """The pool that a block has behind a 1x1 convolution, on the extension."""
    n, c, h, w = x.shape
    problem = PoolProblem(n, c, h, w, (3, 3), (1, 1), (1, 1), h, w, x.dtype, x.device)
    result: torch.Tensor = AVG_POOL_ACT_BACKENDS[0].run(problem, x, bias, include_pad)
    return result


def averaged(x: torch.Tensor, bias: torch.Tensor, include_pad: bool) -> torch.Tensor:
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=include_pad)
    return F.relu(pooled + bias.reshape(1, -1, 1, 1))


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("dtype", POOL_DTYPES)
def test_the_extension_takes_the_pools_that_the_launcher_hands_it(
    monkeypatch: pytest.MonkeyPatch, dtype: str, channels: int, layout: str
):
    cuda_stand_ins.install(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    # 36 is a multiple of every number of pixels in a window, and of the map's.
    numbers = 36 * torch.randint(-3, 4, (3, channels, 6, 6), generator=generator)
    plain = channels_last(numbers.to(POOL_DTYPES[dtype]))
    bias = torch.arange(channels).to(plain)
    x = LAYOUTS[layout](plain)
    wide, before = plain.double(), x.clone()
    with nan_filled_memory():
        results = [
            (max_pool2d(x, 3, stride=2, backend="cuda"), F.max_pool2d(plain, 3, 2)),
            (
                max_pool2d(x, (3, 2), stride=(7, 1), padding=(1, 0), backend="cuda"),
                F.max_pool2d(plain, (3, 2), (7, 1), (1, 0)),
            ),
            (global_avg_pool2d(x, backend="cuda"), wide.mean((2, 3), keepdim=True)),
            (average(x, bias, True), averaged(wide, bias.double(), True)),
            (average(x, bias, False), averaged(wide, bias.double(), False)),
        ]
    for got, want in results:
        assert torch.equal(got, want.to(plain.dtype))
        testing.assert_channels_last(got)
    assert torch.equal(x, before)


def test_a_pool_of_batch_0_launches_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_extension, "device_refusal", lambda device: None)
    monkeypatch.setattr(pool_launch, "_out_operator", None)
    x = torch.zeros(0, 5, 4, 4, dtype=torch.float16)
    assert max_pool2d(x, 3, backend="cuda").shape == (0, 5, 1, 1)
    assert global_avg_pool2d(x, backend="cuda").shape == (0, 5, 1, 1)
    assert average(x, x.new_zeros(5), True).shape == x.shape


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"dtype": torch.float64}, r"dtype torch.float64; takes float32, float16 and bfloat16"),
        ({"channels": 2**20 + 1}, r"1048577 channels; takes up to 2\^20"),
        ({"height": 2**16, "width": 2**14}, r"a map of 65538x16386; takes up to 2\^30 pixels"),
        ({}, r"input is on cpu; takes CUDA tensors|the CUDA extension"),
    ],
    ids=["dtype", "channels", "map", "device"],
)
def test_what_the_pools_do_not_take_is_refused_in_words(problem: dict[str, Any], message: str):
    good = PoolProblem(1, 8, 9, 9, (3, 3), (1, 1), (1, 1), 9, 9, torch.float16, torch.device("cpu"))
    assert re.match(message, str(pool_launch.can_run(good._replace(**problem))))


# The choice of a configuration


# Devices, and the engine that their configurations are on.
each_engine = pytest.mark.parametrize(
    ("device", "wgmma"),
    [*((device, False) for device in DEVICES), (DEVICES[2], True)],
    ids=["99KB", "163KB", "227KB", "227KB-wgmma"],
)


def of(table: tuple[TileConfiguration, ...], wgmma: bool) -> tuple[TileConfiguration, ...]:
    return tuple(c for c in table if c.wgmma == wgmma)


@needs_library
@pytest.mark.parametrize("op", MODULES)
def test_the_table_is_numbered(op: str):
    table = MODULES[op].configurations(*([384, 3, 3] if op == "split_conv2d" else []))
    assert [c.number for c in table] == list(range(len(table)))
    assert any(c.whole for c in table) == (op == "split_conv2d")
    # Those on wgmma come last, and each fits a block of the devices that have it.
    assert [c.wgmma for c in table] == sorted(c.wgmma for c in table)
    assert any(c.wgmma for c in table)
    assert all(c.shared_bytes <= DEVICES[2].shared_bytes for c in table)


@needs_library
@each_engine
def test_the_largest_tile_is_for_many_pixels(device: Device, wgmma: bool):
    table = of(conv_launch.configurations(), wgmma)
    few = choose_tile_configuration(table, device, 289, [192])
    many = choose_tile_configuration(table, device, 289 * 256, [384])
    assert few.block_m * few.block_n < many.block_m * many.block_n
    # 96 filters are padded to 128 by one tile and not by another.
    assert choose_tile_configuration(table, device, 1225 * 256, [96]).block_n == 96


@needs_library
@each_engine
@pytest.mark.parametrize("batch", [1, 8, 64, 256])
def test_maps_of_8x8_are_whole(device: Device, wgmma: bool, batch: int):
    from fused_inception.ops.split_conv2d.op import Problem

    problem = Problem(batch, 384, 8, 8, 384, 384, 3, 3, torch.float16, torch.device("cuda"))

    def chosen(problem: Problem) -> TileConfiguration:
        return split_launch.choose(of(split_launch.table_of(problem), wgmma), device, problem)

    whole = chosen(problem)
    assert whole.whole
    assert whole.shared_bytes <= device.shared_bytes
    assert not chosen(problem._replace(height=9)).whole
    # Too many channels for a whole map in a block's memory.
    assert not chosen(problem._replace(c_in=2048)).whole


# What the C++ side refuses


def half(*size: int) -> torch.Tensor:
    tensor = torch.zeros(size, dtype=torch.float16)
    return channels_last(tensor) if len(size) == 4 else tensor


GOOD: dict[str, dict[str, Any]] = {
    "conv2d_act": {
        "input": half(2, 16, 9, 7),
        "weight": half(28, 16, 3, 3),
        "bias": half(28),
        "outs": [half(2, 16, 5, 4), half(2, 24, 5, 4)],
        "sizes": [8, 20],
        "relus": 1,
        "stride": [2, 2],
        "padding": [1, 1],
        "configuration": 0,
    },
    "grid_reduction": {
        "input": half(2, 16, 9, 7),
        "weight": half(20, 16, 3, 3),
        "bias": half(20),
        "conv": half(2, 24, 4, 3),
        "pooled": half(2, 16, 4, 3),
        "max": True,
        "relu": True,
        "configuration": 0,
    },
    "split_conv2d": {
        "input": half(2, 16, 8, 8),
        "weight_row": half(20, 16, 1, 3),
        "bias_row": half(20),
        "weight_col": half(12, 16, 5, 1),
        "bias_col": None,
        "row": half(2, 24, 8, 8),
        "col": half(2, 24, 8, 8),
        "relu": True,
        "configuration": 0,
    },
    "halving_branches": {
        "inputs": [half(2, 16, 9, 7), half(2, 8, 9, 7)],
        "weights": [half(20, 16, 3, 3), half(8, 8, 3, 3)],
        "biases": [half(20), None],
        "outs": [half(2, 24, 4, 3), half(2, 8, 4, 3)],
        "input": half(2, 24, 9, 7),
        "pooled": half(2, 24, 4, 3),
        "configuration": 0,
    },
    "pool2d": {
        "input": half(2, 16, 9, 7),
        "bias": half(12),
        "out": half(2, 16, 9, 7),
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "form": 1,
        "include_pad": True,
        "relu": True,
    },
}
BAD = {
    "conv2d_act": [
        ({"input": half(2, 16, 9, 7).float()}, r"input must be float16 or bfloat16, got float32"),
        ({"input": half(2, 12, 9, 7)}, r"channels in multiples of 8 .* got shape \(2, 12, 9, 7\)"),
        ({"weight": half(28, 8, 3, 3)}, r"weight must take 16 channels, got shape \(28, 8, 3, 3\)"),
        ({"bias": half(27)}, r"bias must have 28 values, got 27"),
        ({"stride": [0, 1]}, r"strides at least 1"),
        ({"weight": half(28, 16, 12, 3)}, r"no smaller than the filter .* padding \(1, 1\)"),
        ({"outs": []}, r"outs must be one to four with a size each, got 0 and 2"),
        ({"sizes": [8, 16]}, r"segments must make the 28 filters of weight, got sizes \(8, 16\)"),
        ({"sizes": [28, 0]}, r"out must have the shape \(2, 28, 5, 4\) .* got \(2, 16, 5, 4\)"),
        ({"outs": [half(2, 16, 5, 4), half(2, 20, 5, 4)]}, r"got \(2, 20, 5, 4\)"),
        (
            {"outs": [half(2, 16, 5, 4), half(2, 28, 5, 4)]},
            r"out must be channels_last with strides in multiples of 8",
        ),
    ],
    "grid_reduction": [
        ({"weight": half(20, 16, 2, 2)}, r"kxk with k odd .* got shapes \(20, 16, 2, 2\)"),
        ({"weight": half(20, 16, 9, 9)}, r"no larger than the map, .* and \(2, 16, 9, 7\)"),
        ({"conv": half(2, 16, 4, 3)}, r"conv must have the shape \(2, 20, 4, 3\)"),
        ({"pooled": half(2, 16, 4, 4)}, r"pooled must have the shape \(2, 16, 4, 3\)"),
        ({"pooled": half(2, 16, 4, 3).bfloat16()}, r"pooled must be float16 as input is"),
    ],
    "split_conv2d": [
        ({"weight_row": half(20, 16, 3, 1)}, r"must be 1xn and mx1, n and m odd"),
        ({"weight_col": half(12, 16, 4, 1)}, r"must be 1xn and mx1, n and m odd"),
        ({"row": half(2, 16, 8, 8)}, r"row must have the shape \(2, 20, 8, 8\)"),
        ({"col": half(2, 16, 8, 8)}, r"col of shape \(2, 16, 8, 8\) must have strides"),
    ],
    "halving_branches": [
        ({"inputs": []}, r"must be one to 3 each, got 0, 2, 2 and 2"),
        ({"inputs": [half(2, 16, 9, 7)] * 4}, r"must be one to 3 each, got 4, 2, 2 and 2"),
        ({"biases": [None]}, r"must be one to 3 each, got 2, 2, 1 and 2"),
        ({"input": half(2, 24, 9, 7).float()}, r"must be float16 or bfloat16, got float32"),
        ({"input": half(2, 20, 9, 7)}, r"channels in multiples of 8 .* got shape \(2, 20, 9, 7\)"),
        (
            {"input": half(2, 24, 9, 8)},
            r"the batch and the map of input, got shapes \(2, 16, 9, 7\)",
        ),
        ({"inputs": [half(2, 16, 9, 7), half(3, 8, 9, 7)]}, r"the batch .* \(3, 8, 9, 7\)"),
        ({"inputs": [half(2, 16, 9, 7), half(2, 16, 9, 7)]}, r"weight must take 16 channels"),
        (
            {"weights": [half(20, 16, 2, 2), half(8, 8, 3, 3)]},
            r"kxk with k odd .* \(20, 16, 2, 2\)",
        ),
        ({"weights": [half(20, 16, 3, 3), half(8, 8, 3, 1)]}, r"kxk with one k, .* \(8, 8, 3, 1\)"),
        ({"biases": [half(24), None]}, r"bias must have 20 values, got 24"),
        (
            {"outs": [half(2, 16, 4, 3), half(2, 8, 4, 3)]},
            r"out must have the shape \(2, 20, 4, 3\)",
        ),
        ({"pooled": half(2, 16, 4, 3)}, r"pooled must have the shape \(2, 24, 4, 3\)"),
        ({"pooled": half(2, 24, 4, 3).bfloat16()}, r"pooled must be float16 as input is"),
    ],
    "pool2d": [
        ({"input": half(2, 16, 9, 7).double()}, r"float16, bfloat16 or float32, got float64"),
        ({"input": half(2, 12, 9, 7)}, r"channels in multiples of 8 .* got shape \(2, 12, 9, 7\)"),
        ({"form": 3}, r"form must be 0 to 2, got 3"),
        ({"kernel": [3]}, r"kernel, stride and padding must be pairs"),
        ({"stride": [0, 1]}, r"strides must be at least 1, .* stride \(0, 1\)"),
        ({"padding": [1, 2]}, r"padding at most half of the window, .* padding \(1, 2\)"),
        ({"kernel": [3, 10]}, r"the map .* no smaller .* kernel \(3, 10\)"),
        ({"form": 2}, r"must be the map without padding, got .* kernel \(3, 3\)"),
        ({"form": 0}, r"bias must have a value for every channel of an average, got 12"),
        ({"bias": half(8)}, r"a value for every channel of an average, got 8 for 16 channels"),
        ({"bias": half(12).float()}, r"bias must be float16 as input is, got float32"),
        ({"out": half(2, 16, 9, 9)}, r"out must have the shape \(2, 16, 9, 7\)"),
    ],
}


@needs_library
@pytest.mark.parametrize("op", GOOD)
def test_the_good_call_is_refused_for_its_device_alone(op: str):
    with pytest.raises(RuntimeError, match="input must be on a CUDA device, got cpu"):
        cuda_stand_ins.call(OPERATORS[op], *GOOD[op].values())


@needs_library
@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [(op, *bad) for op, rows in BAD.items() for bad in rows],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_bad_call_is_refused_with_its_values(op: str, changes: dict[str, Any], message: str):
    with pytest.raises(RuntimeError, match=f"^{op}: .*{message}"):
        cuda_stand_ins.call(OPERATORS[op], *{**GOOD[op], **changes}.values())


@needs_library
def test_a_filter_of_too_many_weights_is_refused():
    from fused_inception.ops.conv2d_act.op import Problem

    problem = Problem(
        1, 1024, 1025, 1024, 8, (1025, 1024), (1, 1), (0, 0), 1, 1, torch.float16,
        torch.device("cuda"),
    )  # fmt: skip
    reason = "1074790400 weights a filter; takes up to 2^30"
    assert conv_launch.can_run(problem) == reason


@needs_library
def test_channels_and_taps_of_the_table_are_checked():
    with pytest.raises(RuntimeError, match=r"channels must be 1 to 2\^20, got 0"):
        split_launch._configurations_operator(0, 3, 3)
    with pytest.raises(RuntimeError, match=r"taps must be 1 to 31, got 33"):
        split_launch._configurations_operator(8, 3, 33)


def test_schemas_are_stable():
    schemas = [
        str(operator._schema)
        for module in MODULES.values()
        for operator in (module._out_operator, module._configurations_operator)
    ]
    schemas += [str(OPERATORS[name]._schema) for name in ("halving_branches", "pool2d")]
    assert schemas == [
        "fused_inception::_conv2d_act_cuda_out(Tensor input, Tensor weight, Tensor? bias, "
        "Tensor(a!)[] outs, int[] sizes, int relus, int[] stride, int[] padding, "
        "int configuration) -> ()",
        "fused_inception::_conv2d_act_cuda_configurations() -> int[]",
        "fused_inception::_grid_reduction_cuda_out(Tensor input, Tensor weight, Tensor? bias, "
        "Tensor(a!) conv, Tensor(b!) pooled, bool max, bool relu, int configuration) -> ()",
        "fused_inception::_grid_reduction_cuda_configurations() -> int[]",
        "fused_inception::_split_conv2d_cuda_out(Tensor input, Tensor weight_row, "
        "Tensor? bias_row, Tensor weight_col, Tensor? bias_col, Tensor(a!) row, Tensor(b!) col, "
        "bool relu, int configuration) -> ()",
        "fused_inception::_split_conv2d_cuda_configurations(int channels, int taps_row, "
        "int taps_col) -> int[]",
        "fused_inception::_halving_branches_cuda_out(Tensor[] inputs, Tensor[] weights, "
        "Tensor?[] biases, Tensor(a!)[] outs, Tensor input, Tensor(b!) pooled, "
        "int configuration) -> ()",
        "fused_inception::_pool2d_cuda_out(Tensor input, Tensor? bias, Tensor(a!) out, "
        "int[] kernel, int[] stride, int[] padding, int form, bool include_pad, bool relu) -> ()",
    ]
