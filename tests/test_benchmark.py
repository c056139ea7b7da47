"""`python -m b2inst.benchmark`: what it measures is real, and what cannot work is refused."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from b2inst.bench import peers, timing
from b2inst.bench.report import Report, Row
from b2inst.bench.setting import Setting, Spec, labelled, noise
from b2inst.bench.subjects import make
from b2inst.benchmark import benchmark
from b2inst.config import ConfigError, plain
from b2inst.lit import LitSegmenter
from b2inst.paths import config_dir
from toy import run, toy_checkpoint

SMALL = [
    "height=64", "width=96", "rounds=2", "experiments=[b2inst_light]", "detections=5", "candidates=50",
    'overrides=["backbone@model.backbone=resnet18","model.fpn.channels=64"]',
]  # fmt: skip


def config(*overrides: str) -> dict:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return plain(compose("benchmark", [*SMALL, "device=cpu", *overrides]))


class Waiting:
    """A subject whose parts take known times, in milliseconds."""

    def __init__(self, first: int, second: int, rest: int, last: int) -> None:
        class Wait(nn.Module):
            def __init__(self, milliseconds: int) -> None:
                super().__init__()
                self.milliseconds = milliseconds

            def forward(self) -> None:
                time.sleep(self.milliseconds / 1000)

        self.model = nn.Linear(3, 2)
        self.stages = {"first": Wait(first), "second": Wait(second)}
        self.rest, self.last = rest, last

    def network(self) -> str:
        for part in self.stages.values():
            part()
        time.sleep(self.rest / 1000)
        return "found"

    def finish(self, found: str) -> int:
        assert found == "found"
        time.sleep(self.last / 1000)
        return 7


def test_stages_are_told_apart() -> None:
    stages = timing.time_stages(Waiting(20, 40, 60, 80), 2, "cpu")
    assert list(stages) == ["first", "second", "rest", "finish"]
    assert stages["first"] >= 0.02 and stages["second"] >= 0.04 and stages["rest"] >= 0.05 and stages["finish"] >= 0.08


def test_a_stage_inside_of_another_counts_once() -> None:
    subject = Waiting(20, 40, 0, 0)
    inner, outer = subject.stages["first"], nn.Sequential(nn.Identity())
    outer.forward = lambda: (time.sleep(0.1), inner())
    subject.stages = {"first": inner, "outer": outer}
    subject.network = lambda: outer() and "found"
    stages = timing.time_stages(subject, 2, "cpu")
    whole = sum(stages.values())
    assert stages["first"] >= 0.02 and stages["outer"] >= 0.1
    assert stages["outer"] + stages["first"] <= whole and stages["rest"] < stages["outer"]


def test_warm_up_is_not_counted() -> None:
    rounds = []
    seconds, counts = timing.run_in_turn([Waiting(1, 1, 1, 1)] * 2, 3, 2, "cpu", lambda: rounds.append(1))
    assert [len(times) for times in seconds] == [3, 3] and counts == [7, 7] and len(rounds) == 5


def test_ratios_are_taken_within_a_round() -> None:
    rows = [Row("a", [1.0, 2.0, 30.0], {"x": 0.001}, 10, None, 1.0, 0), Row("b", [2.0, 4.0, 10.0], {}, 10, 5, 1.0, 0)]
    report = Report("inference", 4, "b", rows, {"on": "x86_64"})
    assert report.ratios(rows[0]) == [0.5, 0.5, 3.0]
    assert report.to_json()["rows"][0]["ratio"] == 0.5
    assert report.table()[1][:6] == ["a", "2", "1.5 to 16", "2", "0.50", "0.50 to 3.00"]
    assert report.stage_table() == [["model", "x", "rest", "finish"], ["a", "1", "-", "-"], ["b", "-", "-", "-"]]


@pytest.mark.parametrize("name", peers.PEERS)
def test_random_weights_find_as_much_as_is_asked_for(name: str) -> None:
    setting = Setting(height=128, width=160, detections=5, candidates=1000)
    subject = make(Spec(name, False, setting))
    assert subject.finish(subject.network()) == 5


def test_random_weights_of_another_detector_find_as_much() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        model = plain(compose("train", ["experiment=yolact", "name=x", "output=x"]))["model"]
    subject = make(Spec("yolact", False, Setting(height=128, width=160, detections=5, candidates=200), model=model))
    assert subject.finish(subject.network()) == 5


def test_so_many_candidates_pass_the_threshold() -> None:
    values = torch.arange(100.0)
    assert int((values > peers.kth_largest(values, 30)).sum()) == 30
    assert peers.kth_largest(values, 1000) == 0


def test_ground_truth_fills_its_boxes() -> None:
    batch = labelled(Setting(height=100, width=150, batch_size=2, objects=3))
    assert batch.targets.masks.shape == (6, 128, 160) and batch.targets.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    for mask, box in zip(batch.targets.masks, batch.targets.boxes, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        found = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (found - box).abs().max() <= 1
    assert noise(Setting(height=100, width=150)).pixels[:, :, 100:].sum() == 0


def test_memory_is_that_of_a_process_of_its_own() -> None:
    small, large = (
        timing.peak_memory(Spec("fcos_resnet50_fpn", False, Setting(height=side, width=side))) for side in (64, 640)
    )
    assert 32 * 4 < small < large  # 32 M parameters


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_the_command_measures_and_writes(tmp_path: Path, mode: str) -> None:
    done = run("benchmark", f"mode={mode}", *SMALL, "device=cpu", f"output={tmp_path}", cwd=tmp_path)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    names = [row["name"] for row in content["rows"]]
    peer = ["maskrcnn_resnet50_fpn", *(["fcos_resnet50_fpn"] if mode == "inference" else [])]
    assert names == ["b2inst_light", *peer]  # FCOS learns no masks
    ours, reference = content["rows"][:2]
    assert reference["ratio"] == 1 and 0 < ours["ratio"] and ours["parameters"] > 11e6 and ours["memory"] > 44
    wanted = statistics.median(a / b for a, b in zip(ours["seconds"], reference["seconds"], strict=True))
    assert ours["ratio"] == wanted
    assert (ours["detections"], ours["flops"] is None) == ((5, False) if mode == "inference" else (0, True))
    assert set(ours["stages"]) >= {"backbone", "fpn", "detector", "basis", "assembly", "scoring", "rest", "finish"}
    if mode == "train":
        assert ours["stages"]["boundary target"] > 0 and ours["stages"]["losses"] > 0
    assert "b2inst_light" in done.stdout and "| b2inst_light |" in (tmp_path / "benchmark.md").read_text()


def test_a_checkpoint_is_measured_with_its_own_thresholds(tmp_path: Path) -> None:
    ckpt = toy_checkpoint(tmp_path / "toy.ckpt")
    report = benchmark(config(f"ckpt={ckpt}", f"reference={ckpt}", "experiments=[]", "peers=[]"))
    (row,) = report.rows
    setting = Setting(height=64, width=96, detections=5)
    model = LitSegmenter.from_checkpoint(ckpt).model
    model.detector.detections_per_image = 5
    with torch.no_grad():
        (found,) = model.detect(model(noise(setting)), noise(setting))
    assert row.name == str(ckpt) and row.detections == len(found) > 0 and row.flops > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=test"], "mode=test: give inference or train"),
        (["rounds=0"], "rounds=0: give a whole number of at least 1"),
        (["peers=[yolo]"], "unknown yolo; choose of maskrcnn_resnet50_fpn"),
        (["reference=b2inst"], "reference=b2inst: is not measured; give one of b2inst_light"),
        (["mode=train", "ckpt=x.ckpt"], "a training step is measured with random weights"),
        (["experiments=[nothing]", "reference=nothing"], "experiments: nothing: "),
        (["switches.precision=16"], "switches: precision=16: give one of 32, bf16"),
        (["ckpt=none.ckpt", "peers=[]", "reference=none.ckpt"], "none.ckpt: no such checkpoint"),
        (["device=nowhere"], "device=nowhere: "),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        benchmark(config(*overrides))
    assert message in str(error.value)
