"""Pictures of a result: bars against peers, images/s over batch, roofline, error against speed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench import results
from bench.results import Document, Row

_DPI = 150
_TEXT, _MUTED, _GRID = "#22262b", "#5c636d", "#e3e6ea"
_COLORS = {
    "P0": "#d0d3d8",
    "P1": "#9aa1ab",
    "P2": "#6f7782",
    "P3": "#c98a2b",
    "P4": "#4f9d69",
    "ours": "#2a6fbb",
}
_NAMES = {
    "P0": "P0 as published",
    "P1": "P1 eager, folded",
    "P2": "P2 = P1 in a graph",
    "P3": "P3 torch.compile",
    "P4": "P4 cuDNN graph",
    "ours": "ours",
}
# Without P1, which is the line at 1.
_BAR_VARIANTS = ("P2", "P3", "P4", "ours")
# With more shapes than this, only some batches are drawn.
_MANY_SHAPES = 12
_MARKERS = "osD^vPX*"


def draw(document: Document) -> dict[str, bytes]:
    """Every picture that a result has the rows for.

    Returns:
        Name of the picture, without a suffix, -> PNG.
    """
    pictures = {}
    dtype = _main_dtype(document)
    for op in dict.fromkeys(row["op"] for row in results.timed_rows(document)):
        rows = [row for row in results.timed_rows(document, op) if row["dtype"] == dtype]
        if rows and op not in ("overhead", "network"):
            pictures[f"bars-{op}"] = _png(_bars(document, op, rows))
    network = [row for row in results.timed_rows(document, "network") if row["dtype"] == dtype]
    if network:
        pictures["network-over-batch"] = _png(_over_batch(document, network))
    if any("tflops" in row["derived"] for row in results.timed_rows(document)):
        pictures["roofline"] = _png(_roofline(document, dtype))
    if any(row["op"] != "overhead" for row in results.timed_rows(document)):
        pictures["error-against-speed"] = _png(_errors(document))
    return pictures


def _main_dtype(document: Document) -> str:
    """The dtype of most rows."""
    dtypes = [row["dtype"] for row in results.timed_rows(document)]
    return max(dict.fromkeys(dtypes), key=dtypes.count, default="")


def _time(row: Row, variant: str) -> Any:
    return results.median_us(row, row["ours"] if variant == "ours" else variant)


def _speeds(row: Row) -> dict[str, float]:
    """Speed of each variant over P1's, in the order in which they are drawn."""
    times = {variant: _time(row, variant) for variant in _BAR_VARIANTS}
    return {variant: _time(row, "P1") / time for variant, time in times.items() if time is not None}


