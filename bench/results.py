"""Results as documents: their form, their files, and what can be read from them.

A document is what JSON holds:

    schema      the version of this form, 1
    device      name, kind ("cpu" or "cuda") and sizes
    code        commit, whether the checkout was dirty, digest of the sources
    versions    of everything results depend on
    peers       what P0 to P4 are
    sessions    one for each run that added rows: date, command, ceilings, clocks before and after
    attempts    how often a row was begun, by its label
    rows        one for each case: see `row_times` and docs/benchmarks.md

Rows of several documents of one device, code and versions can be merged into one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.environment import BenchError
from bench.peers import DESCRIPTIONS, RANKED

SCHEMA = 1
_IDENTITY = ("device", "code", "versions")

Document = dict[str, Any]
Row = dict[str, Any]


def new_document(identity: dict[str, Any]) -> Document:
    """A document without rows."""
    return {
        "schema": SCHEMA,
        **identity,
        "peers": DESCRIPTIONS,
        "sessions": [],
        "attempts": {},
        "rows": [],
    }


def load(path: Path) -> Document:
    """A document from its file.

    Raises:
        BenchError: it is not there, not readable, or of another form.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{path}: is not JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BenchError(f"{path}: is of schema {schema}, this reads schema {SCHEMA}")
    return document


def save(document: Document, path: Path) -> None:
    """Write a document, and beside it the table of its times as CSV; both at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    for target, content in ((path, text), (path.with_suffix(".csv"), to_csv(document))):
        partial = target.with_name(target.name + ".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, target)


def differences(one: Document, other: Document) -> list[str]:
    """In what two documents differ so that they cannot be parts of one."""
    found = []
    for section in _IDENTITY:
        for key in sorted(one[section].keys() | other[section].keys()):
            # A copy without history has the same sources and no commit.
            if key in ("commit", "dirty"):
                continue
            values = one[section].get(key), other[section].get(key)
            if values[0] != values[1]:
                found.append(f"{section} {key}: {values[0]} and {values[1]}")
    return found


def merge(documents: Sequence[Document]) -> Document:
    """One document from parts; of a case that several hold, the last one's row.

    Raises:
        BenchError: the parts are of different devices, code or versions, or there are none.
    """
    if not documents:
        raise BenchError("nothing to merge")
    merged = new_document({section: documents[0][section] for section in _IDENTITY})
    rows: dict[str, Row] = {}
    for document in documents:
        found = differences(documents[0], document)
        if found:
            raise BenchError(f"these are not parts of one result: {'; '.join(found)}")
        if merged["code"]["commit"] is None:
            merged["code"] = document["code"]
        offset = len(merged["sessions"])
        merged["sessions"] += document["sessions"]
        for row in document["rows"]:
            rows[row["label"]] = {**row, "session": row["session"] + offset}
    merged["rows"] = list(rows.values())
    return merged


def summarize(samples: Sequence[float], unit: str = "_us") -> dict[str, Any]:
    """Median, 20th and 80th percentile of some samples, and how many there were."""
    if len(samples) == 1:
        low = high = samples[0]
    else:
        cuts = statistics.quantiles(samples, n=5, method="inclusive")
        low, high = cuts[0], cuts[-1]
    return {
        f"median{unit}": statistics.median(samples),
        f"p20{unit}": low,
        f"p80{unit}": high,
        "samples": len(samples),
    }


def fastest_mode(row: Row, variant: str, inputs: str = "rotated") -> str | None:
    """The mode with the least median of a variant, or None where it was not timed."""
    modes = {
        mode: by_inputs[inputs]["median_us"]
        for mode, by_inputs in row["times"].get(variant, {}).items()
        if inputs in by_inputs
    }
    return min(modes, key=lambda mode: modes[mode], default=None)


def time_of(row: Row, variant: str, inputs: str = "rotated", mode: str | None = None) -> Any:
    """The summary of one variant: that of `mode`, by default of its fastest mode; or None."""
    chosen = mode or fastest_mode(row, variant, inputs)
    return row["times"].get(variant, {}).get(chosen, {}).get(inputs)


def median_us(row: Row, variant: str, inputs: str = "rotated", mode: str | None = None) -> Any:
    """The median in microseconds, or None."""
    summary = time_of(row, variant, inputs, mode)
    return None if summary is None else summary["median_us"]


def best_peer(row: Row, inputs: str = "rotated") -> str | None:
    """The fastest of P1 to P4."""
    timed = {peer: median_us(row, peer, inputs) for peer in RANKED}
    known = {peer: time for peer, time in timed.items() if time is not None}
    return min(known, key=lambda peer: known[peer], default=None)


def derive(row: Row, ceilings: dict[str, float] | None) -> dict[str, Any]:
    """What follows from the times of a row: ratios, rates and the share of the roofline."""
    ours, ratios = row["ours"], row["ratios"]
    if row["op"] == "overhead":
        calls = (median_us(row, name, "same", "eager") for name in (ours, "P1"))
        return {"best_peer": None, "ratio": None, "overhead_us": next(calls) - next(calls)}
    derived: dict[str, Any] = {}
    for suffix, inputs in (("", "rotated"), ("_same", "same")):
        peer = best_peer(row, inputs)
        derived[f"best_peer{suffix}"] = peer
        summary = ratios.get(peer, {}).get(inputs, {})
        derived |= {
            f"ratio{suffix}": summary.get("median"),
            f"ratio{suffix}_p20": summary.get("p20"),
            f"ratio{suffix}_p80": summary.get("p80"),
        }
    derived["ratio_p1"] = ratios.get("P1", {}).get("rotated", {}).get("median")
    derived["ratio_p3"] = ratios.get("P3", {}).get("rotated", {}).get("median")
    eager = median_us(row, ours, mode="eager"), median_us(row, "P1", mode="eager")
    derived["ratio_p1_eager"] = None if None in eager else eager[1] / eager[0]
    if ceilings is None or row.get("work") is None:
        return derived
    seconds = median_us(row, ours) / 1e6
    flops, moved = 2 * row["work"]["macs"], row["work"]["fused_bytes"]
    rate = ceilings[f"{row['dtype']}_flops"]
    floor = sum(
        max(2 * macs / rate, bytes_ / ceilings["copy_bytes"])
        for macs, bytes_ in row["work"]["blocks"]
    )
    return derived | {
        "tflops": flops / seconds / 1e12,
        "gbs": moved / seconds / 1e9,
        "roofline_percent": 100 * floor / seconds,
        "matrix_percent": 100 * flops / seconds / rate,
    }


_CSV_COLUMNS = (
    "op", "shape", "batch", "dtype", "status", "ours", "variant", "mode", "inputs", "median_us",
    "p20_us", "p80_us", "samples", "best_peer", "ratio", "ratio_p20", "ratio_p80", "tflops", "gbs",
    "roofline_percent",
)  # fmt: skip


def to_csv(document: Document) -> str:
    """A line for each row, variant, mode and kind of input; one for a row without times."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in document["rows"]:
        plain = {**row, **row.get("derived", {})}
        lines = [
            {**plain, "variant": variant, "mode": mode, "inputs": inputs, **summary}
            for variant, modes in row.get("times", {}).items()
            for mode, kinds in modes.items()
            for inputs, summary in kinds.items()
        ]
        writer.writerows(lines or [plain])
    return buffer.getvalue()


