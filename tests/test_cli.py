"""The command line: real runs in this process, every error by its exit code and message.

Left out: GPUs, but for one run in each dtype; and what tables look like beyond what they name.
"""

import errno
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fused_inception import __version__
from fused_inception.cli import main
from fused_inception.cli.main import CliError
from fused_inception.fuse import fuse
from fused_inception.models import inception_v3
from fused_inception.models.torchvision_import import import_torchvision
from tests import adapter_cases

# What is imported, and the package that it comes from.
EXTRAS = {
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "safetensors": "safetensors",
    "skimage": "scikit-image",
}
for _module in EXTRAS:
    pytest.importorskip(_module)
Image = pytest.importorskip("PIL.Image")
compare = pytest.importorskip("fused_inception.cli.compare")
images = pytest.importorskip("fused_inception.cli.images")

ROOT = Path(__file__).parents[1]
ASTRONAUT, CHELSEA, COFFEE = (
    str(Path(pytest.importorskip("skimage").__file__).parent / "data" / name)
    for name in ("astronaut.png", "chelsea.png", "coffee.png")
)

ONCE = ["--device", "cpu", "--repeats", "1", "--batch-size", "1"]
# On the smallest images that the network takes.
SMALL = [*ONCE, "--image-size", "75"]
NUM_CLASSES = 7
FUSED_BLOCKS = {
    "": "inception_stem",
    "maxpool1": "max_pool2d",
    "maxpool2": "max_pool2d",
    **{f"Mixed_5{block}": "inception_a" for block in "bcd"},
    "Mixed_6a": "inception_b",
    **{f"Mixed_6{block}": "inception_c" for block in "bcde"},
    "Mixed_7a": "inception_d",
    "Mixed_7b": "inception_e",
    "Mixed_7c": "inception_e",
    "avgpool": "global_avg_pool2d",
    "fc": "linear",
}
# Beside the blocks and layers the stem's five convolutions.
FUSED = len(FUSED_BLOCKS) + 5


@pytest.fixture(autouse=True)
def one_thread():
    """On a machine that is busy otherwise, threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs the command line; returns the exit code, standard output and standard error."""
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it in its workers

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def cli_json(cli):
    """Runs `compare --json`; returns the exit code and what was printed, parsed."""

    def run(*arguments):
        code, out, err = cli("compare", *arguments, "--json")
        assert not err
        return code, json.loads(out, parse_constant=pytest.fail)

    return run


@pytest.fixture
def cli_error(cli):
    """Runs the command line into an error; returns the message."""

    def run(*arguments):
        code, out, err = cli(*arguments)
        assert code == 2
        assert not out
        assert "Traceback" not in err
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files with one network's weights, seven classes and an auxiliary head, whole and damaged."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    state = inception_v3(num_classes=NUM_CLASSES, init_weights=False).state_dict()
    torch.save(state, folder / "whole.pth")
    short = {name: value for name, value in state.items() if not name.startswith("Mixed_6c.")}
    torch.save(short, folder / "short.pth")
    torch.save({**state, "Mixed_6b.branch1x1.conv.weight": torch.zeros(3)}, folder / "shape.pth")
    torch.save({"layer1.0.weight": torch.zeros(3)}, folder / "other.pth")
    torch.save({**state, "fc.bias": torch.full((NUM_CLASSES,), torch.nan)}, folder / "nan.pth")
    (folder / "truncated.pth").write_bytes((folder / "whole.pth").read_bytes()[:100_000])
    (folder / "garbage.safetensors").write_bytes(b"\xff" * 100)
    (folder / "directory.pth").mkdir()
    return folder


@pytest.fixture
def change_fused(monkeypatch):
    """Puts a change of the last layer into the fused network."""

    def install(change):
        def fuse_and_change(model):
            fused = fuse(model)
            with torch.no_grad():
                change(fused.fc)
            return fused

        monkeypatch.setattr(compare, "fuse", fuse_and_change)

    return install


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


# ------------------------------------------------------------------------------- the main job


