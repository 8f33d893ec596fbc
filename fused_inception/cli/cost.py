"""The subcommand `cost`: the paper's arithmetic counted from the modules, beside its own figures.

Everything counted comes from `fused_inception.analysis` on the `meta` device, where nothing is
computed. The paper's figures are those of "Rethinking the Inception Architecture for Computer
Vision" (Szegedy et al. 2015, arXiv 1512.00567), by section and table.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fused_inception.analysis import Analysis, Cost
from fused_inception.cli.main import (
    COST_PARTS,
    STDOUT,
    check_writable,
    make_console,
    print_table,
    write_json,
)
from fused_inception.cli.table_3 import (
    AFTER,
    BEFORE,
    GRIDS,
    NETWORKS,
    Counter,
    differences,
    grids,
    widths,
)
from fused_inception.models import (
    AsymmetricFactors,
    AsymmetricInception,
    ConvThenPool,
    InceptionA,
    InceptionAux,
    InceptionAuxDropout,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    OriginalInception,
    ParallelReduction,
    PoolThenConv,
    SymmetricFactors,
    SymmetricInception,
    convolution_cost,
    two_layer_cost,
)
from fused_inception.models.inception_v3 import IMAGE_SIZES

# What the paper names, what it says of GoogLeNet, and the double.
ALPHAS = (1.0, 1.5, 2.0)

# Weights alone, as the paper counts them: neither bias nor BatchNorm.
_conv = partial(nn.Conv2d, bias=False)


class Table(NamedTuple):
    """A part of the output.

    Attributes:
        title: the line above it.
        columns: headers; one that begins with ">" aligns its column on the right.
        rows: a text for each column.
        note: a paragraph below it, or nothing.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def run(args: argparse.Namespace) -> int:
    """Counts, and shows what was counted.

    Args:
        args: `batch` (images), `dtype` (its name), `only` (parts, or None), `alpha` (what the
            channels grow by in the factorizations of a 5×5, or None), `markdown` (whether to print
            the tables in Markdown), `json` (None, a path, or "-" for standard output).

    Returns:
        The exit code, 0.

    Raises:
        CliError: the file for the JSON cannot be written.
    """
    if args.json not in (None, STDOUT):
        check_writable(args.json, "--json")
    info = collect(
        args.batch, getattr(torch, args.dtype), args.only or COST_PARTS, args.alpha or ALPHAS
    )
    if args.json is not None:
        write_json(info, args.json)
    if args.json == STDOUT:
        return 0
    if args.markdown:
        print(markdown(info), end="")
        return 0
    console = make_console()
    for table in tables(info):
        print_table(console, table.title, table.columns, table.rows)
        if table.note:
            console.print(table.note + "\n")
    return 0


def collect(
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    parts: Sequence[str] = COST_PARTS,
    alphas: Sequence[float] = ALPHAS,
) -> dict[str, Any]:
    """Counts everything that `cost` shows.

    Args:
        batch: images.
        dtype: of activations and weights, which decides the bytes.
        parts: which of `COST_PARTS`.
        alphas: what the 64 channels of a 5×5 grow by, a row each; the claims have their own.

    Returns:
        A dict of what JSON can hold, with the key "settings" and one for each part.
    """
    count = Counter(batch, dtype)
    collectors: dict[str, Callable[[Counter], list[dict[str, Any]]]] = {
        "factorizations": partial(_factorizations, alphas=alphas),
        "reductions": _reductions,
        "modules": _modules,
        "networks": _networks,
        "grids": grids,
        "differences": differences,
        "widths": widths,
        "claims": _claims,
    }
    info: dict[str, Any] = {
        "settings": {"batch": batch, "dtype": str(dtype).removeprefix("torch.")}
    }
    info.update({part: collectors[part](count) for part in COST_PARTS if part in parts})
    return info


def depth(analysis: Analysis) -> int:
    """The layers of a network: convolutions and matrix products in its longest chain.

    Args:
        analysis: of the network.

    Returns:
        How many.
    """
    depths: dict[int, int] = {}
    for operator in analysis.operators:
        before = max((depths.get(value, 0) for value, _ in operator.reads), default=0)
        for value, _ in operator.writes:
            depths[value] = before + (operator.macs > 0)
    return max(depths.values())


