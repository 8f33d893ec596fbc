"""The subcommand `cost`: its figures against closed forms, its output, and the page with it."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("rich")

from fused_inception.analysis import analyze
from fused_inception.cli import cost, main
from fused_inception.cli.cost import collect, depth, markdown
from fused_inception.cli.main import COST_PARTS
from fused_inception.models import (
    AsymmetricInception,
    InceptionA,
    InceptionBlocks,
    InceptionV2,
    InceptionV3,
    SymmetricInception,
    inception_v2,
    inception_v3,
)
from fused_inception.models.torchvision_import import import_torchvision

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
BEGIN, END = "<!-- cost --markdown: begin -->\n", "<!-- cost --markdown: end -->\n"


@pytest.fixture(scope="module")
def info():
    return collect()


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs `cost`; returns the exit code, standard output and standard error."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments):
        code = main(["cost", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_page_has_what_is_printed(info):
    """To renew it: python -m fused_inception cost --markdown, between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown(info)


def test_savings_are_those_of_the_closed_forms(info):
    found = {(row["name"], row["alpha"]): row for row in info["factorizations"]}
    assert len(found) == len(info["factorizations"]) == 8
    saved = {
        ("5×5 → 3×3 → 3×3", 1.0): 1 - 18 / 25,
        ("7×7 → 3×3 → 3×3 → 3×3", 1.0): 1 - 27 / 49,
        ("3×3 → 2×2 → 2×2", 1.0): 1 - 8 / 9,
        ("3×3 → 1×3 → 3×1", 1.0): 1 - 2 / 3,
        ("5×5 → 1×5 → 5×1", 1.0): 1 - 2 / 5,
        ("7×7 → 1×7 → 7×1", 1.0): 1 - 2 / 7,
    }
    for key, expected in saved.items():
        row = found[key]
        assert row["weights_saved"] == pytest.approx(expected)
        if "2×2" not in key[0]:
            assert row["macs_saved"] == pytest.approx(expected)
        if row["formula_saved"] is not None:
            assert row["formula_saved"] == pytest.approx(expected)
        if row["paper_saved"] is not None:
            assert round(expected, 2) == row["paper_saved"]
    for alpha in (1.5, 2.0):
        row = found["5×5 → 3×3 → 3×3", alpha]
        assert row["formula_saved"] == pytest.approx(1 - 9 * (alpha + 1) / (25 * alpha**0.5))
        # Half a channel in 78 is what rounding can do.
        assert row["weights_saved"] == pytest.approx(row["formula_saved"], abs=0.007)
        assert row["weights_saved"] != row["formula_saved"]


def test_any_growth_of_the_channels_can_be_asked_for(cli):
    """Where √α of 64 channels is whole, the count is the formula's."""
    arguments = ["--only", "factorizations", "--alpha", "0.25", "4", "2.25", "1.7", "--json"]
    code, out, _ = cli(*arguments)
    assert code == 0
    rows = [row for row in json.loads(out)["factorizations"] if row["name"] == "5×5 → 3×3 → 3×3"]
    assert [row["out_channels"] for row in rows] == [16, 256, 144, 109]
    for row in rows[:3]:
        assert row["weights_saved"] == pytest.approx(row["formula_saved"], abs=1e-12)
    assert rows[3]["weights_saved"] == pytest.approx(rows[3]["formula_saved"], abs=0.005)
    assert rows[1]["weights_saved"] == pytest.approx(1 - 9 * 5 / (25 * 2))


def test_factors_move_more_bytes_unless_they_run_as_one(info):
    for row in info["factorizations"]:
        after = row["after"]
        m, k, grid = row["in_channels"], row["out_channels"], row["grid"]
        assert after["fused_bytes"] == 2 * ((m + k) * grid * grid + after["parameters"])
        assert after["fused_bytes"] < min(after["unfused_bytes"], row["before"]["unfused_bytes"])


