"""The times of the systems: each cell once, and a file that the tables can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import time_systems
from ablation import plan as plans

PLAN = """
output: unused
records: unused
seeds: [0]
references: [a, e]
common: []
inspect: {images: 2, crops: 1}
datasets:
  near:
    {stage: 1, overrides: [recipe=demo], steps: 100, seconds_per_step: 1.0, overhead: 0, size: [64, 64], crop: 32,
     needs: [], arms: all}
arms:
  a: {group: basis, label: none, overrides: [experiment=ablation_a], cost: 1.0}
  e: {group: basis, label: boundary, overrides: [experiment=ablation_e], cost: 2.0}
  unlisted: {group: basis, label: in no table, overrides: [experiment=ablation_d], cost: 2.0}
products:
  systems:
    title: The systems
    datasets: all
    stage: 1
    seeds: [0]
    columns:
      plain: {label: nothing, overrides: [experiment=ablation_a], cost: 1.0}
      more: {label: a basis, overrides: [experiment=ablation_e], cost: 2.0}
    rows:
      known: {label: Known, overrides: [], cost: 1.0, columns: all, cells: {plain: a, more: e}}
      new: {label: New, overrides: [assembly@model.assembly=linear], cost: 3.0, columns: all, cells: {}}
      half:
        {label: Half, overrides: [], cost: 1.0, columns: [plain],
         cells: {plain: [experiment=mask_rcnn_r50, backbone@model.backbone=resnet18]}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_each_cell_is_timed_once(plan: Path, tmp_path: Path) -> None:
    loaded = plans.load_plan(plan)
    assert sorted(run.arm.name for run in time_systems.cells(loaded, "near")) == [
        "a", "e", "half_plain", "new_more", "new_plain",
    ]  # fmt: skip
    output = tmp_path / "latency.json"
    assert time_systems.main([f"--plan={plan}", "--datasets=near", "--rounds=1", f"--output={output}"]) == 0
    found = json.loads(output.read_text())["near"]
    assert (found["height"], found["width"], found["rounds"]) == (64, 64, 1)
    assert sorted(found["milliseconds"]) == ["a", "e", "half_plain", "new_more", "new_plain"]
    assert all(low <= median <= high and low > 1 for median, low, high in found["milliseconds"].values())


def test_a_set_without_a_cell_is_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert time_systems.main([f"--plan={plan}", "--datasets", "nowhere"]) == 1
    assert "--datasets nowhere: no arm" in capsys.readouterr().err
