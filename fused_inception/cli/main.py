"""The argument parser, the dispatch to the subcommands, and what these share.

Nothing here needs the extra packages of `fused_inception[cli]`: `--help` and `--version` work
without them. What goes wrong for a reason outside the program (a file, an option, a device, a
missing package) ends as one line on standard error and exit code 2; only a defect of the program
shows a traceback.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch

from fused_inception._errors import first_line
from fused_inception._version import __version__
from fused_inception.models.inception_v3 import MIN_IMAGE_SIZE

if TYPE_CHECKING:
    from rich.console import Console

EXIT_DISAGREE = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT ...
EXIT_BROKEN_PIPE = 141  # ... SIGPIPE ...
EXIT_TERMINATED = 143  # ... and SIGTERM

DTYPES = ("float32", "float16", "bfloat16", "float64")
MODELS = ("reference", "torchvision", "timm:<name>", "pytorch-fid", "torch-fidelity")
COST_PARTS = (
    "factorizations",
    "reductions",
    "modules",
    "networks",
    "grids",
    "differences",
    "widths",
    "claims",
)
STDOUT = "-"

_WIDTH = 100

# What `fused_inception[cli]` installs, by the name that is imported.
_EXTRA_PACKAGES = {
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "safetensors": "safetensors",
    "skimage": "scikit-image",
}
# `fused_inception[train]`.
_TRAIN_PACKAGES = {"sklearn": "scikit-learn"}
# And `fused_inception[adapters]`.
_ADAPTER_PACKAGES = {
    "pytorch_fid": "pytorch-fid",
    "timm": "timm",
    "torch_fidelity": "torch-fidelity",
}

_COMPARE_EPILOG = """\
images:
  The first frame is decoded with Pillow, turned as its EXIF orientation says and converted to RGB
  (an alpha channel is dropped, 16-bit values are scaled to 8 bits). Then comes the usual
  preprocessing of Inception V3: the shorter side is resized to 342/299 of --image-size (bilinear,
  with antialiasing), the centre square is cut out, and the values are normalized to [-1, 1] (mean
  0.5, deviation 0.5). Without IMAGES, four photographs that are installed with scikit-image.

network:
  Inception V3 in evaluation mode, channels_last, without its auxiliary head and transform_input.
  --weights: every name and shape must agree; the number of classes is that of fc.weight. Without
  --weights the weights are drawn from a fixed seed, and the BatchNorm statistics are measured on
  the images (at most eight): activations have a realistic scale, but the classes mean nothing.

measurements:
  Every image is run through both networks, --batch-size at a time. The errors are
  max|a-b| / max|b| and |a-b| / |b| (Euclidean norms) over the logits of all images.
  Time is that of one batch of exactly --batch-size images, the given ones repeated as often as it
  takes: after a warm-up, --repeats runs of each network in turns; median, and 20th and 80th
  percentile. On a GPU it is taken with CUDA events, and cuDNN may choose its algorithms by trial.
  float32 means IEEE float32 on every device, never TF32.
  Memory is the peak of what one forward pass allocates beyond weights and input, as PyTorch's
  allocator counts it (on the CPU replayed from the profiler's events; what oneDNN takes on its own
  is not in it). The fused network keeps its folded weights beside the original ones.

