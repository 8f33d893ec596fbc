"""The subcommand `bench`: run the benches of a checkout, show, compare and draw their results.

The benches are the folder `bench/` of the repository and no part of the installed package: what is
measured must be the code that stands there. This module finds them, and has no measurement of its
own.
"""

import argparse
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fused_inception.cli.main import CliError, make_console, print_table, write_file

if TYPE_CHECKING:
    from rich.console import Console

_ROOT = Path(__file__).resolve().parents[2]
_FAR = 3  # significant digits of a time


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides on a run; the scripts of the benches have the same options.

    Args:
        parser: of the subcommand, or of a script.
    """
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="a short form, within three minutes")
    parser.add_argument(
        "--only", metavar="REGEX", help="rows whose label op/nBATCH-SHAPE/DTYPE has this in it"
    )
    parser.add_argument("--batch", metavar="N,N", type=_numbers, help="batch sizes")
    parser.add_argument(
        "--dtype", metavar="NAME,NAME", type=_names, help="bfloat16, float16, float32, tf32"
    )
    parser.add_argument(
        "--without", metavar="P3,P0", type=_names, default=[], help="leave these peers out"
    )
    parser.add_argument(
        "--compile-all", action="store_true", help="P3 on every row, not only where a target is set"
    )
    parser.add_argument(
        "--budget", metavar="SECONDS", type=float, help="begin no row that would end after this"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        type=Path,
        help="result file, continued where it exists (default: bench/results/DEVICE/...)",
    )
    parser.add_argument("--fresh", action="store_true", help="write over the result file")
    parser.add_argument("--threads", metavar="N", type=_positive, help="threads of the CPU")
    parser.add_argument("--commit", help="of the code, for a copy without history")


def run(args: argparse.Namespace) -> int:
    """Runs benches, or shows, compares or draws results.

    Args:
        args: the options of the subcommand.

    Returns:
        The exit code: 0; 1 where a row failed, or where `--compare` found something slower; 3 where
        the budget was spent before everything was measured.

    Raises:
        CliError: there are no benches, or an option or a file is at fault.
        ImportError: a package of the extra is missing.
    """
    harness, results = (_import(name) for name in ("harness", "results"))
    console = make_console()
    try:
        if args.compare is not None:
            old, new = map(Path, args.compare)
            return _compare(results, old, new, console)
        if args.plot is not None:
            importlib.import_module("matplotlib")  # found missing now, not after the work
            Path(args.plot).mkdir(parents=True, exist_ok=True)
        if args.show is not None:
            document, code = results.load(Path(args.show)), 0
        else:
            document, code = _measure(harness, args)
        _show(results, document, console)
        if args.plot is not None:
            for name, picture in _import("plots").draw(document).items():
                path = str(Path(args.plot) / f"{name}.png")
                write_file(path, picture, "--plot")
                console.print(path)
    except _import("environment").BenchError as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror}") from error
    return code


def _import(name: str) -> Any:
    """A module of the checkout's `bench`; never of another package of that name."""
    if not (_ROOT / "bench" / "harness.py").is_file():
        raise CliError(
            "the benches are not part of the installed package; run this in a checkout of the "
            f"repository (there is no folder bench beside {_ROOT / 'fused_inception'})"
        )
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    module = importlib.import_module(f"bench.{name}")
    if Path(str(module.__file__)).resolve().parent != _ROOT / "bench":
        raise CliError(f"another package is called bench: {module.__file__}")
    return module


def _measure(harness: Any, args: argparse.Namespace) -> tuple[Any, int]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    run = harness.make_run(
        args, args.suites or harness.SUITES, shlex.join(["python", "-m", "bench", *sys.argv[2:]])
    )
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=make_console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("starting", total=len(run.cases))

        def report(row: Any, done: int, total: int) -> None:
            progress.update(task, completed=done, description=row["label"])

        run.report = report
        document = run(fresh=args.fresh)
    print(run.path)
    return document, harness.exit_code(run, document)


