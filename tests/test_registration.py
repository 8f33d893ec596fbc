"""The operators as PyTorch sees them: schema, fakes, compilers, export, threads.

Nearly all of it needs no GPU. The compiled extension, where there is one, is loaded first: none of
this may depend on it. Left out: gradients of the bare operators. They are attached outside,
by the public functions, which is what compilers trace.
"""

import shutil
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import fused_inception
from fused_inception import _extension
from fused_inception.testing import (
    LAYOUTS,
    ConvShape,
    PairShape,
    ReductionShape,
    SplitShape,
    assert_channels_last,
    random_conv,
    random_pair,
    random_split,
)

_extension.build_info()


class Sample(NamedTuple):
    """One problem of one op, for a batch of any size."""

    name: str
    make: Callable  # (batch, dtype, device) -> operands, the input first
    options: dict

    @property
    def function(self):
        return getattr(fused_inception, self.name)

    @property
    def operator(self):
        return getattr(torch.ops.fused_inception, self.name).default

    def arguments(self, operands, backend="auto"):
        """What the operator takes, in its order."""
        return (*operands, *self.options.values(), backend)


def sample(name, factory, shape_type, *sizes, options, bias=True):
    def make(batch, dtype=torch.float32, device="cpu"):
        return tuple(factory(shape_type(batch, *sizes), dtype, device, bias=bias))

    shape = str(shape_type(2, *sizes)).removeprefix("n2-")
    words = "-".join(str(value).replace(" ", "") for value in options.values())
    no_bias = "" if bias else "-no_bias"
    return pytest.param(Sample(name, make, options), id=f"{name}-{shape}-{words}{no_bias}")


def pair(*sizes, mid_activation="relu", activation="relu", bias=True):
    options = {"mid_activation": mid_activation, "activation": activation}
    return sample("factorized_conv2d", random_pair, PairShape, *sizes, options=options, bias=bias)


def split(*sizes, activation="relu", bias=True):
    options = {"activation": activation}
    return sample("split_conv2d", random_split, SplitShape, *sizes, options=options, bias=bias)


def reduction(*sizes, pool="max", activation="relu", bias=True):
    options = {"pool": pool, "activation": activation}
    return sample("grid_reduction", random_conv, ReductionShape, *sizes, options=options, bias=bias)


def conv(*sizes, activation="relu", bias=True):
    options = {"stride": list(sizes[5]), "padding": list(sizes[6]), "activation": activation}
    return sample("conv2d_act", random_conv, ConvShape, *sizes, options=options, bias=bias)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [
    pytest.param(dtype, id=str(dtype).removeprefix("torch."))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
]
# One of each op.
OPS = [
    pair(5, 4, 3, 7, 6, 3, 5, True),
    split(5, 4, 3, 7, 6, 3, 5),
    reduction(8, 7, 5, 4, 3),
    conv(7, 6, 5, 4, (3, 2), (2, 1), (1, 2)),
]
# And what may take another path through shapes and strides.
SAMPLES = [
    *OPS,
    pair(4, 5, 3, 2, 1, 5, 3, False, mid_activation="none", activation="none", bias=False),
    pair(1, 1, 1, 1, 1, 1, 1, True),
    split(1, 1, 1, 1, 1, 1, 3, activation="none", bias=False),
    reduction(3, 3, 1, 1, 3, pool="avg", activation="none", bias=False),
    reduction(4, 3, 2, 3, 1, pool="avg"),
    conv(1, 1, 1, 1, (1, 1), (1, 1), (0, 0), activation="none", bias=False),
    conv(9, 4, 3, 2, (1, 3), (3, 2), (0, 1)),
]

NO_COMPILER = not (
    (shutil.which("g++") or shutil.which("clang++"))
    and Path(sysconfig.get_path("include"), "Python.h").is_file()
)