def timed_rows(document: Document, op: str | None = None) -> list[Row]:
    """The rows that passed their gate and were timed."""
    return [row for row in document["rows"] if row["status"] == "ok" and op in (None, row["op"])]


def ceilings_of(document: Document, row: Row) -> dict[str, float] | None:
    """The ceilings measured in the session that made a row."""
    ceilings: dict[str, float] | None = document["sessions"][row["session"]]["ceilings"]
    return ceilings


def compare(old: Document, new: Document) -> list[dict[str, Any]]:
    """For each case that both hold: how our time has changed, and whether beyond the noise.

    A change counts where the medians are more than 2 % apart, and the ranges from the 20th to the
    80th percentile do not touch: those of the times, and those of the ratios to P1, which was timed
    in the same rounds. `drift` is how P1 itself changed, which is the machine's doing.

    Raises:
        BenchError: the documents are of different devices, or share no case.
    """
    names = old["device"]["name"], new["device"]["name"]
    if names[0] != names[1]:
        raise BenchError(f"different devices cannot be compared: {names[0]} and {names[1]}")
    before = {row["label"]: row for row in timed_rows(old)}
    found = []
    for row in timed_rows(new):
        if row["label"] not in before:
            continue
        earlier = before[row["label"]]
        one, two = time_of(earlier, earlier["ours"]), time_of(row, row["ours"])
        apart = _apart(one, two, "_us") and _apart(
            *(r["ratios"].get("P1", {}).get("rotated") for r in (earlier, row)), ""
        )
        change = two["median_us"] / one["median_us"]
        verdict = "within the noise"
        if apart and abs(change - 1) > 0.02:
            verdict = "faster" if change < 1 else "slower"
        peers = median_us(earlier, "P1"), median_us(row, "P1")
        found.append(
            {
                "label": row["label"],
                "old_us": one["median_us"],
                "new_us": two["median_us"],
                "change": change,
                "drift": None if None in peers else peers[1] / peers[0],
                "verdict": verdict,
            }
        )
    if not found:
        raise BenchError("the two results share no timed case")
    return found


def _apart(one: Any, two: Any, unit: str) -> bool:
    """Whether two summaries do not touch; true where there is nothing to touch."""
    if one is None or two is None:
        return True
    low, high = f"p20{unit}", f"p80{unit}"
    return one[low] > two[high] or two[low] > one[high]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
