"""The results sections of README.md and docs/adapters.md, made from the result files they name.

    python -m bench.readme --check               does the section agree with its file?
    python -m bench.readme --write [FILE.json]   write it anew, from another file if one is given

With `--page docs/adapters.md` that of the networks of other packages, else that of the README.

Of a result from a CPU only ratios are shown.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import results, targets
from bench.environment import ROOT, BenchError
from bench.results import Document, Row

README = ROOT / "README.md"
ADAPTERS = ROOT / "docs" / "adapters.md"
_SEVERAL = " Of several shapes: the geometric mean, and the range."
_BEGIN = "<!-- results: {} -->"
_END = "<!-- end of results -->"
_SECTION = re.compile(r"<!-- results: (\S+) -->\n(.*?)<!-- end of results -->", re.S)


def section(document: Document, source: str) -> str:
    """The section for a result.

    Args:
        document: the result.
        source: its path, as a reader of the README follows it.
    """
    on_gpu = document["device"]["kind"] == "cuda"
    lines = [] if on_gpu else [
        "**On a GPU nothing has been measured yet.** `make gpu` measures it where there is one.",
        "",
        "What has been measured is a CPU, where `fused_inception` runs on PyTorch's own "
        "convolutions: ratios above 1 mean that it is faster.",
        "",
    ]  # fmt: skip
    lines += _gpu_table(document) if on_gpu else _cpu_table(document)
    lines += ["", _provenance(document, source, "docs/benchmarks.md")]
    if on_gpu:
        lines += ["", *_targets(document)]
    return "\n".join(lines) + "\n"


def adapters_section(document: Document, source: str) -> str:
    """The section of docs/adapters.md for a result of the suite "adapters".

    Args:
        document: the result.
        source: its path from the root of the repository.
    """
    rows = sorted(results.timed_rows(document), key=lambda row: row["batch"])
    order = list(dict.fromkeys(row["op"] for row in rows))
    rows.sort(key=lambda row: order.index(row["op"]))
    lines = _table(
        ("network", "images", "over the package's own", "over that with BatchNorm folded"),
        [
            (f"`{row['op']}`", str(row["batch"]), _over_p0([row]), _over([row], "ratio_p1"))
            for row in rows
        ],
    )
    lines += ["", _provenance(document, f"../{source}", "benchmarks.md")]
    return "\n".join(lines) + "\n"


def _groups(document: Document, dtype: str) -> dict[tuple[str, int], list[Row]]:
    """(op, batch) -> its rows, the network first."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in results.timed_rows(document):
        if row["op"] != "overhead" and row["dtype"] == dtype:
            found.setdefault((row["op"], row["batch"]), []).append(row)
    order = list(dict.fromkeys(op for op, _ in found))
    order.sort(key=lambda op: op != "network")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def _name(op: str, rows: Sequence[Row]) -> str:
    if op == "network":
        return f"Inception V3, {rows[0]['shape'].replace('x', '×')}"
    return f"`{op}`, {len(rows)} shape{'s' if len(rows) > 1 else ''}"


def _over(rows: Sequence[Row], key: str, *, complete: bool = True) -> str:
    """The geometric mean of a ratio, and its range where there are several."""
    values = [row["derived"][key] for row in rows if row["derived"].get(key) is not None]
    if not values or (complete and len(values) < len(rows)):
        return "–"
    return _mean_and_range(values)


def _over_p0(rows: Sequence[Row]) -> str:
    """The same over what is published, of the medians."""
    times = [(results.median_us(row, "P0"), results.median_us(row, row["ours"])) for row in rows]
    if any(theirs is None for theirs, _ in times):
        return "–"
    return _mean_and_range([theirs / ours for theirs, ours in times])


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{results.geometric_mean(values):.2f}×"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cpu_table(document: Document) -> list[str]:
    return _table(
        (
            "work",
            "batch",
            "over PyTorch eager, as published",
            "over it folded, in channels_last",
            "over `torch.compile`, frozen",
        ),
        [
            (
                _name(op, rows),
                str(batch),
                _over_p0(rows),
                _over(rows, "ratio_p1"),
                _over(rows, "ratio_p3"),
            )
            for (op, batch), rows in _groups(document, "float32").items()
        ],
    )


