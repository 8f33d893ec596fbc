"""Times the tiles of a Triton kernel on this GPU and proposes a table of configurations.

    python -m bench.tune split_conv2d                      every tile of the default list
    python -m bench.tune split_conv2d --tiles list.json    the tiles of a list, [{"block_p": ...}]

Two files are written. The measurement, with every time, goes to bench/results/<gpu>/. The proposal
has the form of `fused_inception/ops/<op>/configs/<class>.json` and names the measurement; it stands
beside it, to be reviewed and put in place by hand. Nothing is tuned when an op runs.

A tile is chosen by channels and filters, never by the batch. So of each shape the times over all
batches count as one, and what is proposed is the few tiles that together lose the least, with a
`cost` for each that makes `choose_tile` take them where they were the faster ones. Tiles that only
take channels in whole K blocks stay beside one that takes any.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench import environment, harness, results
from bench.environment import RESULTS, ROOT, BenchError, resolve_device, slug
from bench.harness import DTYPES, Case
from bench.results import geometric_mean
from bench.timers import CudaTimer
from fused_inception import testing
from fused_inception.ops.common.configurations import (
    DEVICE_CLASSES,
    Product,
    Tile,
    choose_tile,
    device_class,
    load_table,
    padded,
)
from fused_inception.ops.common.launching import on_device
from fused_inception.ops.common.precision import conv_precision

OPS = ("factorized_conv2d", "split_conv2d", "grid_reduction", "conv2d_act")
BATCHES = (1, 32, 256)
# Tiles in a proposed table, per precision.
LIMIT = 3
_SAMPLES = 7

# (tile, case) -> (microseconds, products), or why there is no time.
TimeTile = Callable[[Tile, Case], "tuple[float, tuple[Product, ...]] | str"]


@dataclass(frozen=True)
class Timing:
    """One tile on one case.

    Attributes:
        precision: as tables name it.
        shape: of the case, without the batch.
        batch: of the case.
        tile: what was timed.
        microseconds: the median, or None.
        refusal: why there is no time, or None.
        products: what the tile multiplies.
    """

    precision: str
    shape: str
    batch: int
    tile: Tile
    microseconds: float | None
    refusal: str | None
    products: tuple[Product, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"products": [list(p) for p in self.products]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Timing:
        return cls(
            **data
            | {
                "tile": Tile(**data["tile"]),
                "products": tuple(Product(*p) for p in data["products"]),
            }
        )


def default_tiles(op: str, precision: str) -> list[Tile]:
    """Every tile that some table has for a precision, and a grid around them for whole channels."""
    known = {
        tile
        for name in dict.fromkeys(DEVICE_CLASSES.values())
        for tile in load_table(op, name).tiles[precision]
    }
    grid = {
        Tile(p, f, k, warps, stages, whole=True)
        for p, f, k, warps, stages in product(
            (64, 128), (32, 64, 128), (16, 32, 64), (4, 8), (2, 3, 4)
        )
    }
    plain = {dataclasses.replace(tile, cost=1.0) for tile in known | grid}
    return sorted(plain, key=dataclasses.astuple)


def read_tiles(path: Path) -> list[Tile]:
    """Tiles of a list in JSON.

    Raises:
        BenchError: the file is no such list.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        # What a tile costs is what is to be found out.
        return [
            Tile(**{key: row[key] for key in row if key not in ("why", "cost")}) for row in rows
        ]
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"{path}: is no list of tiles: {error}") from error


@contextlib.contextmanager
def forced(op: str, tile: Tile) -> Iterator[list[Product]]:
    """Makes the launcher of `op` take `tile`; yields the products that it asked for."""
    launch = importlib.import_module(f"fused_inception.ops.{op}.launch")
    asked: list[Product] = []

    def choose(tiles: Sequence[Tile], *products: Product) -> Tile:
        asked[:] = products
        return choose_tile((tile,), *products)

    before = launch.choose_tile
    launch.choose_tile = choose
    try:
        yield asked
    finally:
        launch.choose_tile = before


class GpuTiming:
    """Times tiles on a GPU, in a CUDA graph with rotated inputs, each after its gate."""

    def __init__(self, op: str, device: torch.device) -> None:
        self.op = op
        self.device = device
        self.timer = CudaTimer(device)
        self.built: tuple[Case, harness.Subject, torch.Tensor] | None = None

    def __call__(self, tile: Tile, case: Case) -> tuple[float, tuple[Product, ...]] | str:
        dtype, precision = DTYPES[case.dtype]
        with torch.no_grad(), testing.fp32_precision(precision), on_device(self.device):
            if self.built is None or self.built[0].label != case.label:
                subject = case.build(dtype, self.device)
                self.built = (case, subject, subject.folded(subject.input))
            _, subject, reference = self.built
            if "triton" not in subject.ours:
                return subject.refused.get("triton", "another backend runs in its place")
            function, input = subject.ours["triton"], subject.input
            with forced(self.op, tile) as products:
                try:
                    gate = harness.check(function, subject, case.dtype, reference)
                except Exception as error:  # too much shared memory, no such instruction, ...
                    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                if not gate["passed"]:
                    return f"wrong: error {gate['error']}, limit {gate['limit']}"
                ring = [input.clone() for _ in range(self.timer.inputs(input.nbytes))]
                sampler = self.timer.sampler(str(tile), function, ring, "graph")
                return statistics.median(sampler() for _ in range(_SAMPLES)), tuple(products)


