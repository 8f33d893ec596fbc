"""A step of training Inception V3: fused against eager in channels_last and compiled.

    python -m bench.training_step
    python -m bench.training_step --device cpu --width 0.0625 --image-size 79 --batch 2   a dry run

A step is the forward, the loss, the backward, clipping and RMSProp, in mixed precision, on images
that are on the device. The learning rate is 0, so that every step does the same work on the same
weights. Rows with frozen statistics are those where the blocks run fused; with live ones the
convolutions of all variants are PyTorch's, and the row says what is left. Gate: the loss of the
first step is no further from eager's than twice eager's own distance from float32. Without a GPU
nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.environment import BenchError, gpu_state, identity, resolve_device
from bench.timers import CudaTimer, HostTimer, Timer
from fused_inception.fuse import fuse
from fused_inception.training.batch_norm import freeze, measure_statistics
from fused_inception.training.recipe import AMP_DTYPES, BATCH_NORMS, Recipe

VARIANTS = ("fused", "eager", "compiled")
DESCRIPTIONS = {
    "fused": "fuse(model, differentiable=True), channels_last",
    "eager": "PyTorch eager, channels_last, cudnn.benchmark",
    "compiled": "torch.compile, channels_last",
}
NUM_CLASSES = 1000


class Step:
    """A step of training; calling it with images returns the loss.

    Args:
        recipe: of the network and the step.
        variant: one of `VARIANTS`.
        images: to take frozen statistics from, on the device.
        labels: of the images.
    """

    def __init__(self, recipe: Recipe, variant: str, images: Tensor, labels: Tensor) -> None:
        device = images.device
        model: Any = recipe.build(NUM_CLASSES).to(device)
        model.to(memory_format=torch.channels_last)
        if recipe.batch_norm == "frozen":
            freeze(model)
            measure_statistics(model, images)
        if variant == "fused":
            fuse(model, inplace=True, differentiable=True)
        self.model = model
        self.network = torch.compile(model) if variant == "compiled" else model
        self.recipe = recipe
        self.device = device
        self.labels = labels
        self.criterion = recipe.loss()
        self.optimizer = recipe.optimizer(model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")

    def __call__(self, images: Tensor) -> Tensor:
        dtype = AMP_DTYPES[self.recipe.amp]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            loss = self.criterion(self.network(images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def first_loss(recipe: Recipe, variant: str, images: Tensor, labels: Tensor) -> float:
    torch.manual_seed(0)
    return Step(recipe, variant, images, labels)(images).item()


def measure(
    recipe: Recipe, device: torch.device, timer: Timer, rounds: int, without: set[str]
) -> dict[str, Any]:
    """A row: for each variant its gate, milliseconds and peak memory, or why there are none."""
    generator = torch.Generator().manual_seed(0)
    size = (recipe.batch_size, 3, recipe.pixels, recipe.pixels)
    images: Any = torch.randn(size, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(NUM_CLASSES, (recipe.batch_size,), generator=generator).to(device)
    exact = first_loss(Recipe(**{**vars(recipe), "amp": "none"}), "eager", images, labels)
    eager = first_loss(recipe, "eager", images, labels)
    epsilon = torch.finfo(AMP_DTYPES[recipe.amp] or torch.float32).eps
    limit = 2 * (abs(eager - exact) + epsilon * abs(exact))

    row: dict[str, Any] = {"batch_norm": recipe.batch_norm, "amp": recipe.amp, "limit": limit}
    samplers: dict[str, Callable[[], float]] = {}
    for variant in VARIANTS:
        cell: dict[str, Any] = {}
        row[variant] = cell
        if variant in without:
            cell["refused"] = "left out of this run"
            continue
        try:
            cell["from_eager"] = abs(first_loss(recipe, variant, images, labels) - eager)
        except Exception as error:  # a peer that cannot run is no reason to lose the row
            cell["refused"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        if not (math.isfinite(cell["from_eager"]) and cell["from_eager"] <= limit):
            cell["refused"] = f"failed its gate: {cell['from_eager']} from eager, limit {limit}"
            continue
        step = Step(recipe, variant, images, labels)
        if device.type == "cuda":
            step(images)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step(images)
            cell["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
        samplers[variant] = timer.sampler(variant, step, [images], "eager")
    samples: dict[str, list[float]] = {variant: [] for variant in samplers}
    for _ in range(rounds):
        for variant, sampler in samplers.items():
            samples[variant].append(sampler() / 1e3)
    for variant, values in samples.items():
        ordered = sorted(values)
        row[variant]["milliseconds"] = {
            "median": statistics.median(ordered),
            "p20": ordered[len(ordered) // 5],
            "p80": ordered[-1 - len(ordered) // 5],
        }
    return row


def show(row: dict[str, Any], recipe: Recipe) -> str:
    parts = []
    for variant in VARIANTS:
        cell = row[variant]
        if "refused" in cell:
            parts.append(f"{variant}: {cell['refused']}")
            continue
        median = cell["milliseconds"]["median"]
        text = f"{variant} {median:.1f} ms, {recipe.batch_size / median * 1e3:.0f} images/s"
        if "peak_bytes" in cell:
            text += f", {cell['peak_bytes'] / 1e9:.2f} GB"
        parts.append(text)
    return f"{row['batch_norm']} statistics, {row['amp']}: {' | '.join(parts)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N; cpu is a dry run")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=299, choices=(299, 151, 79))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--amp", nargs="+", choices=tuple(AMP_DTYPES), default=["bf16", "fp16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--without", nargs="+", choices=VARIANTS, default=[])
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args(arguments)
    if args.device == "auto" and not torch.cuda.is_available():
        print("no GPU: nothing is measured; --device cpu is a dry run")
        return 0
    try:
        device = resolve_device(args.device)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    on_gpu = device.type == "cuda"
    timer: Timer = CudaTimer(device) if on_gpu else HostTimer()
    document: dict[str, Any] = {
        "identity": identity(device), "gpu_before": gpu_state(device), "rows": [],
        "network": f"inception_v3, width {args.width:g}, {args.image_size}x{args.image_size}",
        "batch": args.batch, "variants": DESCRIPTIONS,
    }  # fmt: skip
    torch.backends.cudnn.benchmark = True
    if not on_gpu:
        print("a dry run on a CPU: nothing is shown about a GPU")
    for batch_norm in reversed(BATCH_NORMS):
        for amp in args.amp:
            recipe = Recipe(
                width=args.width, image_size=args.image_size, pixels=args.image_size,
                batch_norm=batch_norm, batch_size=args.batch, learning_rate=0.0, amp=amp,
            )  # fmt: skip
            row = measure(recipe, device, timer, args.rounds, set(args.without))
            document["rows"].append(row)
            print(show(row, recipe), flush=True)
            if args.output is not None:
                args.output.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if all("milliseconds" in row["fused"] for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
