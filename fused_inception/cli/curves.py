"""Draws what `train` has measured: the loss of every step, and the accuracy of every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fused_inception.cli.plot import MUTED, TEXT, draw_panels, style_axes

__all__ = ["Curve", "CurvePanel", "draw_curves"]

_COLORS = ("#2a6fbb", "#c8553d", "#8a8f98", "#3f8f5b")


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: in the legend; an empty one is left out of it.
        x: positions.
        y: values, as many.
        color: which of the colors it has.
        faint: whether it is drawn thin and pale.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    faint: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """Lines over one axis.

    Attributes:
        title: above the panel.
        x_label: of the horizontal axis.
        curves: from back to front.
        logarithmic: whether the vertical axis is.
        points: whether each value has a mark.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    logarithmic: bool = False
    points: bool = False


def draw_curves(title: str, subtitle: str, panels: Sequence[CurvePanel]) -> bytes:
    """Draws lines.

    Args:
        title: the first line above the panels.
        subtitle: the second line, smaller.
        panels: side by side.

    Returns:
        A PNG of 1200×675 pixels.
    """
    margins = {"left": 0.075, "right": 0.975, "top": 0.76, "bottom": 0.13, "wspace": 0.22}
    return draw_panels(title, subtitle, panels, _draw_panel, margins)


def _draw_panel(axes: Axes, panel: CurvePanel) -> None:
    for curve in panel.curves:
        axes.plot(
            curve.x,
            curve.y,
            label=curve.label or None,
            color=_COLORS[curve.color % len(_COLORS)],
            linewidth=0.7 if curve.faint else 1.3,
            alpha=0.35 if curve.faint else 1.0,
            marker="o" if panel.points else None,
            markersize=3,
        )
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set_title(panel.title, loc="left", fontsize=8.5, color=TEXT, pad=9)
    axes.set_xlabel(panel.x_label, fontsize=8, color=MUTED)
    axes.tick_params(labelsize=7.5, colors=MUTED, length=0)
    if any(curve.label for curve in panel.curves):
        axes.legend(fontsize=7.5, frameon=False, labelcolor=TEXT)
    style_axes(axes)
