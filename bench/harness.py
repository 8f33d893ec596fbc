"""One row after another: build, check, time in turns, write down.

A case names what is measured; its `build` makes a `Subject`: ours, the peers and the float64
oracle, on inputs of one shape. `measure` turns a case into a row. A `Run` does that for a list of
cases and writes the result file after every row, so that it can be stopped and go on at any time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime as dt
import importlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import peers, results, targets
from bench.environment import (
    RESULTS,
    BenchError,
    gpu_state,
    identity,
    resolve_device,
    slug,
)
from bench.results import Document, Row
from bench.timers import CudaTimer, HostTimer, Timer, measure_ceilings
from fused_inception import available_backends, testing
from fused_inception.analysis import analyze
from fused_inception.cli.bench import add_options
from fused_inception.ops.common.launching import on_device

BATCHES = (1, 8, 32, 64, 128, 256)
CPU_BATCHES = (1, 8)
QUICK_BATCHES = (1, 32)
# Name of a precision -> (dtype, float32 precision).
DTYPES = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
}
# The batch at which the dtypes other than the first are measured as well.
OTHER_DTYPES_BATCH = 32
# Backends in the order in which "auto" prefers them.
BACKENDS = ("cuda", "triton", "aten")
_TF32_EPSILON = 2.0**-10
# A peer must compute the same thing; that it rounds more often than we may is no reason to lose it.
_PEER_FACTOR = 20.0
# A row that was begun so often without an end is measured without P3, whose compilation is the one
# part without a bound.
_ATTEMPTS_WITH_COMPILER = 2


@dataclass
class Subject:
    """What a row compares.

    Attributes:
        input: one input, on the device.
        ours: backend, or another name -> the function under test; the first is the headline.
        refused: variant -> why it is not measured.
        folded: P1, and by it P2 and P3.
        original: P0, called with float32 in NCHW; None for none.
        oracle: images -> the float64 result, on the CPU.
        conv: the single convolution that P4 takes, or None.
    """

    input: Tensor
    ours: dict[str, Callable[[Tensor], Tensor]]
    refused: dict[str, str]
    folded: nn.Module
    original: nn.Module | None
    oracle: Callable[[Tensor], Tensor]
    conv: peers.ConvRelu | None = None


@dataclass(frozen=True)
class Case:
    """One row to be.

    Attributes:
        suite: the script that the case comes from.
        op: the op, the kind of block, or "network".
        shape: of one image and its filters.
        batch: images.
        dtype: a key of `DTYPES`.
        build: makes the subject in a dtype on a device.
    """

    suite: str
    op: str
    shape: str
    batch: int
    dtype: str
    build: Callable[[torch.dtype, torch.device], Subject] = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        return f"{self.op}/n{self.batch}-{self.shape}/{self.dtype}"

    def command(self, device: torch.device) -> str:
        """What measures this row alone."""
        only = re.escape(self.label).replace(r"\-", "-")
        return (
            f"python -m bench {self.suite} --device {device.type} --batch {self.batch} "
            f"--dtype {self.dtype} --only {shlex.quote(f'^{only}$')}"
        )


@dataclass(frozen=True)
class Policy:
    """How much is measured.

    Attributes:
        rounds: samples of every variant, mode and kind of input, taken in turns.
        row_seconds: after which no further round is begun, once there are `least_rounds`.
        least_rounds: of a row that takes long.
        without: peers that are left out.
        compile_all: P3 on every row, and not only where a target asks for it.
    """

    rounds: int = 30
    row_seconds: float = 10.0
    least_rounds: int = 7
    without: frozenset[str] = frozenset()
    compile_all: bool = False


QUICK = Policy(rounds=9, row_seconds=2.0, least_rounds=5, without=frozenset({"P0", "P3"}))


def ours_by_backend(
    op: Callable[..., Tensor], operands: Sequence[Any], options: dict[str, Any] | None = None
) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, str]]:
    """Each backend that runs a call, in the order of preference, and why the others do not.

    Args:
        op: a public op.
        operands: its operands; the first is the input.
        options: its keywords.

    Returns:
        Backend -> function of an input; backend -> refusal. PyTorch's own convolutions are P1, so
        "aten" is ours only where no kernel is.
    """
    input, *rest = operands
    available = available_backends()
    ours: dict[str, Callable[[Tensor], Tensor]] = {}
    refused = {}

    def bind(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: op(x, *rest, backend=backend, **(options or {}))

    for backend in BACKENDS:
        if backend == "aten" and ours:
            continue
        if available[backend] != "available":
            refused[backend] = available[backend]
            continue
        function = bind(backend)
        try:
            function(input[:1])
        except RuntimeError as error:
            if f"backend {backend!r} cannot run here" not in str(error):
                raise
            refused[backend] = str(error).partition("cannot run here: ")[2]
        else:
            ours[backend] = function
    return ours, refused


def check(
    function: Callable[[Tensor], Tensor],
    subject: Subject,
    dtype: str,
    reference: Tensor,
    factor: float = 2.0,
) -> dict[str, Any]:
    """The gate: the first and the last image against float64, all of them against P1.

    The budget is the tests' own: `factor` times (P1's error + eps · max|oracle|); the whole batch
    may be twice that away from P1, whose own error is in it.

    Returns:
        passed, error, limit, and the images that were compared with float64.
    """
    torch_dtype, precision = DTYPES[dtype]
    images = sorted({0, subject.input.shape[0] - 1})
    oracle = subject.oracle(subject.input[images])
    limit = testing.error_budget(reference[images], oracle, torch_dtype, factor)
    if precision == "tf32":
        limit += factor * _TF32_EPSILON * oracle.abs().max().item()
    result = function(subject.input)
    error = spread = float("inf")
    if result.shape == reference.shape and bool(torch.isfinite(result).all()):
        error = (result[images].double().cpu() - oracle).abs().max().item()
        spread = (result.float() - reference.float()).abs().max().item()
    passed = error <= limit and spread <= 2 * limit
    return {
        "passed": passed,
        "error": error if error < float("inf") else None,
        "limit": limit,
        "p1_error": (reference[images].double().cpu() - oracle).abs().max().item(),
        "from_p1": spread if spread < float("inf") else None,
        "images": images,
    }


def measure(case: Case, device: torch.device, timer: Timer, policy: Policy, session: int) -> Row:
    """The row of a case. One that fails its gate has no times.

    Args:
        case: what to measure.
        device: where.
        timer: takes the samples.
        policy: how many.
        session: the number of the session, for the row.
    """
    dtype, precision = DTYPES[case.dtype]
    row: Row = {
        "label": case.label,
        "op": case.op,
        "shape": case.shape,
        "batch": case.batch,
        "dtype": case.dtype,
        "session": session,
        "command": case.command(device),
    }
    with torch.no_grad(), testing.fp32_precision(precision):
        subject = case.build(dtype, device)
        row["ours"] = next(iter(subject.ours))
        row["refused"] = dict(subject.refused)
        reference = subject.folded(subject.input)
        variants = _variants(case, subject, timer, policy, row)

        row["gates"] = {}
        for name in list(variants):
            if name in ("P0", "P1", "P2"):  # another precision; the reference; the same code
                continue
            factor = 2.0 if name in subject.ours else _PEER_FACTOR
            gate = check(variants[name][0], subject, case.dtype, reference, factor)
            row["gates"][name] = gate
            if gate["passed"]:
                continue
            del variants[name]
            row["refused"][name] = f"failed its gate: error {gate['error']}, limit {gate['limit']}"
        if row["ours"] not in variants:
            return {**row, "status": "failed", "error": row["refused"][row["ours"]], "times": {}}

        row["work"] = None if case.op == "overhead" else _work(subject, case)
        samples = _samples(variants, subject.input, timer, policy)
        row["times"] = _summarized(samples)
        row["ratios"] = _ratios(samples, row)
        if device.type == "cuda" and case.op == "network":
            row["memory"] = {
                name: _peak_bytes(variants[name][0], subject.input, device)
                for name in (row["ours"], "P1")
            }
    return {**row, "status": "ok"}


def _variants(
    case: Case, subject: Subject, timer: Timer, policy: Policy, row: Row
) -> dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]]:
    """Variant -> its function and the modes it is timed in; what is left out goes to "refused"."""
    has_graphs = "graph" in timer.modes
    last = timer.modes[-1:]
    variants = {name: (function, timer.modes) for name, function in subject.ours.items()}
    variants["P1"] = (subject.folded, ("eager",))
    if has_graphs:
        variants["P2"] = (subject.folded, ("graph",))

    def add(name: str, refusal: str | None, make: Callable[[], Any], modes: Any) -> None:
        if name in policy.without:
            refusal = "left out of this run"
        if refusal is None:
            try:
                variants[name] = (make(), modes)
                return
            except Exception as error:  # a peer that cannot run is no reason to lose the row
                refusal = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        row["refused"][name] = refusal

    wanted = policy.compile_all or targets.asks_for(case.op, case.shape, case.batch, case.dtype)
    add(
        "P3",
        None if wanted else "compiled only where a target is set",
        lambda: peers.compile_frozen(subject.folded, subject.input),
        last,
    )
    if subject.conv is not None:
        conv = subject.conv
        add(
            "P4",
            peers.cudnn_graph_refusal(subject.input.device),
            lambda: peers.cudnn_graph(conv, subject.input),
            last,
        )
    if subject.original is not None:
        original = subject.original
        add("P0", None, lambda: original, ("eager",))
    return variants


_Samples = dict[tuple[str, str, str], list[float]]


def _samples(
    variants: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]],
    input: Tensor,
    timer: Timer,
    policy: Policy,
) -> _Samples:
    """Microseconds of every (variant, mode, inputs), one sample a round, in turns."""
    ring = [input] + [input.clone() for _ in range(timer.inputs(input.nbytes) - 1)]
    plain = [x.float().contiguous() for x in ring[:2]]
    samplers = {}
    for name, (function, modes) in variants.items():
        for mode in modes:
            rotated = plain if name == "P0" else ring
            samplers[name, mode, "rotated"] = timer.sampler(name, function, rotated, mode)
            if name != "P0":
                samplers[name, mode, "same"] = timer.sampler(name, function, ring[:1], mode)
    samples: _Samples = {key: [] for key in samplers}
    order = list(samplers)
    start = time.perf_counter()
    for done in range(policy.rounds):
        if done >= policy.least_rounds and time.perf_counter() - start > policy.row_seconds:
            break
        for key in order:
            samples[key].append(samplers[key]())
        order.reverse()
    return samples


def _summarized(samples: _Samples) -> dict[str, Any]:
    times: dict[str, Any] = {}
    for (name, mode, inputs), values in samples.items():
        times.setdefault(name, {}).setdefault(mode, {})[inputs] = results.summarize(values)
    return times


def _ratios(samples: _Samples, row: Row) -> dict[str, Any]:
    """Peer over ours, round by round: peer -> inputs -> summary, each in its fastest mode.

    What slows the machine down for a while slows both, so this scatters less than the times do.
    """
    ratios: dict[str, Any] = {}
    for peer in peers.RANKED:
        for inputs in ("rotated", "same"):
            modes = [results.fastest_mode(row, name, inputs) for name in (row["ours"], peer)]
            if None not in modes:
                ours, theirs = (
                    samples[name, mode, inputs]
                    for name, mode in zip((row["ours"], peer), modes, strict=True)
                )
                values = [b / a for a, b in zip(ours, theirs, strict=True)]
                ratios.setdefault(peer, {})[inputs] = results.summarize(values, "")
    return ratios


def _work(subject: Subject, case: Case) -> dict[str, Any]:
    """Arithmetic and traffic of P1's modules: block by block for a network, else as one piece."""
    module = copy.deepcopy(subject.folded).to("meta")
    whole = module if case.op == "network" else nn.Sequential(module)
    analysis = analyze(whole, torch.empty_like(subject.input, device="meta"))
    total = analysis.total
    return {
        "macs": total.macs,
        "parameters": total.parameters,
        "fused_bytes": total.fused_bytes,
        "unfused_bytes": total.unfused_bytes,
        "blocks": [[cost.macs, cost.fused_bytes] for cost in analysis.blocks.values()],
    }


