"""`conv2d_act`, `grid_reduction` and `split_conv2d` in the compiled extension, with no GPU.

From a call to the kernels, which CPU convolutions stand in for behind the extension's own checks;
what these refuse; and the choice of a configuration. `test_extension.py` has what concerns the
library as a whole, and the pair. Left out: the kernels (tests/emulator runs them on the host), and
what needs a device (test_ops_gpu.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fused_inception import _extension, testing
from fused_inception.ops.common.cuda_launching import (
    Device,
    TileConfiguration,
    choose_tile_configuration,
)
from fused_inception.ops.conv2d_act import cuda_launch as conv_launch
from fused_inception.ops.conv2d_act.segments import Segment
from fused_inception.ops.grid_reduction import cuda_launch as reduction_launch
from fused_inception.ops.split_conv2d import cuda_launch as split_launch
from fused_inception.testing import (
    LAYOUTS,
    ConvShape,
    channels_last,
    nan_filled_memory,
)
from tests import cuda_stand_ins
from tests.op_cases import OP_CASES, OpCase

INFO = _extension.build_info()
needs_library = pytest.mark.skipif(not INFO["loaded"], reason=f"extension: {INFO['error']}")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MODULES = {
    "conv2d_act": conv_launch,
    "grid_reduction": reduction_launch,
    "split_conv2d": split_launch,
}
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
}


@needs_library
@pytest.mark.parametrize("op", GOOD)
def test_the_good_call_is_refused_for_its_device_alone(op: str):
    with pytest.raises(RuntimeError, match="input must be on a CUDA device, got cpu"):
        cuda_stand_ins.call(MODULES[op]._out_operator, *GOOD[op].values())


@needs_library
@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [(op, *bad) for op, rows in BAD.items() for bad in rows],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_bad_call_is_refused_with_its_values(op: str, changes: dict[str, Any], message: str):
    with pytest.raises(RuntimeError, match=f"^{op}: .*{message}"):
        cuda_stand_ins.call(MODULES[op]._out_operator, *{**GOOD[op], **changes}.values())


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
    ]
