"""The tuner: what is proposed from given times. No GPU: times come from formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import harness, tune
from bench.environment import BenchError
from bench.tune import Timing, choose, measure, propose
from fused_inception.ops.common.configurations import (
    DEVICE_CLASSES,
    Product,
    Tile,
    choose_tile,
    load_table,
)

ANY = Tile(128, 32, 32, 8, 3)
WIDE = Tile(128, 64, 64, 8, 3, whole=True)
DEEP = Tile(128, 64, 32, 8, 3, whole=True)
SLOW = Tile(64, 32, 16, 4, 2, whole=True)
SHAPES = {"192": Product(192, 7, 192), "160": Product(160, 7, 160), "128": Product(128, 7, 128)}


def timings(rates: dict[Tile, float], batches: tuple[int, ...] = (1, 32)) -> list[Timing]:
    """Microseconds as multiplications over a rate of the tile, where it takes the shape."""
    found = []
    for shape, product in SHAPES.items():
        for batch in batches:
            for tile, rate in rates.items():
                try:
                    choose_tile((tile,), product)
                except ValueError:
                    found.append(Timing("bfloat16", shape, batch, tile, None, "not taken", ()))
                    continue
                filters = -(-product.filters // tile.block_f) * tile.block_f
                depth = -(-product.channels // tile.block_k) * tile.block_k
                time = batch * filters * product.taps * depth / rate
                found.append(Timing("bfloat16", shape, batch, tile, time, None, (product,)))
    return found


def test_the_fastest_tiles_are_chosen_with_their_costs():
    choice = choose(timings({ANY: 100.0, WIDE: 200.0, DEEP: 140.0, SLOW: 50.0}))
    plain = [tile.block_f * 1000 + tile.block_k for tile in choice.tiles]
    assert plain[0] == 64064  # the one with the least cost comes first
    assert set(plain) >= {64064, 32032}
    assert SLOW not in choice.tiles
    costs = {(tile.block_f, tile.block_k): tile.cost for tile in choice.tiles}
    assert costs[64, 64] == 1.0
    assert costs[32, 32] == pytest.approx(2.0, rel=0.35)
    assert choice.loss == pytest.approx(1.0, abs=0.01)
    # 160 channels are no whole 64s: there the tile that takes any, or the one 32 deep.
    assert choose_tile(choice.tiles, SHAPES["160"]).block_k == 32
    assert choose_tile(choice.tiles, SHAPES["192"]).block_k == 64


def test_a_tile_that_gains_nothing_is_left_out():
    choice = choose(timings({ANY: 100.0, SLOW: 50.0, WIDE: 90.0}))
    assert [tile.block_f for tile in choice.tiles] == [32]


def test_no_more_tiles_than_asked_for():
    rates = {ANY: 100.0, WIDE: 300.0, DEEP: 200.0}
    assert len(choose(timings(rates), limit=2).tiles) == 2
    assert len(choose(timings(rates), limit=1).tiles) == 1


def test_a_table_needs_a_tile_for_any_number_of_channels():
    with pytest.raises(BenchError, match="no tile that takes any number of channels"):
        choose(timings({WIDE: 100.0, DEEP: 100.0}))


def test_the_loss_says_what_the_choice_by_channels_costs():
    """A tile that is best at one batch only is judged over all of them."""
    times = [
        Timing("bfloat16", "128", batch, tile, time, None, (SHAPES["128"],))
        for batch, tile, time in ((1, ANY, 1.0), (1, WIDE, 2.0), (32, ANY, 8.0), (32, WIDE, 1.0))
    ]
    choice = choose(times)
    assert choose_tile(choice.tiles, SHAPES["128"]).block_f == 64
    assert choice.loss == pytest.approx(2**0.5)
    assert choice.worst == ("128", pytest.approx(2**0.5))


@pytest.mark.parametrize("op", tune.OPS)
def test_a_proposal_has_the_form_of_a_table(op: str, tmp_path: Path, monkeypatch):
    base = json.loads(tune.table_path(op, "sm_90").read_text())
    table, _ = propose(base, timings({ANY: 100.0, WIDE: 200.0}), "bench/results/gpu/tune.json")
    assert table["measured"] == "bench/results/gpu/tune.json"
    assert "bfloat16" in table["note"]
    assert table.keys() == base.keys()
    assert table["tiles"]["float32_tf32"] == base["tiles"]["float32_tf32"]
    assert all(row["why"].startswith("measured: ") for row in table["tiles"]["bfloat16"])
    # It loads as a table does.
    folder = tmp_path / op / "configs"
    folder.mkdir(parents=True)
    tune.write(folder / "sm_90.json", table)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    loaded = load_table.__wrapped__(op, "sm_90")
    assert {tile.block_f for tile in loaded.tiles["bfloat16"]} == {32, 64}
    assert loaded.settings == base["settings"]


def test_timings_come_back_from_their_file():
    original = timings({ANY: 100.0, WIDE: 200.0})
    again = [Timing.from_json(json.loads(json.dumps(t.as_json()))) for t in original]
    assert again == original


def test_every_tile_is_timed_once_on_every_case():
    cases = harness.load_cases(
        ["split_conv2d"], torch.device("cuda"), batches=[1, 32], dtypes=["bfloat16", "tf32"]
    )
    seen: list[tuple[Tile, str]] = []

    def time_tile(tile: Tile, case: harness.Case) -> tuple[float, tuple[Product, ...]] | str:
        seen.append((tile, case.label))
        return "too much shared memory" if tile is WIDE else (3.0, (SHAPES["128"],))

    def tiles(precision: str) -> list[Tile]:
        return [ANY, WIDE] if precision == "bfloat16" else [ANY]

    found = list(measure(cases, tiles, time_tile))
    assert len(found) == len(seen) == 2 * 2 + 2
    assert {t.precision for t in found} == {"bfloat16", "float32_tf32"}
    assert [t.refusal for t in found if t.tile == WIDE] == ["too much shared memory"] * 2
    assert list(measure(cases, tiles, time_tile, found[:-1])) == found[-1:]
    assert list(measure(cases, tiles, time_tile, (), budget=-1.0)) == []


@pytest.mark.parametrize("op", tune.OPS)
def test_a_tile_is_forced_on_the_launcher_and_nothing_stays(op: str):
    module = __import__(f"fused_inception.ops.{op}.launch", fromlist=["choose_tile"])
    before = module.choose_tile
    with tune.forced(op, WIDE) as products:
        assert module.choose_tile((), SHAPES["128"]) is WIDE
        assert products == [SHAPES["128"]]
        with pytest.raises(ValueError, match="empty"):
            module.choose_tile((), SHAPES["160"])  # not whole 64s: it does not take them
    assert module.choose_tile is before


@pytest.mark.parametrize("op", tune.OPS)
def test_the_default_list_has_every_tile_in_use(op: str):
    for precision in ("bfloat16", "float32_ieee"):
        tiles = tune.default_tiles(op, precision)
        assert len(set(tiles)) == len(tiles) > 50
        for name in set(DEVICE_CLASSES.values()):
            for tile in load_table(op, name).tiles[precision]:
                assert any(
                    (t.block_p, t.block_f, t.block_k, t.num_warps, t.num_stages, t.whole)
                    == (
                        tile.block_p, tile.block_f, tile.block_k, tile.num_warps, tile.num_stages,
                        tile.whole,
                    )
                    for t in tiles
                )  # fmt: skip


def test_a_list_of_tiles_is_read(tmp_path: Path):
    path = tmp_path / "tiles.json"
    row = {"block_p": 128, "block_f": 32, "block_k": 32, "num_warps": 8, "num_stages": 3}
    path.write_text(json.dumps([{**row, "why": "a reason", "cost": 9.0}]))
    assert tune.read_tiles(path) == [ANY]
    path.write_text('[{"block_p": 1}]')
    with pytest.raises(BenchError, match="is no list of tiles"):
        tune.read_tiles(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_nothing_is_tuned(capsys, device: str):
    assert tune.main(["split_conv2d", "--device", device]) == 2
    assert capsys.readouterr().err == (
        "error: tuning needs a GPU: tiles are timed where they are to be used\n"
    )
