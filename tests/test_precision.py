"""`conv_precision` follows PyTorch's own switch for float32 convolutions, and only that one."""

import subprocess
import sys

import pytest
import torch

from fused_inception.ops.common.precision import conv_precision
from fused_inception.testing import fp32_precision

PRECISIONS = {"tf32": "float32_tf32", "ieee": "float32_ieee", "none": "float32_ieee"}


@pytest.mark.parametrize(("switch", "expected"), PRECISIONS.items(), ids=PRECISIONS)
def test_float32_follows_the_switch(switch, expected):
    with fp32_precision(switch):
        assert conv_precision(torch.float32) == expected


@pytest.mark.parametrize("outer", ["tf32", "ieee"])
def test_the_switch_is_restored(outer):
    with fp32_precision(outer):
        with fp32_precision("ieee" if outer == "tf32" else "tf32"):
            pass
        assert conv_precision(torch.float32) == PRECISIONS[outer]


def test_the_switch_is_restored_after_an_error():
    before = torch.backends.cudnn.conv.fp32_precision
    other = "ieee" if before == "tf32" else "tf32"
    with pytest.raises(KeyError), fp32_precision(other):
        raise KeyError
    assert torch.backends.cudnn.conv.fp32_precision == before


@pytest.mark.parametrize("switch", ["tf32", "ieee"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float64, "float64"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
    ],
    ids=["float64", "float16", "bfloat16"],
)
def test_other_dtypes_ignore_the_switch(dtype, name, switch):
    with fp32_precision(switch):
        assert conv_precision(dtype) == name


def run(script):
    """The script's output, from an interpreter of its own: some switches cannot be taken back."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


CALL = """
import torch, fused_inception
from fused_inception.ops.common.precision import conv_precision
x, w = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
fused_inception.conv2d_act(x, w, None)
"""


def test_the_older_switches_can_still_be_read():
    script = f"""{CALL}
conv_precision(torch.float32)
print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
"""
    assert run(script) == ["True", "False"]


def test_the_older_switch_can_still_be_written():
    """And is followed, as far as PyTorch carries it over to the newer one."""
    script = f"""{CALL}
for allow in (False, True):
    torch.backends.cudnn.allow_tf32 = allow
    print(conv_precision(torch.float32), torch.backends.cudnn.allow_tf32)
"""
    assert run(script) == ["float32_ieee", "False", "float32_tf32", "True"]


def test_the_switch_for_all_backends_is_followed():
    script = f"""{CALL}
torch.backends.cudnn.conv.fp32_precision = "none"
for precision in ("ieee", "tf32"):
    torch.backends.fp32_precision = precision
    fused_inception.conv2d_act(x, w, None)
    print(conv_precision(torch.float32))
"""
    assert run(script) == ["float32_ieee", "float32_tf32"]
