"""Training: what a run computes, the files it leaves, and what it does when something fails.

The command runs in this process where that shows the same; where a process is killed, or where
there are several, in processes of its own. Networks are the narrowest on the smallest images. Left
out: the accuracy that a whole run comes to (docs/training_recipe.md has one), and NCCL, which needs
several GPUs.
"""

import copy
import csv
import dataclasses
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_inception.cli import main
from fused_inception.models import inception_v3, ladder
from fused_inception.models.torchvision_import import import_torchvision

for _module in ("PIL", "matplotlib", "rich"):
    pytest.importorskip(_module)
Image = pytest.importorskip("PIL.Image")
resource = pytest.importorskip("resource")  # not on Windows
data = pytest.importorskip("fused_inception.training.data")

from fused_inception.training.averaging import RunningMean  # noqa: E402
from fused_inception.training.files import RunFolder, write_atomically  # noqa: E402
from fused_inception.training.processes import Processes  # noqa: E402
from fused_inception.training.recipe import Recipe, TrainingError, derive_seed  # noqa: E402
from fused_inception.training.trainer import Trainer  # noqa: E402

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = {
    "width": 0.0625,
    "image_size": 79,
    "pixels": 21,
    "aux_heads": 0,
    "batch_size": 8,
    "learning_rate": 0.01,
}
OPTIONS = ["--threads", "1", "--device", "cpu"]
OPTIONS += [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
IMAGES = 24  # of two classes, three steps an epoch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_images(root, counts=(("train", IMAGES), ("val", 6)), classes=("dark", "light")):
    """Noise around two brightnesses, as small PNG files."""
    generator = torch.Generator().manual_seed(0)
    for part, count in counts:
        for index in range(count):
            label = index % len(classes)
            noise = torch.randint(0, 160, (24, 30, 3), generator=generator) + 90 * label
            folder = root / part / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(noise.clamp(max=255).to(torch.uint8).numpy())
            picture.save(folder / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def train(capsys, folder):
    """Runs `train` on the folder of images; returns the exit code, standard output and error."""

    def run(output, *arguments, images=folder, epochs=2):
        command = ["train", "--data", images, "--output", output, "--epochs", epochs]
        code = main([str(part) for part in (*command, *OPTIONS, *arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def train_error(train):
    """Runs `train` into an error; returns the message."""

    def run(*arguments, **options):
        code, _, err = train(*arguments, **options)
        assert code == 2
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):
    """The folder of a run of two epochs that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished")
    code = main(
        ["train", "--data", str(folder), "--output", str(output), "--epochs", "2", *OPTIONS]
    )
    assert code == 0
    return output


def command_line(*arguments, torchrun=False):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *(launcher if torchrun else []), "-m", "fused_inception", *arguments]


def environment():
    values = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return {**values, "OMP_NUM_THREADS": "1"}


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(output):
    """Everything that is measured but the time."""
    epochs = [
        {k: v for k, v in row.items() if k != "seconds"} for row in rows(output / "epochs.csv")
    ]
    return rows(output / "steps.csv"), epochs


class Noise:
    """Images without files."""

    name = identity = "noise"

    def __init__(self, count, classes=3, pixels=21):
        self.classes = tuple(map(str, range(classes)))
        self.images = torch.randn(count, 3, pixels, pixels, generator=torch.manual_seed(3))

    def __len__(self):
        return len(self.images)

    def load(self, index, generator):
        image = self.images[index]
        if generator is not None:
            image = image + torch.rand((), generator=generator)
        return image, index % len(self.classes)


def make_trainer(train=None, test=None, device=CPU, **options):
    recipe = Recipe(**{**SMALL, **options})
    return Trainer(recipe, train or Noise(24), test or Noise(7), device=device)


def losses(trainer, count):
    found = []
    while len(found) < count:
        found += [
            step.loss for step, _ in zip(trainer.steps(), range(count - len(found)), strict=False)
        ]
        if trainer.batch == trainer.steps_per_epoch:
            trainer.finish_epoch()
    return found


# ------------------------------------------------------------------------------- the recipe


def test_the_defaults_are_the_papers():
    recipe = Recipe()
    with torch.device("meta"):
        rung = ladder("rmsprop", "label_smoothing", num_classes=2, init_weights=False)
    (ours,), (theirs,) = (
        optimizer.param_groups for optimizer in (recipe.optimizer(rung.model), rung.optimizer())
    )
    ours.pop("params"), theirs.pop("params")
    assert ours == theirs
    assert (recipe.learning_rate, recipe.rms_decay, recipe.rms_eps) == (0.045, 0.9, 1.0)
    assert (recipe.decay, recipe.decay_epochs, recipe.clip_norm) == (0.94, 2, 2.0)
    assert (recipe.smoothing, recipe.aux_weight, recipe.aux_heads) == (0.1, 0.3, 1)
    assert (recipe.epochs, recipe.batch_size, recipe.image_size) == (100, 32, 299)
    loss = recipe.loss()
    assert (loss.criterion.smoothing, loss.aux_weight) == (0.1, 0.3)


def test_a_step_is_the_step_of_plain_pytorch():
    """One micro-batch, with clipping, against the optimizer by hand."""
    trainer = make_trainer(clip_norm=0.5, augment=False, dropout=0.0)
    model = copy.deepcopy(trainer.model)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, alpha=0.9, eps=1.0)
    order = data.epoch_order(24, 0, 0)[:8]
    samples = [trainer.train.load(index, None) for index in order]
    images, labels = torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)(model(images), labels)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()

    step = next(trainer.steps())
    assert (step.step, step.epoch, step.learning_rate) == (1, 0, 0.01)
    assert step.loss == pytest.approx(loss.item(), rel=1e-6)
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.5  # so that clipping shows
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_falls_every_second_epoch():
    trainer = make_trainer(decay=0.5)
    rates = []
    for _ in range(3):
        rates += [step.learning_rate for step in trainer.steps()]
        trainer.finish_epoch()
    assert rates == [0.01] * 6 + [0.005] * 3


def test_training_learns():
    """Images that a mean tells apart."""
    images = Noise(64, classes=2)
    images.images += torch.tensor([-2.0, 2.0]).repeat(32)[:, None, None, None]
    options = {"rms_eps": 1e-8, "batch_size": 16, "dropout": 0.0, "augment": False}
    found = losses(make_trainer(images, images, **options), 20)
    assert sum(found[-4:]) < 0.5 * sum(found[:4])


# Where fp16 skips all steps of an epoch.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize(("amp", "epsilon"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_mixed_precision_is_near_full_precision(amp, epsilon):
    """Up to rounding, which the random narrow network amplifies about a hundredfold."""
    options = {"batch_norm": "frozen", "augment": False, "dropout": 0.0, "learning_rate": 1e-3}
    full, mixed = (make_trainer(amp=kind, **options) for kind in ("none", amp))
    before = mixed.model.fc.weight.clone()
    expected, found = losses(full, 1), losses(mixed, 1)
    assert found != expected
    assert found == pytest.approx(expected, rel=100 * epsilon)
    assert all(math.isfinite(loss) for loss in losses(mixed, 15))  # fp16 finds its scale
    assert not torch.equal(mixed.model.fc.weight, before)


def test_the_running_mean_is_the_formula():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    mean = RunningMean(model, 0.3)
    expected = [value.clone() for value in model.state_dict().values()]
    for step in range(4):
        model(torch.randn(3, 1, 2, 2))
        with torch.no_grad():
            model[0].weight += 1
        kept = min(0.3, (1 + step) / (10 + step))
        for index, value in enumerate(model.state_dict().values()):
            if value.is_floating_point():
                expected[index] = kept * expected[index] + (1 - kept) * value
            else:
                expected[index] = value.clone()
        mean.update()
    for value, wanted in zip(mean.model.state_dict().values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)
    assert not mean.model.training


def test_seeds_differ_by_every_part():
    parts = [(0,), (1,), (0, "order"), (0, "order", 1), (0, "order", 11), (0, "order1", 1)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)


# -------------------------------------------------------------------------------- the images


def test_digits_are_all_there_once():
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    train, test = (data.Digits(part, 21) for part in (True, False))
    assert (len(train), len(test)) == (1442, 355)
    assert train.classes == test.classes == tuple("0123456789")
    images = [part.load(i, None)[0][0] for part in (train, test) for i in range(len(part))]
    assert len({image.numpy().tobytes() for image in images}) == 1797
    image, label = data.Digits(True, 24).load(0, None)
    assert (image.shape, label) == ((3, 24, 24), 0)
    # The middle of every third pixel is that of one of the eight.
    assert (image[1, 1, 1::3] * 8 + 8).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    labels = [test.load(index, None)[1] for index in range(len(test))]
    assert all(30 <= labels.count(label) <= 40 for label in range(10))


def test_augmentation_is_a_function_of_its_seed(folder):
    for images in (data.Folder(str(folder), True, 21), Noise(9)):
        first, again, other = (
            images.load(5, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_patches_lie_in_the_image_and_cover_their_share_of_it():
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = data.random_patch(60, 40, generator)
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        areas.append((right - left) * (bottom - top) / 2400)
    assert min(areas) >= 0.08 - 1e-9
    assert min(areas) < 0.15
    assert max(areas) > 0.8
    assert data.random_patch(1000, 1, generator) == (0, 0, 1000, 1)


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own():
    orders = [data.epoch_order(50, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_folders_come_as_torchvisions(folder):
    images = data.Folder(str(folder), True, 21)
    assert (len(images), images.classes) == (IMAGES, ("dark", "light"))
    image, label = images.load(IMAGES - 1, None)
    assert image.shape == (3, 21, 21)
    assert -1 <= image.min() < image.max() <= 1
    assert label == 1


def test_workers_load_the_same(folder):
    images = data.Folder(str(folder), True, 21)
    batches = [[3, 1], [2, 0]]
    for one, two in zip(
        data.load_batches(images, batches, augment_seed=4),
        data.load_batches(images, batches, augment_seed=4, workers=1),
        strict=True,
    ):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


# ------------------------------------------------------------------------------ micro-batches


def test_micro_batches_have_the_mean_gradient_and_the_mean_statistics():
    options = {"augment": False, "dropout": 0.0, "average_decay": 0.0, "clip_norm": 0.0}
    trainer = make_trainer(micro_batches=2, **options)
    model = copy.deepcopy(trainer.model)
    order = data.epoch_order(24, 0, 0)[:8]
    samples = [trainer.train.load(index, None) for index in order]
    images, labels = torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    states, total = [], 0.0
    for piece in (slice(0, 4), slice(4, 8)):
        copied = copy.deepcopy(model)
        loss = criterion(copied(images[piece]), labels[piece]) / 2
        loss.backward()
        states.append((copied.state_dict(), [p.grad for p in copied.parameters()]))
        total += loss.item()
    norm = math.sqrt(sum((a + b).square().sum() for a, b in zip(states[0][1], states[1][1])))  # noqa: B905

    step = next(trainer.steps())
    assert step.loss == pytest.approx(total, rel=1e-6)
    assert step.gradient_norm == pytest.approx(norm, rel=1e-4)
    found = trainer.model.state_dict()
    for name in found:
        if "running" in name:
            mean = (states[0][0][name] + states[1][0][name]) / 2
            torch.testing.assert_close(found[name], mean)
        if "num_batches" in name:
            assert found[name] == 1


def test_two_processes_have_the_losses_of_one(train, tmp_path, folder):
    pieces = ["--aux-heads=1", "--pixels=77", "--batch-size=4", "--micro-batches=2"]
    few = write_images(tmp_path / "few", (("train", 8), ("val", 3)))
    assert train(tmp_path / "one", *pieces, images=few, epochs=1)[0] == 0
    command = ["train", "--data", str(few), "--output", str(tmp_path / "two"), "--epochs", "1"]
    result = subprocess.run(
        command_line(*command, *OPTIONS, *pieces[:-1], torchrun=True),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1 of 1") == 1
    (one_steps, one_epochs), (two_steps, two_epochs) = (
        curve(tmp_path / name) for name in ("one", "two")
    )
    assert len(two_steps) == 2
    assert two_steps == one_steps  # to the bit
    for name, value in two_epochs[0].items():  # test images are in other batches there
        assert float(value) == pytest.approx(float(one_epochs[0][name]), rel=1e-6)
    one, two = (
        torch.load(tmp_path / name / "average.pth", weights_only=True) for name in ("one", "two")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


# -------------------------------------------------------------------------------- fused ops


def test_fused_and_unfused_ops_are_as_near_as_two_orders_of_summation():
    options = {"batch_norm": "frozen", "dropout": 0.0, "learning_rate": 1e-3}
    unfused = losses(make_trainer(**options), 3)
    reordered = losses(make_trainer(**options, micro_batches=2), 3)
    fused_trainer = make_trainer(**options, ops="fused")
    assert not fused_trainer.fusion().skipped
    fused = losses(fused_trainer, 3)
    assert fused != unfused  # or the same code would have run
    spread = max(abs(a - b) / b for a, b in zip(reordered, unfused, strict=True))
    away = max(abs(a - b) / b for a, b in zip(fused, unfused, strict=True))
    assert away <= 10 * max(spread, torch.finfo(torch.float32).eps)


def test_live_batch_norm_is_reported_as_what_keeps_ops_apart(train, tmp_path):
    code, out, _ = train(tmp_path, "--ops=fused", epochs=1)
    assert code == 0
    assert re.search(r"ops: \d+ of 19 parts run fused in training, not .*\(batch statistics", out)


def test_frozen_statistics_stay():
    trainer = make_trainer(batch_norm="frozen")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    losses(trainer, 4)  # into the second epoch
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["Conv2d_1a_3x3.bn.weight"], after["Conv2d_1a_3x3.bn.weight"])


# ------------------------------------------------------------------------------ going on


def test_the_files_of_a_run(finished):
    names = {"average.pth", "checkpoint.pt", "curves.png", "epochs.csv", "steps.csv"}
    assert {path.name for path in finished.iterdir()} == names
    steps, epochs = curve(finished)
    assert [row["step"] for row in steps] == list("123456")
    assert [row["epoch"] for row in epochs] == list("01")
    mean = sum(float(row["loss"]) for row in steps[:3]) / 3
    assert float(epochs[0]["train_loss"]) == pytest.approx(mean)
    with Image.open(finished / "curves.png") as picture:
        assert picture.size == (1200, 675)
    # What was trained is what another program loads.
    options = {name: SMALL[name] for name in ("width", "image_size")}
    model = inception_v3(
        num_classes=2, aux_logits=False, weights=str(finished / "average.pth"), **options
    )
    assert model.fc.weight.shape == (2, 128)


def test_killed_and_resumed_it_has_the_same_curve(train, tmp_path, folder):
    output = tmp_path / "run"
    command = ["train", "--data", str(folder), "--output", str(output), "--epochs", "500"]
    process = subprocess.Popen(
        command_line(*command, *OPTIONS, "--checkpoint-steps=2"), env=environment(), cwd=tmp_path
    )
    deadline = time.monotonic() + 240
    while not (output / "steps.csv").exists() or len(rows(output / "steps.csv")) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left_off = torch.load(output / "checkpoint.pt", weights_only=True)["step"]
    assert left_off >= 2
    epochs = left_off // 3 + 1
    code, _, err = train(output, "--resume", "--checkpoint-steps=2", epochs=epochs)
    assert code == 0, err
    assert train(tmp_path / "whole", epochs=epochs)[0] == 0
    assert curve(output) == curve(tmp_path / "whole")
    ours, whole = (
        torch.load(path / "checkpoint.pt", weights_only=True)
        for path in (output, tmp_path / "whole")
    )
    assert all(torch.equal(ours["model"][name], whole["model"][name]) for name in whole["model"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_a_checkpoint(train, tmp_path, finished, monkeypatch, number, code):
    add_step = RunFolder.add_step
    # A shell starts what runs in its background with SIGINT ignored.
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)

    def add_and_signal(self, row):
        add_step(self, row)
        if row["step"] == 4:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add_step", add_and_signal)
        found, _, err = train(tmp_path)
    assert found == code
    assert err == "stopped; the same command with --resume goes on\n"
    assert signal.signal(number, before) == default
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    assert train(tmp_path, "--resume")[0] == 0
    assert curve(tmp_path) == curve(finished)


def test_what_metrics_have_beyond_the_checkpoint_is_cut_off(train, tmp_path, finished, folder):
    output = tmp_path / "run"
    assert train(output, epochs=1)[0] == 0
    with open(output / "steps.csv", "a", encoding="utf-8") as file:
        file.write("4,1,0.01,0.5,1.0\r\n5,1,0.0")  # the last row cut short
    assert train(output, "--resume")[0] == 0
    assert curve(output) == curve(finished)
    code, out, _ = train(output, "--resume")  # with nothing left to do
    assert code == 0
    assert "2 of 2 epochs" in out


def test_weights_of_other_classes_and_heads_begin_a_run(tmp_path, finished):
    state = torch.load(finished / "average.pth", weights_only=True)
    recipe = Recipe(**{**SMALL, "aux_heads": 1, "pixels": 77})
    trainer = Trainer(recipe, Noise(8), Noise(3), device=CPU, weights=state)
    found = trainer.model.state_dict()
    name = "Mixed_7c.branch1x1.conv.weight"
    assert torch.equal(found[name], state[name])
    assert found["fc.weight"].shape == (3, 128)


# --------------------------------------------------------------------------------- errors


def test_a_write_that_fails_leaves_the_file_before(tmp_path):
    path = tmp_path / "file"
    write_atomically(str(path), b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_atomically(str(path), b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_leaves_the_checkpoint_before(
    train, train_error, tmp_path, finished, monkeypatch
):
    """The kernel's own error, in the middle of the third checkpoint."""
    fsync, calls = os.fsync, []

    def count(descriptor):
        calls.append(descriptor)
        if os.path.getsize(f"/proc/self/fd/{descriptor}") > 100_000 and len(calls) > 8:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", count)
        error = train_error(tmp_path, "--checkpoint-steps=1")
    assert re.search(
        r"checkpoint.pt' cannot be written: No space left on device; checkpoint '.*' is as it was, "
        "--resume goes on from it",
        error,
    )
    assert not list(tmp_path.glob("*.tmp"))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] >= 1
    assert train(tmp_path, "--resume", "--checkpoint-steps=1")[0] == 0
    assert curve(tmp_path) == curve(finished)


def test_a_corrupt_image_is_named_and_can_be_skipped(train, train_error, tmp_path, folder):
    images = write_images(tmp_path / "images")
    whole = (images / "train" / "light" / "05.png").read_bytes()
    (images / "train" / "light" / "05.png").write_bytes(whole[: len(whole) // 2])
    (images / "val" / "dark" / "00.png").write_bytes(b"no image")
    error = train_error(tmp_path / "run", images=images, epochs=1)
    assert re.search("image '.*light/05.png' is damaged or truncated.*--skip-corrupt", error)
    code, _, err = train(tmp_path / "skip", "--skip-corrupt", images=images, epochs=1)
    assert code == 0
    lines = err.replace("\n", "")
    assert re.search("skipped: image '.*light/05.png' is damaged", lines)
    assert re.search("skipped: image '.*dark/00.png' is not an image", lines)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, r"takes a folder with train/CLASS/IMAGE .* there is no folder '.*train'"),
        ({"train": ("a", "b")}, r"there is no folder '.*val'"),
        ({"train": ("a",), "val": ("a",)}, "at least two classes, .* has 1: a"),
        ({"train": ("a", "b"), "val": ("a", "c")}, "other classes than those for training: b, c"),
        ({"train": (), "val": ()}, "find any class folder"),
    ],
)
def test_folders_of_another_layout(train_error, tmp_path, layout, message):
    for part, classes in layout.items():
        (tmp_path / "images" / part).mkdir(parents=True)
        if classes:
            write_images(tmp_path / "images", ((part, 2 * len(classes)),), classes)
    assert re.search(message, train_error(tmp_path / "run", images=tmp_path / "images"))
    assert not (tmp_path / "run").exists()


def test_a_class_without_images(train_error, tmp_path):
    images = write_images(tmp_path / "images")
    (images / "train" / "none").mkdir()
    error = train_error(tmp_path / "run", images=images)
    assert "Found no valid file for the classes none" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width=0.125"], r"checkpoint '.*' was made with width=0.0625, got 0.125"),
        (["--learning-rate=0.02"], "was made with learning_rate=0.01, got 0.02"),
        (["--batch-norm=frozen"], "was made with batch_norm='live', got 'frozen'"),
        (["--seed=1"], "was made with seed=0, got 1"),
    ],
)
def test_a_checkpoint_of_another_run(train_error, tmp_path, finished, arguments, message):
    before = (finished / "steps.csv").read_bytes()
    assert re.search(message, train_error(finished, "--resume", *arguments))
    assert (finished / "steps.csv").read_bytes() == before


