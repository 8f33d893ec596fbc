"""The tables of what is on wgmma in the documentation are what their functions print."""

from __future__ import annotations

import pytest

from fused_inception import _extension
from tests import sm90_ops_table, sm90_table
from tests.emulator import programs

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)
INFO = _extension.build_info()
needs_library = pytest.mark.skipif(not INFO["loaded"], reason=f"extension: {INFO['error']}")


def test_the_document_has_the_table():
    document = (programs.ROOT / "docs/cuda_factorized_conv2d.md").read_text()
    assert sm90_table.markdown() in document


def test_every_pair_and_batch_is_in_it():
    lines = sm90_table.markdown().splitlines()
    assert len(lines) == 2 + 5 * len(sm90_table.BATCHES)
    assert all(line.count("|") == len(sm90_table.HEADER) + 1 for line in lines)


def test_time_is_not_below_what_the_device_can_do():
    """No line promises more than the data sheet's rate, and none a tile that does not fit."""
    for problem in sm90_table.problems():
        for batch in sm90_table.BATCHES:
            line = dict(
                zip(
                    sm90_table.HEADER,
                    sm90_table.line_of(problem._replace(batch=batch)),
                    strict=True,
                )
            )
            assert float(line["TFLOP/s"]) < 989
            assert float(line["shared KB"]) <= 227


@needs_library
def test_the_document_has_the_table_of_the_ops():
    document = (programs.ROOT / "docs/cuda_convolutions.md").read_text()
    assert sm90_ops_table.markdown() in document


@needs_library
def test_no_line_of_the_ops_is_faster_than_the_device():
    for line in sm90_ops_table.lines():
        expected = float(line[sm90_ops_table.HEADER.index("expected us")])
        matrix, l2, memory = (float(x) for x in line[7:10])
        assert expected == max(matrix, l2, memory), line
        assert matrix > 0