def test_the_fused_network_agrees_on_a_photograph(cli_json):
    code, result = cli_json(ASTRONAUT, *ONCE)

    assert code == 0
    assert result["settings"]["image_size"] == 299
    assert result["settings"]["dtype"] == "float32"
    assert result["agreement"]["passed"]
    # Not 0: then the same network would have run twice.
    assert 0 < result["errors"]["fused_from_unfused"]["max_relative"] < 2e-5
    assert 0 < result["errors"]["fused_from_unfused"]["relative_l2"] < 2e-5
    (image,) = result["images"]
    assert image["top5"]["fused"] == image["top5"]["unfused"]
    assert len(set(image["top5"]["fused"])) == 5
    assert (image["width"], image["height"]) == (512, 512)
    replaced = {entry["name"]: entry["kind"] for entry in result["fusion"]["replaced"]}
    assert {name: kind for name, kind in replaced.items() if kind != "conv2d_act"} == FUSED_BLOCKS
    assert len(replaced) == len(result["fusion"]["replaced"]) == FUSED
    assert result["fusion"]["skipped"] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_fused_network_agrees_on_a_gpu(cli_json, dtype):
    code, result = cli_json("--device", "cuda", "--dtype", dtype, "--repeats", "5")

    assert code == 0, result["agreement"]
    assert result["settings"]["device"] == "cuda:0"
    assert len(result["fusion"]["replaced"]) == FUSED
    for name in ("unfused", "fused"):
        assert result["timing"][name]["ms_median"] > 0
        assert result["memory"][name]["activation_bytes"] > 0


def test_tables_name_everything(cli):
    code, out, err = cli("compare", *SMALL)

    assert code == 0
    assert not err
    for text in (
        "75x75",
        "float32",
        f"torch {torch.__version__}",
        "the classes mean nothing",
        "Mixed_6b",
        "Mixed_6e",
        f" {FUSED} fused, 0 left alone",
        "inception_e",
        "Conv2d_4a_3x3",
        "a forward, 61 to 74 launches on a GPU",
        "not batch-invariant:",
        "times the memory",
        "max relative",
        "same order for 4 of 4 images",
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "images/s",
        "activations MiB",
        "The networks agree",
    ):
        assert text in out
    assert max(map(len, out.splitlines())) <= 100