def _cost(cost: Cost) -> dict[str, int]:
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "unfused_bytes": cost.unfused_bytes,
        "fused_bytes": cost.fused_bytes,
    }


def _saved(before: float, after: float) -> float:
    return 1 - after / before


def _factorizations(count: Counter, alphas: Sequence[float] = ALPHAS) -> list[dict[str, Any]]:
    def square(n: int, in_channels: int, out_channels: int) -> nn.Module:
        return _conv(in_channels, out_channels, n, padding=n // 2)

    def small_factors(m: int) -> nn.Module:
        # The two-by-two filter has no middle: the first one makes the grid one larger.
        return nn.Sequential(_conv(m, m, 2, padding=1), _conv(m, m, 2))

    rows = []

    def add(
        name: str,
        shape: tuple[int, int, int],
        before: Callable[[], nn.Module],
        after: Callable[[], nn.Module],
        formula: float | None,
        paper: float | None,
        note: str = "",
    ) -> None:
        grid, in_channels, out_channels = shape
        costs = [count(make, in_channels, grid) for make in (before, after)]
        rows.append(
            {
                "name": name,
                "grid": grid,
                "in_channels": in_channels,
                "out_channels": out_channels,
                "alpha": out_channels / in_channels,
                "before": _cost(costs[0]),
                "after": _cost(costs[1]),
                "weights_saved": _saved(costs[0].parameters, costs[1].parameters),
                "macs_saved": _saved(costs[0].macs, costs[1].macs),
                "formula_saved": formula,
                "paper_saved": paper,
                "note": note,
            }
        )

    shapes = [(5, (35, 64, max(1, round(64 * alpha)))) for alpha in dict.fromkeys(alphas)]
    for n, shape in [*shapes, (7, (17, 192, 192))]:
        _, c, k = shape
        formula = None
        if n == 5:
            direct, pair = convolution_cost(5, c, k / c), two_layer_cost(3, c, k / c)
            formula = _saved(direct, pair)
        add(
            f"{n}×{n} → " + " → ".join(["3×3"] * (n // 2)),
            shape,
            partial(square, n, c, k),
            partial(SymmetricFactors, c, k, n, conv_block=_conv, mid_block=_conv),
            formula,
            0.28 if c == k and n == 5 else None,
            "" if c == k else f"√α·{c} is rounded to {round((c * k) ** 0.5)} channels",
        )
    add(
        "3×3 → 2×2 → 2×2",
        (17, 192, 192),
        partial(square, 3, 192, 192),
        partial(small_factors, 192),
        1 - 8 / 9,
        0.11,
        "2×2 has no middle: the first one runs on 18×18",
    )
    for n in (3, 5, 7):
        add(
            f"{n}×{n} → 1×{n} → {n}×1",
            (17, 192, 192),
            partial(square, n, 192, 192),
            partial(AsymmetricFactors, 192, 192, n, conv_block=_conv, mid_block=_conv),
            1 - 2 / n,
            0.33 if n == 3 else None,
        )
    return rows


def _reductions(count: Counter) -> list[dict[str, Any]]:
    d, k = 35, 288
    small = (d - 1) // 2
    ways = (
        ("convolve, then pool", ConvThenPool, "2d²k²", 2 * d**2 * k**2, d * d * 2 * k),
        ("pool, then convolve", PoolThenConv, "2(d/2)²k²", 2 * (d / 2) ** 2 * k**2, small**2 * k),
        ("both at stride 2", ParallelReduction, "(d/2)²k²", (d / 2) ** 2 * k**2, small**2 * 2 * k),
    )
    rows = []
    for name, module, formula, operations, narrowest in ways:
        cost = count(partial(module, k, 2 * k, conv_block=_conv), k, d)
        rows.append(
            {
                "name": name,
                "grid": d,
                "channels": k,
                "formula": formula,
                "formula_operations": operations,
                # The formulas leave out the nine positions of the filter, and the batch.
                "counted_operations": cost.macs // 9 // count.batch,
                "narrowest": narrowest,
                **_cost(cost),
            }
        )
    return rows


def _modules(count: Counter) -> list[dict[str, Any]]:
    entries: list[tuple[str, str, Callable[[], nn.Module], int, int]] = [
        ("OriginalInception", "figure 4", partial(OriginalInception, 288, 64), 288, 35),
        ("SymmetricInception", "figure 5", partial(SymmetricInception, 288, 64), 288, 35),
        ("InceptionA", "V3: figure 5 with a 5×5", partial(InceptionA, 288, 64), 288, 35),
        ("InceptionB", "figure 10, 35 to 17", partial(InceptionB, 288), 288, 35),
        *(
            (
                "AsymmetricInception",
                f"figure 6, n = {n}",
                partial(AsymmetricInception, 768, 192, n),
                768,
                17,
            )
            for n in (3, 5, 7)
        ),
        ("InceptionC", "V3: figure 6, n = 7", partial(InceptionC, 768, 192), 768, 17),
        ("InceptionD", "figure 10, 17 to 8", partial(InceptionD, 768), 768, 17),
        ("InceptionE", "figure 7, the first", partial(InceptionE, 1280), 1280, 8),
        ("InceptionE", "figure 7, the second", partial(InceptionE, 2048), 2048, 8),
        ("InceptionAux", "figure 8, BatchNorm", partial(InceptionAux, 768, 1000), 768, 17),
        (
            "InceptionAuxDropout",
            "figure 8, dropout",
            partial(InceptionAuxDropout, 768, 1000),
            768,
            17,
        ),
    ]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "what": what,
            "channels": channels,
            "grid": grid,
            **_cost(count(make, channels, grid)),
            "macs_before": None,
        }
        for name, what, make, channels, grid in entries
    ]
    original = next(row for row in rows if row["name"] == "OriginalInception")
    for row in rows:
        if row["name"] == "SymmetricInception":
            row["macs_before"] = original["macs"]
        elif "n = " in row["what"]:
            n = int(row["what"][-1])
            # The module with the n×n in the place of each of its three pairs.
            whole, pair = (
                count(make, 192, 17).macs
                for make in (
                    partial(_conv, 192, 192, n, padding=n // 2),
                    partial(AsymmetricFactors, 192, 192, n, conv_block=_conv, mid_block=_conv),
                )
            )
            row["macs_before"] = row["macs"] + 3 * (whole - pair)
    return rows


# The paper's billions of multiply-adds, and where it has them.
_PAPER = {
    "inception_v2, 7×7 first": (BEFORE, "table 3, Inception-v2"),
    "inception_v2": (AFTER, "table 3, + factorized 7×7 = Inception-v3"),
    "inception_v3": (AFTER, "table 3, Inception-v3"),
}


def _networks(count: Counter) -> list[dict[str, Any]]:
    rows = []
    for name, make in NETWORKS.items():
        for size in IMAGE_SIZES:
            found = count.network(name, size)
            with torch.device("meta"):
                heads = [
                    make(init_weights=False, aux_logits=aux, image_size=size) for aux in (1, 2)
                ]
            paper, where = _PAPER[name] if size == 299 else (None, None)
            rows.append(
                {
                    "name": name,
                    "image_size": size,
                    **_cost(found.total),
                    "parameters_with_heads": [
                        sum(parameter.numel() for parameter in model.parameters())
                        for model in heads
                    ],
                    "depth": depth(found),
                    "paper_billion_macs": paper,
                    "paper_where": where,
                }
            )
    return rows


def _claims(count: Counter) -> list[dict[str, Any]]:
    factors = {(row["name"], row["alpha"]): row for row in _factorizations(count)}
    ways = {row["formula"]: row for row in _reductions(count)}
    modules = {row["name"]: row for row in _modules(count)}
    networks = {(row["name"], row["image_size"]): row for row in _networks(count)}
    batch = count.batch

    def saved(name: str) -> str:
        row = factors[name, 1.0]
        return f"{row['weights_saved']:.1%} of the weights, {row['macs_saved']:.1%} of the MACs"

    def billions(name: str, size: int = 299) -> float:
        return float(networks[name, size]["macs"]) / batch / 1e9

    def share(formula: str) -> str:
        return f"{ways[formula]['macs'] / ways['2d²k²']['macs']:.1%} of convolve, then pool"

    def against_299(size: int) -> str:
        return f"{billions('inception_v3', size) / billions('inception_v3') - 1:+.1%}"

    square = {n: count(partial(_conv, 96, 96, n, padding=n // 2), 96, 35).macs for n in (3, 5)}
    original, symmetric = (
        modules[name]["macs"] / batch for name in ("OriginalInception", "SymmetricInception")
    )
    v3, v2 = networks["inception_v3", 299], networks["inception_v2", 299]
    stems = billions("inception_v2") - billions("inception_v2, 7×7 first")
    changed = {row["what"]: row for row in differences(count)}
    asymmetric = -changed["1×3 and 3×1 for all 1×7 and 7×1"]["macs"] / 1e9
    inside = changed["without the products with padding"]["total"] / 1e9
    possible = widths(count)

    def span(key: str) -> str:
        found = [row[key] for row in possible if row[key] is not None]
        return f"{min(low for low, _ in found)} to {max(high for _, high in found)}"

    silent = (
        "The text gives no widths inside its modules; these are V3's. With one width for all pairs "
        "at 17×17 and all else known, it would be "
    )
    return [
        _claim(
            "3.1",
            "a 5×5 costs 25/9 = 2.78 times a 3×3 of as many filters",
            f"{square[5] / square[3]:.2f}",
        ),
        _claim("3.1", "5×5 as two 3×3, α = 1: (9 + 9)/25, 28 % saved", saved("5×5 → 3×3 → 3×3")),
        _claim(
            "3.1",
            "n = αm in two steps of √α",
            "; ".join(
                f"α = {alpha:g}: {factors['5×5 → 3×3 → 3×3', alpha]['weights_saved']:.1%} saved, "
                f"by the formula {factors['5×5 → 3×3 → 3×3', alpha]['formula_saved']:.1%}"
                for alpha in (1.5, 2.0)
            ),
            "√αm is not whole, so the middle is rounded",
        ),
        _claim(
            "3.1",
            "figure 5 is figure 4 with its 5×5 as two 3×3; no figure for the module",
            f"{_saved(original, symmetric):.1%} of its MACs saved",
            "the 1×1 and 3×3 branches stay as they are, and α is 1.5",
        ),
        _claim("3.2", "3×3 as 3×1 and 1×3: 33 % saved", saved("3×3 → 1×3 → 3×1")),
        _claim(
            "3.2",
            "3×3 as two 2×2: 11 % saved",
            saved("3×3 → 2×2 → 2×2"),
            "the paper counts weights; two 2×2 on one grid run once on a grid that is one larger",
        ),
        _claim(
            "3.2", "more is saved the larger n is; no figure for n = 7", saved("7×7 → 1×7 → 7×1")
        ),
        _claim("5", "convolve, then pool: 2d²k² operations", _operations(ways["2d²k²"])),
        _claim(
            "5",
            "pool, then convolve: 2(d/2)²k², the cost reduced “by a quarter”",
            f"{_operations(ways['2(d/2)²k²'])}; {share('2(d/2)²k²')}",
            "d/2 is 17, not 17.5; by the paper's own formula the cost is reduced to a quarter, by "
            "three quarters",
        ),
        _claim(
            "5",
            "both at stride 2, side by side: cheaper still; no figure",
            f"{_operations(ways['(d/2)²k²'])}; {share('(d/2)²k²')}",
            "only half of the channels are convolved; d/2 is 17",
        ),
        _claim(
            "6",
            "42 layers deep",
            f"inception_v2 {v2['depth']}, inception_v3 {v3['depth']}",
            "the paper does not say how it counts; here every convolution and the linear layer on "
            "the longest way from image to logits is one. With a pair as one layer it is "
            f"{v2['depth'] - 11} and {v3['depth'] - 9}: 42 are the convolutions of inception_v2",
        ),
        _claim(
            "6",
            "“only about 2.5” times the cost of GoogLeNet, of the network of table 1, whose first "
            "7×7 is factorized",
            f"inception_v2 {billions('inception_v2'):.2f}, {billions('inception_v2') / 1.5:.1f} "
            "times the 1.5 billion of table 3",
            f"2.5·1.5 is the {BEFORE} of table 3 from before that factorization, which has "
            f"{AFTER} = 3.2·1.5 with it: the paper's two figures for this network are 1.0 billion "
            "apart",
        ),
        _claim(
            "6, table 1",
            "the last 3×3 goes from 35×35×192 to 35×35×288 and is not marked as padded",
            "padded in inception_v2",
            "without padding it would leave 33×33. inception_v3 has a 1×1 in place of the first "
            "3×3 behind the pool, a second max pool in place of the stride, and no such layer: "
            "table 1 is mistaken there, says the README of "
            "GoogleCloudPlatform/keras-idiomatic-programmer (zoo/inception), after asking two of "
            "the authors, who call their published code the best reference",
        ),
        _claim(
            "6, text",
            "5 modules “as in figure 5” at 17×17, 2 “as in figure 6” at 8×8",
            "figures 6 and 7",
            "so says table 1; the figures named in the text are one behind",
        ),
        _claim(
            "6, table 1",
            "3 modules of figure 5, 5 of figure 6, 2 of figure 7",
            "inception_v2 3, 5, 2; inception_v3 3, 4, 2",
            "V3 of torchvision keeps a 5×5 in its modules at 35×35; at 17×17 it has four modules, "
            "five with the grid reduction in front of them, and their double branch begins with "
            "7×1",
        ),
        _claim(
            "abstract",
            "Inception-v3 has fewer than 25 million parameters",
            f"inception_v3 {v3['parameters'] / 1e6:.2f} million, with an auxiliary head "
            f"{v3['parameters_with_heads'][0] / 1e6:.2f}; inception_v2 "
            f"{v2['parameters'] / 1e6:.2f} and {v2['parameters_with_heads'][0] / 1e6:.2f}",
            "holds for inception_v3 without the head, which evaluation does not run. inception_v2 "
            "has more: one more module at 17×17 and a 3×3 of 192 to 288 channels",
        ),
        _claim(
            "table 3",
            f"Inception-v2, before factorizing the 7×7: {BEFORE} billion multiply-adds",
            f"inception_v2, 7×7 first: {billions('inception_v2, 7×7 first'):.2f}",
            f"{silent}{span('before_front')}, by what is in front and at 35×35",
        ),
        _claim(
            "table 3",
            f"factorizing the 7×7 adds {AFTER - BEFORE:.1f} billion",
            f"{stems:.2f} billion more",
            "the factors cost more than the 7×7: they are three, two of them see 32 channels, not "
            "3, and all run on the large grid. Table 1 has them whole, so this holds whatever the "
            "widths inside the modules are, for a 7×7 like GoogLeNet's (64 filters, stride 2): "
            "there must be more in a step between 0.9 and 1.1, of which the paper says that it "
            "“includes” the first layer. With 1×3 and 3×1 before it for all 1×7 and 7×1 it is "
            f"{stems + asymmetric:.2f} in V3's widths; then one width, {span('both_all')} by what "
            f"else there is, gives {BEFORE} and {AFTER} at once, if what is in front is table 1's "
            "without its last 3×3. With the first layer alone no width does",
        ),
        _claim(
            "abstract, table 3",
            f"Inception-v3: 5 billion, in the table {AFTER}",
            f"inception_v3 {billions('inception_v3'):.2f}, "
            f"inception_v2 {billions('inception_v2'):.2f}",
            f"{silent}{span('after')}. The published network is not the one of table 3: "
            "torchvision too has 5.713 for its V3, Zoph et al. (2017, arXiv 1707.07012, table 2) "
            "5.72. How one counts is not the cause: torchvision's 1.498 for GoogLeNet and their "
            "1.94 for BN-Inception, “Inception V2” there, are table 3's 1.5 and 2.0 to 0.1; "
            f"without the products with padding V3 has {inside:.2f}",
        ),
        _claim(
            "conclusions",
            "2.5 times the cost of BN-Inception",
            f"inception_v3 {billions('inception_v3') / 2.0:.1f} times the 2.0 billion of table 3",
            "BN-Inception is not built here; by table 3 alone it is 4.8/2.0 = 2.4",
        ),
        _claim(
            "9",
            "299×299, 151×151 and 79×79 cost almost the same, the last slightly less, as a pool is "
            "within 1 %",
            f"inception_v3: 151×151 {against_299(151)}, 79×79 {against_299(79)} MACs",
            "at 79×79 the first three convolutions give 77×77, 75×75 and 75×75, not 149×149, "
            "147×147 and 147×147, as they have no pool behind them; the grid of the first modules "
            "is 36×36, not 35×35",
        ),
    ]


def _claim(section: str, claim: str, counted: str, difference: str = "none") -> dict[str, Any]:
    return {"section": section, "claim": claim, "counted": counted, "difference": difference}


def _operations(row: dict[str, Any]) -> str:
    return (
        f"{row['counted_operations'] / 1e6:.1f} million for d = {row['grid']}, "
        f"k = {row['channels']}, by the formula {row['formula_operations'] / 1e6:.1f}"
    )


def tables(info: dict[str, Any]) -> list[Table]:
    """Writes what was counted as tables.

    Args:
        info: of `collect`.

    Returns:
        A table for each part that was counted.
    """
    writers: dict[str, Callable[[list[dict[str, Any]]], Table]] = {
        "factorizations": _factorization_table,
        "reductions": _reduction_table,
        "modules": _module_table,
        "networks": _network_table,
        "grids": _grid_table,
        "differences": _difference_table,
        "widths": _width_table,
        "claims": _claim_table,
    }
    batch, dtype = info["settings"]["batch"], info["settings"]["dtype"]
    images = "one image" if batch == 1 else f"{batch} images"
    found = []
    for part in COST_PARTS:
        if part in info:
            table = writers[part](info[part])
            if part not in ("differences", "widths", "claims"):
                table = table._replace(title=f"{table.title} ({images}, {dtype})")
            found.append(table)
    return found


def markdown(info: dict[str, Any]) -> str:
    """Writes what was counted in Markdown.

    Args:
        info: of `collect`.
    """
    blocks = []
    for table in tables(info):
        lines = [f"### {table.title}", ""]
        lines.append("| " + " | ".join(name.removeprefix(">") for name in table.columns) + " |")
        marks = ("---:" if name.startswith(">") else "---" for name in table.columns)
        lines.append("|" + "|".join(marks) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        blocks.append("\n".join([*lines, *(["", table.note] if table.note else []), ""]))
    return "\n".join(blocks)


def _factorization_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            row["name"],
            f"{row['in_channels']} → {row['out_channels']}, {row['grid']}×{row['grid']}",
            _arrow(row, "parameters", 1e3),
            _arrow(row, "macs", 1e6),
            f"{row['weights_saved']:.1%}",
            "-" if row["formula_saved"] is None else f"{row['formula_saved']:.1%}",
            "-" if row["paper_saved"] is None else f"{row['paper_saved']:.0%}",
            _arrow(row, "unfused_bytes", 1e6),
            f"{row['after']['fused_bytes'] / 1e6:.2f}",
        ]
        for row in rows
    ]
    return Table(
        "Factorizations of one convolution",
        (
            "what",
            "channels, grid",
            ">10³ weights",
            ">10⁶ MACs",
            ">saved",
            ">formula",
            ">paper",
            ">MB",
            ">MB fused",
        ),
        cells,
        "MB: every layer reads its operands from memory and writes its result; MB fused: the "
        "factors as one. "
        + " ".join(
            f"{row['name']} with α = {row['alpha']:g}: {row['note']}."
            for row in rows
            if row["note"]
        ),
    )


def _arrow(row: dict[str, Any], key: str, unit: float) -> str:
    before, after = (row[when][key] / unit for when in ("before", "after"))
    digits = 2 if key == "unfused_bytes" else 0
    return f"{before:.{digits}f} → {after:.{digits}f}"


def _reduction_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            row["name"],
            row["formula"],
            f"{row['formula_operations'] / 1e6:.1f}",
            f"{row['counted_operations'] / 1e6:.1f}",
            f"{row['narrowest'] / 1e3:.0f}",
            f"{row['parameters'] / 1e3:.0f}",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['unfused_bytes'] / 1e6:.2f}",
            f"{row['fused_bytes'] / 1e6:.2f}",
        ]
        for row in rows
    ]
    grid, channels = rows[0]["grid"], rows[0]["channels"]
    return Table(
        f"Grid reductions from {grid}×{grid}×{channels} to 17×17×{2 * channels}",
        (
            "way",
            "formula",
            ">10⁶ ops",
            ">counted",
            ">10³ numbers in the middle",
            ">10³ weights",
            ">10⁶ MACs",
            ">MB",
            ">MB fused",
        ),
        cells,
        "The formulas leave out the nine positions of the 3×3 filter; counted is MACs / 9. "
        "The middle is the smallest tensor between input and output, or the output.",
    )


def _module_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            row["name"],
            row["what"],
            f"{row['grid']}×{row['grid']}×{row['channels']}",
            f"{row['parameters'] / 1e3:.0f}",
            f"{row['macs'] / 1e6:.0f}",
            *_replaced(row),
            f"{row['unfused_bytes'] / 1e6:.2f}",
            f"{row['fused_bytes'] / 1e6:.2f}",
        ]
        for row in rows
    ]
    return Table(
        "Modules",
        (
            "module",
            "in the paper",
            "input",
            ">10³ param.",
            ">10⁶ MACs",
            ">before",
            ">saved",
            ">MB",
            ">MB fused",
        ),
        cells,
        "Before: with what was factorized whole, figure 5 with the 5×5 of figure 4, figure 6 with "
        "n×n. Figure 7 and the grid reductions replace nothing of their own width.",
    )


