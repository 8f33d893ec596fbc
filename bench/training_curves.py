"""Training curves of fused and unfused ops, and of unfused ones summed in another order.

    python -m bench.training_curves --output docs/training_curves

Digits: two epochs with live BatchNorm, then from these weights fine-tuning with frozen statistics,
where every convolution runs fused: unfused, fused, and unfused with each step in two and
in four micro-batches, which without live BatchNorm and dropout is the same arithmetic in another
order. All see the same images in the same order. Rounding grows from step to step: the question is
whether the fused run leaves the unfused one faster than the unfused one leaves itself.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from pathlib import Path

from fused_inception.cli import main as command_line
from fused_inception.cli.curves import Curve, CurvePanel, draw_curves
from fused_inception.training.files import read_metrics

NETWORK = ["--data", "digits", "--width", "0.125", "--image-size", "79", "--pixels", "33"]
NETWORK += ["--aux-heads", "0", "--rms-eps", "1e-8"]
LIVE = ["--learning-rate", "0.003", "--epochs", "2"]
FROZEN = ["--rms-eps", "1", "--learning-rate", "0.003", "--batch-norm", "frozen", "--dropout", "0"]
RUNS = {
    "unfused": [],
    "unfused, two micro-batches": ["--micro-batches", "2"],
    "unfused, four micro-batches": ["--micro-batches", "4"],
    "fused": ["--ops", "fused"],
}
REFERENCE, *OTHERS = RUNS
# Where rounding is compared, in steps.
MARKS = (1, 2, 5, 10, 20, 50, 100, 200)


def train(folder: Path, options: list[str]) -> tuple[list[float], list[dict[str, str]]]:
    """The loss of every step and the metrics of every epoch."""
    code = command_line(["train", *NETWORK, *options, "--output", str(folder)])
    if code:
        sys.exit(code)
    losses = [float(row["loss"]) for row in read_metrics(str(folder / "steps.csv"))]
    return losses, read_metrics(str(folder / "epochs.csv"))


def read_curves(path: Path) -> dict[str, list[float]]:
    """The losses of each run, from the CSV that `main` writes."""
    rows = read_metrics(str(path))
    return {name: [float(row[name]) for row in rows] for name in RUNS}


def distances(curves: dict[str, list[float]]) -> dict[str, list[float]]:
    """How far each other run is from the reference, relative to its loss, step by step."""
    return {
        name: [abs(a - b) / b for a, b in zip(curves[name], curves[REFERENCE], strict=True)]
        for name in OTHERS
    }


def table(away: dict[str, list[float]]) -> str:
    """The distances at `MARKS`, in Markdown."""
    steps = len(away[OTHERS[0]])
    lines = [f"| relative distance from the unfused run | {' | '.join(OTHERS)} |"]
    lines.append(f"|---|{'---:|' * len(OTHERS)}")
    for mark in MARKS:
        if mark <= steps:
            row = " | ".join(f"{away[name][mark - 1]:.1e}" for name in OTHERS)
            lines.append(f"| step {mark} | {row} |")
    medians = " | ".join(f"{statistics.median(away[name]):.1e}" for name in OTHERS)
    lines.append(f"| median of {steps} steps | {medians} |")
    lines.append(f"| largest | {' | '.join(f'{max(away[name]):.1e}' for name in OTHERS)} |")
    return "\n".join(lines)


def draw(curves: dict[str, list[float]], away: dict[str, list[float]]) -> bytes:
    steps = list(range(1, len(curves[REFERENCE]) + 1))
    colors = {name: color for color, name in enumerate(RUNS)}
    losses = [Curve(name, steps, values, colors[name]) for name, values in curves.items()]
    # 0 has no place on a logarithmic axis.
    lines = [
        Curve(name, steps, [max(value, 1e-9) for value in values], colors[name])
        for name, values in away.items()
    ]
    panels = (
        CurvePanel("training loss", "step", losses),
        CurvePanel("relative distance from the unfused run", "step", lines, logarithmic=True),
    )
    return draw_curves(
        "Frozen statistics: fused and unfused ops",
        "Inception V3, width 0.125, digits at 33×33 pixels, batch 32, float32, on a CPU; "
        f"{len(steps)} steps",
        panels,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=4, help="with frozen statistics")
    parser.add_argument("--threads", default="1")
    args = parser.parse_args(arguments)
    threads = ["--threads", args.threads]
    curves, epochs = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        begin = Path(scratch, "live")
        train(begin, [*LIVE, *threads])
        weights = ["--weights", str(begin / "average.pth"), "--epochs", str(args.epochs)]
        for name, options in RUNS.items():
            curves[name], epochs[name] = train(
                Path(scratch, name), [*FROZEN, *weights, *options, *threads]
            )
    away = distances(curves)

    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "fused_unfused.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *RUNS])
        writer.writerows(
            [step, *losses] for step, losses in enumerate(zip(*curves.values(), strict=True), 1)
        )
    (args.output / "fused_unfused.png").write_bytes(draw(curves, away))

    print(table(away))
    for name, rows in epochs.items():
        print(f"{name}: top-1 {float(rows[-1]['test_top1']):.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
