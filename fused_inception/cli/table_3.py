"""The multiply-adds of the paper's table 3: where a network has its own, and what would give them.

The text of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015, arXiv
1512.00567) leaves the widths inside the modules to a file that came with it. Its table 1 fixes the
grids, the layers in front of the modules and the channels between them. From that follows how wide
the factorized pairs at 17×17 would have to be for the figures of table 3, everything else as in
Inception V3; with no other width given, that is as far as arithmetic goes.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_inception.analysis import Analysis, Cost, analyze
from fused_inception.models import (
    AsymmetricFactors,
    AsymmetricInception,
    InceptionA,
    InceptionAux,
    SymmetricInception,
    inception_v2,
    inception_v3,
)
from fused_inception.models.inception_v3 import InceptionNetwork

NETWORKS: dict[str, Callable[..., InceptionNetwork]] = {
    "inception_v2, 7×7 first": partial(inception_v2, stem="7x7"),
    "inception_v2": inception_v2,
    "inception_v3": inception_v3,
}
# Billions of multiply-adds before and after the step "factorized 7×7".
BEFORE, AFTER = 3.8, 4.8

GRIDS = ("in front", "35×35", "35 → 17", "17×17", "17 → 8", "8×8", "classifier")
_FIRST = ("Conv2d_1a", "Conv2d_2a", "Conv2d_2b")
# Inception V3's widest pair is 192 wide.
_WIDTHS = range(16, 257)


class Counter:
    """Counts modules made on the meta device.

    Args:
        batch: images.
        dtype: of activations and weights.
    """

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.batch = batch
        self._dtype = dtype
        self.network = cache(self._network)

    def analysis(self, make: Callable[[], nn.Module], channels: int, grid: int) -> Analysis:
        """What a module takes on a square grid, in evaluation."""
        with torch.device("meta"):
            module = make().to(self._dtype).eval()
            return analyze(module, torch.empty(self.batch, channels, grid, grid, dtype=self._dtype))

    def __call__(self, make: Callable[[], nn.Module], channels: int, grid: int) -> Cost:
        """The cost of a module as the only block of a sequence: fused as a whole."""
        return self.analysis(lambda: nn.Sequential(make()), channels, grid).total

    def _network(self, name: str, image_size: int) -> Analysis:
        make = partial(NETWORKS[name], init_weights=False, aux_logits=0, image_size=image_size)
        return self.analysis(make, 3, image_size)


def grids(count: Counter) -> list[dict[str, Any]]:
    """Multiply-accumulates of each network by the grid of their modules, for 299×299."""
    return [{"name": name, "macs": _by_grid(count.network(name, 299).blocks)} for name in NETWORKS]


def _by_grid(blocks: Mapping[str, Cost]) -> dict[str, int]:
    places = {"Mixed_5": "35×35", "Mixed_6a": "35 → 17", "Mixed_7a": "17 → 8", "fc": "classifier"}
    places |= {"Mixed_6": "17×17", "Mixed_7": "8×8", "": "in front"}
    found = dict.fromkeys(GRIDS, 0)
    for name, cost in blocks.items():
        found[next(place for start, place in places.items() if name.startswith(start))] += cost.macs
    return found


class _Pieces(NamedTuple):
    # Multiply-accumulates of one image, from which networks are put together.
    v3: dict[str, int]
    v2: dict[str, int]
    last_in_front: int
    first: int  # three 3×3
    first_whole: int  # a 7×7
    kept_5x5: int  # what V3's 5×5 costs more than figure 5's 3×3, in one module
    pair: Callable[[int], int]  # n → what 1×n and n×1 cost in InceptionD
    module_17: Callable[[int, int], int]  # (width, n) → a module of figure 6


def _pieces(count: Counter) -> _Pieces:
    def macs(make: Callable[[], nn.Module], channels: int, grid: int) -> int:
        return count(make, channels, grid).macs // count.batch

    def per_image(name: str) -> dict[str, int]:
        blocks = count.network(name, 299).blocks
        return {grid: cost // count.batch for grid, cost in _by_grid(blocks).items()}

    def layer(network: str, *starts: str) -> int:
        blocks = count.network(network, 299).blocks
        found = sum(cost.macs for name, cost in blocks.items() if name.startswith(starts))
        return found // count.batch

    @cache
    def pair(n: int) -> int:
        factors = partial(AsymmetricFactors, 192, 192, n, nn.Conv2d, nn.Conv2d)
        return macs(factors, 192, 17)

    @cache
    def polynomial(n: int) -> tuple[int, int, int]:
        # A module's cost is quadratic in the width of its pairs: three widths give it whole.
        one, two, three = (
            macs(partial(AsymmetricInception, 768, m, n), 768, 17) for m in (1, 2, 3)
        )
        square = (three - 2 * two + one) // 2
        linear = two - one - 3 * square
        return one - linear - square, linear, square

    def module_17(width: int, n: int) -> int:
        constant, linear, square = polynomial(n)
        return constant + linear * width + square * width * width

    a, symmetric = (
        macs(partial(module, 288, 64), 288, 35) for module in (InceptionA, SymmetricInception)
    )
    return _Pieces(
        per_image("inception_v3"),
        per_image("inception_v2"),
        layer("inception_v2", "Conv2d_4b"),
        layer("inception_v2", *_FIRST),
        layer("inception_v2, 7×7 first", *_FIRST),
        a - symmetric,
        pair,
        module_17,
    )


def differences(count: Counter) -> list[dict[str, Any]]:
    """What lies between the networks, step by step, and what else would change Inception V3.

    Args:
        count: the counter.

    Returns:
        A row for each change: "what", "macs" by which it changes the count, "total" behind it. Rows
        of which "alone" is true start from Inception V3, the others from the row above.
    """
    p = _pieces(count)
    v3 = sum(p.v3.values())
    rows: list[dict[str, Any]] = [{"what": "inception_v3", "macs": 0, "total": v3, "alone": False}]

    def step(what: str, macs: int) -> None:
        rows.append({"what": what, "macs": macs, "total": rows[-1]["total"] + macs, "alone": False})

    step(
        "table 1's 3×3 of 64 to 80 channels and 3×3/2 of 80 to 192 for V3's 1×1, 3×3 and pool",
        p.v2["in front"] - p.last_in_front - p.v3["in front"],
    )
    step(
        "table 1's 3×3 of 192 to 288 channels, and 288 into all modules at 35×35",
        p.last_in_front + p.v2["35×35"] + 3 * p.kept_5x5 - p.v3["35×35"],
    )
    step("figure 5 at 35×35 for V3's modules with a 5×5", -3 * p.kept_5x5)
    step("table 1's fifth module at 17×17: inception_v2", p.v2["17×17"] - p.v3["17×17"])
    step("one 7×7 for the three 3×3: inception_v2, 7×7 first", p.first_whole - p.first)

    def alone(what: str, total: int) -> None:
        rows.append({"what": what, "macs": total - v3, "total": total, "alone": True})

    def with_17(widths: tuple[int, ...], n: int) -> int:
        modules = sum(p.module_17(width, n) for width in widths)
        return v3 - p.v3["17×17"] + modules + p.pair(n) - p.pair(7)

    alone("all pairs 128 wide at 17×17", with_17((128,) * 4, 7))
    alone("1×3 and 3×1 for all 1×7 and 7×1", with_17((128, 160, 160, 192), 3))
    alone("without the products with padding", _products_inside(NETWORKS["inception_v3"], 299))
    smaller = count.analysis(
        lambda: inception_v3(init_weights=False, aux_logits=0), 3, 224
    ).total.macs
    alone("images of 224×224, as GoogLeNet's and BN-Inception's are", smaller // count.batch)
    head = count(partial(InceptionAux, 768, 1000), 768, 17).macs // count.batch
    alone("with an auxiliary head", v3 + head)
    alone("without the classifier", v3 - p.v3["classifier"])
    return rows


def _products_inside(make: Callable[..., InceptionNetwork], image_size: int) -> int:
    # Multiply-accumulates of one image without those that multiply a zero of the padding.
    total = 0

    def inside(size: int, taps: int, stride: int, padding: int) -> int:
        places = range(-padding, size + padding - taps + 1, stride)
        return sum(min(at + taps, size) - max(at, 0) for at in places)

    def add(conv: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        kept = conv.in_channels * conv.out_channels
        for axis, size in enumerate(args[0].shape[2:]):
            padding = conv.padding[axis]
            assert isinstance(padding, int)
            kept *= inside(size, conv.kernel_size[axis], conv.stride[axis], padding)
        total += kept

    with torch.device("meta"), torch.no_grad():
        model = make(init_weights=False, aux_logits=0, image_size=image_size).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        model(torch.empty(1, 3, image_size, image_size))
    return total + model.fc.in_features * model.fc.out_features


def widths(count: Counter) -> list[dict[str, Any]]:
    """The widths of all pairs at 17×17 at which a network has the multiply-adds of table 3.

    Args:
        count: the counter.

    Returns:
        A row for each choice of what the paper leaves open: "front", "grid_35", "modules_17";
        "after", for the network with the factorized 7×7; "before_front", for the one without, where
        the factorization is that of the first layer; "before_all", where it is that of the modules
        too, with 1×3 and 3×1 before; "both_front" and "both_all", for the two at once. Each is the
        smallest and the largest width in steps of one channel, or None.
    """
    p = _pieces(count)
    fronts = {
        "V3": (p.v3["in front"], p.v3["35×35"]),
        "table 1 without its last": (p.v2["in front"] - p.last_in_front, p.v3["35×35"]),
        "table 1": (p.v2["in front"], p.v2["35×35"] + 3 * p.kept_5x5),
    }
    same = sum(p.v3[grid] for grid in ("35 → 17", "17 → 8", "8×8", "classifier"))
    rows = []
    for front, (in_front, grid_35) in fronts.items():
        for kept, modules_35 in (("5×5", 0), ("figure 5", -3 * p.kept_5x5)):
            for modules in (4, 5):

                def total(
                    width: int,
                    n: int,
                    fixed: int = same + in_front + grid_35 + modules_35,
                    modules: int = modules,
                ) -> int:
                    return fixed + modules * p.module_17(width, n) + p.pair(n) - p.pair(7)

                whole = p.first_whole - p.first
                after = [m for m in _WIDTHS if _is(total(m, 7), AFTER)]
                before = [m for m in _WIDTHS if _is(total(m, 7) + whole, BEFORE)]
                before_all = [m for m in _WIDTHS if _is(total(m, 3) + whole, BEFORE)]
                rows.append(
                    {
                        "front": front,
                        "grid_35": kept,
                        "modules_17": modules,
                        "after": _ends(after),
                        "before_front": _ends(before),
                        "before_all": _ends(before_all),
                        "both_front": _ends(sorted({*after} & {*before})),
                        "both_all": _ends(sorted({*after} & {*before_all})),
                    }
                )
    return rows


def _is(macs: int, billions: float) -> bool:
    # As far as a figure with one digit behind the point says.
    return abs(macs / 1e9 - billions) < 0.05


def _ends(values: list[int]) -> list[int] | None:
    return [values[0], values[-1]] if values else None