def _replaced(row: dict[str, Any]) -> tuple[str, str]:
    before = row["macs_before"]
    return (
        ("-", "-")
        if before is None
        else (f"{before / 1e6:.0f}", f"{_saved(before, row['macs']):.1%}")
    )


def _network_table(rows: list[dict[str, Any]]) -> Table:
    cells = []
    for row in rows:
        paper = row["paper_billion_macs"]
        cells.append(
            [
                row["name"],
                str(row["image_size"]),
                " / ".join(
                    f"{parameters / 1e6:.2f}"
                    for parameters in (row["parameters"], *row["parameters_with_heads"])
                ),
                f"{row['macs'] / 1e9:.3f}",
                "-" if paper is None else f"{paper} ({row['paper_where']})",
                str(row["depth"]),
                f"{row['unfused_bytes'] / 1e6:.0f}",
                f"{row['fused_bytes'] / 1e6:.0f}",
            ]
        )
    return Table(
        "Networks",
        (
            "network",
            ">image",
            ">10⁶ parameters",
            ">10⁹ MACs",
            "paper, one image",
            ">layers",
            ">MB",
            ">MB fused",
        ),
        cells,
        "Parameters: without an auxiliary head, with one, with two; MACs, layers and MB are those "
        "of evaluation, without a head. MB fused: each direct child as one.",
    )


