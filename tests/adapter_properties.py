"""What `fuse` must leave as it is, and do, for the networks of every package.

A file per package has a class that inherits these tests and says which of the `CASES` they run on.
What `fuse` does to a block of any origin is in `test_fuse.py`. Left out: trained weights (they
would have to be downloaded) and `torch.jit.script`.
"""

import copy
import io
import pickle
import time
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fused_inception.blocks import FUSED_BLOCKS
from fused_inception.fuse import FusedBlock, fuse, refresh, report
from fused_inception.stem import network_class
from tests.adapter_cases import CASES, kinds, made, outputs

TOLERANCE = 2e-5


def assert_agree(got, want, tolerance=TOLERANCE):
    """Every output: relative to its largest value; shape and dtype; finite."""
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.isfinite().all()
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def small(name):
    """An input of two small images."""
    case = CASES[name]
    return case.images((32, 32) if case.resizes else case.sizes[0])


def running(name):
    """How many of the replaced modules run in a forward."""
    return sum(CASES[name].counts.values()) - CASES[name].idle


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def write_through_data(net):
    for parameter in net.parameters():
        parameter.data.mul_(0.75)
    refresh(net)


# Each follows on the one before.
CHANGES = {
    "load": lambda net: net.load_state_dict(
        {k: v * 0.5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    ),
    "in-place": lambda net: [p.mul_(0.75) for p in net.parameters()],
    "data": write_through_data,
    "double": lambda net: net.to(torch.float64),
}


class LowRank(nn.Module):
    """What LoRA adds to a weight."""

    def __init__(self, weight):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(2, weight[0].numel(), generator=generator) / 30)
        self.up = nn.Parameter(torch.randn(weight.shape[0], 2, generator=generator) / 30)

    def forward(self, weight):
        return weight + (self.up @ self.down).reshape(weight.shape)


class Int8Conv2d(nn.Conv2d):
    """A convolution with weights of 8 bits."""

    @classmethod
    def of(cls, conv):
        made = copy.deepcopy(conv)
        made.__class__ = cls
        made.scale = conv.weight.abs().max() / 127
        values = (conv.weight / made.scale).round().to(torch.int8)
        made.weight = nn.Parameter(values, requires_grad=False)
        return made

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.scale, self.bias)


def make_foreign(model, parts):
    """Puts into four fused parts what is not to be fused, and returns the reasons."""
    spectral, low_rank, quantized, sharded = parts
    convs = {part: first_conv(model, part) for part in parts}
    parametrizations.spectral_norm(model.get_submodule(convs[spectral]))
    conv = model.get_submodule(convs[low_rank])
    parametrize.register_parametrization(conv, "weight", LowRank(conv.weight))
    path, _, name = convs[quantized].rpartition(".")
    parent = model.get_submodule(path)
    setattr(parent, name, Int8Conv2d.of(getattr(parent, name)))

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.get_submodule(sharded), mesh=init_device_mesh("cpu", (1,)))
    return {
        spectral: "ParametrizedConv2d, takes torch.nn.Conv2d",
        low_rank: "ParametrizedConv2d, takes torch.nn.Conv2d",
        quantized: "Int8Conv2d, takes torch.nn.Conv2d",
        sharded: "managed by FSDP",
    }


def first_conv(model, part):
    return next(
        f"{part}.{path}"
        for path, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Conv2d)
    )