def test_reductions_are_those_of_the_formulas(info):
    d, k = 35, 288
    rows = {row["formula"]: row for row in info["reductions"]}
    counted = {
        "2d²k²": 2 * d**2 * k**2,
        "2(d/2)²k²": 2 * 17**2 * k**2,
        "(d/2)²k²": 17**2 * k**2,
    }
    assert {formula: row["counted_operations"] for formula, row in rows.items()} == counted
    formulas = {"2d²k²": 2 * d**2, "2(d/2)²k²": 2 * (d / 2) ** 2, "(d/2)²k²": (d / 2) ** 2}
    for formula, operations in formulas.items():
        assert rows[formula]["formula_operations"] == operations * k**2
    narrowest = [row["narrowest"] for row in info["reductions"]]
    assert narrowest == [d * d * 2 * k, 17 * 17 * k, 17 * 17 * 2 * k]


def test_modules_save_what_their_branches_save(info):
    rows = {(row["name"], row["what"]): row for row in info["modules"]}
    symmetric = rows["SymmetricInception", "figure 5"]
    assert symmetric["macs_before"] == rows["OriginalInception", "figure 4"]["macs"]
    difference = symmetric["macs_before"] - symmetric["macs"]
    assert difference == 35 * 35 * 96 * (25 * 64 - 9 * 64 - 9 * 96)
    for n in (3, 5, 7):
        row = rows["AsymmetricInception", f"figure 6, n = {n}"]
        assert row["macs_before"] - row["macs"] == 3 * 17 * 17 * 192 * 192 * (n * n - 2 * n)


def test_networks_are_those_that_are_built(info):
    rows = {(row["name"], row["image_size"]): row for row in info["networks"]}
    assert len(rows) == len(info["networks"]) == 9
    three = rows["inception_v3", 299]
    assert three["parameters"] == 23_834_568
    assert three["parameters_with_heads"][0] == 27_161_264
    assert round(three["macs"] / 1e6) == 5713
    assert three["depth"] == 48
    sizes = [row["parameters_with_heads"] for row in info["networks"]]
    assert all(two - one == 3_326_696 for one, two in sizes)


def test_the_grids_make_up_the_networks(info):
    macs = {row["name"]: row["macs"] for row in info["networks"] if row["image_size"] == 299}
    found = {row["name"]: row["macs"] for row in info["grids"]}
    assert {name: sum(grids.values()) for name, grids in found.items()} == macs
    three = found["inception_v3"]
    assert list(three) == ["in front", "35×35", "35 → 17", "17×17", "17 → 8", "8×8", "classifier"]
    assert three["in front"] == sum(
        grid * grid * weights
        for grid, weights in (
            (149, 3 * 32 * 9),
            (147, 32 * 32 * 9 + 32 * 64 * 9),
            (73, 64 * 80),
            (71, 80 * 192 * 9),
        )
    )
    assert three["35 → 17"] == 17 * 17 * 9 * (288 * 384 + 96 * 96) + 35 * 35 * 64 * (288 + 864)
    assert three["classifier"] == 2048 * 1000


def test_the_differences_lead_from_one_network_to_the_other(info):
    macs = {row["name"]: row["macs"] for row in info["networks"] if row["image_size"] == 299}
    chain = [row for row in info["differences"] if not row["alone"]]
    totals = [row["total"] for row in chain]
    assert totals[0] == macs["inception_v3"]
    assert totals[4:] == [macs["inception_v2"], macs["inception_v2, 7×7 first"]]
    assert [row["macs"] for row in chain[1:]] == [
        after - before for before, after in itertools.pairwise(totals)
    ]
    # By hand: 48 to 64 channels in three modules; a module that is 192 wide; 7×7 and three 3×3.
    assert chain[3]["macs"] == -3 * 35 * 35 * 48 * 64 * (25 - 9)
    assert chain[4]["macs"] == 17 * 17 * (768 * 768 + 6 * 7 * 192 * 192)
    three = 149 * 149 * 3 * 32 + 147 * 147 * (32 * 32 + 32 * 64)
    assert chain[5]["macs"] == 147 * 147 * 3 * 64 * 49 - 9 * three


