"""What importing the package does and does not do, its public names, and who imports whom."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_inception

PACKAGE = Path(fused_inception.__file__).parent

# Public functions and their parameters, as `inspect` writes them without annotations.
SIGNATURES = {
    "factorized_conv2d": "(input, weight1, bias1, weight2, bias2, *, mid_activation='relu', "
    "activation='relu', backend='auto')",
    "split_conv2d": "(input, weight_row, bias_row, weight_col, bias_col, *, activation='relu', "
    "backend='auto')",
    "grid_reduction": "(input, weight, bias, *, pool='max', activation='relu', backend='auto')",
    "conv2d_act": "(input, weight, bias, *, stride=1, padding=0, activation='relu', "
    "backend='auto')",
    "fuse": "(model, *, inplace=False, filter_fn=None, strict=False, differentiable=False)",
    "report": "(model)",
    "refresh": "(model)",
    "available_backends": "()",
    "models.inception_v3": "(*, num_classes=1000, aux_logits=True, transform_input=False, "
    "dropout=0.5, init_weights=True, weights=None, aux_regularizer='batch_norm', "
    "image_size=299, width=1.0)",
}
MODULES = ["Conv2dAct", "FactorizedConv2d", "GridReduction", "SplitConv2d"]


# Public names


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items(), ids=SIGNATURES)
def test_signature(name, expected):
    function = fused_inception
    for part in name.split("."):
        function = getattr(function, part)
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == expected


@pytest.mark.parametrize("name", MODULES)
def test_module_folds_what_it_replaces(name):
    module = getattr(fused_inception, name)
    assert issubclass(module, torch.nn.Module)
    assert callable(module.from_unfused)


def test_all_lists_the_public_names():
    contract = {name.split(".")[0] for name in SIGNATURES} | {*MODULES, "__version__"}
    assert contract <= set(fused_inception.__all__)
    assert len(set(fused_inception.__all__)) == len(fused_inception.__all__)
    for name in fused_inception.__all__:
        assert hasattr(fused_inception, name)


def test_available_backends():
    backends = fused_inception.available_backends()
    assert list(backends) == ["aten", "triton", "cuda"]
    assert backends["aten"] == "available"
    assert all(isinstance(reason, str) and reason for reason in backends.values())
    if not torch.cuda.is_available():
        assert backends["cuda"] != "available"
    if "available" not in backends["cuda"]:
        x, w = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        with pytest.raises(RuntimeError, match="backend 'cuda' cannot run here"):
            fused_inception.factorized_conv2d(x, w, None, w, None, backend="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="TRITON_INTERPRET is set")
def test_available_backends_says_what_triton_lacks():
    pytest.importorskip("triton")
    assert fused_inception.available_backends()["triton"] == (
        "no CUDA device (TRITON_INTERPRET=1, set before the first import, runs it on the CPU)"
    )


# Importing, in an interpreter of its own


def run(script):
    """What the script prints, as JSON."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_touches_no_gpu_and_loads_no_extras():
    script = """
import json, sys
import torch
before = set(sys.modules)
import fused_inception
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps([torch.cuda.is_initialized(), "triton" in sys.modules,
                  sorted(loaded - sys.stdlib_module_names - {"fused_inception", "torch"})]))
"""
    initialized, triton, others = run(script)
    assert not initialized
    assert not triton
    assert others == []


def test_works_without_triton():
    script = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ImportError("blocked by the test")

sys.meta_path.insert(0, Blocker())
import torch
import fused_inception
x, w1, w2 = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 3), torch.ones(5, 3, 3, 1)
shape = fused_inception.factorized_conv2d(x, w1, None, w2, None).shape
try:
    fused_inception.factorized_conv2d(x, w1, None, w2, None, backend="triton")
    refusal = None
except RuntimeError as error:
    refusal = str(error)
print(json.dumps([shape, fused_inception.available_backends(), refusal]))
"""
    shape, backends, refusal = run(script)
    reason = "triton cannot be imported (ImportError: blocked by the test)"
    assert shape == [1, 5, 4, 4]
    assert backends["triton"] == reason
    assert refusal == f"factorized_conv2d: backend 'triton' cannot run here: {reason}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_fork_after_import():
    script = """