exit code:
  0  the networks agree (two logits may still be so close that their order in the top-5 differs)
  1  they do not: the largest relative error of the fused logits is above 2e-5 (float32) or 1e-12
     (float64), or, in float16 and bfloat16, its distance from the unfused float32 network is above
     2 * (the unfused network's + the epsilon of the dtype); or logits are not finite.
  2  an option, a file, a device or a package is at fault: one line on standard error
"""

_BENCH_EPILOG = """\
exit code:
  0  everything is measured
  1  a row failed, or --compare found a row that is slower beyond the noise
  2  an option, a file, a device or a package is at fault: one line on standard error
  3  the budget was spent before everything was measured; the same command goes on
"""


class CliError(Exception):
    """What the user is told in one line, with exit code 2."""


class _Parser(argparse.ArgumentParser):
    # argparse would print the usage in front of the line and leave the process.
    def error(self, message: str) -> NoReturn:
        raise CliError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments, without the name of the program. Default: those of the process.

    Returns:
        The exit code: 0; 1 where `compare` found that the networks disagree, or `bench` a failure
        or something slower; 2 after an error, which stands in one line on standard error; 3 where
        `bench` has rows left; 130 after an interrupt from the keyboard; 141 where whoever read
        standard output is gone; 143 where `train` was told to end.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except CliError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    try:
        args, others = parser.parse_known_args(argv)
    except SystemExit as leave:  # after --help and --version
        return int(leave.code or 0)
    # argparse takes a list of positional arguments in one piece only; images may stand anywhere.
    if hasattr(args, "images"):
        args.images += [other for other in others if not other.startswith("-")]
        others = [other for other in others if other.startswith("-")]
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except ImportError as error:
        line = first_line(error) if error.name == "torchvision" else _missing_extra(error)
        if line is None:
            raise
        raise CliError(line) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CliError(_out_of_memory(error)) from error
    except RuntimeError as error:
        # What PyTorch's CPU allocator says.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise CliError(_out_of_memory(error)) from error
        raise


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fused_inception",
        description="Fused factorized convolutions and Inception networks for PyTorch.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fused_inception {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _fill_compare(
        commands.add_parser(
            "compare",
            help="run Inception V3 unfused and fused on photographs, and compare the two",
            description="Runs Inception V3 unfused and fused on photographs and compares the two: "
            "agreement of the\nlogits and of the top-5, time, memory, and what was fused. Networks "
            "of other packages\nhave random weights.",
            epilog=_COMPARE_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _fill_bench(
        commands.add_parser(
            "bench",
            help="measure the ops and the network against PyTorch, a compiler and cuDNN",
            description="Runs the benches of a checkout and shows a table; or shows, compares or "
            "draws results that are\nthere. docs/benchmarks.md says how things are measured.",
            epilog=_BENCH_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _fill_cost(
        commands.add_parser(
            "cost",
            help="count the paper's factorizations, modules and networks beside its own figures",
            description="Counts parameters, multiply-accumulates (MACs) and bytes of the paper's "
            "factorizations, grid\nreductions, modules and networks, from the modules themselves, "
            "beside the paper's figures,\nand names every difference. Nothing is computed.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _fill_train(
        commands.add_parser(
            "train",
            help="train a network by the paper's recipe",
            description="Trains Inception V3 or V2 on images in folders, or on the digits inside "
            "scikit-learn, by the\npaper's recipe; every part of it is an option.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _fill_info(
        commands.add_parser(
            "info",
            help="show versions, devices and backends",
            description="Shows versions, devices, each backend (available, or why not) and how "
            "the CUDA extension was built.",
            allow_abbrev=False,
        )
    )
    return parser


def _fill_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files")
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="state dict of the network, .pth or .safetensors (default: random)",
    )
    parser.add_argument(
        "--model",
        type=_model,
        default=MODELS[0],
        metavar="MODEL",
        help=f"{', '.join(MODELS)}: the network of this package or of another one, there with "
        "random weights (default: %(default)s)",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="compare the pooled features that the last layer reads instead of the logits; "
        "pytorch-fid has only these",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N; auto is the first GPU where there is one (default: auto)",
    )
    parser.add_argument(
        "--batch-size",
        type=integer(1, 65536),
        default=4,
        metavar="N",
        help="images in a batch, for the comparison and for the timing (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=integer(MIN_IMAGE_SIZE, 4096),
        default=299,
        metavar="N",
        help=f"rows and columns of pixels, {MIN_IMAGE_SIZE} or more (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=integer(1, 1_000_000),
        default=20,
        metavar="N",
        help="timed runs of each network (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        help="threads of the CPU (default: as PyTorch chooses)",
    )
    _add_json(parser)
    parser.add_argument(
        "--plot",
        type=_path_with_suffix(".png"),
        metavar="PATH.png",
        help="write a bar chart of time and memory",
    )
    parser.set_defaults(command=_compare)


def _fill_bench(parser: argparse.ArgumentParser) -> None:
    from fused_inception.cli.bench import add_options

    parser.add_argument("suites", nargs="*", metavar="BENCH", help="an op, or network (all)")
    add_options(parser)
    parser.add_argument("--show", metavar="FILE.json", help="show a result, measure nothing")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("OLD.json", "NEW.json"),
        help="say what has become faster or slower beyond the noise, measure nothing",
    )
    parser.add_argument("--plot", metavar="FOLDER", help="draw the result into this folder")
    parser.set_defaults(command=_bench)


def _fill_cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        choices=COST_PARTS,
        metavar="PART",
        help=f"only these parts: {', '.join(COST_PARTS)}",
    )
    parser.add_argument(
        "--batch-size",
        dest="batch",
        type=integer(1, 65536),
        default=1,
        metavar="N",
        help="images (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float16",
        help="of activations and weights, for the bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--alpha",
        nargs="+",
        type=_growth,
        metavar="A",
        help="what the 64 channels of a 5×5 grow by, above 0 up to 64 (default: 1 1.5 2)",
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    _add_json(parser)
    parser.set_defaults(command=_cost)


def _fill_train(parser: argparse.ArgumentParser) -> None:
    from fused_inception.cli.train_options import EPILOG, add_options

    parser.epilog = EPILOG
    add_options(parser)
    parser.set_defaults(command=_train)


def _model(text: str) -> str:
    if text in MODELS[:2] + MODELS[3:] or text.removeprefix("timm:") not in (text, "", "<name>"):
        return text
    raise argparse.ArgumentTypeError(f"takes {', '.join(MODELS)}, got {text!r}")


def _fill_info(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.set_defaults(command=_info)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=_path_with_suffix(".json", STDOUT),
        metavar="PATH.json",
        help="JSON on standard output, and nothing else there (without a path, or -); "
        "or JSON into a file, beside the tables",
    )


def _compare(args: argparse.Namespace) -> int:
    from fused_inception.cli.compare import run

    return run(args)


def _bench(args: argparse.Namespace) -> int:
    from fused_inception.cli.bench import run

    return run(args)


def _cost(args: argparse.Namespace) -> int:
    from fused_inception.cli.cost import run

    return run(args)


def _train(args: argparse.Namespace) -> int:
    from fused_inception.cli.train import run

    return run(args)


def _info(args: argparse.Namespace) -> int:
    from fused_inception.cli.info import run

    return run(args)


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """Makes what argparse converts an option with.

    Args:
        minimum: the smallest value that the option takes.
        maximum: the largest one.

    Returns:
        A function from the text to the value.
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"takes an integer from {minimum} to {maximum}, got {text!r}"
            )
        return value

    return convert


