"""docs/training.md: its examples run, and its table is what its module prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_inception import fuse, models, testing
from tests import backward_table

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("index", range(2))
def test_an_example_runs_and_prints_what_it_says(index: int, capsys):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[index], "docs/training.md", "exec"), names)
    printed = capsys.readouterr().out
    if index == 0:
        lines = printed.splitlines()
        assert lines[:4] == ["bn1: batch statistics"] * 2 + ["None"] * 2
        assert "fused as factorized_conv2d" in printed
        inference = names["inference"]
        assert isinstance(inference, nn.Module)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in inference.modules())
    else:
        (said,) = re.findall(r"# (\('Conv2d_1a.*\))", EXAMPLES[index])
        assert printed.strip() == said


def test_what_a_network_keeps_for_its_backward():
    """At 299×299: what grows with the batch, and what does not beyond the unfused network's."""
    network = models.inception_v3(
        num_classes=10, aux_logits=False, dropout=0.0, init_weights=False
    ).eval()
    fused = fuse(network, differentiable=True)

    def kept(model: nn.Module, batch: int) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        x = testing.channels_last(torch.zeros(batch, 3, 299, 299))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = model(x)  # alive, so that no storage is used again
            assert result.requires_grad
        return sum(storage.nbytes() for storage in storages.values())

    per_image, once = [], []
    for model in (fused, network):
        one, two = kept(model, 1), kept(model, 2)
        per_image.append(two - one)
        once.append(2 * one - two)
    said = re.search(r"keeps ([\d.]+) MB for an image .* keeps ([\d.]+) MB unfused", _text())
    assert said is not None
    assert [f"{value / 1e6:.1f}" for value in per_image] == [said[1], said[2]]
    assert f"once, {(once[0] - once[1]) / 1e6:.1f} MB of folded weights" in _text()


def _text() -> str:
    return " ".join(PAGE.split())


def test_the_table_is_what_the_module_prints():
    marked = re.search(
        r"<!-- tests.backward_table: begin -->\n(.*)<!-- tests.backward_table: end -->",
        PAGE,
        re.DOTALL,
    )
    assert marked is not None
    assert marked[1] == backward_table.markdown(), "python -m tests.backward_table"


def test_the_text_says_what_the_table_does():
    for claim in backward_table.claims():
        assert claim in _text()


def test_the_shapes_of_the_table_are_the_networks():
    networks = (
        *testing.inception_v3_pairs(backward_table.BATCH),
        *testing.inception_v3_splits(backward_table.BATCH),
        *testing.inception_reductions(backward_table.BATCH),
        *testing.inception_v3_convs(backward_table.BATCH),
    )
    for _, shape in backward_table.ROWS:
        assert shape in networks, shape


def test_bytes_of_a_pair_by_hand():
    """192 channels throughout: one map is n·289·192 elements, one factor 2·n·289·192²·7 flops."""
    shape = testing.PairShape(backward_table.BATCH, 17, 17, 192, 192, 192, 7, 7, True)
    one_map = backward_table.BATCH * 289 * 192 * 2
    weight = 192 * 192 * 7 * 2
    unfused = backward_table.backward(shape, "pytorch")
    ours = backward_table.backward(shape, "ours")
    assert (unfused.kept, ours.kept) == (3 * one_map, 2 * one_map)
    assert sum(k.bytes for k in unfused.kernels) == 16 * one_map + 4 * weight
    assert sum(k.bytes for k in ours.kernels) == 18 * one_map + 5 * weight
    flops = backward_table.BATCH * 2 * 289 * 192 * 192 * 7
    assert sum(k.flops for k in ours.kernels) == 5 * flops