def _show(results: Any, document: Any, console: "Console") -> None:
    device, code = document["device"], document["code"]
    commit = "unknown commit" if code["commit"] is None else f"commit {code['commit'][:12]}"
    dirty = " with changes" if code["dirty"] else ""
    versions = document["versions"]
    console.print(
        f"{device['name']}, torch {versions['torch']}, triton {versions['triton']}, {commit}{dirty}"
    )
    if device["kind"] == "cpu":
        console.print("On a CPU only the ratios are a claim.")
    for session in document["sessions"]:
        ceilings = session["ceilings"]
        if ceilings is not None:
            rates = ", ".join(
                f"{name.removesuffix('_flops')} {rate / 1e12:.0f} TFLOP/s"
                for name, rate in ceilings.items()
                if name.endswith("_flops")
            )
            copy = ceilings["copy_bytes"] / 1e9
            console.print(f"{session['date']}: ceilings {rates}, copy {copy:.0f} GB/s")
    console.print()
    on_gpu = device["kind"] == "cuda"
    columns = ["batch, shape", "dtype", "ours", ">eager", *([">graph"] if on_gpu else [])]
    columns += [f">{peer}" for peer in _timed_peers(results, document)]
    columns += ["best", ">ratio", ">of the rounds"]
    columns += [">TFLOP/s", ">GB/s", ">% roof"] if on_gpu else []
    for op in dict.fromkeys(row["op"] for row in document["rows"]):
        rows = [_cells(results, document, row, on_gpu) for row in results.timed_rows(document, op)]
        if rows:
            print_table(console, f"{op}: microseconds a call", columns, rows)
    for row in document["rows"]:
        if row["status"] != "ok":
            console.print(f"{row['label']}: {row['status']}: {row['error']}")
    for standing in _import("targets").standings(document):
        console.print(str(standing))


def _timed_peers(results: Any, document: Any) -> list[str]:
    return [
        peer
        for peer in document["peers"]
        if any(results.time_of(row, peer) is not None for row in results.timed_rows(document))
    ]


def _cells(results: Any, document: Any, row: Any, on_gpu: bool) -> list[str]:
    derived, ours = row["derived"], row["ours"]

    def time(variant: str, mode: str | None = None) -> str:
        return _short(results.median_us(row, variant, mode=mode))

    cells = [f"{row['batch']}  {row['shape']}", row["dtype"], ours, time(ours, "eager")]
    cells += [time(ours, "graph")] if on_gpu else []
    cells += [time(peer) for peer in _timed_peers(results, document)]
    if derived["ratio"] is None:
        cells += ["-", "-", "-"]
    else:
        rounds = f"{derived['ratio_p20']:.2f} to {derived['ratio_p80']:.2f}"
        cells += [derived["best_peer"], f"{derived['ratio']:.2f}x", rounds]
    if on_gpu:
        cells += [_short(derived.get(key)) for key in ("tflops", "gbs", "roofline_percent")]
    return cells


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.{max(0, _FAR - len(str(int(value))))}f}"


def _compare(results: Any, old: Path, new: Path, console: "Console") -> int:
    found = results.compare(results.load(old), results.load(new))
    rows = [
        [
            line["label"],
            _short(line["old_us"]),
            _short(line["new_us"]),
            f"{line['change'] - 1:+.1%}",
            "-" if line["drift"] is None else f"{line['drift'] - 1:+.1%}",
            line["verdict"],
        ]
        for line in found
    ]
    columns = ("row", ">old us", ">new us", ">ours", ">P1", "verdict")
    print_table(console, f"{old} -> {new}", columns, rows)
    counts = {
        verdict: sum(line["verdict"] == verdict for line in found)
        for verdict in ("faster", "slower", "within the noise")
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["slower"] else 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"takes a number of at least 1, got {text!r}")
    return value


def _numbers(text: str) -> Sequence[int]:
    numbers = [_positive(name) for name in _names(text)]
    if not numbers:
        raise argparse.ArgumentTypeError(f"takes numbers, got {text!r}")
    return numbers