def _growth(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 64:
        raise argparse.ArgumentTypeError(f"takes numbers above 0 up to 64, got {text!r}")
    return value


def _path_with_suffix(suffix: str, *others: str) -> Callable[[str], str]:
    # Also a guard: `--json photo.jpg` must not write over a photograph.
    def convert(text: str) -> str:
        if text not in others and not text.lower().endswith(suffix):
            takes = " or ".join((f"a path that ends in {suffix}", *others))
            raise argparse.ArgumentTypeError(f"takes {takes}, got {text!r}")
        return text

    return convert


def check_writable(path: str, what: str) -> None:
    """Refuses a path that cannot be written, before the work whose result it is to hold.

    Args:
        path: of a file, which may exist.
        what: the name of the option, for the message.

    Raises:
        CliError: the path is a directory, its folder does not exist, or either is write-protected.
    """
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise CliError(f"{what} {path!r} is a directory")
    if not os.path.isdir(folder):
        raise CliError(f"{what} {path!r} cannot be written: there is no folder {folder!r}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CliError(f"{what} {path!r} cannot be written: no permission")


def write_file(path: str, content: bytes, what: str) -> None:
    """Writes a result.

    Args:
        path: of the file; what it holds is replaced.
        content: its new content.
        what: the name of the option, for the message.

    Raises:
        CliError: the file cannot be written.
    """
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise CliError(f"{what} {path!r} cannot be written: {error.strerror}") from error


def write_json(value: dict[str, Any], path: str) -> None:
    """Writes a result as JSON.

    Args:
        value: what JSON can hold; no infinities and no NaN.
        path: of a file, or "-" for standard output.

    Raises:
        CliError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_file(path, text.encode(), "--json")


def make_console(*, stderr: bool = False) -> "Console":
    """A console for text that is not markup: file names may hold brackets and colons.

    Args:
        stderr: whether it writes to standard error. Default: to standard output.

    Returns:
        The console, at least 100 columns wide where nobody says how wide the reader's window is.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    return console


def print_table(
    console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table in the style of the command line.

    Args:
        console: where to.
        title: the line above it.
        columns: headers; one that begins with ">" aligns its column on the right.
        rows: a text for each column; what does not fit is wrapped.
    """
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold")
    console.print(Padding(table, (0, 0, 1, 2), expand=False))


def printable(text: str) -> str:
    """Escapes what standard output cannot encode, as in names of files.

    Args:
        text: anything, surrogates of undecodable file names included.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _missing_extra(error: ImportError) -> str | None:
    """The line for a missing package of the extra, also where it caused another ImportError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError):
            name = (cause.name or "").partition(".")[0]
            for extra, packages in (
                ("cli", _EXTRA_PACKAGES),
                ("train", _TRAIN_PACKAGES),
                ("adapters", _ADAPTER_PACKAGES),
            ):
                if name in packages:
                    command = f"pip install fused_inception[{extra}]"
                    return f"this needs {packages[name]}: {command} ({first_line(cause)})"
        cause = cause.__cause__
    return None


def _out_of_memory(error: BaseException) -> str:
    return (
        "out of memory; take a smaller --batch-size or --image-size "
        f"({type(error).__name__}: {first_line(error)})"
    )


def _discard_stdout() -> None:
    # The interpreter flushes standard output once more on its way out, which would fail again.
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), descriptor)