import json, multiprocessing
import torch
import fused_inception

def work(queue):
    x, w = torch.ones(2, 3, 9, 9), torch.ones(4, 3, 3, 3)
    queue.put(fused_inception.grid_reduction(x, w, None).sum().item())

context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=work, args=(queue,))
child.start()
total = queue.get(timeout=60)
child.join(60)
print(json.dumps([total, child.exitcode]))
"""
    total, exit_code = run(script)
    assert exit_code == 0
    assert total == 2 * 16 * (4 * 27 + 3)


def test_first_calls_from_four_threads():
    script = """
import json, threading
import torch
import fused_inception
x, w1, w2 = torch.ones(2, 3, 5, 5), torch.ones(4, 3, 1, 1), torch.ones(2, 4, 1, 1)
start, sums = threading.Barrier(4), []

def work():
    start.wait(60)
    weights = w1.clone().requires_grad_()
    fused_inception.factorized_conv2d(x, weights, None, w2, None).sum().backward()
    sums.append(weights.grad.sum().item())

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print(json.dumps(sums))
"""
    assert run(script) == [2 * 25 * 3 * 4 * 2] * 4


# The floors of the architecture: who may import whom

FLOORS = {
    "fused_inception._version": 0,
    "fused_inception._errors": 0,
    "fused_inception._extension": 0,
    "fused_inception.ops.common": 1,
    "fused_inception.ops": 2,
    "fused_inception.decoding": 1,
    "fused_inception.folding": 3,
    "fused_inception.modules": 3,
    "fused_inception.analysis": 3,
    "fused_inception.blocks": 4,
    "fused_inception.recognize": 5,
    "fused_inception.stem": 5,
    "fused_inception.fuse": 5,
    "fused_inception.graphs": 5,
    "fused_inception.models": 5,
    "fused_inception": 6,
    "fused_inception.training": 6,
    "fused_inception.cli": 7,
    "fused_inception.__main__": 8,
    "fused_inception.testing": 9,  # for tests and benches: nothing in the package needs it
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module):
    """The floor of a module: its own, or that of the closest package around it."""
    if module == "fused_inception":
        return FLOORS[module]
    while module not in FLOORS:
        module = module.rpartition(".")[0]
        assert module != "fused_inception", "a module without a floor"
    return FLOORS[module]


def imports(module, path):
    """Pairs (imported module, whether that happens when `module` itself is imported)."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []

    def visit(node, on_import):
        if isinstance(node, ast.Import):
            found.extend((alias.name, on_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                found.append((submodule if submodule in SOURCES else source, on_import))
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, on_import and not lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_imports_upward(module):
    ours = [name for name, _ in imports(module, SOURCES[module]) if name in SOURCES]
    assert [name for name in ours if floor(name) > floor(module)] == []


@pytest.mark.parametrize("module", SOURCES)
def test_triton_is_imported_in_triton_files_alone(module):
    """And those are imported only when a kernel runs."""
    if module.rpartition(".")[2].startswith("triton_"):
        return
    for name, on_import in imports(module, SOURCES[module]):
        assert name.partition(".")[0] != "triton"
        assert not (on_import and name.rpartition(".")[2].startswith("triton_"))


@pytest.mark.parametrize("module", SOURCES)
def test_only_launchers_and_dispatch_know_the_extension(module):
    knows = module.endswith((".launch", ".cuda_launch")) or module in (
        "fused_inception.ops.common.dispatch",
        "fused_inception.ops.common.cuda_launching",  # what the launchers share
        "fused_inception.cli.info",  # prints what was built
    )
    names = [name for name, _ in imports(module, SOURCES[module])]
    assert knows or "fused_inception._extension" not in names


def test_every_op_has_the_same_rooms():
    folders = [p for p in (PACKAGE / "ops").iterdir() if p.is_dir() and p.name != "common"]
    ops = {path.name for path in folders if (path / "op.py").is_file()}
    assert ops == {
        "factorized_conv2d", "split_conv2d", "grid_reduction", "conv2d_act", "pool2d",
    }  # fmt: skip
    for op in ops:
        assert {"__init__.py", "aten.py", "launch.py", "op.py"} <= {
            path.name for path in (PACKAGE / "ops" / op).iterdir()
        }