def _peak_bytes(function: Callable[[Tensor], Tensor], input: Tensor, device: torch.device) -> int:
    """The most that one call allocates beyond what is held when it begins."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function(input)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")


@dataclass
class Run:
    """One session: what it measures, on what, into which file.

    Attributes:
        cases: in the order in which they are measured.
        device: where.
        path: the result file, continued where it exists.
        timer: takes the samples.
        policy: how many.
        budget: seconds after which no row is begun; None for no end.
        command: what was called, for the record.
        commit: of the code, where the checkout has no history.
        measure_ceilings: measures the device's rates.
        report: called with a row, the number of rows done and of all.
    """

    cases: Sequence[Case]
    device: torch.device
    path: Path
    timer: Timer
    policy: Policy = field(default_factory=Policy)
    budget: float | None = None
    command: str = ""
    commit: str | None = None
    measure_ceilings: Callable[[torch.device], dict[str, float] | None] = measure_ceilings
    report: Callable[[Row, int, int], None] = lambda row, done, total: None

    def open(self, *, fresh: bool = False) -> Document:
        """The document to continue, or a new one.

        Raises:
            BenchError: the file holds results of another device, code or versions.
        """
        document = results.new_document(identity(self.device))
        if document["code"]["commit"] is None:
            document["code"] = {**document["code"], "commit": self.commit}
        if self.path.exists() and not fresh:
            found = results.load(self.path)
            differences = results.differences(found, document)
            if differences:
                raise BenchError(
                    f"{self.path} cannot be continued ({'; '.join(differences)}): take another "
                    "--output, or --fresh to write over it"
                )
            return found
        return document

    def left(self, document: Document) -> list[Case]:
        """The cases that have no row yet."""
        have = {row["label"] for row in document["rows"]}
        return [case for case in self.cases if case.label not in have]

    def __call__(self, *, fresh: bool = False) -> Document:
        """Measure until everything is done, or the budget is spent."""
        start = time.monotonic()
        document = self.open(fresh=fresh)
        todo = self.left(document)
        if not todo:
            return document
        session = len(document["sessions"])
        with on_device(self.device):
            ceilings = self.measure_ceilings(self.device)
        document["sessions"].append(
            {
                "date": _now(),
                "command": self.command,
                "policy": dataclasses.asdict(self.policy)
                | {"without": sorted(self.policy.without)},
                "modes": list(self.timer.modes),
                "gpu_before": gpu_state(self.device),
                "ceilings": ceilings,
            }
        )
        total = len(self.cases)
        longest = max((row["seconds"] for row in document["rows"]), default=0.0)
        for case in todo:
            begun = time.monotonic()
            if self.budget is not None and begun - start + longest > self.budget:
                break
            policy = self.policy
            attempts = document["attempts"].get(case.label, 0)
            if attempts >= _ATTEMPTS_WITH_COMPILER:
                policy = dataclasses.replace(policy, without=policy.without | {"P3"})
            document["attempts"][case.label] = attempts + 1
            results.save(document, self.path)
            try:
                with _cudnn_benchmark(), on_device(self.device):
                    row = measure(case, self.device, self.timer, policy, session)
            except Exception as error:  # the other rows are worth having
                row = {
                    "label": case.label, "op": case.op, "shape": case.shape, "batch": case.batch,
                    "dtype": case.dtype, "session": session, "status": "error", "times": {},
                    "error": f"{type(error).__name__}: {error}",
                }  # fmt: skip
            row["seconds"] = time.monotonic() - begun
            if row["status"] == "ok":
                row["derived"] = results.derive(row, document["sessions"][session]["ceilings"])
            document["rows"].append(row)
            document["sessions"][session]["gpu_after"] = gpu_state(self.device)
            results.save(document, self.path)
            self.report(row, total - len(self.left(document)), total)
            longest = max(longest, row["seconds"])
        return document


# Names of the scripts, in the order in which they run.
SUITES = ("factorized_conv2d", "split_conv2d", "grid_reduction", "conv2d_act", "network")
# These run only where they are named: they need packages that the others do not, or no target is
# set for what they measure.
NAMED_SUITES = ("adapters", "halving_branches", "pool2d")


def load_cases(
    suites: Sequence[str],
    device: torch.device,
    *,
    quick: bool = False,
    batches: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    only: str | None = None,
) -> list[Case]:
    """The cases of some suites; those that a target is set for come first.

    Args:
        suites: names out of `SUITES` and `NAMED_SUITES`.
        device: a CPU has fewer batches, and float32 only, by default.
        quick: the first shape of each suite at two batches.
        batches: other batches than the default ones.
        dtypes: other keys of `DTYPES` than the default ones.
        only: a pattern that the labels must contain.

    Raises:
        BenchError: a name or a pattern that is none, or nothing is left.
    """
    known = SUITES + NAMED_SUITES
    unknown = [name for name in suites if name not in known]
    if unknown:
        raise BenchError(f"there is no bench {unknown[0]!r}, there are {', '.join(known)}")
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise BenchError(f"--dtype takes {', '.join(DTYPES)}, got {dtype!r}")
    try:
        pattern = re.compile(only or "")
    except re.error as error:
        raise BenchError(f"--only takes a regular expression: {error}") from error
    on_cpu = device.type == "cpu"
    default_batches = QUICK_BATCHES if quick else CPU_BATCHES if on_cpu else BATCHES
    default_dtypes = ["float32"] if on_cpu else ["bfloat16"] if quick else list(DTYPES)
    cases: dict[str, Case] = {}
    for suite in suites:
        module = importlib.import_module(f"bench.{suite}")
        for dtype in dtypes or default_dtypes:
            chosen: Sequence[int] = batches or default_batches
            if batches is None and dtype != default_dtypes[0]:
                chosen = getattr(module, "OTHER_DTYPES_BATCHES", (OTHER_DTYPES_BATCH,))
            if batches is None and quick and on_cpu:
                chosen = (1,)
            for batch in chosen:
                for case in module.cases(batch, dtype, quick):
                    if pattern.search(case.label):
                        cases[case.label] = case
    if not cases:
        raise BenchError("no case is left to measure: --only, --batch and --dtype exclude them all")

    def rank(case: Case) -> bool:
        return not targets.asks_for(case.op, case.shape, case.batch, case.dtype)

    return sorted(cases.values(), key=rank)


def make_timer(device: torch.device, clock: str = "wall") -> Timer:
    """The timer of a device.

    Raises:
        BenchError: the clock of a process says nothing about a GPU.
    """
    if device.type == "cuda":
        if clock != "wall":
            raise BenchError("--clock cpu is for --device cpu")
        return CudaTimer(device)
    return HostTimer(clock=clock)


def default_path(device: torch.device, suites: Sequence[str], quick: bool) -> Path:
    """Where results go when nobody says."""
    name = suites[0] if len(suites) == 1 else "all"
    folder = RESULTS / slug(identity(device)["device"]["name"])
    return folder / f"{name}{'-quick' if quick else ''}.json"


def format_row(row: Row) -> str:
    """A row in one line, as it is printed while benches run."""
    if row["status"] != "ok":
        return f"{row['label']}: {row['status'].upper()}: {row['error'].splitlines()[0]}"
    derived, ours = row["derived"], row["ours"]
    parts = [
        f"{name} {results.median_us(row, name):.1f}"
        for name in (ours, "P1", "P2", "P3", "P4", "P0")
        if results.median_us(row, name) is not None
    ]
    line = f"{row['label']}: {' | '.join(parts)} us"
    if derived["ratio"] is not None:
        low, high = derived["ratio_p20"], derived["ratio_p80"]
        line += f" | {derived['ratio']:.2f}x of {derived['best_peer']} ({low:.2f} to {high:.2f})"
    if "overhead_us" in derived:
        line += f" | {derived['overhead_us']:.1f} us of overhead"
    if derived.get("tflops") is not None:
        line += (
            f" | {derived['tflops']:.0f} TFLOP/s | {derived['gbs']:.0f} GB/s"
            f" | {derived['roofline_percent']:.0f} % of the roofline"
        )
    return line


def make_run(args: argparse.Namespace, suites: Sequence[str], command: str) -> Run:
    """A run from parsed options.

    Raises:
        BenchError: an option that cannot be.
    """
    device = resolve_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    wrong = [name for name in args.without if name not in peers.DESCRIPTIONS]
    if wrong:
        raise BenchError(f"--without takes {', '.join(peers.DESCRIPTIONS)}, got {wrong[0]!r}")
    if args.output is not None and args.output.suffix != ".json":
        raise BenchError(f"--output takes a path that ends in .json, got {str(args.output)!r}")
    policy = QUICK if args.quick else Policy()
    without = policy.without - ({"P3"} if args.compile_all else set()) | {*args.without}
    return Run(
        load_cases(
            suites,
            device,
            quick=args.quick,
            batches=args.batch,
            dtypes=args.dtype,
            only=args.only,
        ),
        device,
        args.output or default_path(device, suites, args.quick),
        make_timer(device, args.clock),
        dataclasses.replace(policy, without=without, compile_all=args.compile_all),
        args.budget,
        command,
        args.commit,
    )


EXIT_FAILED = 1
EXIT_ERROR = 2
EXIT_MORE = 3


def exit_code(run: Run, document: Document) -> int:
    """0 when everything is measured and right, 1 when a row failed, 3 when rows are left."""
    labels = {case.label for case in run.cases}
    rows = [row for row in document["rows"] if row["label"] in labels]
    if any(row["status"] != "ok" for row in rows):
        return EXIT_FAILED
    return EXIT_MORE if run.left(document) else 0


def main(suites: Sequence[str] = SUITES, argv: Sequence[str] | None = None) -> int:
    """Run suites from a script: one line for each row.

    Returns:
        The exit code: 0, 1 when a row failed, 2 after an error in one line, 3 when the budget was
        spent before everything was measured.
    """
    name = suites[0] if len(suites) == 1 else ""
    parser = argparse.ArgumentParser(prog=f"python -m bench{'.' + name if name else ''}")
    if not name:
        parser.add_argument("suites", nargs="*", help=", ".join(SUITES + NAMED_SUITES))
    add_options(parser)
    args = parser.parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    try:
        chosen = getattr(args, "suites", None) or suites
        run = make_run(
            args, chosen, shlex.join(["python", "-m", *parser.prog.split()[2:], *arguments])
        )
        run.report = lambda row, done, total: print(
            f"[{done}/{total}] {format_row(row)}", flush=True
        )
        document = run(fresh=args.fresh)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    left = len(run.left(document))
    print(f"{run.path}: {len(run.cases) - left} of {len(run.cases)} rows")
    if left:
        print("the budget is spent: the same command goes on")
    return exit_code(run, document)
