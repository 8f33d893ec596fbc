"""The options of the subcommand `train`; nothing here needs more than torch."""

import argparse
from collections.abc import Callable
from typing import Any

from fused_inception.cli.main import integer
from fused_inception.models.inception_v3 import IMAGE_SIZES
from fused_inception.training.recipe import AMP_DTYPES, BATCH_NORMS, NETWORKS, OPS, Recipe

__all__ = ["EPILOG", "add_options"]

EPILOG = """\
images:
  --data FOLDER has torchvision's layout: FOLDER/train/CLASS/IMAGE and FOLDER/val/CLASS/IMAGE.
  --data digits are the 1,797 handwritten digits of 8×8 pixels that are installed with
  scikit-learn, of every class each fifth for the test, enlarged to --pixels.
  An epoch takes every training image once, in an order drawn from --seed, but for what is left
  over when --batch-size does not divide their number.

files, in --output:
  checkpoint.pt  everything that --resume goes on from; written whole or not at all, before the
                 first step, after every epoch, every --checkpoint-steps, and on SIGINT and SIGTERM
  average.pth    the averaged weights, as fused_inception.models.inception_v3(weights=...) takes
                 them, after every epoch
  steps.csv      learning rate, loss and norm of the gradients of every step
  epochs.csv     mean loss, and loss, top-1 and top-5 of the averaged weights on the test images
  curves.png     both, as a plot

--resume goes on from the checkpoint with the same command: the losses are those of a run that
was never stopped, to the bit on one machine with the same number of threads. All options that
decide on them must be as they were; --epochs may be another.

several processes:
  torchrun --nproc-per-node 2 -m fused_inception train ...   NCCL where each has a GPU, else gloo
  --batch-size counts the images of all. Each process runs its share of the --micro-batches, of
  which BatchNorm takes its statistics: two processes have the losses of one process with
  --micro-batches 2. On GPUs --sync-batch-norm takes the statistics of all processes together.

exit code:
  0    all epochs are done
  2    an option, a file, an image, a device or a package is at fault: one line on standard error
  130, 143  stopped by SIGINT or SIGTERM, behind a checkpoint
"""

_DEFAULTS = Recipe()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; those that decide on the curve have the names of `Recipe`'s attributes.

    Args:
        parser: of the subcommand.
    """
    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE in it; or digits",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where the files of the run are"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --output"
    )

    network = parser.add_argument_group("network")
    _add(network, "network", choices=tuple(NETWORKS), help="default: %(default)s")
    _add(
        network,
        "width",
        type=_number(0, 64),
        help="multiplies all channels, in steps of 1/16 (default: %(default)s)",
    )
    _add(
        network,
        "image_size",
        type=int,
        choices=IMAGE_SIZES,
        help="what the first layers are made for (default: %(default)s)",
    )
    network.add_argument(
        "--pixels",
        type=integer(21, 4096),
        metavar="N",
        help="rows and columns of the images (default: --image-size)",
    )
    _add(
        network,
        "aux_heads",
        type=int,
        choices=(0, 1, 2),
        help="auxiliary heads (default: %(default)s)",
    )
    _add(
        network,
        "dropout",
        type=_number(0, 1),
        help="in front of the last layer (default: %(default)s)",
    )
    _add(
        network,
        "batch_norm",
        choices=BATCH_NORMS,
        help="live: statistics of the micro-batch; frozen: those of --weights, or of"
        " the first batch (default: %(default)s)",
    )
    _add(
        network,
        "ops",
        choices=OPS,
        help="fused: this package's, wherever no live BatchNorm is in between "
        "(default: %(default)s)",
    )
    network.add_argument(
        "--sync-batch-norm",
        action="store_true",
        help="live statistics of all processes together, on GPUs",
    )
    network.add_argument(
        "--weights",
        metavar="PATH",
        help="state dict to begin with, .pth or .safetensors; the last layers may "
        "have other classes (default: random)",
    )

    recipe = parser.add_argument_group("recipe (the defaults are the paper's, where it has one)")
    _add(recipe, "epochs", type=integer(1, 1_000_000), help="default: %(default)s")
    _add(
        recipe,
        "batch_size",
        type=integer(1, 1_000_000),
        help="images of a step, over all processes (default: %(default)s)",
    )
    recipe.add_argument(
        "--micro-batches",
        type=integer(1, 1_000_000),
        metavar="N",
        help="pieces of a step's images, over all processes (default: one for each process)",
    )
    _add(recipe, "learning_rate", type=_number(0, 1000), help="default: %(default)s")
    _add(recipe, "decay", type=_number(0, 1), help="of the learning rate (default: %(default)s)")
    _add(
        recipe,
        "decay_epochs",
        type=integer(1, 1_000_000),
        help="every so many epochs (default: %(default)s)",
    )
    _add(recipe, "rms_decay", type=_number(0, 1), help="RMSProp's decay (default: %(default)s)")
    _add(recipe, "rms_eps", type=_number(0, 1000), help="RMSProp's ε (default: %(default)s)")
    _add(recipe, "momentum", type=_number(0, 1), help="RMSProp's momentum (default: %(default)s)")
    _add(recipe, "weight_decay", type=_number(0, 1000), help="L2 penalty (default: %(default)s)")
    _add(
        recipe,
        "clip_norm",
        type=_number(0, 1e9),
        help="norm that gradients are clipped at; 0 for none (default: %(default)s)",
    )
    _add(
        recipe,
        "average_decay",
        type=_number(0, 1),
        help="of the averaged weights that are evaluated; 0 for the last ones "
        "(default: %(default)s)",
    )
    _add(recipe, "smoothing", type=_number(0, 1), help="of the labels (default: %(default)s)")
    _add(
        recipe,
        "aux_weight",
        type=_number(0, 1000),
        help="of each auxiliary head's loss (default: %(default)s)",
    )
    _add(recipe, "amp", choices=tuple(AMP_DTYPES), help="mixed precision (default: %(default)s)")
    recipe.add_argument(
        "--no-augment",
        dest="augment",
        action="store_false",
        help="show the training images as they are, not patches of folders' and shifted digits",
    )
    _add(recipe, "seed", type=integer(0, 2**63 - 1), help="default: %(default)s")

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N (default: auto)",
    )
    machine.add_argument(
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        help="threads of the CPU (default: as PyTorch chooses)",
    )
    machine.add_argument(
        "--workers",
        type=integer(0, 1024),
        default=0,
        metavar="N",
        help="processes that load images, for each process of the run (default: %(default)s)",
    )
    machine.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits from run to run, where PyTorch can",
    )
    machine.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="leave out images that cannot be read, and name them",
    )
    machine.add_argument(
        "--checkpoint-steps",
        type=integer(1, 1_000_000_000),
        default=1000,
        metavar="N",
        help="write a checkpoint every so many steps as well (default: %(default)s)",
    )


def _add(group: argparse._ArgumentGroup, name: str, **options: Any) -> None:
    options.setdefault("metavar", None if "choices" in options else "N")
    group.add_argument(f"--{name.replace('_', '-')}", default=getattr(_DEFAULTS, name), **options)


def _number(minimum: float, maximum: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"takes a number from {minimum:g} to {maximum:g}, got {text!r}"
            )
        return value

    return convert