def test_json_is_complete(cli_json):
    code, result = cli_json(*SMALL, "--batch-size", "3", "--repeats", "4")

    assert code == 0
    assert result["versions"]["torch"] == torch.__version__
    assert result["device"]["device"] == "cpu"
    assert result["device"]["name"]
    assert result["random_weights"]
    assert result["errors"]["from_float32"] is None
    assert [image["name"] for image in result["images"]] == [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
    ]
    assert result["agreement"]["images"] == result["agreement"]["top5_same_order"] == 4
    for name in ("unfused", "fused"):
        timing, memory = result["timing"][name], result["memory"][name]
        assert len(timing["ms"]) == 4
        assert min(timing["ms"]) <= timing["ms_p20"] <= timing["ms_median"] <= timing["ms_p80"]
        assert timing["ms_p80"] <= max(timing["ms"])
        assert timing["images_per_second"] == pytest.approx(3000 / timing["ms_median"])
        # The first convolution's output alone has 32×37×37 values for each image.
        assert memory["activation_bytes"] > 3 * 32 * 37 * 37 * 4
    # The network without its auxiliary head has 23.8 million parameters.
    assert 95e6 < result["memory"]["unfused"]["weight_bytes"] < 96e6
    assert result["memory"]["fused"]["weight_bytes"] > result["memory"]["unfused"]["weight_bytes"]
    used = [result["memory"][name]["activation_bytes"] for name in ("unfused", "fused")]
    assert result["memory"]["activation_ratio"] == used[1] / used[0] < 1.1
    assert result["fusion"]["launches_per_forward"] == [61, 74]
    assert not result["fusion"]["batch_invariant"]
    assert (
        len(result["fusion"]["batch_dependent"]) == FUSED - 3
    )  # all but the max pools and what runs them
    medians = [result["timing"][name]["ms_median"] for name in ("unfused", "fused")]
    assert result["timing"]["speedup"] == pytest.approx(medians[0] / medians[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_held_against_float32(cli_json, dtype):
    code, result = cli_json(*SMALL, ASTRONAUT, CHELSEA, "--dtype", dtype)

    assert code == 0
    unfused, fused = (
        result["errors"]["from_float32"][name]["max_relative"] for name in ("unfused", "fused")
    )
    eps = torch.finfo(getattr(torch, dtype)).eps
    agreement = result["agreement"]
    if dtype == "float64":
        assert agreement["error"] == result["errors"]["fused_from_unfused"]["max_relative"]
        assert agreement["error"] < agreement["limit"] == 1e-12
        # What is left is float32's own error.
        assert 1e-8 < unfused < 2e-5
    else:
        assert agreement["error"] == fused
        assert agreement["limit"] == pytest.approx(2 * (unfused + eps))
        # Large enough to be of this dtype, small enough for its activations not to have overflowed.
        assert eps / 10 < unfused < 0.1
    size = getattr(torch, dtype).itemsize
    assert result["memory"]["unfused"]["weight_bytes"] == pytest.approx(23.8e6 * size, rel=0.01)


def test_torchvisions_network_is_the_same_network(cli_json):
    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    (_, ours), (code, theirs) = (
        cli_json(*SMALL, ASTRONAUT, "--model", model) for model in ("reference", "torchvision")
    )
    assert code == 0
    assert theirs["settings"]["model"] == "torchvision"
    assert len(theirs["fusion"]["replaced"]) == FUSED
    assert theirs["images"][0]["top5"] == ours["images"][0]["top5"]


@pytest.mark.parametrize(
    ("model", "package", "options", "output", "fused"),
    [
        ("timm:inception_v3", "timm", [], "logits", 19),
        ("timm:inception_v3", "timm", ["--features"], "features", 18),
        ("pytorch-fid", "pytorch_fid", ["--features"], "features", 17),
        ("torch-fidelity", "torch_fidelity", [], "logits", 20),
        ("torch-fidelity", "torch_fidelity", ["--features"], "features", 20),
        ("reference", "torch", ["--features"], "features", FUSED - 1),
    ],
)
def test_networks_of_other_packages(model, package, options, output, fused, cli_json):
    # Not importorskip: a torchvision of other hardware is imported in a way of its own.
    adapter_cases.module("torchvision" if package == "torch" else package)
    code, result = cli_json(*SMALL, ASTRONAUT, "--model", model, *options)
    assert code == 0
    assert result["settings"]["model"] == model
    assert result["settings"]["output"] == output
    assert result["random_weights"]
    assert f"fused {output} from the unfused" in result["agreement"]["rule"]
    assert 0 < result["agreement"]["error"] <= 2e-5
    assert len(result["fusion"]["replaced"]) == fused
    assert result["fusion"]["skipped"] == []


def test_features_have_no_top5(cli):
    adapter_cases.module("pytorch_fid")
    code, out, _ = cli("compare", *SMALL, ASTRONAUT, "--model", "pytorch-fid", "--features")
    assert code == 0
    assert "random weights" in out
    assert "Error of the features" in out
    assert "Top-5" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "pytorch-fid"], "--model pytorch-fid has no logits, takes --features"),
        (["--model", "timm:no_such"], "--model timm:no_such cannot be made: "),
        (["--model", "timm:"], "takes reference, torchvision, timm:<name>, pytorch-fid, torch-"),
        (["--model", "timm:<name>"], "takes reference, torchvision, timm:<name>, pytorch-fid"),
        (["--model", "alexnet"], "takes reference, torchvision, timm:<name>, pytorch-fid, torch-"),
        (
            ["--model", "torch-fidelity", "--weights", "x.pth"],
            "--weights is for reference and torchvision, got --model torch-fidelity",
        ),
    ],
)
def test_networks_that_cannot_be_compared(options, message, cli_error):
    if options[1] == "timm:no_such":
        adapter_cases.module("timm")
    assert message in cli_error("compare", *SMALL, *options)


