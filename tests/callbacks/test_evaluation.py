from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.metrics.boundary_f import BoundaryF
from b2inst.metrics.coco import CocoEvaluator
from b2inst.structures import Batch, Detections, ImageBatch
from callbacks.two_processes import boundaries_of
from metrics import generated

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_score_once_and_agree_with_one(tmp_path):
    truth, records = generated.make_case(0)
    (tmp_path / "case.json").write_text(json.dumps([truth, records]))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    first, second = (json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in (0, 1))
    assert (first["scored"], second["scored"]) == (1, 0)
    assert first["records"] == len(records) > second["records"]
    alone = CocoEvaluator(truth)
    alone.update([image["id"] for image in truth["images"]], records)
    boundaries = BoundaryF()
    for image in truth["images"]:
        boundaries.update(image["id"], *boundaries_of(image["id"]))
    metrics = {**alone.compute().metrics, **boundaries.compute()[0]}
    expected = {name: value for name, value in metrics.items() if value == value}
    assert first["logged"] == second["logged"] == expected
    assert first["checkpoint"] == second["checkpoint"] == {"best_threshold": expected["mask/best_threshold"]}
    assert {path.name for path in (tmp_path / "curves_0").iterdir()} >= {"precision_recall.json", "boundary_f.csv"}
    assert not (tmp_path / "curves_1").exists()


TRUTH = {
    "images": [{"id": 7, "height": 32, "width": 32}],
    "categories": [{"id": 3, "name": "thing"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [4, 4, 16, 16], "area": 256, "iscrowd": 0,
         "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]]}
    ],
}  # fmt: skip


class Finder(pl.LightningModule):
    """Finds the one object, with a score that rises by the epoch, and something wrong with 0.1."""

    def __init__(self, finds=True):
        super().__init__()
        self.config = {"category_ids": [3]}
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.finds = finds

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        found = [4.0, 4.0, 20.0, 20.0] if self.finds else [20.0, 20.0, 30.0, 30.0]
        boxes = torch.tensor([found, [20.0, 20.0, 30.0, 30.0]])
        scores = torch.tensor([0.5 + self.current_epoch / 10, 0.1])
        masks = torch.full((2, 8, 8), 9.0)
        return {"detections": [Detections(boxes, torch.zeros(2, dtype=torch.long), scores, scores, masks, (32, 32))]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OneImage(pl.LightningDataModule):
    val_annotations = TRUTH

    def train_dataloader(self):
        return DataLoader([0.0])

    def val_dataloader(self):
        sizes = torch.tensor([[32, 32]])
        batch = Batch(ImageBatch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), sizes, sizes, torch.tensor([7])))
        return DataLoader([batch], collate_fn=lambda items: items[0])


def trainer_with(tmp_path, evaluation, checkpoint, **options):
    return pl.Trainer(
        accelerator="cpu", callbacks=[checkpoint, evaluation], logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def threshold_in(path):
    return torch.load(path, weights_only=True).get("best_threshold")


@pytest.mark.filterwarnings("ignore:.*num_workers")
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps")
def test_a_checkpoint_holds_the_threshold_of_its_own_weights(tmp_path):
    evaluation = CocoEvaluation(folder=str(tmp_path / "curves"))
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", monitor="mask/AP", save_top_k=-1)
    trainer = trainer_with(tmp_path, evaluation, checkpoint, max_epochs=2)
    trainer.fit(Finder(), datamodule=OneImage())
    assert evaluation.scores.metrics["mask/AP"] == pytest.approx(1.0)
    assert trainer.callback_metrics["mask/best_f1"] == 1.0
    thresholds = [threshold_in(tmp_path / f"epoch={epoch}.ckpt") for epoch in (0, 1)]
    assert thresholds == pytest.approx([0.3, 0.35]) and all(type(value) is float for value in thresholds)
    assert (tmp_path / "curves" / "precision_recall.png").is_file()
    assert [record["score"] for record in evaluation.records] == pytest.approx([0.6, 0.1])
    # a run that is resumed has it before it validates: this one has nothing left to do
    resumed = CocoEvaluation()
    again = trainer_with(tmp_path, resumed, ModelCheckpoint(tmp_path / "again"), max_epochs=1, num_sanity_val_steps=0)
    again.fit(Finder(), datamodule=OneImage(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert resumed.scores is None and resumed.threshold == thresholds[0]


@pytest.mark.filterwarnings("ignore:.*num_workers")
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps")
def test_no_threshold_where_nothing_was_hit(tmp_path):
    evaluation = CocoEvaluation(kinds=["mask"])
    trainer = trainer_with(tmp_path, evaluation, ModelCheckpoint(tmp_path, "last"), max_epochs=1)
    trainer.fit(Finder(finds=False), datamodule=OneImage())
    assert evaluation.threshold is None and evaluation.scores.metrics["mask/best_f1"] == 0
    assert threshold_in(tmp_path / "last.ckpt") is None


def test_the_sanity_check_leaves_no_threshold_and_no_curves(tmp_path):
    evaluation = CocoEvaluation(folder=str(tmp_path / "curves"))
    evaluation.evaluator = CocoEvaluator(TRUTH)
    box = TRUTH["annotations"][0]["bbox"]
    rle = evaluation.evaluator.truth.dataset["annotations"][0]["segmentation"]
    evaluation.evaluator.update(
        [7], [{"image_id": 7, "category_id": 3, "score": 0.5, "bbox": box, "segmentation": rle}]
    )
    for sanity_checking in (True, False):
        trainer = SimpleNamespace(world_size=1, is_global_zero=True, global_step=0, sanity_checking=sanity_checking)
        evaluation.on_validation_epoch_end(trainer, SimpleNamespace(log_dict=dict))
        assert (evaluation.threshold is None) == sanity_checking
        assert (tmp_path / "curves").exists() != sanity_checking


def test_an_unknown_backend_is_refused_before_training():
    with pytest.raises(ValueError, match="callbacks.evaluation.backend 'hot': give one of fast, pycocotools"):
        CocoEvaluation(backend="hot")
