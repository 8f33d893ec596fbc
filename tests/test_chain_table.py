"""The table of the chain in the documentation is what its function prints."""

from __future__ import annotations

from tests import chain_table
from tests.emulator.programs import ROOT


def test_the_document_has_the_table():
    assert chain_table.markdown() in (ROOT / "docs/chain.md").read_text()


def test_no_factor_is_faster_than_the_device():
    """The blocks' products take no less time than all of them on as many multiprocessors."""
    for channels in chain_table.CHANNELS:
        pixels = chain_table.SIDE**2
        clocks = 4 * 2 * pixels * chain_table.TAPS * channels**2 / chain_table.FLOPS_PER_CLOCK
        for batch in chain_table.BATCHES:
            one, two = chain_table.chain(channels, batch), chain_table.pairs(channels, batch)
            running = one.blocks * min(batch, chain_table.CLUSTERS)
            assert one.clocks >= batch * clocks / running / one.waves * 0.999
            assert two.clocks >= batch * clocks / two.blocks
            assert one.blocks <= chain_table.CLUSTER


def test_what_the_document_says_of_the_table():
    for channels in chain_table.CHANNELS:
        ratios = {
            batch: chain_table.chain(channels, batch).clocks
            / chain_table.pairs(channels, batch).clocks
            for batch in chain_table.BATCHES
        }
        assert all(0.95 < ratios[batch] <= 1.0 for batch in (1, 2, 4, 8))
        assert ratios[16] > 1.5
