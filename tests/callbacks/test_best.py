from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from b2inst.callbacks.best import BestCheckpoint
from b2inst.callbacks.ema import EMA
from b2inst.checkpoint_io import AtomicCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Scored(pl.LightningModule):
    """Has the scores that it is given, one for each epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.tensor(116.28), persistent=False)
        self.scores = scores

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        score = self.scores[self.current_epoch]
        if score == score:  # an evaluation logs no NaN
            self.log("AP", score)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([0.0])

    val_dataloader = train_dataloader


def fitted(folder: Path, scores: list[float], *more: pl.Callback, ckpt_path: str | None = None) -> BestCheckpoint:
    best = BestCheckpoint(folder, "best", monitor="AP", mode="max", enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[best, *more], plugins=[AtomicCheckpointIO()], logger=False,
        max_epochs=len(scores), enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Scored(scores), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return best


def epoch_of(folder: Path) -> int:
    return torch.load(folder / "best.ckpt", weights_only=True)["epoch"]


def test_a_lost_one_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, [0.1])
    (tmp_path / ".best.ckpt.tmp").symlink_to("/dev/full")
    with caplog.at_level(logging.ERROR):
        best = fitted(tmp_path, [0.1, 0.9, 0.5], ckpt_path=str(tmp_path / "last.ckpt"))
    assert "best.ckpt could not be written" in caplog.text
    assert epoch_of(tmp_path) == 2, "0.5 is better than 0.1, which is in the file"
    assert float(best.best_model_score) == pytest.approx(0.5)


def test_a_score_that_is_undefined_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, [math.nan, math.nan])
    (line,) = [message for message in caplog.messages if "undefined" in message]
    assert line.startswith("AP is undefined on these validation images") and not (tmp_path / "best.ckpt").exists()
    best = fitted(tmp_path, [math.nan, math.nan, 0.5], ckpt_path=str(tmp_path / "last.ckpt"))
    assert epoch_of(tmp_path) == 2 and float(best.best_model_score) == pytest.approx(0.5)


def test_the_best_score_outlives_a_move(tmp_path: Path) -> None:
    fitted(tmp_path / "old", [0.5])
    shutil.move(tmp_path / "old", tmp_path / "new")
    fitted(tmp_path / "new", [0.5, 0.2], ckpt_path=str(tmp_path / "new" / "last.ckpt"))
    assert epoch_of(tmp_path / "new") == 0


def test_an_average_leaves_constants_alone(tmp_path: Path) -> None:
    average = EMA(decay=0.9)  # 0.9 * 116.28 + 0.1 * 116.28 rounds to another number; 0.999 does not show it
    fitted(tmp_path, [0.0] * 20, average)
    assert float(average._average_model.module.mean) == float(torch.tensor(116.28))
