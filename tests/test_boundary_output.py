"""The boundary basis as an output of its own: trained, evaluated and drawn through the entry points."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from b2inst.callbacks.boundary_output import BoundaryOutput
from b2inst.config import ConfigError, plain
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.evaluate import evaluate
from b2inst.lit import LitSegmenter
from b2inst.metrics.ground_truth import GroundTruth
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary
from b2inst.models.segmenter import Outputs
from b2inst.paths import config_dir
from b2inst.predictor import B2Inst
from models import build
from toy import CLASSES, TOY, run, toy_checkpoint

SUMMARY = {f"boundary_f/{name}" for name in ("ODS", "OIS", "threshold", "precision", "recall")}
BY_CLASS = {"boundary_f/class_ODS", "boundary_f/class_OIS"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def ckpt(folder: Path) -> Path:
    """With a boundary of each class that takes no part in the masks."""
    return toy_checkpoint(folder / "casenet.ckpt", experiment="casenet")


def settings(ckpt: Path, output: Path, **changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("evaluate"))
    given = {"ckpt": str(ckpt), "output": str(output), "accelerator": "cpu", "progress": False, "pictures": 0}
    return {**config, **given, **changes}


def test_an_evaluation_reports_it(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(ckpt, tmp_path / "metrics.json", boundary_f=True, per_class=True))
    shown = capsys.readouterr().out
    assert "| boundary_f |" in shown and "boundary_f ODS" in shown
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {key for key in metrics if key.startswith("boundary_f/")} == SUMMARY | BY_CLASS
    assert 0 < metrics["boundary_f/ODS"] <= metrics["boundary_f/OIS"] <= 1
    rows = metrics["per_class"].values()
    values = [row["boundary_f/ODS"] for row in rows]
    assert len(values) == len(CLASSES) and all("mask/AP" in row for row in rows)
    assert metrics["boundary_f/class_ODS"] == pytest.approx(sum(values) / len(values))
    with (tmp_path / "boundary_f.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 99 * (1 + len(CLASSES))
    best = max(float(row["f"]) for row in table if row["class"] == "all")
    assert best == pytest.approx(metrics["boundary_f/ODS"])


def test_without_the_switch_nothing_is_said_about_it(ckpt: Path, tmp_path: Path) -> None:
    evaluate(settings(ckpt, tmp_path / "metrics.json"))
    assert "boundary_f" not in (tmp_path / "metrics.json").read_text()
    assert not (tmp_path / "boundary_f.csv").exists()


def test_one_boundary_of_all_classes_has_no_numbers_by_class(folder: Path, tmp_path: Path) -> None:
    ckpt = toy_checkpoint(folder / "e.ckpt", experiment="ablation_e")
    evaluate(settings(ckpt, tmp_path / "metrics.json", boundary_f=True))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {key for key in metrics if key.startswith("boundary_f/")} == SUMMARY
    assert not any("boundary_f/ODS" in row for row in metrics["per_class"].values())


def test_what_cannot_be_scored_is_refused(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    other = toy_checkpoint(folder / "c.ckpt", experiment="ablation_c")
    with pytest.raises(ConfigError, match="boundary_f=true: .*c.ckpt has no boundary basis.*set boundary_f=false"):
        evaluate(settings(other, tmp_path / "metrics.json", boundary_f=True))
    with pytest.raises(ConfigError, match="boundary_f=true: a split evaluation.*one process without shard"):
        evaluate(settings(ckpt, tmp_path / "metrics.json", boundary_f=True, shard="0/2"))
    files = {"ckpt": None, "predictions": "results.json", "annotations": "instances.json"}
    with pytest.raises(ConfigError, match="boundary_f=true.*give ckpt=FILE"):
        evaluate({**settings(ckpt, tmp_path / "metrics.json", boundary_f=True), **files})
    with pytest.raises(ConfigError, match="boundary_f=yes: give true or false"):
        evaluate(settings(ckpt, tmp_path / "metrics.json", boundary_f="yes"))
    assert not list(tmp_path.iterdir())


def test_a_training_can_be_steered_by_it(folder: Path, tmp_path: Path) -> None:
    toy = [part for part in TOY if "mask_size" not in part]
    run("train", *toy, "experiment=casenet", "objective=boundary_f/class_ODS", f"data.root={folder / 'set'}",
        f"output={tmp_path}/run", cwd=tmp_path)  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("boundary_f/class_ODS")]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert float(logged[-1]["boundary_f/ODS"]) == pytest.approx(metrics["boundary_f/ODS"])
    assert (tmp_path / "run" / "curves" / "boundary_f.csv").is_file()
    module = LitSegmenter.from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert module.model.boundary.classes and module.model.detector.params.out_channels == 4 * 14 * 14
    assert module.model.basis.num_bases == 4 + module.model.semantic.layers[-1].out_channels - 1


def test_a_look_inside_has_the_boundary_of_each_class(ckpt: Path) -> None:
    picture = torch.randint(0, 256, (64, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    ((_, inside),) = B2Inst.from_checkpoint(ckpt, "cpu").run([picture], look_inside=True)
    assert inside.bases.shape == (4, 16, 16) and inside.class_boundary.shape == (len(CLASSES), 16, 16)
    assert torch.equal(inside.boundary, inside.class_boundary.amax(dim=0))
    assert inside.class_boundary.std() > 0


def truth_of(batch: Any, categories: list[int]) -> GroundTruth:
    """Annotations with the masks of a batch."""
    targets, annotations, sizes = batch.targets, [], batch.images.original_sizes.tolist()
    for image, label, mask in zip(targets.image_index.tolist(), targets.labels.tolist(), targets.masks, strict=True):
        mask = mask[: sizes[image][0], : sizes[image][1]]
        runs = torch.cat([torch.tensor([False]), mask.T.flatten(), torch.tensor([False])]).int().diff().nonzero()
        edges = [0, *runs[:, 0].tolist(), mask.numel()]
        rle = {"size": list(mask.shape), "counts": [b - a for a, b in zip(edges, edges[1:], strict=False)]}
        annotations.append({"image_id": image, "category_id": categories[label], "segmentation": rle})
    return GroundTruth({
        "images": [{"id": number, "height": height, "width": width} for number, (height, width) in enumerate(sizes)],
        "categories": [{"id": category, "name": f"c{category}"} for category in categories],
        "annotations": annotations,
    })  # fmt: skip


def test_a_basis_that_says_what_it_was_taught_is_right() -> None:
    """Through the grid of the bases, with padding; classes at their places, in the order of the labels."""
    boxes = [[(16, 16, 160, 180), (130, 40, 300, 230)], [(60, 20, 330, 200)]]
    batch = build.batch(boxes, height=256, width=384, sizes=[(240, 310), (210, 380)])
    target = BoundaryTarget(resolution="full_maxpool", classes=True)(batch).targets
    model = build.segmenter(GlobalBoundary(classes=True))
    logits = torch.full((2, 4 + build.CLASSES, 64, 96), -9.0)
    image, label = target.class_boundary_index.unbind(dim=1)
    logits[image, 4 + label] = 18 * target.class_boundary - 9
    categories = [2, 3, 7]
    scores = BoundaryOutput(model, truth_of(batch, categories), categories)
    scores.add(Outputs([], None, logits), batch.images)
    metrics, per_class = scores.compute()
    assert metrics["boundary_f/recall"] > 0.99
    assert min(metrics["boundary_f/ODS"], metrics["boundary_f/class_ODS"]) > 0.97  # stairs of full cells have corners
    assert list(per_class) == ["c2", "c3", "c7"]
    wrong = BoundaryOutput(model, truth_of(batch, categories), categories)
    wrong.add(Outputs([], None, logits[:, [0, 1, 2, 3, 5, 6, 4]]), batch.images)
    assert wrong.compute()[0]["boundary_f/ODS"] == metrics["boundary_f/ODS"]
    assert wrong.compute()[0]["boundary_f/class_ODS"] < 0.3


def test_another_boundary_basis_is_no_output() -> None:
    with pytest.raises(ValueError, match="boundary@model.boundary=global"):
        BoundaryOutput(build.segmenter(InstanceBoundary()), truth_of(build.batch([[]]), [1]), [1])