class AdapterProperties:
    """The tests.

    Attributes:
        names: the cases of the package.
        one: that of them which stands for the package where the network does not matter.
        converts: whether `.to()` converts all of it.
        trains: whether it can be put into training mode.
    """

    names: tuple[str, ...]
    one: str
    converts = True
    trains = True

    def pytest_generate_tests(self, metafunc):
        for parameter, values in {"any_name": self.names, "name": (self.one,)}.items():
            if parameter in metafunc.fixturenames:
                metafunc.parametrize(parameter, values)

    @torch.no_grad()
    def test_counts_keys_and_errors(self, any_name, fused_calls):
        case, model = CASES[any_name], made(any_name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fused = fuse(model, strict=not case.left)
        found = report(fused)
        assert kinds(found) == case.counts
        assert len(found.skipped) == case.left
        assert list(fused.state_dict()) == list(before)
        assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
        assert network_class(fused) is type(model)
        assert not any(isinstance(inner, FusedBlock) for inner in model.modules())
        for size in case.sizes:
            input = case.images(size)
            kept = input.clone()
            got = outputs(any_name, fused, input)
            assert fused_calls.took() == running(any_name)
            assert_agree(got, outputs(any_name, model, input))
            assert torch.equal(input, kept)

    @torch.no_grad()
    def test_in_place_filter_and_twice(self, name):
        model = copy.deepcopy(made(name))
        want = outputs(name, model, small(name))
        *_, (excluded, kind) = report(fuse(model)).replaced
        fused = fuse(model, inplace=True, filter_fn=lambda path, module: path != excluded)
        assert fused is model
        found = report(fused)
        assert found.skipped == [(excluded, "excluded by filter_fn")]
        assert Counter(kinds(found)) == Counter(CASES[name].counts) - Counter([kind])
        assert fuse(fused, inplace=True) is model
        assert kinds(report(model)) == CASES[name].counts
        assert_agree(outputs(name, model, small(name)), want)

    @torch.no_grad()
    def test_folded_weights_follow(self, name, fused_calls):
        model = copy.deepcopy(made(name))
        fused = fuse(model)
        input = small(name)
        before = outputs(name, fused, input)
        for change, apply in CHANGES.items():
            if change == "double":
                if not self.converts:
                    continue
                input = input.double()
            for net in (model, fused):
                apply(net)
            fused_calls.took()
            got, want = outputs(name, fused, input), outputs(name, model, input)
            assert fused_calls.took() == running(name)
            assert_agree(got, want, 1e-12 if change == "double" else TOLERANCE)
            assert change == "double" or not torch.allclose(got[-1], before[-1])
            before = got

    def test_half_folds_anew(self, name):
        fused = fuse(made(name)).half()
        folded = [b for key, b in fused.named_buffers() if ".folded_" in key]
        assert folded
        assert all(buffer.dtype is torch.float16 for buffer in folded)

    def test_training_and_gradients_run_the_original(self, name, fused_calls):
        model = copy.deepcopy(made(name)).requires_grad_()
        fused = fuse(model)
        input = small(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got, want = outputs(name, fused, input), outputs(name, model, input)
        assert fused_calls.took() == 0
        assert sum("autograd would record" in str(warning.message) for warning in caught) == 1
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        path = CASES[name].inner
        gradients = [
            torch.autograd.grad(result[-1].sum(), net.get_submodule(path).weight)[0]
            for net, result in ((fused, got), (model, want))
        ]
        assert torch.equal(*gradients)
        with torch.no_grad():
            results = []
            for net in (model.train(), fused.train()):
                torch.manual_seed(0)  # dropout
                results.append(outputs(name, net, input))
        assert fused_calls.took() == (0 if self.trains else running(name))
        if self.trains:
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        else:
            assert_agree(*results)

    @torch.no_grad()
    def test_a_hook_inside_a_block_keeps_firing(self, name, fused_calls):
        model = made(name)
        fused = fuse(model)
        seen = []
        inner = fused.get_submodule(CASES[name].inner)
        handle = inner.register_forward_hook(lambda *args: seen.append(1))
        got = outputs(name, fused, small(name))
        assert len(seen) == 1
        assert fused_calls.took() == running(name) - 1
        assert_agree(got, outputs(name, model, small(name)))
        handle.remove()
        outputs(name, fused, small(name))
        assert fused_calls.took() == running(name)

    @torch.no_grad()
    def test_what_is_not_the_networks_own_is_left_alone(self, name, one_process_group):
        model = copy.deepcopy(made(name))
        replaced = [path for path, _ in report(fuse(model)).replaced]
        inner = [
            path
            for path in replaced
            if any(isinstance(m, nn.Conv2d) for m in model.get_submodule(path).modules())
        ]
        reasons = make_foreign(model, inner[-4:])
        want = outputs(name, model, small(name))
        fuse(model, inplace=True)
        skipped = report(model).skipped
        for part, reason in reasons.items():
            about = [text for path, text in skipped if f"{path}.".startswith(f"{part}.")]
            assert any(reason in text for text in about), part
            conv = model.get_submodule(first_conv(model, part))
            around = [m for m in model.modules() if isinstance(m, FusedBlock)]
            folded = [m._original.get_submodule(u.conv) for m in around for u in m._match.units]
            assert not any(conv is other for other in folded), part
        assert_agree(outputs(name, model, small(name)), want)
        with pytest.raises(RuntimeError, match="not every block was understood"):
            fuse(model, inplace=True, strict=True)

    @torch.no_grad()
    def test_a_copy_of_a_pickle_of_a_saved_module(self, name, fused_calls):
        fused = fuse(made(name))
        copied = copy.deepcopy(pickle.loads(pickle.dumps(through_torch_save(fused))))
        assert kinds(report(copied)) == CASES[name].counts
        want = outputs(name, fused, small(name))
        fused_calls.took()
        got = outputs(name, copied, small(name))
        assert fused_calls.took() == running(name)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    @torch.no_grad()
    def test_compile_and_export(self, name, fresh_compiler):
        fused = CASES[name].network(fuse(made(name)))
        input = small(name)
        want = fused(input)
        want = [want] if isinstance(want, torch.Tensor) else list(want)
        compiled = torch.compile(fused, backend="eager", fullgraph=True)(input)
        assert_agree([compiled] if isinstance(compiled, torch.Tensor) else list(compiled), want)
        program = torch.export.export(fused, (input,), strict=False)
        result = program.module()(input)
        assert_agree([result] if isinstance(result, torch.Tensor) else list(result), want)
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        ops = Counter(op.split(".")[1] for op in names if op.startswith("fused_inception."))
        # Of the kinds that are ops of their own, all; a linear layer is a convolution.
        for kind, count in CASES[name].counts.items():
            if FUSED_BLOCKS[kind].roles and kind not in ("conv2d_act", "linear"):
                assert ops[kind] == count

    def test_fuse_takes_two_seconds_and_one_copy_of_the_weights(self, name):
        model = made(name)
        # Of the process, so that what others do on the machine does not count.
        seconds = []
        for _ in range(3):
            start = time.process_time()
            fused = fuse(model)
            seconds.append(time.process_time() - start)
            if seconds[-1] < 2:
                break
        assert min(seconds) < 2
        layers = [
            wrapper._original.get_submodule(unit.conv)
            for wrapper in fused.modules()
            if isinstance(wrapper, FusedBlock)
            for unit in wrapper._match.units
        ]
        weights = sum(layer.weight.nbytes for layer in layers)
        # Each has a bias now; that of a 1×1 behind an average pool has zeros in its place as well.
        biases = sum(layer.weight.shape[0] * 4 for layer in layers)
        folded = sum(b.nbytes for key, b in fused.named_buffers() if ".folded_" in key)
        assert weights < folded <= weights + 2 * biases
        own = sum(b.nbytes for b in model.buffers())
        assert sum(b.nbytes for b in fused.buffers()) == own + folded

    @pytest.mark.gpu
    @torch.no_grad()
    def test_gpu_features_are_bitwise_those_of_one_image_at_a_time(self, name):
        fused, case = fuse(made(name)).cuda(), CASES[name]

        def features(x):
            if case.features is not None:
                return [case.features(fused, x)]
            return outputs(name, fused, x)

        x = case.images((64, 64) if case.resizes else (107, 91), 64).cuda()
        whole = features(x)
        for image in range(64):
            alone = features(x[image : image + 1])
            for one, all_ in zip(alone, whole, strict=True):
                assert torch.equal(one, all_[image : image + 1]), image
