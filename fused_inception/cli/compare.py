"""The subcommand `compare`: Inception V3 unfused and fused, on photographs.

Both networks have the same weights, dtype, device and memory format, and get the same batches. The
logits of every image are held against each other, and in dtypes other than float32 against those of
the unfused network in float32. Then time and memory of one batch are measured, run by run in turns.
What is measured, and when the two count as agreeing, is in the help of the subcommand.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from fused_inception._errors import first_line
from fused_inception.cli.images import Photograph, builtin_photographs, load_photograph, to_batch
from fused_inception.cli.info import device_name, resolve_device, versions
from fused_inception.cli.main import (
    EXIT_DISAGREE,
    STDOUT,
    CliError,
    check_writable,
    make_console,
    print_table,
    printable,
    write_file,
    write_json,
)
from fused_inception.cli.networks import build as build_network
from fused_inception.fuse import FusionReport, fuse, report
from fused_inception.models import WeightsError, inception_v3, load_into, load_weights
from fused_inception.models.torchvision_import import import_torchvision

# Largest relative error of the fused logits. On a CPU, with random weights and the photographs of
# scikit-image, it comes out at 2e-6 and 3e-15.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}
# In the other dtypes: how much further from the float32 network than the unfused one is.
ERROR_FACTOR = 2

_SEED = 0
_NUM_CLASSES = 1000
_TOP = 5
_VARIANTS = ("unfused", "fused")
# Of random weights. With BatchNorm shifts of 0, every ReLU of a random network amplifies rounding
# errors: float32 is 1.9e-5 away from float64 then, and with shifts of 1 it is 1e-6 (299×299, CPU).
_SHIFT = 1.0
_CALIBRATION_IMAGES = 8
# Smaller images leave too few pixels at the end of the network to estimate a variance from.
_CALIBRATION_SIZE = 299
# A GPU clocks up, and cuDNN tries its algorithms; a CPU has little to warm up.
_WARMUP = {"cpu": 2, "cuda": 10}
# Images listed in the table; those whose top-5 differ are listed always.
_LISTED = 20

_MEMORY_MEASURE = {
    "cpu": "peak of what PyTorch's CPU allocator holds during one forward pass, beyond weights and "
    "input (from the profiler's events; what oneDNN allocates itself is not counted)",
    "cuda": "peak of what PyTorch's CUDA allocator holds during one forward pass, beyond weights "
    "and input (torch.cuda.max_memory_allocated)",
}


@dataclass(frozen=True)
class Errors:
    """The distance of some logits from others.

    Attributes:
        max_relative: largest absolute difference, over the largest absolute value of the others.
        relative_l2: Euclidean norm of the difference, over that of the others.
    """

    max_relative: float
    relative_l2: float

    @classmethod
    def between(cls, logits: Tensor, others: Tensor) -> "Errors":
        """Measures two tensors of one shape, in float64; NaN where either is not finite."""
        logits, others = logits.double(), others.double()
        difference = logits - others
        return cls(
            _ratio(difference.abs().max(), others.abs().max()),
            _ratio(difference.norm(), others.norm()),
        )

    def as_json(self) -> dict[str, float | None]:
        """The two numbers, None for what is not finite."""
        return {
            "max_relative": _finite(self.max_relative),
            "relative_l2": _finite(self.relative_l2),
        }


@dataclass(frozen=True)
class Verdict:
    """Whether the networks agree.

    Attributes:
        passed: whether they do.
        error: the error that was judged.
        limit: the largest that passes.
        rule: what `error` and `limit` are, in words.
    """

    passed: bool
    error: float
    limit: float
    rule: str


@dataclass(frozen=True)
class Measurement:
    """What one batch costs one network.

    Attributes:
        milliseconds: of each timed run.
        activation_bytes: peak of what a forward pass allocates beyond weights and input.
        weight_bytes: parameters and buffers.
    """

    milliseconds: list[float]
    activation_bytes: int
    weight_bytes: int

    def percentile(self, percent: int) -> float:
        """A percentile of the times, interpolated between runs."""
        if len(self.milliseconds) == 1:
            return self.milliseconds[0]
        cuts = statistics.quantiles(self.milliseconds, n=100, method="inclusive")
        return cuts[percent - 1]

    @property
    def median(self) -> float:
        """The median of the times, in milliseconds."""
        return statistics.median(self.milliseconds)


@dataclass(frozen=True)
class Comparison:
    """Everything that one run has found out.

    Attributes:
        settings: what was asked for, with what was chosen for "auto".
        device: its name, as its maker calls it.
        photographs: the images.
        logits: `(N, num_classes)` of each network, in the dtype of the run, on the CPU.
        errors: of the fused logits from the unfused ones.
        against_float32: of each network's logits from the unfused float32 network's; None where
            that is the unfused network itself.
        verdict: whether the networks agree.
        measurements: of each network.
        fusion: what was fused.
    """

    settings: dict[str, Any]
    device: str
    photographs: Sequence[Photograph]
    logits: dict[str, Tensor]
    errors: Errors
    against_float32: dict[str, Errors] | None
    verdict: Verdict
    measurements: dict[str, Measurement]
    fusion: FusionReport


def run(args: argparse.Namespace) -> int:
    """Compares the networks and shows the result.

    Args:
        args: the options of the subcommand.

    Returns:
        The exit code: 0 where the networks agree, 1 where they do not.

    Raises:
        CliError: an option, a file, a device or a package is at fault.
        ImportError: a package of the extra is missing.
    """
    if args.json not in (None, STDOUT):
        check_writable(args.json, "--json")
    if args.plot is not None:
        importlib.import_module("matplotlib")  # found missing now, not after the work
        check_writable(args.plot, "--plot")

    device = resolve_device(args.device)
    with _settings_of_torch(device, args.threads):
        comparison = _compare(args, device)

    if args.json != STDOUT:
        _show(comparison, make_console())
    if args.json is not None:
        write_json(_as_json(comparison), args.json)
    if args.plot is not None:
        write_file(args.plot, _plot(comparison), "--plot")
    return 0 if comparison.verdict.passed else EXIT_DISAGREE


def _compare(args: argparse.Namespace, device: torch.device) -> Comparison:
    dtype: torch.dtype = getattr(torch, args.dtype)
    with _progress() as step:
        step("decoding the images")
        if args.images:
            photographs = [load_photograph(path, args.image_size) for path in args.images]
        else:
            photographs = builtin_photographs(args.image_size)

        step("building the network")
        model = _build(args.model, args.weights, features=args.features)
        # Cast: the annotations of `to` do not know memory formats.
        cast("Any", model).to(device=device, memory_format=torch.channels_last)
        if args.weights is None:
            _calibrate(model, photographs, device)

        float32_logits = None
        if dtype != torch.float32:
            step("running the unfused network in float32")
            float32_logits = _logits(model, photographs, args.batch_size, torch.float32, device)
            model = model.to(dtype)

        variants = dict(zip(_VARIANTS, (model, fuse(model)), strict=True))
        logits = {}
        for name, network in variants.items():
            step(f"running the {name} network")
            logits[name] = _logits(network, photographs, args.batch_size, dtype, device)

        step("measuring time and memory")
        repeated = list(islice(cycle(photographs), args.batch_size))
        batch = to_batch(repeated).to(device, dtype)
        times = _times(variants, batch, args.repeats)
        measurements = {
            name: Measurement(
                times[name], _activation_bytes(network, batch), _weight_bytes(network)
            )
            for name, network in variants.items()
        }

    errors = Errors.between(logits["fused"], logits["unfused"])
    against_float32 = None
    if float32_logits is not None:
        against_float32 = {
            name: Errors.between(values, float32_logits) for name, values in logits.items()
        }
    return Comparison(
        settings={
            "model": args.model,
            "output": "features" if args.features else "logits",
            "weights": args.weights,
            "seed": None if args.weights is not None else _SEED,
            "dtype": args.dtype,
            "device": str(device),
            "batch_size": args.batch_size,
            "image_size": args.image_size,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
            "memory_format": "channels_last",
            "float32_precision": "ieee",
        },
        device=device_name(device),
        photographs=photographs,
        logits=logits,
        errors=errors,
        against_float32=against_float32,
        verdict=_judge(dtype, errors, against_float32, "features" if args.features else "logits"),
        measurements=measurements,
        fusion=report(variants["fused"]),
    )


@contextlib.contextmanager
def _settings_of_torch(device: torch.device, threads: int | None) -> Iterator[None]:
    """Sets the number of threads, IEEE float32 and cuDNN's trials; puts all of them back."""
    old_threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if threads is not None:
            stack.callback(torch.set_num_threads, old_threads)
            torch.set_num_threads(threads)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            # Cast: the module's switches are not annotated.
            cudnn = cast("Any", torch.backends.cudnn)
            for owner, name, value in (
                (cudnn.conv, "fp32_precision", "ieee"),
                (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
                (cudnn, "benchmark", True),
            ):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says on a terminal's standard error what is being done."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield status.update


def _build(name: str, weights: str | None, *, features: bool = False) -> nn.Module:
    if name not in ("reference", "torchvision"):
        if weights is not None:
            raise CliError(f"--weights is for reference and torchvision, got --model {name}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return build_network(name, features)
    model = _build_inception_v3(name, weights)
    if features:
        model.fc = nn.Identity()
    return model


def _build_inception_v3(name: str, weights: str | None) -> nn.Module:
    num_classes = _NUM_CLASSES if weights is None else _read_num_classes(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model: nn.Module = inception_v3(
            num_classes=num_classes, aux_logits=False, init_weights=weights is None
        )
    if name == "torchvision":
        torchvision = import_torchvision()
        # The same random weights as the reference network's.
        state = model.state_dict()
        with torch.random.fork_rng(devices=[]):
            model = torchvision.models.inception.Inception3(
                num_classes=num_classes, aux_logits=False, transform_input=False, init_weights=False
            )
        model.load_state_dict(state)
    if weights is not None:
        try:
            load_into(model, weights, ignore=("AuxLogits.",))
        except WeightsError as error:
            raise CliError(first_line(error)) from error
    return model.eval()


def _read_num_classes(weights: str) -> int:
    try:
        last = load_weights(weights).get("fc.weight")
    except (FileNotFoundError, WeightsError) as error:
        raise CliError(first_line(error)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CliError(f"weights file {weights!r} cannot be read: {reason}") from error
    # Where the file is another network's, loading says so.
    return _NUM_CLASSES if last is None or last.dim() == 0 else max(1, last.shape[0])


def _calibrate(model: nn.Module, photographs: Sequence[Photograph], device: torch.device) -> None:
    """Sets the shifts of every BatchNorm, and its running statistics to those of the images."""
    batch = to_batch(photographs[:_CALIBRATION_IMAGES])
    if batch.shape[-1] < _CALIBRATION_SIZE:
        batch = F.interpolate(batch, (_CALIBRATION_SIZE, _CALIBRATION_SIZE), mode="bilinear")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.constant_(norm.bias, _SHIFT)
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches, here over one
        norm.train()
    with torch.no_grad():
        model(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _logits(
    model: nn.Module,
    photographs: Sequence[Photograph],
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Runs all images through a network; returns (N, num_classes) on the CPU."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(photographs), batch_size):
            batch = to_batch(photographs[start : start + batch_size]).to(device, dtype)
            try:
                parts.append(model(batch).cpu())
            except RuntimeError as error:
                if "not implemented for" not in str(error):
                    raise
                raise CliError(f"{dtype} cannot run on {device}: {first_line(error)}") from error
    return torch.cat(parts)


def _times(networks: dict[str, nn.Module], batch: Tensor, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, the networks taking turns at going first."""
    run = _time_cuda if batch.is_cuda else _time_cpu
    times: dict[str, list[float]] = {name: [] for name in networks}
    order = list(networks)
    with torch.inference_mode():
        for _ in range(_WARMUP[batch.device.type]):
            for network in networks.values():
                run(network, batch)
        for _ in range(repeats):
            for name in order:
                times[name].append(run(networks[name], batch))
            order.reverse()
    return times


def _time_cpu(network: nn.Module, batch: Tensor) -> float:
    start = time.perf_counter()
    network(batch)
    return (time.perf_counter() - start) * 1e3


def _time_cuda(network: nn.Module, batch: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    network(batch)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _activation_bytes(network: nn.Module, batch: Tensor) -> int:
    with torch.inference_mode():
        if batch.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            network(batch)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        return _cpu_peak(lambda: network(batch))


def _cpu_peak(call: Callable[[], Any]) -> int:
    """Replays the allocations of a call; returns the most bytes that were in use at a time."""
    with (
        _quiet_profiler(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiler,
    ):
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as trace:
            events = json.load(trace)["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: float(event["ts"]))
    live = peak = 0
    for change in changes:
        if change["args"]["Device Type"] == 0:
            live += change["args"]["Bytes"]
            peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    # The profiler's library logs to standard error, among others that it finds no GPU; it reads
    # this variable when it starts.
    name = "KINETO_LOG_LEVEL"
    old = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if old is None:
            del os.environ[name]


def _weight_bytes(network: nn.Module) -> int:
    tensors = {
        tensor.data_ptr(): tensor for tensor in chain(network.parameters(), network.buffers())
    }
    return sum(tensor.nbytes for tensor in tensors.values())


def _judge(
    dtype: torch.dtype,
    errors: Errors,
    against_float32: dict[str, Errors] | None,
    output: str,
) -> Verdict:
    if dtype in TOLERANCES:
        error, limit = errors.max_relative, TOLERANCES[dtype]
        rule = f"largest relative error of the fused {output} from the unfused ones"
    else:
        assert against_float32 is not None
        error = against_float32["fused"].max_relative
        limit = ERROR_FACTOR * (against_float32["unfused"].max_relative + torch.finfo(dtype).eps)
        rule = (
            f"largest relative error of the fused {output} from the unfused float32 network; the "
            f"limit is {ERROR_FACTOR} * (the unfused one's + the epsilon of the dtype)"
        )
    # A comparison with NaN fails, as it must.
    return Verdict(error <= limit, error, limit, rule)


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    top, bottom = float(numerator), float(denominator)
    if math.isfinite(top) and math.isfinite(bottom):
        return 0.0 if top == 0 else math.inf if bottom == 0 else top / bottom
    return math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _top_classes(logits: Tensor) -> list[list[int]]:
    count = min(_TOP, logits.shape[1])
    return [[int(index) for index in row] for row in logits.double().topk(count).indices]


def _per_image(comparison: Comparison) -> list[dict[str, Any]]:
    tops = {name: _top_classes(logits) for name, logits in comparison.logits.items()}
    rows = []
    for index, photograph in enumerate(comparison.photographs):
        unfused, fused = (tops[name][index] for name in _VARIANTS)
        logits = [comparison.logits[name][index] for name in _VARIANTS]
        rows.append(
            {
                "name": photograph.name,
                "path": photograph.path,
                "width": photograph.width,
                "height": photograph.height,
                "top5": {"unfused": unfused, "fused": fused},
                "same_order": unfused == fused,
                "same_set": set(unfused) == set(fused),
                "errors": Errors.between(logits[1], logits[0]).as_json(),
            }
        )
    return rows


def _as_json(comparison: Comparison) -> dict[str, Any]:
    images = _per_image(comparison)
    settings, verdict = comparison.settings, comparison.verdict
    against_float32 = comparison.against_float32
    medians = [comparison.measurements[name].median for name in _VARIANTS]
    return {
        "versions": versions(),
        "device": {"name": comparison.device, "device": settings["device"]},
        "settings": settings,
        "random_weights": settings["weights"] is None,
        "agreement": {
            "passed": verdict.passed,
            "error": _finite(verdict.error),
            "limit": _finite(verdict.limit),
            "rule": verdict.rule,
            "top5_same_order": sum(image["same_order"] for image in images),
            "top5_same_set": sum(image["same_set"] for image in images),
            "images": len(images),
        },
        "errors": {
            "fused_from_unfused": comparison.errors.as_json(),
            "from_float32": None
            if against_float32 is None
            else {name: errors.as_json() for name, errors in against_float32.items()},
        },
        "images": images,
        "timing": {
            **{
                name: {
                    "ms_median": measurement.median,
                    "ms_p20": measurement.percentile(20),
                    "ms_p80": measurement.percentile(80),
                    "images_per_second": _images_per_second(settings, measurement),
                    "ms": measurement.milliseconds,
                }
                for name, measurement in comparison.measurements.items()
            },
            "speedup": medians[0] / medians[1],
        },
        "memory": {
            "measure": _MEMORY_MEASURE[torch.device(settings["device"]).type],
            "activation_ratio": comparison.measurements["fused"].activation_bytes
            / comparison.measurements["unfused"].activation_bytes,
            **{
                name: {
                    "activation_bytes": measurement.activation_bytes,
                    "weight_bytes": measurement.weight_bytes,
                }
                for name, measurement in comparison.measurements.items()
            },
        },
        "fusion": {
            "replaced": [{"name": name, "kind": kind} for name, kind in comparison.fusion.replaced],
            "skipped": [
                {"name": name, "reason": reason} for name, reason in comparison.fusion.skipped
            ],
            "launches_per_forward": comparison.fusion.launches_per_forward,
            "batch_invariant": comparison.fusion.batch_invariant,
            "batch_dependent": [
                {"name": name, "reason": reason}
                for name, reason in comparison.fusion.batch_dependent
            ],
        },
    }


def _images_per_second(settings: dict[str, Any], measurement: Measurement) -> float:
    return float(settings["batch_size"]) * 1e3 / measurement.median


def _show(comparison: Comparison, console: Console) -> None:
    settings = comparison.settings
    console.print("Inception, unfused and fused", style="bold")
    console.print(_describe_run(comparison))
    if settings["weights"] is None:
        console.print(
            f"random weights (seed {settings['seed']}), BatchNorm statistics measured on the "
            "images: the classes mean nothing"
        )
    else:
        console.print(f"weights: {printable(settings['weights'])}")
    console.print()
    _show_fusion(comparison, console)
    _show_errors(comparison, console)
    if settings["output"] == "logits":
        _show_top5(comparison, console)
    _show_cost(comparison, console)
    _show_verdict(comparison, console)


def _describe_run(comparison: Comparison) -> str:
    settings = comparison.settings
    threads = f", {settings['threads']} threads" if settings["device"] == "cpu" else ""
    return (
        f"{settings['model']} network, {settings['dtype']}, batches of {settings['batch_size']}, "
        f"{settings['image_size']}x{settings['image_size']} pixels\n"
        f"{settings['device']}: {comparison.device}{threads}, torch {torch.__version__}"
    )


def _show_fusion(comparison: Comparison, console: Console) -> None:
    replaced, skipped = comparison.fusion.replaced, comparison.fusion.skipped
    print_table(
        console,
        f"Blocks and single convolutions: {len(replaced)} fused, {len(skipped)} left alone",
        ("name", "fused as, or why not"),
        [*replaced, *((name, f"not fused: {reason}") for name, reason in skipped)],
    )
    for line in comparison.fusion.summary():
        console.print(line)
    console.print()


def _show_errors(comparison: Comparison, console: Console) -> None:
    named = [("fused from unfused", comparison.errors)]
    for name, errors in (comparison.against_float32 or {}).items():
        named.append((f"{name} from unfused float32", errors))
    print_table(
        console,
        f"Error of the {comparison.settings['output']}",
        ("of", ">max relative", ">relative L2"),
        [(name, f"{e.max_relative:.2e}", f"{e.relative_l2:.2e}") for name, e in named],
    )


def _show_top5(comparison: Comparison, console: Console) -> None:
    images = _per_image(comparison)
    order = sum(image["same_order"] for image in images)
    members = sum(image["same_set"] for image in images)
    listed = [image for i, image in enumerate(images) if i < _LISTED or not image["same_order"]]
    rows = []
    for image in listed:
        unfused, fused = (" ".join(map(str, image["top5"][name])) for name in _VARIANTS)
        rows.append((printable(image["name"]), unfused, "same" if image["same_order"] else fused))
    if len(listed) < len(images):
        rows.append((f"and {len(images) - len(listed)} more", "", "same"))
    print_table(
        console,
        f"Top-5 classes: same order for {order} of {len(images)} images, same set for {members}",
        ("image", "unfused", "fused"),
        rows,
    )


def _show_cost(comparison: Comparison, console: Console) -> None:
    settings = comparison.settings
    print_table(
        console,
        f"One batch of {settings['batch_size']}, timed runs of each: {settings['repeats']}",
        ("network", ">ms", ">p20 - p80", ">images/s", ">activations MiB", ">weights MiB"),
        [
            (
                name,
                f"{measurement.median:.2f}",
                f"{measurement.percentile(20):.2f} - {measurement.percentile(80):.2f}",
                f"{_images_per_second(settings, measurement):.1f}",
                f"{measurement.activation_bytes / 2**20:.1f}",
                f"{measurement.weight_bytes / 2**20:.1f}",
            )
            for name, measurement in comparison.measurements.items()
        ],
    )
    unfused, fused = (comparison.measurements[name] for name in _VARIANTS)
    overlap = unfused.percentile(20) <= fused.percentile(80) and (
        fused.percentile(20) <= unfused.percentile(80)
    )
    measure = _MEMORY_MEASURE[torch.device(settings["device"]).type]
    console.print(
        f"The fused network has {unfused.median / fused.median:.2f} times the speed"
        + (", which is within the spread of the runs." if overlap else ".")
    )
    ratio = fused.activation_bytes / unfused.activation_bytes
    console.print(f"Its activations take {ratio:.2f} times the memory: {measure}.\n")


def _show_verdict(comparison: Comparison, console: Console) -> None:
    verdict = comparison.verdict
    if verdict.passed:
        text, style = "The networks agree", "bold green"
        sign = "<="
    else:
        text, style = "THE NETWORKS DO NOT AGREE", "bold red"
        sign = ">" if math.isfinite(verdict.error) else "is not finite, limit"
    console.print(f"{text}: {verdict.error:.2e} {sign} {verdict.limit:.2e}", style=style)
    console.print(f"({verdict.rule})")
    if not all(bool(logits.isfinite().all()) for logits in comparison.logits.values()):
        names = [name for name in _VARIANTS if not comparison.logits[name].isfinite().all()]
        output = comparison.settings["output"].capitalize()
        console.print(f"{output} that are not finite: {' and '.join(names)}.", style="bold red")


def _plot(comparison: Comparison) -> bytes:
    from fused_inception.cli.plot import Bar, Panel, draw

    settings = comparison.settings
    times, memory = [], []
    for name, measurement in comparison.measurements.items():
        speed = _images_per_second(settings, measurement)
        times.append(
            Bar(
                name,
                measurement.median,
                f"{measurement.median:.2f} ms\n{speed:.1f} images/s",
                low=measurement.percentile(20),
                high=measurement.percentile(80),
            )
        )
        mebibytes = measurement.activation_bytes / 2**20
        memory.append(Bar(name, mebibytes, f"{mebibytes:.1f} MiB", low=mebibytes, high=mebibytes))
    size = settings["image_size"]
    return draw(
        f"Inception V3 on {settings['device']}, {settings['dtype']}",
        f"{comparison.device}; batch {settings['batch_size']} of {size}×{size} pixels; "
        f"timed runs of each: {settings['repeats']}; torch {torch.__version__}",
        [
            Panel("Time of one batch, median and p20 to p80", "milliseconds", times),
            Panel("Peak memory of one forward pass, without weights", "MiB", memory),
        ],
    )