def test_a_package_of_the_adapters_is_not_installed(cli_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    error = cli_error("compare", *SMALL, "--model", "timm:inception_v3")
    assert "this needs timm: pip install fused_inception[adapters]" in error


# --------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
    ("dtype", "shift", "expected"),
    # Logits are around 5: float32's tolerance of 2e-5 is between the first two. float16 is held to
    # twice its own distance from float32.
    [("float32", 1e-6, 0), ("float32", 1e-3, 1), ("float16", 1e-3, 0), ("float16", 1.0, 1)],
)
def test_the_exit_code_is_the_verdict(cli_json, change_fused, dtype, shift, expected):
    change_fused(lambda fc: fc.bias.add_(shift))
    code, result = cli_json(*SMALL, ASTRONAUT, "--dtype", dtype)
    assert code == expected
    assert result["agreement"]["passed"] == (expected == 0)


def test_disagreement_is_shown(cli, change_fused):
    change_fused(lambda fc: fc.weight.mul_(-1))
    code, out, _ = cli("compare", *SMALL, ASTRONAUT)
    assert code == 1
    assert "THE NETWORKS DO NOT AGREE" in out
    assert "same order for 0 of 1 images" in out


def test_a_swap_in_the_top5_is_seen(cli_json, change_fused):
    _, before = cli_json(*SMALL, ASTRONAUT)
    top5 = before["images"][0]["top5"]["unfused"]

    def swap_first_two(fc):
        for parameter in (fc.weight, fc.bias):
            parameter[top5[:2]] = parameter[top5[1::-1]]

    change_fused(swap_first_two)
    _, after = cli_json(*SMALL, ASTRONAUT)
    (image,) = after["images"]
    assert image["top5"]["unfused"] == top5
    assert image["top5"]["fused"] == [top5[1], top5[0], *top5[2:]]
    assert image["same_set"]
    assert not image["same_order"]
    assert (after["agreement"]["top5_same_order"], after["agreement"]["top5_same_set"]) == (0, 1)


def test_logits_that_are_not_finite_do_not_agree(cli, cli_json, weights):
    arguments = [*SMALL, ASTRONAUT, "--weights", weights / "nan.pth"]
    code, result = cli_json(*arguments)
    assert code == 1
    assert result["agreement"]["error"] is None
    code, out, _ = cli("compare", *arguments)
    assert code == 1
    assert "not finite: unfused and fused" in out


def test_errors_are_what_they_are_called():
    logits, others = torch.tensor([[3.0, -4.0]]), torch.tensor([[3.0, -8.0]])
    errors = compare.Errors.between(logits, others)
    assert errors.max_relative == 4 / 8
    assert errors.relative_l2 == pytest.approx(4 / 73**0.5)
    assert compare.Errors.between(others * 0, others * 0).max_relative == 0
    assert compare.Errors.between(others, others * 0).max_relative == float("inf")


# ----------------------------------------------------------------------- options of `compare`


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_loaded(cli_json, weights, tmp_path, suffix):
    path = weights / "whole.pth"
    state = torch.load(path, weights_only=True)
    if suffix == ".safetensors":
        path = tmp_path / "whole.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state, path)
    code, result = cli_json(*SMALL, ASTRONAUT, "--weights", path)

    assert code == 0
    assert not result["random_weights"]
    assert result["settings"]["weights"] == str(path)
    model = inception_v3(num_classes=NUM_CLASSES, weights=state).eval()
    with torch.no_grad():
        logits = model(images.to_batch([images.load_photograph(ASTRONAUT, 75)]))
    assert result["images"][0]["top5"]["unfused"] == logits[0].topk(5).indices.tolist()


def test_every_image_is_compared_whatever_the_batch_size(cli_json):
    paths = [ASTRONAUT, CHELSEA, COFFEE]
    results = [
        cli_json(*SMALL, *paths, "--batch-size", batch_size)[1]["images"]
        for batch_size in (1, 2, 5)
    ]
    for result in results:
        assert [image["path"] for image in result] == paths
        assert [image["top5"] for image in result] == [image["top5"] for image in results[0]]


