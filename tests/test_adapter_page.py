"""docs/adapters.md: the examples run as they stand."""

import re
import warnings
from pathlib import Path

import pytest
from torch import nn

from fused_inception.cli.networks import random_hub_weights
from fused_inception.fuse import report
from tests.adapter_cases import CASES, module

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.S | re.M)
SNIPPETS = [
    (title, code)
    for title, section in SECTIONS
    for code in re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
]


def test_the_page_has_every_package():
    assert [title for title, _ in SNIPPETS] == [
        "torchvision",
        "timm",
        "pytorch-fid",
        "torch-fidelity",
        "torchmetrics",
        "The network of this package",
        "A network of your own",
        "A network of your own",
    ]


def test_the_counts_on_the_page_are_those_that_the_tests_find():
    text = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| (\d+) \| (.+?) \|$", text, re.M)
    names = {
        "torchvision `inception_v3`": "torchvision",
        "timm `inception_v3`": "timm-v3",
        "timm `inception_v4`": "timm-v4",
        "timm `inception_resnet_v2`": "timm-resnet-v2",
        "pytorch-fid `InceptionV3`": "pytorch-fid",
        "torch-fidelity, torchmetrics": "torch-fidelity",
    }
    words = {
        "conv2d_act": "{} convolutions",
        "conv_sequence": "{} sequences with a pair",
        "max_pool2d": "{} max pools",
        "global_avg_pool2d": "the mean",
        "linear": "the linear layer",
    }
    assert [name for name, _, _ in rows] == list(names)
    for name, blocks, others in rows:
        counts = CASES[names[name]].counts
        assert int(blocks) == sum(count for kind, count in counts.items() if kind not in words)
        want = [text.format(counts[kind]) for kind, text in words.items() if counts.get(kind)]
        assert others.replace("1 sequence ", "1 sequences ").split(", ") == want


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_the_page_runs(title, code):
    """As it stands, but for the weights, which are random instead of downloaded."""
    if title != "A network of your own":
        module("torchvision")
    for package in ("timm", "pytorch_fid", "torch_fidelity", "torchmetrics"):
        if f"{package}." in code or f"import {package}" in code:
            module(package)
    code = code.replace('weights="DEFAULT"', "weights=None").replace("pretrained=True", "")
    names = {}
    with random_hub_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, f"docs/adapters.md: {title}", "exec"), names)
    fused = [
        value for value in names.values() if isinstance(value, nn.Module) and report(value).replaced
    ]
    assert len(fused) == 1
    assert report(fused[0]).skipped == []