def measure(
    cases: Sequence[Case],
    tiles: Callable[[str], Sequence[Tile]],
    time_tile: TimeTile,
    known: Sequence[Timing] = (),
    budget: float | None = None,
) -> Iterator[Timing]:
    """Timings of every tile on every case, but for those that are known.

    Args:
        cases: of one op.
        tiles: precision -> what to time.
        time_tile: takes the time.
        known: timings of an earlier run.
        budget: seconds after which to end.
    """
    start = time.monotonic()
    have = {(t.precision, t.shape, t.batch, t.tile) for t in known}
    for case in cases:
        dtype, fp32 = DTYPES[case.dtype]
        with testing.fp32_precision(fp32):
            precision = conv_precision(dtype)
        for tile in tiles(precision):
            if (precision, case.shape, case.batch, tile) in have:
                continue
            if budget is not None and time.monotonic() - start > budget:
                return
            result = time_tile(tile, case)
            refused = isinstance(result, str)
            yield Timing(
                precision,
                case.shape,
                case.batch,
                tile,
                None if refused else result[0],
                result if refused else None,
                () if refused else result[1],
            )


@dataclass(frozen=True)
class Choice:
    """Tiles for one precision.

    Attributes:
        tiles: with their costs, the best first.
        loss: of the tiles that `choose_tile` takes, over the fastest of all for each shape; the
            geometric mean over shapes, 1 for none.
        worst: the shape that loses most, and how much.
    """

    tiles: tuple[Tile, ...]
    loss: float
    worst: tuple[str, float]


def choose(timings: Sequence[Timing], limit: int = LIMIT) -> Choice:
    """The tiles to propose from the timings of one precision.

    Raises:
        BenchError: no tile that takes any number of channels has a time on every shape, so that
            the table would have nothing for others.
    """
    relative = _relative_times(timings)
    shapes = list(relative)
    every = [
        tile
        for tile in dict.fromkeys(t.tile for t in timings)
        if not tile.whole and all(tile in relative[shape] for shape in shapes)
    ]
    if not shapes or not every:
        raise BenchError("no tile that takes any number of channels was timed on every shape")

    def loss(tiles: Sequence[Tile]) -> float:
        return geometric_mean(
            min(relative[shape].get(tile, math.inf) for tile in tiles) for shape in shapes
        )

    chosen = [min(every, key=lambda tile: loss([tile]))]
    others = {tile for times in relative.values() for tile in times} - set(chosen)
    while len(chosen) < limit and others:
        best = min(sorted(others, key=dataclasses.astuple), key=lambda tile: loss([*chosen, tile]))
        # A tile more is a kernel more to compile and to test: it must be worth it.
        if loss([*chosen, best]) > 0.99 * loss(chosen):
            break
        chosen.append(best)
        others.remove(best)

    costs = _costs(timings, chosen)
    ordered = sorted(chosen, key=lambda tile: costs[tile])
    tiles = tuple(
        dataclasses.replace(tile, cost=round(costs[tile] / costs[ordered[0]], 3))
        for tile in ordered
    )
    losses = {}
    for shape in shapes:
        products = next(t.products for t in timings if t.shape == shape and t.products)
        taken = dataclasses.replace(choose_tile(tiles, *products), cost=1.0)
        losses[shape] = relative[shape].get(taken, math.inf)
    worst = max(losses, key=lambda shape: losses[shape])
    return Choice(tiles, geometric_mean(losses.values()), (worst, losses[worst]))


def _relative_times(timings: Sequence[Timing]) -> dict[str, dict[Tile, float]]:
    """Shape -> tile -> its time over the fastest tile's, the geometric mean over the batches.

    Tiles without a time at some batch of a shape are left out of it.
    """
    by_case: dict[tuple[str, int], dict[Tile, float]] = {}
    for timing in timings:
        if timing.microseconds is not None:
            case = by_case.setdefault((timing.shape, timing.batch), {})
            case[timing.tile] = timing.microseconds
    found: dict[str, dict[Tile, float]] = {}
    for shape in dict.fromkeys(shape for shape, _ in by_case):
        cases = [times for (other, _), times in by_case.items() if other == shape]
        common = set.intersection(*(set(times) for times in cases))
        found[shape] = {
            tile: geometric_mean(times[tile] / min(times.values()) for times in cases)
            for tile in common
        }
    return found


