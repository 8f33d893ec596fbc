"""`halving_branches` on the Triton backend, run by the interpreter.

That its sums are those of `conv2d_act` is held bit by bit here; what these compute is
`test_ops.py`'s. Left out: float64 (the backend refuses it).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fused_inception import conv2d_act, testing
from fused_inception.ops.common import launching
from fused_inception.ops.halving_branches import launch
from fused_inception.ops.halving_branches.problem import Branch
from tests import branch_cases
from tests.branch_cases import SHAPES, BranchInputs, BranchShape, expected, make, problem_of
from tests.pool_cases import EDGES, special_maps

TRITON = next(backend for backend in launch.BACKENDS if backend.name == "triton")


def run(shape: BranchShape, inputs: BranchInputs) -> torch.Tensor:
    operands = zip(*inputs.convs, strict=True)
    return TRITON.run(problem_of(shape, inputs), *operands, inputs.input)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_integers_are_exact(shape, precision):
    dtype, _ = precision
    check_integers(shape, dtype)


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_integers_are_exact_on_small_maps(shape):
    check_integers(shape, torch.float16)


def check_integers(shape, dtype):
    inputs = make(shape, dtype, testing.integer_conv)
    result = run(shape, inputs)
    assert torch.equal(result, expected(inputs))
    testing.assert_channels_last(result)


@pytest.mark.usefixtures("sequential_product")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_the_bits_are_those_of_a_launch_each(shape, dtype):
    """Where the convolutions have more channels than those of the kernel for few.

    In float32 sums are IEEE, with partial ones; those of bfloat16 and tf32 run like float16's.
    """
    wide = tuple((max(c_in, 9), c_out) for c_in, c_out in shape.convs)
    shape = BranchShape(shape.batch, shape.height, shape.width, wide, shape.channels, shape.kernel)
    inputs = make(shape, dtype, testing.random_conv)
    with testing.fp32_precision("ieee"):
        alone = [conv2d_act(*conv, stride=2, backend="triton") for conv in inputs.convs]
        alone.append(F.max_pool2d(inputs.input, shape.kernel, 2))
        assert torch.equal(run(shape, inputs), torch.cat(alone, 1))


@pytest.mark.usefixtures("sequential_product")
def test_an_image_does_not_depend_on_its_batch():
    """In the other dtypes as whole blocks, in `test_blocks.py`."""
    inputs = make(SHAPES[1], torch.float16, testing.random_conv)
    whole = run(SHAPES[1], inputs)
    for i in range(2):
        one = branch_cases.images(inputs, slice(i, i + 1))
        assert torch.equal(run(SHAPES[1], one), whole[i : i + 1])


@pytest.mark.parametrize("without", [(0,), (1,), (0, 1)], ids=str)
def test_some_convolutions_have_no_bias(without):
    inputs = make(SHAPES[0], torch.float16, testing.integer_conv)
    convs = tuple(
        conv._replace(bias=None) if i in without else conv for i, conv in enumerate(inputs.convs)
    )
    assert torch.equal(
        run(SHAPES[0], inputs._replace(convs=convs)), expected(inputs._replace(convs=convs))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_maximum_of_special_values_is_bitwise_pytorchs(dtype):
    cases = special_maps(dtype)
    for x in (cases[name] for name in EDGES):
        shape = BranchShape(3, 9, 8, ((16, 8),), 20)
        inputs = make(shape, x.dtype, testing.integer_conv)._replace(input=x)
        testing.assert_same_bits(run(shape, inputs)[:, 8:], F.max_pool2d(x, 3, 2))


def test_parts_go_to_their_slices_and_nowhere_else():
    shape = SHAPES[0]
    inputs = make(shape, torch.float32, testing.integer_conv)
    problem = problem_of(shape, inputs)
    whole = testing.channels_last(torch.full((3, 256, problem.out_height, problem.out_width), 77.0))
    begins = (50, 7, 200)
    places = [
        whole[:, begin : begin + size] for begin, size in zip(begins, shape.sizes, strict=True)
    ]
    with testing.fp32_precision("ieee"):
        branches = [Branch(*conv, place) for conv, place in zip(inputs.convs, places, strict=False)]
        launch.launch_branches(problem, branches, inputs.input, places[-1])
    want = expected(inputs).split(shape.sizes, 1)
    for place, part in zip(places, want, strict=True):
        assert torch.equal(place, part)
        place.fill_(77.0)
    assert (whole == 77.0).all()


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_any_layout_gives_the_same_bits(layout):
    inputs = make(SHAPES[2], torch.float16, testing.integer_conv)
    change = testing.LAYOUTS[layout]
    convs = tuple(
        conv._replace(input=change(conv.input), weight=change(conv.weight)) for conv in inputs.convs
    )
    view = BranchInputs(convs, change(inputs.input))
    assert torch.equal(run(SHAPES[2], view), expected(inputs))


def test_batch_0_launches_nothing():
    inputs = branch_cases.images(make(SHAPES[0], torch.float16, testing.random_conv), slice(0))
    assert run(SHAPES[0], inputs).shape == (0, sum(SHAPES[0].sizes), 4, 5)


def test_a_large_batch_is_split_into_launches(monkeypatch: pytest.MonkeyPatch):
    shape = BranchShape(5, 5, 5, ((16, 8),), 8)
    inputs = make(shape, torch.float16, testing.integer_conv)
    launches = []
    ranges = launching.image_ranges

    def counted(batch: int, images: int, first_image: int = 0):
        for part in ranges(batch, images, first_image):
            launches.append(part)
            yield part

    monkeypatch.setattr(launch, "image_ranges", counted)
    monkeypatch.setattr(launching, "MAX_ROWS", 8)
    assert torch.equal(run(shape, inputs), expected(inputs))
    assert launches == [(0, 2), (2, 2), (4, 1)]


def test_offsets_past_two_to_the_31_elements():
    """The last image of a batch of more than 2^31 elements; only its pages are ever touched."""
    shape = BranchShape(1, 4, 4, ((16, 16),), 16)
    inputs = make(shape, torch.float16, testing.integer_conv)
    last = 2**31 // inputs.input.numel() + 1

    def many(x: torch.Tensor) -> torch.Tensor:
        size = (last + 1, *x.shape[1:])
        result = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        result[last:] = x
        return result

    conv = inputs.convs[0]
    large = BranchInputs((conv._replace(input=many(conv.input)),), many(inputs.input))
    problem = problem_of(shape, large)
    out = torch.empty((last + 1, 32, 1, 1), dtype=torch.float16)
    branches = [Branch(*large.convs[0], out[:, :16])]
    launch.launch_branches(problem, branches, large.input, out[:, 16:], first_image=last)
    assert torch.equal(out[last:], expected(inputs))