def test_what_would_change_v3_is_counted_from_it(info):
    alone = {row["what"]: row for row in info["differences"] if row["alone"]}
    three = info["differences"][0]["total"]
    assert all(row["total"] - three == row["macs"] for row in alone.values())
    narrower = (
        17
        * 17
        * sum(
            4 * 768 * (m - 128) // 2 + 7 * 4 * (m * m - 128 * 128) + 7 * 2 * 192 * (m - 128)
            for m in (160, 160, 192)
        )
    )
    assert alone["all pairs 128 wide at 17×17"]["macs"] == -narrower
    pairs = sum(4 * m * m + 2 * m * 192 for m in (128, 160, 160, 192)) + 2 * 192 * 192
    assert alone["1×3 and 3×1 for all 1×7 and 7×1"]["macs"] == -17 * 17 * 4 * pairs
    assert alone["without the classifier"]["macs"] == -2048 * 1000
    assert alone["with an auxiliary head"]["macs"] == 25 * 768 * 128 + 128 * 768 * 25 + 768 * 1000


def test_products_with_padding_are_those_that_ones_do_not_reach(info):
    total = 2048 * 1000

    def add(conv, args, output):
        nonlocal total
        ones = torch.ones(1, 1, *args[0].shape[2:], device="cpu")
        taps = torch.ones(1, 1, *conv.kernel_size, device="cpu")
        reached = F.conv2d(ones, taps, None, conv.stride, conv.padding).double().sum()
        total += conv.in_channels * conv.out_channels * int(reached)

    with torch.device("meta"):
        model = inception_v3(init_weights=False, aux_logits=0).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        model(torch.empty(1, 3, 299, 299))
    (row,) = (row for row in info["differences"] if "padding" in row["what"])
    assert row["total"] == total


class Table1WithoutItsLast(InceptionV2):
    """In front table 1's layers but the last; at 35×35 the channels of V3."""

    _POOL_FEATURES = InceptionV3._POOL_FEATURES

    def _add_stem(self, conv):
        super()._add_stem(conv)
        self.Conv2d_4b_3x3 = nn.Identity()
        return 192


FRONTS = {"V3": InceptionV3, "table 1 without its last": Table1WithoutItsLast}
FRONTS["table 1"] = InceptionV2
GRIDS_35 = {"5×5": InceptionA, "figure 5": SymmetricInception}


def billions_of(row, width, n=7, **options):
    """What the network of a row has with this width, built and counted."""
    network = FRONTS[row["front"]]
    wide = {"_CHANNELS_17": (width,) * row["modules_17"]}

    def module_17(in_channels, mid, **arguments):
        return AsymmetricInception(in_channels, mid, n, **arguments)

    blocks = InceptionBlocks(a=GRIDS_35[row["grid_35"]], c=module_17)
    with torch.device("meta"):
        model = type(network.__name__, (network,), wide)(
            init_weights=False, aux_logits=0, blocks=blocks, **options
        )
        reduction = model.Mixed_7a
        if n == 3:
            reduction.branch7x7x3_2.conv = nn.Conv2d(192, 192, (1, 3), padding=(0, 1))
            reduction.branch7x7x3_3.conv = nn.Conv2d(192, 192, (3, 1), padding=(1, 0))
        return analyze(model.eval(), torch.empty(1, 3, 299, 299)).total.macs / 1e9


@pytest.mark.parametrize("index", [0, 7])
def test_the_widths_are_those_of_networks_that_have_the_paper_s_figures(info, index):
    assert len(info["widths"]) == 12
    row = info["widths"][index]
    low, high = row["after"]
    assert billions_of(row, low - 1) < 4.75 < billions_of(row, low)
    assert billions_of(row, high) < 4.85 < billions_of(row, high + 1)
    for key, n in (("before_front", 7), ("before_all", 3)):
        if row["front"] == "V3" or row[key] is None:
            continue  # there is no V3 with a 7×7 in front
        low, high = row[key]
        assert billions_of(row, low, n, stem="7x7") > 3.75
        assert (
            billions_of(row, high, n, stem="7x7") < 3.85 < billions_of(row, high + 1, n, stem="7x7")
        )


