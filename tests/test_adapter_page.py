"""docs/adapters.md: the examples run as they stand."""

import re
import warnings
from pathlib import Path

import pytest
from torch import nn

from fused_inception.cli.networks import random_hub_weights
from fused_inception.fuse import report
from tests.adapter_cases import module

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
SNIPPETS = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)


def test_the_page_has_every_package():
    assert [title for title, _ in SNIPPETS] == [
        "torchvision",
        "timm",
        "pytorch-fid",
        "torch-fidelity",
        "torchmetrics",
        "The network of this package",
        "A network of your own",
    ]


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
