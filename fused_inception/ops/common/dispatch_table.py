"""Which backend serves which op: one table per device class, `configs/<class>.json`.

An entry names an op, sizes of one image, dtypes, the backends in order of preference, and the K
block that orders the sums of each; the first entry that fits decides. Backends that it does not
name follow in the op's own order. `measured` is the result file that an entry rests on, or null
where it is a hand-made default, which `why` gives the reason for. `needs`, where it is there, is
what has to be so for the entry to be looked at: "wgmma", the extension's kernels on it.

A size is a field of the op's `Problem`: a number, a list for a pair of them, or `{"min": ...,
"max": ...}`. The batch is none: an image gets the same bits whatever is around it. Tiles, clusters
and grids may follow the batch, and are the launchers' business.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from . import cuda_launching
from .configurations import Tile, device_class, device_table

FORBIDDEN = ("batch", "dtype", "device")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        op: its name.
        shape: field of its `Problem` -> (least, most); pairs are compared as they are.
        dtypes: of the input.
        block_k: backend -> the K block that it has to use, or None where the op's own table of
            tiles, which looks at channels and filters, decides; in order of preference.
        measured: the result file, relative to the repository.
        why: the reason.
        needs: "wgmma", or None.
    """

    op: str
    shape: Mapping[str, tuple[Any, Any]]
    dtypes: tuple[torch.dtype, ...]
    block_k: Mapping[str, int | None]
    measured: str | None
    why: str
    needs: str | None = None

    def fits(self, op: str, problem: Any) -> bool:
        """Whether the entry is for `problem`."""
        return (
            op == self.op
            and problem.dtype in self.dtypes
            and all(
                least <= getattr(problem, field) <= most
                for field, (least, most) in self.shape.items()
            )
        )


def parse(data: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The entries of a table as JSON has it.

    Raises:
        ValueError: an entry looks at what it must not look at.
    """
    entries = []
    for row in data["entries"]:
        shape: dict[str, tuple[Any, Any]] = {}
        for field, size in row["shape"].items():
            if field in FORBIDDEN:
                raise ValueError(f"an entry for {row['op']} must not look at {field}")
            if isinstance(size, Mapping):
                shape[field] = (size.get("min", 0), size.get("max", float("inf")))
            else:
                exact = tuple(size) if isinstance(size, list) else size
                shape[field] = (exact, exact)
        entries.append(
            Entry(
                row["op"],
                shape,
                tuple(DTYPES[name] for name in row["dtypes"]),
                {backend["name"]: backend["block_k"] for backend in row["backends"]},
                row["measured"],
                row["why"],
                row.get("needs"),
            )
        )
    return tuple(entries)


@functools.cache
def load(name: str) -> tuple[Entry, ...]:
    """The table of one device class."""
    source = resources.files("fused_inception.ops.common") / "configs" / f"{name}.json"
    return parse(json.loads(source.read_text()))


@functools.lru_cache(maxsize=4096)
def entry(op: str, problem: Any) -> Entry | None:
    """The entry for one call, or None where the op's own order and tiles decide."""
    device = problem.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    table = load(device_class(capability))
    met: set[str | None] = {None}
    if device.type == "cuda" and cuda_launching.sm90_refusal(device) is None:
        met.add("wgmma")
    return next((e for e in table if e.needs in met and e.fits(op, problem)), None)


def order(op: str, problem: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, the preferred ones first."""
    found = entry(op, problem)
    first = () if found is None else tuple(name for name in found.block_k if name in names)
    return first + tuple(name for name in names if name not in first)


def tiles(op: str, problem: Any, precision: str) -> tuple[Tile, ...]:
    """The Triton tiles of `op` with the K block that the table asks for."""
    every = device_table(op, problem.device).tiles[precision]
    found = entry(op, problem)
    block_k = None if found is None else found.block_k.get("triton")
    return tuple(tile for tile in every if block_k in (None, tile.block_k))
