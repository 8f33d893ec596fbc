"""The results section of the README agrees with the result file that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import readme, results, targets
from bench.environment import ROOT, BenchError

TEXT = readme.README.read_text(encoding="utf-8")


def test_the_readme_agrees_with_its_result_file():
    assert readme.updated(TEXT) == TEXT, "python -m bench.readme --write"


def test_the_page_of_other_packages_agrees_with_its_result_file():
    text = readme.ADAPTERS.read_text(encoding="utf-8")
    want = readme.updated(text, make=readme.adapters_section)
    assert want == text, "python -m bench.readme --page docs/adapters.md --write"
    assert readme.main(["--check", "--page", "docs/adapters.md"]) == 0
    _, content = readme.current(text)
    assert not any(unit in content for unit in ("µs", " ms", "TFLOP", "images/s"))


def test_the_table_of_other_packages(tmp_path: Path):
    def row(op: str, batch: int, theirs: float, status: str = "ok") -> results.Row:
        times = {
            name: {"eager": {"rotated": {"median_us": time}}}
            for name, time in (("fused", 10.0), ("P0", theirs))
        }
        return {
            "op": op, "batch": batch, "status": status, "ours": "fused", "times": times,
            "dtype": "float32", "shape": "299x299", "session": 0, "derived": {"ratio_p1": 1.5},
        }  # fmt: skip

    document = {
        **results.new_document(
            {
                "device": {"kind": "cpu", "name": "Fake CPU", "threads": 1},
                "code": {"commit": "a" * 40, "dirty": False, "sources": ""},
                "versions": {"torch": "2.13.0"},
            }
        ),
        "sessions": [{"date": "2030-01-02T03:04:05", "command": "python -m bench adapters"}],
        "rows": [row("timm:x", 8, 20.0), row("fid", 1, 30.0), row("timm:x", 1, 25.0)],
    }
    document["rows"].append(row("broken", 1, 1.0, "failed"))
    lines = readme.adapters_section(document, "bench/results/r.json").splitlines()
    assert lines[2:5] == [
        "| `fid` | 1 | 3.00× | 1.50× |",
        "| `timm:x` | 1 | 2.50× | 1.50× |",
        "| `timm:x` | 8 | 2.00× | 1.50× |",
    ]
    assert "broken" not in "".join(lines)
    assert "[r.json](../bench/results/r.json), made by `python -m bench adapters`" in lines[-1]


def test_the_command_checks_too(capsys, monkeypatch, tmp_path: Path):
    assert readme.main(["--check"]) == 0
    changed = tmp_path / "README.md"
    source, content = readme.current(TEXT)
    changed.write_text(TEXT.replace(content, content.replace("|", "!", 1)))
    monkeypatch.setattr(readme, "README", changed)
    assert readme.main(["--check"]) == 1
    assert "disagree" in capsys.readouterr().out
    assert readme.main(["--write"]) == 0
    assert changed.read_text(encoding="utf-8") == TEXT
    assert source.startswith("bench/results/")


def test_a_result_of_a_cpu_shows_ratios_and_no_claim_about_a_gpu():
    source, content = readme.current(TEXT)
    if results.load(ROOT / source)["device"]["kind"] == "cuda":
        pytest.skip("the README shows a GPU")
    assert "On a GPU nothing has been measured yet" in content
    assert not any(unit in content for unit in ("µs", " ms", "TFLOP", "GB/s", "images/s"))
    assert "Inception V3, 299×299" in content


@pytest.mark.parametrize("count", [0, 2])
def test_a_readme_has_one_section(count: int):
    text = "<!-- results: x.json -->\n\n<!-- end of results -->\n" * count
    with pytest.raises(BenchError, match=f"has {count} results sections, takes one"):
        readme.updated(text)


def gpu_row(op: str, shape: str, batch: int, ratio: float) -> results.Row:
    return {
        "label": f"{op}-{shape}-{batch}", "op": op, "shape": shape, "batch": batch, "session": 0,
        "dtype": "bfloat16", "status": "ok", "ours": "triton",
        "times": {"triton": {"graph": {"rotated": {"median_us": 10.0}}}, "P3": {}},
        "derived": {"ratio": ratio, "tflops": 400.0, "roofline_percent": 50.0},
    }  # fmt: skip


def test_a_result_of_a_gpu_shows_rates_and_every_target(tmp_path: Path):
    document = {
        **results.new_document(
            {
                "device": {"kind": "cuda", "name": "Fake GPU"},
                "code": {"commit": "a" * 40, "dirty": True, "sources": ""},
                "versions": {"torch": "2.11.0"},
            }
        ),
        "sessions": [{"date": "2030-01-02T03:04:05", "command": "python -m bench"}],
        "rows": [
            gpu_row("split_conv2d", "8x8-384-x", 1, 1.0),
            gpu_row("conv2d_act", "one", 8, 2.0),
            gpu_row("conv2d_act", "two", 8, 0.5),
        ],
    }
    (tmp_path / "r.json").write_text(json.dumps(document))
    text = "before\n<!-- results: other.json -->\nold\n<!-- end of results -->\nafter\n"
    new = readme.updated(text, "r.json", tmp_path)
    assert new.startswith("before\n<!-- results: r.json -->\n")
    assert new.endswith("<!-- end of results -->\nafter\n")
    assert "| `split_conv2d`, 1 shape | 1 | 1.00× | 10.0 | 400 | 50 |" in new
    assert "| `conv2d_act`, 2 shapes | 8 | 1.00× (0.50 to 2.00) | 10.0 | 400 | 50 |" in new
    assert "Fake GPU, torch 2.11.0, commit aaaaaaaaaaaa with changes, 2030-01-02" in new
    assert "| split, batch 1 | >= 2 | 1 | missed |" in new
    assert new.count("not measured") == sum(t.device == "cuda" for t in targets.table()) - 1
