"""What must be reached, as a table that a machine can read, and how a result stands to it."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("targets.json")


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        name: what it is about.
        device: "cuda" or "cpu".
        op: of the rows it is about.
        shapes: a pattern of their shapes.
        dtype: theirs.
        batches: theirs; each must be there.
        metric: what is looked at, see `value_of`.
        at_least: the least that meets it, or None.
        at_most: the most that meets it, or None.
    """

    name: str
    device: str
    op: str
    shapes: str
    dtype: str
    batches: tuple[int, ...]
    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def covers(self, op: str, shape: str, batch: int, dtype: str) -> bool:
        """Whether a row is one of those that this is about."""
        return (
            op == self.op
            and batch in self.batches
            and dtype == self.dtype
            and re.search(self.shapes, shape) is not None
        )

    def limit(self) -> str:
        """The limit in words."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Standing:
    """How a result stands to a target.

    Attributes:
        target: the target.
        state: "met", "missed" or "not measured".
        worst: the worst value among the rows, or None.
        label: the row that it comes from, or why there is none.
    """

    target: Target
    state: str
    worst: float | None
    label: str

    def __str__(self) -> str:
        line = f"{self.state:<12}  {self.target.name}: {self.target.limit()}"
        if self.worst is None:
            return f"{line} ({self.label})"
        text = f"{line}, is {self.worst:.3g}"
        if self.state == "missed":
            limit = (
                self.target.at_least if self.target.at_least is not None else self.target.at_most
            )
            assert limit is not None
            text += f", {abs(self.worst / limit - 1):.0%} off"
        return f"{text} ({self.label})"


@functools.cache
def table() -> tuple[Target, ...]:
    """All targets."""
    data = json.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(Target(**{**row, "batches": tuple(row["batches"])}) for row in data["targets"])


def asks_for(op: str, shape: str, batch: int, dtype: str) -> bool:
    """Whether a target that compares with the best peer is set for a row."""
    return any(
        target.metric in ("ratio", "ratio_p3") and target.covers(op, shape, batch, dtype)
        for target in table()
    )


def value_of(metric: str, row: dict[str, Any]) -> float | None:
    """What a row has of a metric; None where it was not measured."""
    derived = row.get("derived", {})
    if metric == "ratio" and derived.get("ratio") is not None:
        # Without the compiler the best peer is not known.
        return derived["ratio"] if "P3" in row["times"] else None
    if metric in ("milliseconds", "images_per_second"):
        modes = row["times"].get(row["ours"], {})
        times = [kinds["rotated"]["median_us"] for kinds in modes.values() if "rotated" in kinds]
        if not times:
            return None
        return min(times) / 1e3 if metric == "milliseconds" else row["batch"] / min(times) * 1e6
    if metric == "memory_ratio":
        memory = row.get("memory")
        return None if memory is None else memory[row["ours"]] / memory["P1"]
    return derived.get(metric)


def standings(document: dict[str, Any]) -> list[Standing]:
    """How a result stands to every target that is set for its kind of device."""
    found = []
    for target in table():
        if target.device != document["device"]["kind"]:
            continue
        rows = [
            row
            for row in document["rows"]
            if target.covers(row["op"], row["shape"], row["batch"], row["dtype"])
        ]
        failed = [row for row in rows if row["status"] != "ok"]
        values = [
            (value, row["label"])
            for row in rows
            if row["status"] == "ok" and (value := value_of(target.metric, row)) is not None
        ]
        missing = set(target.batches) - {row["batch"] for row in rows}
        if failed:
            found.append(Standing(target, "missed", None, f"{failed[0]['label']} failed"))
        elif missing or len(values) < len(rows) or not rows:
            why = f"no row of batch {min(missing)}" if missing else f"{target.metric} is missing"
            found.append(Standing(target, "not measured", None, why))
        elif target.at_least is not None:
            worst, label = min(values)
            met = worst >= target.at_least
            found.append(Standing(target, "met" if met else "missed", worst, label))
        else:
            assert target.at_most is not None
            worst, label = max(values)
            met = worst <= target.at_most
            found.append(Standing(target, "met" if met else "missed", worst, label))
    return found