def _costs(timings: Sequence[Timing], tiles: Sequence[Tile]) -> dict[Tile, float]:
    """What one multiplication of a tile takes, padding included, beside those of the fastest tile.

    Only cases with a time for every one of `tiles` that takes them are comparable: per case, then
    the geometric mean.
    """
    found: dict[Tile, list[float]] = {tile: [] for tile in tiles}
    for shape, batch in dict.fromkeys((t.shape, t.batch) for t in timings):
        rates = {
            t.tile: t.microseconds
            / sum(
                padded(p.filters, t.tile.block_f) * p.taps * padded(p.channels, t.tile.block_k)
                for p in t.products
            )
            for t in timings
            if (t.shape, t.batch) == (shape, batch) and t.tile in found and t.microseconds
        }
        for tile, rate in rates.items():
            found[tile].append(rate / min(rates.values()))
    return {tile: geometric_mean(ratios) for tile, ratios in found.items()}


def propose(
    base: dict[str, Any], timings: Sequence[Timing], measurement: str, limit: int = LIMIT
) -> tuple[dict[str, Any], dict[str, Choice]]:
    """A table in the form of `configs/<class>.json`.

    Args:
        base: the table that is in use; what was not measured stays as it is there.
        timings: of any precisions.
        measurement: the name of the file that holds the timings.
        limit: tiles per precision.

    Returns:
        The table, and what was chosen by precision.
    """
    choices = {
        precision: choose([t for t in timings if t.precision == precision], limit)
        for precision in dict.fromkeys(t.precision for t in timings)
    }
    tiles = dict(base["tiles"])
    for precision, choice in choices.items():
        tiles[precision] = [
            asdict(tile)
            | {"why": f"measured: one multiplication takes {tile.cost:g} of the best's"}
            for tile in choice.tiles
        ]
    note = f"proposed by bench.tune for {', '.join(choices)}; other precisions as they were"
    return base | {"measured": measurement, "note": note, "tiles": tiles}, choices


def table_path(op: str, name: str) -> Path:
    """Where the table in use is."""
    return ROOT / "fused_inception" / "ops" / op / "configs" / f"{name}.json"


def write(path: Path, data: Any) -> None:
    """Writes JSON as the tables are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 after an error, 3 when the budget was spent."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune")
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N")
    parser.add_argument("--tiles", type=Path, metavar="LIST.json", help="the tiles to time")
    parser.add_argument("--dtype", default="bfloat16", metavar="NAME,NAME", help=", ".join(DTYPES))
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)), metavar="N,N")
    parser.add_argument("--limit", type=int, default=LIMIT, help="tiles per precision")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="the next call goes on")
    args = parser.parse_args(argv)
    try:
        device = resolve_device(args.device)
        if device.type != "cuda":
            raise BenchError("tuning needs a GPU: tiles are timed where they are to be used")
        cases = harness.load_cases(
            [args.op],
            device,
            batches=[int(n) for n in args.batch.split(",")],
            dtypes=args.dtype.split(","),
            only=f"^{args.op}/",
        )
        identity = environment.identity(device)
        folder = RESULTS / slug(identity["device"]["name"])
        path = folder / f"tune-{args.op}.json"
        known = _load(path, identity)
        given = None if args.tiles is None else read_tiles(args.tiles)
        tiles = {
            precision: given or default_tiles(args.op, precision)
            for precision in load_table(args.op, "sm_90").tiles
        }
        for timing in measure(
            cases, tiles.__getitem__, GpuTiming(args.op, device), known, args.budget
        ):
            known.append(timing)
            shown = timing.refusal or f"{timing.microseconds:.1f} us"
            print(f"n{timing.batch}-{timing.shape} {timing.precision} {timing.tile}: {shown}")
            write(path, {**identity, "op": args.op, "timings": [t.as_json() for t in known]})
        if any(True for _ in measure(cases, tiles.__getitem__, _never, known, 0.0)):
            print("the budget is spent: the same command goes on")
            return harness.EXIT_MORE
        name = device_class(torch.cuda.get_device_capability(device))
        base = json.loads(table_path(args.op, name).read_text(encoding="utf-8"))
        measured = path.relative_to(ROOT).as_posix()
        table, choices = propose(base, known, measured, args.limit)
        proposal = folder / f"tune-{args.op}-{name}.json"
        write(proposal, table)
    except (BenchError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return harness.EXIT_ERROR
    for precision, choice in choices.items():
        shape, loss = choice.worst
        print(
            f"{precision}: {len(choice.tiles)} tiles, {choice.loss - 1:.1%} behind the best tile "
            f"of each shape, {loss - 1:.1%} on {shape}"
        )
    print(f"proposed: {proposal}, to be reviewed against {table_path(args.op, name)}")
    return 0


def _never(tile: Tile, case: Case) -> str:
    return "not timed"


def _load(path: Path, identity: dict[str, Any]) -> list[Timing]:
    """The timings of an earlier run on the same device with the same code."""
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    differences = results.differences(data, identity)
    if differences:
        raise BenchError(f"{path} cannot be continued ({'; '.join(differences)}): move it away")
    return [Timing.from_json(timing) for timing in data["timings"]]


if __name__ == "__main__":
    sys.exit(main())