def test_images_may_stand_anywhere_among_the_options(cli_json):
    _, result = cli_json(ASTRONAUT, "--dtype", "float32", CHELSEA, *SMALL, COFFEE)
    assert [image["path"] for image in result["images"]] == [ASTRONAUT, CHELSEA, COFFEE]


def test_threads_are_set_and_put_back(cli_json):
    _, result = cli_json(*SMALL, ASTRONAUT, "--threads", "2")
    assert result["settings"]["threads"] == 2
    assert torch.get_num_threads() == 1


def test_the_run_leaves_no_trace(cli_json, monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    cli_json(*SMALL, ASTRONAUT)
    assert torch.equal(torch.get_rng_state(), state)
    assert "KINETO_LOG_LEVEL" not in os.environ


def test_runs_take_turns():
    calls = []

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, batch):
            calls.append(self.name)

    networks = {name: Recorder(name) for name in "ab"}
    times = compare._times(networks, torch.zeros(1), repeats=3)
    assert "".join(calls[-6:]) == "abbaab"
    assert len(calls) > 6, "no warm-up"
    assert [len(values) for values in times.values()] == [3, 3]


def test_peak_memory_is_that_of_what_is_alive_together():
    def call():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(2 << 20, dtype=torch.uint8)
        del first
        third = torch.empty(3 << 20, dtype=torch.uint8)  # the peak: second and third
        del second, third
        return torch.empty(4 << 20, dtype=torch.uint8)

    assert compare._cpu_peak(call) == 5 << 20


def test_random_weights_give_activations_of_a_realistic_scale():
    model = compare._build("reference", None)
    photographs = [images.load_photograph(path, 75) for path in (ASTRONAUT, CHELSEA)]
    compare._calibrate(model, photographs, torch.device("cpu"))
    assert not any(module.training for module in model.modules())
    peaks = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, i, output: peaks.append(output.abs().max()))
    with torch.no_grad():
        logits = model(images.to_batch(photographs))
    assert len(peaks) == 94
    assert min(peaks) > 0.1
    assert max(peaks) < 100
    assert 0.1 < logits.std() < 100


def test_json_goes_to_a_file_beside_the_tables(cli, tmp_path):
    path = tmp_path / "result.json"
    code, out, _ = cli("compare", *SMALL, ASTRONAUT, "--json", path)
    assert code == 0
    assert "The networks agree" in out
    assert json.loads(path.read_text())["agreement"]["passed"]


def test_plot_is_a_readable_chart(cli, tmp_path):
    path = tmp_path / "chart.png"
    code, _, err = cli("compare", *SMALL, ASTRONAUT, "--repeats", "3", "--plot", path)
    assert code == 0
    assert not err
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1200, 675)
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x8A, 0x8F, 0x98), (0x2A, 0x6F, 0xBB)} <= colors, "no bars"


def test_names_are_printed_as_they_are(cli, tmp_path, monkeypatch):
    # Markup to rich, an emoji code, and a character that the second encoding lacks.
    name = "[bold]:cat:\N{SNOWMAN}.png"
    monkeypatch.chdir(tmp_path)
    path = save(Path(name), Image.open(CHELSEA))
    code, out, _ = cli("compare", *SMALL, path)
    assert code == 0
    assert name in out

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["compare", *SMALL, path]) == 0
    stream.seek(0)
    assert r"\u2603" in stream.read()


# ------------------------------------------------------------------------------------ images


