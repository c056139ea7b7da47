"""The table over the jobs of a sweep, from what lies in their folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from b2inst.sweep import ERROR_FILE, render, write_table


def job(folder: Path, number: int, overrides: list[str], metrics: dict[str, float] | None) -> Path:
    path = folder / str(number)
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "overrides.yaml").write_text("".join(f"- '{text}'\n" for text in overrides))
    if metrics is not None:
        (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def test_what_all_jobs_share_stands_above_the_table(tmp_path: Path) -> None:
    job(tmp_path, 2, ["experiment=e", "seed=1", "a=[1, 2]"], None)
    job(tmp_path, 10, ["experiment=a", "seed=1", "a=[1, 2]"], {"mask/AP": 0.5, "box/AP": None})
    (job(tmp_path, 11, ["experiment=b", "seed=1", "a=[1, 2]"], {"mask/AP": 0.1}) / ERROR_FILE).write_text("broken")
    rows = write_table(tmp_path)
    text = (tmp_path / "sweep.md").read_text().splitlines()
    assert text[0] == "All jobs: `seed=1 a=[1, 2]`" and text[1] == ""
    assert [line.split(" | ")[:3] for line in text[4:]] == [
        ["| 2", "experiment=e", "unfinished"], ["| 10", "experiment=a", "done"], ["| 11", "experiment=b", "failed"],
    ]  # fmt: skip
    assert "0.5000" in text[5] and "0.1000" not in text[6] and render(rows) == "\n".join(text)
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["overrides"] for row in csv.DictReader(file)][0] == "experiment=e seed=1 a=[1, 2]"


def test_a_single_job_keeps_its_overrides(tmp_path: Path) -> None:
    job(tmp_path, 0, ["seed=1"], {})
    write_table(tmp_path)
    assert "| 0 | seed=1 | done |" in (tmp_path / "sweep.md").read_text()
    assert render([]) == "no jobs"