def _gpu_table(document: Document) -> list[str]:
    def mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
        return results.geometric_mean(value(row) for row in rows)

    return _table(
        ("work, bfloat16", "batch", "over the best peer", "µs", "TFLOP/s", "% of the roofline"),
        [
            (
                _name(op, rows),
                str(batch),
                _over(rows, "ratio"),
                f"{mean(rows, lambda row: results.median_us(row, row['ours'])):.1f}",
                f"{mean(rows, lambda row: row['derived']['tflops']):.0f}",
                f"{mean(rows, lambda row: row['derived']['roofline_percent']):.0f}",
            )
            for (op, batch), rows in _groups(document, "bfloat16").items()
        ],
    )


def _provenance(document: Document, source: str, how: str) -> str:
    device, code, versions = (document[key] for key in ("device", "code", "versions"))
    threads = f", {device['threads']} thread(s)" if device["kind"] == "cpu" else ""
    commit = f", commit {code['commit'][:12]}" if code["commit"] else ""
    dirty = " with changes" if code["dirty"] else ""
    several = "" if how == "benchmarks.md" else _SEVERAL
    dates = sorted(session["date"][:10] for session in document["sessions"])
    commands = list(dict.fromkeys(session["command"] for session in document["sessions"]))
    return (
        f"{device['name']}{threads}, torch {versions['torch']}{commit}{dirty}, {dates[-1]}; "
        f"[{Path(source).name}]({source}), made by {', '.join(f'`{c}`' for c in commands)}. "
        f"[{how}]({how}) says how.{several}"
    )


def _targets(document: Document) -> list[str]:
    def value(standing: targets.Standing) -> Any:
        return "–" if standing.worst is None else f"{standing.worst:.3g}"

    return _table(
        ("target", "limit", "measured", ""),
        [(s.target.name, s.target.limit(), value(s), s.state) for s in targets.standings(document)],
    )


def current(text: str, page: str = "README.md") -> tuple[str, str]:
    """The path that a page's section names, and the section.

    Raises:
        BenchError: there is not exactly one section.
    """
    found = _SECTION.findall(text)
    if len(found) != 1:
        raise BenchError(f"{page} has {len(found)} results sections, takes one")
    source, content = found[0]
    return source, content


def updated(
    text: str,
    source: str | None = None,
    root: Path = ROOT,
    make: Callable[[Document, str], str] = section,
) -> str:
    """A page with its section made anew.

    Args:
        text: the page.
        source: the result file from the root of the repository; by default the one that is named.
        root: of the repository.
        make: the section of a result.

    Raises:
        BenchError: there is no section, or the file is no result.
    """
    source = source or current(text)[0]
    content = make(results.load(root / source), source)
    replacement = f"{_BEGIN.format(source)}\n{content}{_END}"
    current(text)
    return _SECTION.sub(lambda _: replacement, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when page and result file disagree, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare, write nothing")
    action.add_argument("--write", nargs="?", const="", metavar="FILE.json", help="write it anew")
    pages = {"README.md": (README, section), "docs/adapters.md": (ADAPTERS, adapters_section)}
    parser.add_argument("--page", choices=pages, default="README.md", help="whose section")
    args = parser.parse_args(argv)
    page, make = pages[args.page]
    try:
        text = page.read_text(encoding="utf-8")
        source = None
        if args.write:
            path = Path(args.write).resolve()
            if not path.is_relative_to(ROOT):
                raise BenchError(f"{args.write} is not in this repository")
            source = path.relative_to(ROOT).as_posix()
        new = updated(text, source, make=make)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        if new != text:
            print(f"{args.page} and its result file disagree: write it anew with --write")
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