def _bars(document: Document, op: str, rows: Sequence[Row]) -> Figure:
    batches = sorted({row["batch"] for row in rows})
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    if len(shapes) > _MANY_SHAPES and len(batches) > 3:
        batches = [batches[0], batches[len(batches) // 2 - 1], batches[-1]]
    columns = min(3, len(batches))
    lines = -(-len(batches) // columns)
    present = [v for v in _BAR_VARIANTS if any(v in _speeds(row) for row in rows)]
    height = 1.5 + lines * (0.75 + len(shapes) * (0.15 * len(present) + 0.13))
    figure = _figure(
        document, f"{op}: speed over P1, {rows[0]['dtype']}", 2.6 + 3.1 * columns, height
    )
    top = 1 - 1.05 / height
    grid = figure.add_gridspec(
        lines, columns, left=2.0 / (2.6 + 3.1 * columns), right=0.965, top=top,
        bottom=0.5 / height, wspace=0.1, hspace=0.75 / max(1.0, height / lines),
    )  # fmt: skip
    for index, batch in enumerate(batches):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        by_shape = {row["shape"]: row for row in rows if row["batch"] == batch}
        longest = 1.0
        for place, shape in enumerate(shapes):
            speeds = _speeds(by_shape[shape]) if shape in by_shape else {}
            for offset, variant in enumerate(speeds):
                y = place + (offset - (len(speeds) - 1) / 2) * 0.8 / len(present)
                value = speeds[variant]
                axes.barh(y, value, 0.8 / len(present) * 0.92, color=_COLORS[variant], zorder=2)
                bold = "bold" if variant == "ours" else "normal"
                axes.annotate(
                    f"{value:.2f}", (value, y), xytext=(3, 0), textcoords="offset points",
                    va="center", fontsize=5.5, color=_TEXT, fontweight=bold,
                )  # fmt: skip
                longest = max(longest, value)
        axes.axvline(1, color=_MUTED, linewidth=0.8, linestyle=":", zorder=3)
        axes.set_title(f"batch {batch}", loc="left", fontsize=8, color=_TEXT, pad=4)
        axes.set_yticks(range(len(shapes)), shapes if index % columns == 0 else [], fontsize=6.5)
        axes.set_ylim(len(shapes) - 0.5, -0.5)
        axes.set_xlim(0, longest * 1.16)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _style(axes, "x")
    _legend(figure, present, height, "dotted line: P1 eager, folded")
    return figure


def _over_batch(document: Document, rows: Sequence[Row]) -> Figure:
    on_gpu = document["device"]["kind"] == "cuda"
    what = "images/s" if on_gpu else "speed over P1"
    figure = _figure(
        document, f"Inception V3 {rows[0]['shape']}: {what}, {rows[0]['dtype']}", 8, 4.5
    )
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.62))
    batches = sorted(row["batch"] for row in rows)
    by_batch = {row["batch"]: row for row in rows}
    variants = [v for v in _COLORS if any(_time(row, v) is not None for row in rows)]
    for index, variant in enumerate(variants):
        points = [
            (
                place,
                by_batch[batch]["batch"] / time * 1e6
                if on_gpu
                else _time(by_batch[batch], "P1") / time,
            )
            for place, batch in enumerate(batches)
            if (time := _time(by_batch[batch], variant)) is not None
        ]
        ours = variant == "ours"
        axes.plot(
            *zip(*points, strict=True), color=_COLORS[variant], marker=_MARKERS[index],
            markersize=6 if ours else 4.5, linewidth=2.4 if ours else 1.4, zorder=3 if ours else 2,
        )  # fmt: skip
        if ours:
            for x, y in points:
                axes.annotate(
                    f"{y:,.0f}" if on_gpu else f"{y:.2f}", (x, y), xytext=(0, 8),
                    textcoords="offset points", ha="center", fontsize=7, color=_COLORS["ours"],
                    fontweight="bold",
                )  # fmt: skip
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlabel("batch", fontsize=8, color=_MUTED)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08, y=0.15)
    _style(axes, "y")
    _legend(figure, variants, 4.5)
    return figure


def _roofline(document: Document, dtype: str) -> Figure:
    rows = [
        row
        for row in results.timed_rows(document)
        if row["dtype"] == dtype and "tflops" in row["derived"]
    ]
    ceilings = results.ceilings_of(document, rows[-1]) or {}
    matrix, copy = ceilings[f"{dtype}_flops"], ceilings["copy_bytes"]
    figure = _figure(
        document,
        f"Roofline, {dtype}: measured ceilings {matrix / 1e12:.0f} TFLOP/s and "
        f"{copy / 1e9:.0f} GB/s",
        8,
        5.2,
    )
    axes = figure.add_axes((0.09, 0.11, 0.66, 0.71))
    intensities = [2 * row["work"]["macs"] / row["work"]["fused_bytes"] for row in rows]
    ridge = matrix / copy
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    axes.plot(
        [low, ridge, high], [low * copy / 1e12, matrix / 1e12, matrix / 1e12], color=_TEXT,
        linewidth=1.6, zorder=3,
    )  # fmt: skip
    ops = list(dict.fromkeys(row["op"] for row in rows))
    shades = (
        "#2a6fbb",
        "#c98a2b",
        "#4f9d69",
        "#a0488f",
        "#b5483a",
        "#5b5fc7",
        "#7a6a4f",
        "#333a44",
    )
    for index, op in enumerate(ops):
        points = [
            (intensity, row["derived"]["tflops"], row["batch"])
            for intensity, row in zip(intensities, rows, strict=True)
            if row["op"] == op
        ]
        axes.scatter(
            [x for x, _, _ in points], [y for _, y, _ in points],
            s=[12 + 5 * batch.bit_length() for _, _, batch in points],
            marker=_MARKERS[index % len(_MARKERS)], color=shades[index % len(shades)], alpha=0.75,
            linewidths=0, zorder=4, label=op,
        )  # fmt: skip
    _logarithmic(axes, "x", low, high)
    reached = [row["derived"]["tflops"] for row in rows]
    _logarithmic(axes, "y", min(reached) / 1.5, matrix / 1e12 * 1.5)
    axes.set_xlabel("FLOP per byte that a fused op must move", fontsize=8, color=_MUTED)
    axes.set_ylabel("TFLOP/s reached", fontsize=8, color=_MUTED)
    _style(axes, "both")
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=7, frameon=False,
        title="larger marks: larger batch", title_fontsize=6.5,
    )  # fmt: skip
    return figure


