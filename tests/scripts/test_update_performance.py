"""The tables in docs/performance.md are those of the files, and nothing else of it changes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "update_performance.py"
SPEC = importlib.util.spec_from_file_location("update_performance", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    folders = []
    for mode in ("inference", "train"):
        folder = tmp_path / mode
        folder.mkdir()
        (folder / "benchmark.json").write_text(json.dumps({"mode": mode, "reference": "peer", "rows": []}))
        (folder / "benchmark.md").write_text(f"| {mode} |\n")
        folders.append(str(folder))
    return folders


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path, folders: list[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    script.main(folders, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        text.index("## Inference") < text.index("| inference |") < text.index("## Training step") < text.index("| tr")
    )
    script.main(folders, page)
    assert page.read_text() == text


def test_a_page_without_markers_is_refused(tmp_path: Path, folders: list[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine")
    with pytest.raises(ValueError, match="no lines\n<!-- measured: begin"):
        script.main(folders, page)
    assert page.read_text() == "mine"


def test_the_page_of_the_repository_has_the_markers() -> None:
    text = (PATH.parents[1] / "docs" / "performance.md").read_text()
    assert text.index(script.BEGIN) < text.index(script.END)


def test_goals_are_told_with_what_is_missing() -> None:
    rows = [
        {"name": "maskrcnn_resnet50_fpn", "seconds": [1.0, 2.0, 9.0], "memory": 100.0},
        {"name": "blendmask_r50_1x", "seconds": [0.5, 1.2, 5.0], "memory": 90.0},
        {"name": "b2inst_light", "seconds": [0.6, 1.4, 5.5], "memory": 90.0},
    ]
    (table,) = script.goals({"mode": "inference", "rows": rows})
    assert "| `blendmask_r50_1x` / `maskrcnn_resnet50_fpn`, time | 0.65 | 0.56 | reached |" in table
    assert "| `b2inst_light` / `blendmask_r50_1x`, time | 1.1 | 1.17 | missed by 0.07 |" in table
    (table,) = script.goals({"mode": "train", "rows": rows[:2]})
    assert "memory | 0.75 | 0.90 | missed by 0.15 |" in table and table.count("\n") == 3
    assert script.goals({"mode": "train", "rows": rows[1:]}) == []