def _grid_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            row["name"],
            *(f"{row['macs'][grid] / 1e9:.3f}" for grid in GRIDS),
            f"{sum(row['macs'].values()) / 1e9:.3f}",
        ]
        for row in rows
    ]
    return Table(
        "10⁹ MACs by grid, images of 299×299",
        ("network", *(f">{grid}" for grid in GRIDS), ">sum"),
        cells,
        "35 → 17 and 17 → 8 are the grid reductions, in front is all that comes before the modules "
        "at 35×35.",
    )


def _difference_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            ("V3 alone: " if row["alone"] else "") + row["what"],
            f"{row['macs'] / 1e9:+.3f}" if row["macs"] else "-",
            f"{row['total'] / 1e9:.3f}",
        ]
        for row in rows
    ]
    return Table(
        "From one network to the other, 10⁹ MACs of one image",
        ("change", ">adds", ">total"),
        cells,
        "Each row starts from the one above it; “V3 alone” starts from inception_v3.",
    )


def _width_table(rows: list[dict[str, Any]]) -> Table:
    def ends(pair: list[int] | None) -> str:
        return "-" if pair is None else " to ".join(map(str, dict.fromkeys(pair)))

    keys = ("after", "before_front", "both_front", "before_all", "both_all")
    return Table(
        f"Widths of the pairs at 17×17 that would give table 3's {BEFORE} and {AFTER} billion",
        (
            "in front",
            "35×35",
            ">modules",
            f">{AFTER}",
            f">{BEFORE}, 7×7 in front",
            ">both",
            f">{BEFORE}, also n = 3",
            ">both",
        ),
        [
            [
                row["front"],
                row["grid_35"],
                str(row["modules_17"]),
                *(ends(row[key]) for key in keys),
            ]
            for row in rows
        ],
        "One width for all modules, from 16 to 256, that of the reduction and all else as in "
        "Inception V3, whose own are 128, 160, 160 and 192. Before the step “factorized 7×7” there "
        "is a 7×7 in front; under “also n = 3” moreover 1×3 and 3×1 in the place of all 1×7 and "
        "7×1. Table 1's last layer in front is the 3×3 of 192 to 288 channels. -: no width.",
    )


def _claim_table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "What the paper says, and what is counted",
        ("section", "the paper", "counted here", "difference"),
        [[row[key] for key in ("section", "claim", "counted", "difference")] for row in rows],
        "",
    )