def assert_color(photograph, expected, tolerance=0):
    assert photograph.pixels.shape == (3, 75, 75)
    assert photograph.pixels.dtype == torch.uint8
    difference = photograph.pixels.int() - torch.tensor(expected).reshape(3, 1, 1)
    assert difference.abs().max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("RGB", (10, 200, 90), ".png", (10, 200, 90)),
        ("RGB", (10, 200, 90), ".jpg", (10, 200, 90)),
        ("RGB", (10, 200, 90), ".webp", (10, 200, 90)),
        ("RGBA", (10, 200, 90, 0), ".png", (10, 200, 90)),
        ("L", 77, ".png", (77, 77, 77)),
        ("LA", (77, 5), ".png", (77, 77, 77)),
        ("1", 1, ".png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), ".jpg", (255, 0, 0)),
        ("I;16", 20_000, ".png", (78, 78, 78)),  # 20000 / 257
        ("I;16", 20_000, ".tif", (78, 78, 78)),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_color_modes(tmp_path, mode, color, suffix, expected):
    path = save(tmp_path / f"image{suffix}", Image.new(mode, (90, 80), color))
    lossy = 6 if suffix in (".jpg", ".webp") else 0
    assert_color(images.load_photograph(path, 75), expected, lossy)


def test_palettes_with_transparency(tmp_path):
    image = Image.new("P", (90, 80), 1)
    image.putpalette([0, 0, 0, 10, 200, 90])
    path = save(tmp_path / "image.png", image, transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_color(images.load_photograph(path, 75), (10, 200, 90))


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float32", -0.5, 0.5), ("int32", -1000, 100_000)]
)
def test_deep_values_beyond_16_bits_are_stretched(tmp_path, dtype, low, high):
    values = np.full((100, 100), low, dtype)
    values[:, 50:] = high
    path = save(tmp_path / "image.tif", Image.fromarray(values))
    pixels = images.load_photograph(path, 75).pixels
    assert pixels[:, :, :30].max() == 0
    assert pixels[:, :, -30:].min() == 255


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (120, 90), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 60, 90))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left becomes the top
    photograph = images.load_photograph(save(tmp_path / "turned.png", image, exif=exif), 75)
    assert (photograph.width, photograph.height) == (90, 120)
    top, bottom = photograph.pixels[:, :30], photograph.pixels[:, -30:]
    assert top[0].min() > 200 > 50 > top[2].max()
    assert bottom[2].min() > 200 > 50 > bottom[0].max()


@pytest.mark.parametrize("size", [(600, 400), (301, 500), (120, 77), (342, 342)])
def test_preprocessing_is_torchvisions_preset(tmp_path, size):
    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    image = Image.open(COFFEE).resize(size)
    expected = Compose([Resize(342), CenterCrop(299), PILToTensor()])(image)
    photograph = images.load_photograph(save(tmp_path / "image.png", image), 299)
    assert torch.equal(photograph.pixels, expected)


def test_batches_are_normalized_to_one():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(3, 1, 1).expand(3, 75, 75)
    photograph = images.Photograph("", "", 75, 75, pixels)
    batch = images.to_batch([photograph, photograph])
    assert batch.shape == (2, 3, 75, 75)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[1, :, 7, 7].tolist() == pytest.approx([-1, 1, -0.6])


