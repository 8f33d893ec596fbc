"""The table of the pair on wgmma in the documentation is what its function prints."""

from __future__ import annotations

import pytest

from tests import sm90_table
from tests.emulator import programs

pytestmark = pytest.mark.skipif(
    programs.refusal() is not None, reason=f"emulator: {programs.refusal()}"
)


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