def test_no_width_gives_both_figures_where_the_first_layer_alone_is_factorized(info):
    assert not any(row["both_front"] for row in info["widths"])
    both = [row for row in info["widths"] if row["both_all"]]
    assert {row["front"] for row in both} == {"table 1 without its last"}
    for row in both:
        assert row["after"][0] <= row["both_all"][0] <= row["both_all"][1] <= row["after"][1]
    (claim,) = (row for row in info["claims"] if "adds 1.0 billion" in row["claim"])
    ends = [end for row in both for end in row["both_all"]]
    assert f"{min(ends)} to {max(ends)}" in claim["difference"]


def test_torchvision_publishes_what_the_claims_say_it_does(info):
    (claim,) = (row for row in info["claims"] if row["section"] == "abstract, table 3")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    theirs = import_torchvision().models
    for weights, said in (
        (theirs.Inception_V3_Weights, "too has {} for its V3"),
        (theirs.GoogLeNet_Weights, "{} for GoogLeNet"),
    ):
        assert said.format(weights.DEFAULT.meta["_ops"]) in claim["difference"]


def test_every_claim_has_a_figure_and_every_difference_a_reason(info):
    assert len(info["claims"]) > 15
    for row in info["claims"]:
        assert row.keys() == {"section", "claim", "counted", "difference"}
        assert all(row.values())
    text = json.dumps(info["claims"], ensure_ascii=False)
    for part in ("28 %", "33 %", "11 %", "2d²k²", "42 layers", "25 million", "4.8", "79×79", "5×5"):
        assert part in text


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        # 3 + 3 in front, 3 of figure 5, a reduction of 3, 5 of figure 6 by 5, one of 4, 2 by 3, fc.
        (inception_v2, 6 + 3 * 3 + 3 + 5 * 5 + 4 + 2 * 3 + 1),
        (inception_v3, 5 + 3 * 3 + 3 + 4 * 5 + 4 + 2 * 3 + 1),
    ],
)
def test_depth_is_the_longest_chain(make, layers):
    with torch.device("meta"):
        model = make(init_weights=False, aux_logits=0).eval()
        assert depth(analyze(model, torch.empty(1, 3, 299, 299))) == layers


def test_batch_and_dtype_are_the_options(info, cli):
    code, out, err = cli("--only", "modules", "--batch-size", "2", "--dtype", "float32", "--json")
    assert (code, err) == (0, "")
    doubled = json.loads(out)
    assert doubled.keys() == {"settings", "modules"}
    assert doubled["settings"] == {"batch": 2, "dtype": "float32"}
    for two, one in zip(doubled["modules"], info["modules"], strict=True):
        assert two["parameters"] == one["parameters"]
        assert two["macs"] == 2 * one["macs"]
        weights = 2 * one["parameters"]
        assert two["unfused_bytes"] > 2 * one["unfused_bytes"]
        assert two["unfused_bytes"] < 4 * one["unfused_bytes"]
        assert two["fused_bytes"] > 2 * weights


def test_tables_name_everything(cli, info, monkeypatch):
    monkeypatch.setattr(cost, "collect", lambda *args: info)
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    for text in (
        "Factorizations of one convolution (one image, float16)",
        "Grid reductions from 35×35×288 to 17×17×576",
        "Modules",
        "Networks",
        "What the paper says, and what is counted",
        "5.713",
        "23.83",
        "28.0%",
        "71.4%",
    ):
        assert text in out


def test_markdown_and_a_file(cli, tmp_path):
    path = tmp_path / "cost.json"
    code, out, _ = cli("--markdown", "--only", "reductions", "--json", str(path))
    assert code == 0
    found = json.loads(path.read_text())
    assert found.keys() == {"settings", "reductions"}
    assert out == markdown(found)
    assert out.count("| 2d²k² |") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "blocks"], f"invalid choice: 'blocks' (choose from {COST_PARTS[0]}"),
        (["--batch-size", "0"], "takes an integer from 1 to 65536, got '0'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--json", "none/cost.json"], "cannot be written: there is no folder 'none'"),
        (["--alpha", "0"], "takes numbers above 0 up to 64, got '0'"),
        (["--alpha", "nan"], "takes numbers above 0 up to 64, got 'nan'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_options_are_one_line(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert code == 2
    assert not out
    assert message in err.replace("'factorizations'", "factorizations")
    assert err.count("\n") == 1