SCHEMAS = {
    "factorized_conv2d": (
        "fused_inception::factorized_conv2d(Tensor input, Tensor weight1, Tensor? bias1, "
        "Tensor weight2, Tensor? bias2, str mid_activation, str activation, str backend) -> Tensor"
    ),
    "split_conv2d": (
        "fused_inception::split_conv2d(Tensor input, Tensor weight_row, Tensor? bias_row, "
        "Tensor weight_col, Tensor? bias_col, str activation, str backend) -> Tensor"
    ),
    "grid_reduction": (
        "fused_inception::grid_reduction(Tensor input, Tensor weight, Tensor? bias, str pool, "
        "str activation, str backend) -> Tensor"
    ),
    "conv2d_act": (
        "fused_inception::conv2d_act(Tensor input, Tensor weight, Tensor? bias, int[] stride, "
        "int[] padding, str activation, str backend) -> Tensor"
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No test meets code that another one compiled."""
    torch._dynamo.reset()


def leaves(operands):
    return tuple(None if t is None else t.detach().clone().requires_grad_() for t in operands)


def gradients(result, operands):
    return torch.autograd.grad(result.float().sum(), [t for t in operands if t is not None])


def assert_all_close(results, expected):
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value)


# The operator


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_stable(name):
    """Exported programs hold it: a change breaks every one that was saved."""
    assert str(getattr(torch.ops.fused_inception, name).default._schema) == SCHEMAS[name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_compilers_keep_the_strides_of_inputs(name):
    assert torch.Tag.needs_exact_strides in getattr(torch.ops.fused_inception, name).default.tags


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(sample, batch):
    torch.library.opcheck(sample.operator, sample.arguments(sample.make(batch)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", OPS)
def test_opcheck_of_any_dtype(sample, dtype, device):
    torch.library.opcheck(sample.operator, sample.arguments(sample.make(2, dtype, device)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", OPS)
def test_opcheck_of_any_layout(sample, layout):
    operands = [t if t is None or t.dim() != 4 else LAYOUTS[layout](t) for t in sample.make(2)]
    torch.library.opcheck(sample.operator, sample.arguments(operands))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("sample", SAMPLES)
def test_meta_tensors(sample, batch):
    """Shapes and strides without memory or arithmetic."""
    operands = sample.make(batch)
    expected = sample.function(*operands, **sample.options)
    for wants in (False, True):
        on_meta = [None if t is None else t.to("meta").requires_grad_(wants) for t in operands]
        result = sample.function(*on_meta, **sample.options)
        assert result.device.type == "meta"
        assert result.shape == expected.shape
        assert result.stride() == expected.stride()
        assert result.requires_grad == wants


@pytest.mark.parametrize("sample", OPS)
def test_shapes_past_2_to_the_31_elements(sample):
    batch = 2**31
    _, *others = (None if t is None else t.to("meta") for t in sample.make(1))
    input = torch.empty((batch, *sample.make(1)[0].shape[1:]), device="meta")
    result = sample.operator(*sample.arguments((input, *others)))
    assert result.shape == (batch, *sample.function(*sample.make(1), **sample.options).shape[1:])
    assert result.numel() > 2**31
    assert_channels_last(result)


@pytest.mark.parametrize("sample", OPS)
def test_four_threads_at_once(sample):
    """Each with a batch of its own, half of them with gradients."""
    operands = [leaves(sample.make(batch)) for batch in (1, 2, 3, 4)]
    expected = [sample.function(*o, **sample.options).detach() for o in operands]
    expected_grads = [gradients(sample.function(*o, **sample.options), o) for o in operands]
    start, failures = threading.Barrier(4), []

    def work(i):
        try:
            start.wait(timeout=60)
            for _ in range(20):
                with torch.set_grad_enabled(i % 2 == 0):
                    result = sample.function(*operands[i], **sample.options)
                torch.testing.assert_close(result.detach(), expected[i])
                assert result.requires_grad == (i % 2 == 0)
                if result.requires_grad:
                    assert_all_close(gradients(result, operands[i]), expected_grads[i])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# torch.compile


@pytest.mark.parametrize("sample", SAMPLES)
def test_compile(sample):
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    operands = sample.make(2)
    result = compiled(*operands, **sample.options)
    expected = sample.function(*operands, **sample.options)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", OPS)
def test_compile_with_gradients(sample, dtype, device):
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    operands = leaves(sample.make(2, dtype, device))
    result = compiled(*operands, **sample.options)
    expected = sample.function(*operands, **sample.options)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()
    assert_all_close(gradients(result, operands), gradients(expected, operands))


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="Inductor needs a C++ compiler and Python.h")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sample", OPS)
def test_compile_with_inductor(sample, device):
    """With pointwise neighbours, so that there is something to generate and to lay out."""

    def network(input, *others):
        return sample.function(input * 2, *others, **sample.options).sigmoid() + 1

    compiled = torch.compile(network, fullgraph=True)
    operands = leaves(sample.make(2, device=device))
    result, expected = compiled(*operands), network(*operands)
    torch.testing.assert_close(result, expected)
    assert_all_close(gradients(result, operands), gradients(expected, operands))


@pytest.mark.parametrize("wants", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("sample", OPS)
def test_same_shape_does_not_recompile(sample, wants):
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    for stance in ("default", "fail_on_recompile"):
        operands = leaves(sample.make(2)) if wants else sample.make(2)
        with torch.compiler.set_stance(stance):
            compiled(*operands, **sample.options)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("wants", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("sample", OPS)
def test_dynamic_batch_compiles_once(sample, wants, autocast):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sample.function, fullgraph=True, backend=counter)
    for batch in (2, 5, 3):
        operands = leaves(sample.make(batch)) if wants else sample.make(batch)
        torch._dynamo.mark_dynamic(operands[0], 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = compiled(*operands, **sample.options)
            expected = sample.function(*operands, **sample.options)
        assert result.dtype == (torch.bfloat16 if autocast else torch.float32)
        torch.testing.assert_close(result, expected)
        assert_channels_last(result)
        if wants:
            assert_all_close(gradients(result, operands), gradients(expected, operands))
    assert counter.frame_count == 1


@pytest.mark.parametrize("sample", OPS)
def test_dynamic_shapes(sample):
    """Every size may change, batch 0 and 1 among them."""
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, rows in ((2, 0), (3, 2), (1, 1), (0, 4)):
        input, *others = sample.make(batch)
        input = nn.functional.pad(input, (0, rows, 0, 2 * rows))
        result = compiled(input, *others, **sample.options)
        torch.testing.assert_close(result, sample.function(input, *others, **sample.options))
        assert_channels_last(result)


@pytest.mark.parametrize("sample", OPS)
def test_compiled_errors_name_the_argument(sample):
    input, *others = sample.make(2)
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=f"{sample.name}: input must be 4-D"):
        compiled(input[0], *others, **sample.options)


# torch.export


class Layer(nn.Module):
    """One call with its weights as parameters."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample
        _, *others = sample.make(1)
        self.others = nn.ParameterList([nn.Parameter(t) for t in others])

    def forward(self, input):
        return self.sample.function(input, *self.others, **self.sample.options)


@pytest.mark.parametrize("sample", OPS)
def test_export_with_dynamic_batch(sample):
    layer = Layer(sample)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(layer, (sample.make(2)[0],), dynamic_shapes={"input": {0: batch}})
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [sample.operator]
    for size in (1, 2, 7):
        input = sample.make(size)[0]
        result = program.module()(input)
        torch.testing.assert_close(result, layer(input))
        assert_channels_last(result)


@pytest.mark.parametrize("sample", OPS)
def test_exported_program_keeps_autocast(sample):
    layer, input = Layer(sample), sample.make(2)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        program = torch.export.export(layer, (input,))
        expected = layer(input)
    result = program.module()(input)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)