def _errors(document: Document) -> Figure:
    figure = _figure(document, "Error against speed: lower and further right is better", 8, 5.2)
    axes = figure.add_axes((0.1, 0.11, 0.65, 0.71))
    rows = [row for row in results.timed_rows(document) if row["op"] != "overhead"]
    shades = ("#2a6fbb", "#c98a2b", "#4f9d69", "#a0488f")
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lowest = 1.0
    for index, dtype in enumerate(dtypes):
        for variant, marker, name in ((None, "o", "ours"), ("P3", "^", "P3")):
            points = []
            for row in rows:
                gate = row["gates"].get(variant or row["ours"])
                time = _time(row, variant or "ours")
                if row["dtype"] == dtype and gate is not None and time is not None:
                    share = max(gate["error"] / gate["limit"], 1e-3)
                    points.append((_time(row, "P1") / time, share))
                    lowest = min(lowest, share)
            if points:
                axes.scatter(
                    *zip(*points, strict=True), s=26, marker=marker, color=shades[index % 4],
                    alpha=0.75, linewidths=0, zorder=3, label=f"{name}, {dtype}",
                )  # fmt: skip
    axes.axhline(1, color="#b5483a", linewidth=1.2, zorder=2)
    axes.axvline(1, color=_MUTED, linewidth=0.8, linestyle=":", zorder=2)
    axes.annotate(
        "the gate: no time above this", (0.01, 1), xycoords=("axes fraction", "data"),
        xytext=(0, 4), textcoords="offset points", fontsize=6.5, color="#b5483a",
    )  # fmt: skip
    _logarithmic(axes, "y", lowest / 1.5, 1.6)
    axes.set_xlabel("speed over P1", fontsize=8, color=_MUTED)
    axes.set_ylabel("error against float64, over what is allowed", fontsize=8, color=_MUTED)
    _style(axes, "both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=7, frameon=False)
    return figure


def _figure(document: Document, title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    device, code = document["device"], document["code"]
    commit = "" if code["commit"] is None else f", {code['commit'][:10]}"
    figure.text(
        0.02, 1 - 0.22 / height, title, fontsize=11, fontweight="bold", color=_TEXT, va="center"
    )
    figure.text(
        0.02, 1 - 0.45 / height,
        f"{device['name']}, torch {document['versions']['torch']}{commit}; medians, rotated inputs",
        fontsize=7, color=_MUTED, va="center",
    )  # fmt: skip
    return figure


def _legend(figure: Figure, variants: Sequence[str], height: float, note: str = "") -> None:
    x = 0.02
    for variant in variants:
        y = 1 - 0.7 / height
        figure.text(x, y, "■", color=_COLORS[variant], fontsize=9, va="center")
        figure.text(
            x + 0.13 / figure.get_figwidth(),
            y,
            _NAMES[variant],
            color=_TEXT,
            fontsize=7,
            va="center",
        )
        x += (0.35 + 0.062 * len(_NAMES[variant])) / figure.get_figwidth()
    figure.text(x, 1 - 0.7 / height, note, color=_MUTED, fontsize=7, va="center")


def _logarithmic(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis from `low` to `high` with plain numbers at 1, 2 and 5."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _style(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color=_GRID, linewidth=0.7, zorder=0)
    axes.tick_params(labelsize=6.5, colors=_MUTED, length=0)
    for label in axes.get_yticklabels():
        label.set_color(_TEXT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b5bac2")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