def test_a_checkpoint_on_other_images(train, train_error, finished, tmp_path):
    other = write_images(tmp_path / "images", (("train", IMAGES + 1), ("val", 6)))
    error = train_error(finished, "--resume", images=other)
    assert re.search("was made with training images '24 images, .*got '25 images", error)
    (other / "train" / "dark" / "24.png").unlink()
    assert train(finished, "--resume", images=other)[0] == 0  # the same in another place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["model"].pop("fc.bias"), "does not fit InceptionV3.*another network"),
        (lambda state: state.pop("format"), "is not one of a training run of this version"),
        (None, "cannot be read: it is damaged"),
    ],
)
def test_a_checkpoint_that_does_not_fit(train_error, finished, tmp_path, change, message):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    content = (finished / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    if change is not None:
        change(state)
        torch.save(state, tmp_path / "checkpoint.pt")
    assert re.search(message, train_error(tmp_path, "--resume"))


def test_checkpoints_are_neither_missed_nor_written_over(train_error, finished, tmp_path):
    assert "there is no checkpoint" in train_error(tmp_path, "--resume")
    before = (finished / "checkpoint.pt").read_bytes()
    assert "--resume goes on from it" in train_error(finished)
    assert (finished / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width=0.3"], "width takes a multiple of 1/16"),
        (["--batch-size=25"], "batch_size takes at most the 24 training images, got 25"),
        (["--micro-batches=3"], "batch_size takes a multiple of the 3 micro-batches, got 8"),
        (["--micro-batches=8"], "at least 2 images in each of the 8 micro-batches"),
        (["--learning-rate=fast"], "--learning-rate: takes a number from 0 to 1000, got 'fast'"),
        (["--image-size=80"], "--image-size: invalid choice"),
        (["--weights=none.pth"], "weights file 'none.pth' does not exist"),
        (
            ["--aux-heads=1"],
            "pixels takes at least 77 for inception_v3 made for 79 with aux.*got 21",
        ),
    ],
    ids=" ".join,
)
def test_wrong_options(train_error, tmp_path, arguments, message):
    assert re.search(message, train_error(tmp_path / "run", *arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_sync_batch_norm_needs_gpus(train_error, tmp_path):
    assert "--sync-batch-norm runs on GPUs only" in train_error(tmp_path, "--sync-batch-norm")


@pytest.mark.parametrize(
    ("missing", "images", "message"),
    [
        ("sklearn", "digits", r"this needs scikit-learn: pip install fused_inception\[train\]"),
        ("torchvision", None, "torchvision is not installed"),
    ],
)
def test_missing_packages(train_error, tmp_path, folder, monkeypatch, missing, images, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == missing else find_spec(name, *rest),
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert re.search(message, train_error(tmp_path, images=images or folder))


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step():
    images = Noise(24)
    images.images[data.epoch_order(24, 0, 0)[9]] = torch.inf  # in the second step
    trainer = make_trainer(images, average_decay=0.0)
    steps = trainer.steps()
    next(steps)
    with pytest.raises(TrainingError, match="the loss of step 2 is nan; a lower learning_rate"):
        next(steps)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_an_unwritable_folder(train_error, tmp_path):
    (tmp_path / "file").write_text("")
    assert re.search("folder '.*' cannot be made", train_error(tmp_path / "file" / "run"))


def test_processes_that_do_not_divide_the_pieces():
    with pytest.raises(TrainingError, match="micro_batches takes a multiple of the 2 processes"):
        Trainer(
            Recipe(**SMALL), Noise(8), Noise(2), device=CPU, processes=Processes(rank=0, count=2)
        )


@pytest.mark.parametrize(
    ("option", "value"), [("network", "vgg"), ("amp", "int8"), ("ops", "other")]
)
def test_unknown_values_are_refused(option, value):
    with pytest.raises(TrainingError, match=f"{option} takes '.*got '{value}'"):
        dataclasses.replace(Recipe(), **{option: value})


# ------------------------------------------------------------------------- documents, benches


def test_the_documented_distances_are_those_of_the_curves():
    bench = pytest.importorskip("bench.training_curves")
    text = (ROOT / "docs" / "training_recipe.md").read_text(encoding="utf-8")
    shown = text.partition("training_curves: begin -->\n")[2].partition("\n<!--")[0]
    curves = bench.read_curves(ROOT / "docs" / "training_curves" / "fused_unfused.csv")
    away = bench.distances(curves)
    assert shown == bench.table(away)
    middles = {name: statistics.median(values) for name, values in away.items()}
    # As near as the runs that differ in the order of accumulation alone.
    fused = middles.pop("fused")
    assert fused <= max(middles.values())


def test_the_documented_digits_are_those_of_the_run():
    text = (ROOT / "docs" / "training_recipe.md").read_text(encoding="utf-8")
    last = rows(ROOT / "docs" / "training_curves" / "digits_epochs.csv")[-1]
    assert f"{float(last['test_top1']):.1%}".replace("%", " %") in text
    assert float(last["test_top1"]) > 0.97


def test_the_bench_of_a_step(capsys, tmp_path, monkeypatch):
    bench = pytest.importorskip("bench.training_step")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 0
    assert capsys.readouterr().out.startswith("no GPU: nothing is measured")
    small = ["--width", "0.0625", "--image-size", "79", "--batch", "2", "--rounds", "1"]
    few = ["--amp", "bf16", "--without", "compiled", "--output", str(tmp_path / "row.json")]
    assert bench.main(["--device", "cpu", *small, *few]) == 0
    out = capsys.readouterr().out
    for kind in ("frozen", "live"):
        assert re.search(rf"{kind} statistics, bf16: fused [\d.]+ ms, \d+ images/s", out)
    found = json.loads((tmp_path / "row.json").read_text())["rows"]
    assert found[0]["fused"]["from_eager"] > 0  # other code has run


# ------------------------------------------------------------------------------------ GPUs


@pytest.mark.gpu
@pytest.mark.parametrize("ops", ["unfused", "fused"])
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_gpu_trains_as_a_cpu(amp, ops):
    options = {"batch_norm": "frozen", "dropout": 0.0, "learning_rate": 1e-3}
    expected = losses(make_trainer(**options), 3)
    found = losses(make_trainer(**options, amp=amp, ops=ops, device=torch.device("cuda:0")), 3)
    assert found == pytest.approx(expected, rel=1e-3 if amp == "none" else 0.05)
