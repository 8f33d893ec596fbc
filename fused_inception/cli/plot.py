"""Draws what `compare` measured: two bars for time and two for memory."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 1200, 675, 150  # pixels, and their number in an inch

TEXT = "#22262b"
MUTED = "#5c636d"
_COLORS = ("#8a8f98", "#2a6fbb")
PanelT = TypeVar("PanelT")
# Headroom above the higher bar, for its label.
_HEADROOM = 1.28


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: below it.
        value: its height.
        text: above it.
        low: lower end of the whisker; as `value` for none.
        high: upper end.
    """

    label: str
    value: float
    text: str
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One set of bars over one axis.

    Attributes:
        title: above the panel.
        unit: label of the vertical axis.
        bars: from left to right.
    """

    title: str
    unit: str
    bars: Sequence[Bar]


def draw(title: str, subtitle: str, panels: Sequence[Panel]) -> bytes:
    """Draws a bar chart.

    Args:
        title: the first line above the panels.
        subtitle: the second line, smaller.
        panels: side by side.

    Returns:
        A PNG of 1200×675 pixels.
    """
    margins = {"left": 0.085, "right": 0.975, "top": 0.74, "bottom": 0.1, "wspace": 0.28}
    return draw_panels(title, subtitle, panels, _draw_panel, margins)


def draw_panels(
    title: str,
    subtitle: str,
    panels: Sequence[PanelT],
    draw_panel: Callable[[Axes, PanelT], None],
    margins: Mapping[str, Any],
) -> bytes:
    """Draws panels side by side under two lines of text.

    Args:
        title: the first line.
        subtitle: the second line, smaller.
        panels: from left to right.
        draw_panel: draws one of them.
        margins: around and between them, as `Figure.add_gridspec` takes them.

    Returns:
        A PNG of 1200×675 pixels.
    """
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    figure.text(0.03, 0.93, title, fontsize=12, fontweight="bold", color=TEXT)
    figure.text(0.03, 0.875, subtitle, fontsize=7.5, color=MUTED)
    grid = figure.add_gridspec(1, len(panels), **margins)
    for index, panel in enumerate(panels):
        draw_panel(figure.add_subplot(grid[0, index]), panel)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    top = max(max(bar.high, bar.value) for bar in panel.bars)
    for position, bar in enumerate(panel.bars):
        axes.bar(position, bar.value, width=0.55, color=_COLORS[position % len(_COLORS)], zorder=2)
        if bar.high > bar.low:
            whisker = [[bar.value - bar.low], [bar.high - bar.value]]
            axes.errorbar(
                position, bar.value, yerr=whisker, color=TEXT, linewidth=1.1, capsize=5, zorder=3
            )
        axes.annotate(
            bar.text,
            (position, max(bar.high, bar.value)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=TEXT,
            linespacing=1.35,
            # Grid lines would cross the text.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    axes.set_title(panel.title, loc="left", fontsize=8.5, color=TEXT, pad=9)
    axes.set_ylabel(panel.unit, fontsize=8, color=MUTED)
    axes.set_xticks(range(len(panel.bars)), [bar.label for bar in panel.bars], fontsize=9)
    axes.set_xlim(-0.6, len(panel.bars) - 0.4)
    axes.set_ylim(0, top * _HEADROOM or 1)
    axes.tick_params(axis="y", labelsize=7.5, colors=MUTED, length=0)
    axes.tick_params(axis="x", length=0, labelcolor=TEXT)
    style_axes(axes)


def style_axes(axes: Axes) -> None:
    """Draws a light grid of values, and no frame but the line below."""
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b5bac2")