def test_strips_are_cut_before_they_are_resized(tmp_path, monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def record(image, size, *arguments):
        sizes.append(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", record)
    strip = Image.new("RGB", (60_000, 1), (255, 0, 0))
    strip.paste((10, 200, 90), (29_900, 0, 30_100, 1))
    path = save(tmp_path / "strip.png", strip)
    assert_color(images.load_photograph(path, 75), (10, 200, 90))
    assert sizes == [(4 * 86, 86)]


def test_large_images_pass_without_a_warning_and_larger_ones_are_refused(
    tmp_path, monkeypatch, cli_error
):
    path = save(tmp_path / "image.png", Image.new("RGB", (100, 100), (10, 200, 90)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # Pillow warns above, refuses twice that
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_color(images.load_photograph(path, 75), (10, 200, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    assert re.search("image '.*image.png' is too large: .*10000 pixels", cli_error("compare", path))


def test_postscript_is_not_run(tmp_path):
    path = save(tmp_path / "image.eps", Image.new("RGB", (90, 80)))
    with pytest.raises(CliError, match="not an image that Pillow can read"):
        images.load_photograph(path, 75)


# ------------------------------------------------------------------------------------ errors


def test_unreadable_images(cli_error, tmp_path):
    photograph = Path(CHELSEA).read_bytes()
    files = {
        "empty.png": (b"", "is not an image"),
        "text.jpg": (b"Not an image at all.\n" * 50, "is not an image"),
        "truncated.png": (photograph[: len(photograph) // 2], "is damaged or truncated"),
        "corrupt.png": (
            photograph[:20_000] + bytes(1_000) + photograph[21_000:],
            "is damaged or truncated",
        ),
    }
    jpeg = io.BytesIO()
    Image.open(CHELSEA).save(jpeg, "JPEG")
    files["truncated.jpg"] = (jpeg.getvalue()[:5_000], "is damaged or truncated")
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        # The second of two: a good one in front changes nothing.
        error = cli_error("compare", *SMALL, ASTRONAUT, tmp_path / name)
        assert re.search(f"image '.*{re.escape(name)}' {message}", error)
    assert re.search(
        "image '.*none.png' does not exist", cli_error("compare", tmp_path / "none.png")
    )
    assert re.search("image '.*' is a directory", cli_error("compare", tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "does not exist"),
        ("directory.pth", "is a directory"),
        ("truncated.pth", "cannot be read: it is damaged"),
        ("garbage.safetensors", "cannot be read: it is damaged"),
        ("short.pth", "does not fit InceptionV3.* missing.*Mixed_6c"),
        ("shape.pth", "does not fit InceptionV3.* shape.*Mixed_6b"),
        ("other.pth", "does not fit InceptionV3.* missing"),
    ],
)
def test_wrong_weights(cli_error, weights, name, message):
    error = cli_error("compare", *SMALL, ASTRONAUT, "--weights", weights / name)
    assert re.search(f"weights file '.*{re.escape(name)}' {message}", error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["cook"], "invalid choice: 'cook'"),
        (["info", "photo.png"], "unrecognized arguments: photo.png"),
        (["compare", "--bogus"], "unrecognized arguments: --bogus"),
        (["compare", "--batch-size", "0"], "--batch-size: takes an integer from 1 to .*, got '0'"),
        (["compare", "--batch-size", "two"], "--batch-size: takes an integer .*, got 'two'"),
        (["compare", "--repeats", "-1"], "--repeats: takes an integer from 1 to .*, got '-1'"),
        (["compare", "--threads", "0"], "--threads: takes an integer from 1 to .*, got '0'"),
        (["compare", "--image-size", "74"], "--image-size: takes an integer from 75 .*, got '74'"),
        (["compare", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (
            ["compare", "--model", "vgg"],
            "--model: takes reference, torchvision, .*, torch-fidelity, got 'vgg'",
        ),
        (["compare", "--device", "tpu"], "--device takes auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["compare", "--device", "cuda:999"], "--device cuda:999 cannot be used: "),
        # An image behind --json must not be written over.
        (["compare", "--json", "photo.jpg"], "--json: takes a path that ends in .json or -"),
        (["compare", "--plot", "chart.jpg"], "--plot: takes a path that ends in .png"),
        (["compare", "--plot", "no/such/folder/chart.png"], "there is no folder 'no/such/folder'"),
        (["info", "--json", "no/such/folder/a.json"], "there is no folder 'no/such/folder'"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(cli_error, arguments, message):
    assert re.search(message, cli_error(*arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(cli_error):
    error = cli_error("compare", "--device", "cuda")
    assert re.search("--device cuda cannot be used: (torch .* without CUDA|.+)", error)


def test_unwritable_results(cli, cli_error, tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    assert "is a directory" in cli_error("compare", "--plot", tmp_path / "folder.png")

    # What only shows after the work.
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    code, out, err = cli("compare", *SMALL, ASTRONAUT, "--plot", tmp_path / "chart.png")
    assert code == 2
    assert "The networks agree" in out
    assert re.fullmatch(
        "error: --plot '.*chart.png' cannot be written: No space left on device\n", err
    )


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_a_missing_extra_is_named(cli_error, monkeypatch, weights, module):
    loaded = [name for name in sys.modules if name.startswith("fused_inception.cli.")]
    for name in loaded:
        if not name.endswith(".main"):
            monkeypatch.delitem(sys.modules, name)
    # Importing what is None here fails as if it were not installed.
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    arguments = ["compare", *SMALL]
    if module == "matplotlib":
        arguments += ["--plot", "chart.png"]
    if module == "safetensors":
        arguments += ["--weights", weights / "garbage.safetensors"]
    error = cli_error(*arguments)
    assert f"needs {EXTRAS[module]}: pip install fused_inception[cli]" in error


def test_torchvision_is_not_installed(cli_error, monkeypatch):
    def refuse():
        raise ImportError("torchvision is not installed", name="torchvision")

    monkeypatch.setattr(compare, "import_torchvision", refuse)
    assert "torchvision is not installed" in cli_error("compare", *SMALL, "--model", "torchvision")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"), "out of memory; "),
        (MemoryError(), "out of memory; take a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; "),
        (RuntimeError("\"conv\" not implemented for 'Half'"), "float32 cannot run on cpu: "),
    ],
    ids=["cuda", "python", "cpu", "dtype"],
)
def test_what_the_device_cannot_do(cli_error, monkeypatch, error, message):
    def forward(model, batch):
        raise error

    monkeypatch.setattr(compare.nn.Module, "__call__", forward)
    monkeypatch.setattr(compare, "_calibrate", lambda *arguments: None)
    assert message in cli_error("compare", *SMALL, ASTRONAUT)


def test_defects_keep_their_traceback(monkeypatch):
    def fail(args):
        raise RuntimeError("a defect")

    monkeypatch.setattr(compare, "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["compare"])


def test_an_interrupt_is_reported_as_one(cli, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run", interrupt)
    code, out, err = cli("compare")
    assert (code, out, err) == (130, "", "interrupted\n")


# ---------------------------------------------------------------------------- the other jobs


def test_version_and_help(cli):
    assert cli("--version") == (0, f"fused_inception {__version__}\n", "")
    code, out, _ = cli("--help")
    assert code == 0
    assert "compare" in out
    assert "info" in out
    code, out, _ = cli("compare", "--help")
    assert code == 0
    for text in ("342/299", "mean\n  0.5", "2e-5", "1e-12", "--weights", "--plot"):
        assert text in out


def test_info(cli):
    code, out, err = cli("info")
    assert code == 0
    assert not err
    for text in (__version__, torch.__version__, "triton", "cudnn", "aten", "CUDA extension"):
        assert text in out


def test_info_as_json(cli, tmp_path):
    code, out, err = cli("info", "--json")
    assert code == 0
    assert not err
    result = json.loads(out)
    assert set(result) == {"versions", "devices", "backends", "extension"}
    assert result["versions"]["fused_inception"] == __version__
    assert result["backends"]["aten"] == "available"
    assert set(result["backends"]) == {"aten", "triton", "cuda"}
    assert result["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert bool(result["devices"]["gpus"]) == (result["devices"]["no_gpu_because"] is None)
    assert "loaded" in result["extension"]

    cli("info", "--json", tmp_path / "info.json")
    assert json.loads((tmp_path / "info.json").read_text()) == result


def run_process(code, **options):
    return subprocess.run(
        [sys.executable, *code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=120,
        **options,
    )


def test_the_package_runs_as_a_module():
    process = run_process(["-m", "fused_inception", "info"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert __version__ in process.stdout


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_leaves_is_no_error(options):
    reader, writer = os.pipe()
    os.close(reader)
    process = run_process(
        ["-m", "fused_inception", "info", *options],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert process.returncode == 141
    assert process.stderr == ""


def test_the_package_imports_without_the_extra():
    program = f"""
import sys
for name in {list(EXTRAS)}:
    sys.modules[name] = None
import fused_inception
import fused_inception.fuse
import fused_inception.models
from fused_inception.cli import main
sys.exit(main(["--version"]) or main(["info", "--json"]))
"""
    process = run_process(["-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"fused_inception {__version__}\n{{")
