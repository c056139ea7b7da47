"""Settings that are new in a run which goes on, on a module of one layer."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from b2inst.callbacks.ema import EMA
from b2inst.callbacks.resumed import Resumed
from b2inst.optim import OptimizerFactory, Schedule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Line(pl.LightningModule):
    def __init__(self, lr: float, weight_decay: float, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.rates: list[float] = []  # of each step
        self.weights: list[torch.Tensor] = []  # before each step

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.weights.append(self.layer.weight.detach().clone())
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> dict:
        sgd = partial(torch.optim.SGD, momentum=0.9, weight_decay=self.weight_decay)
        optimizer = OptimizerFactory(sgd, self.lr, reference_batch=1)(self, 1)
        scheduler = Schedule(self.steps, [], decay="cosine", warmup_steps=2)(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Save(pl.Callback):
    """Writes a checkpoint at the end, while there still is an average."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def fitted(
    path: Path, steps: int, *callbacks: pl.Callback, resume: bool = False, lr: float = 0.1, weight_decay: float = 0.01,
    length: int = 10,
) -> Line:  # fmt: skip
    """Train to a step of a schedule of some length, and write a checkpoint."""
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[*callbacks, Save(path)], logger=False, max_steps=steps, max_epochs=-1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    module = Line(lr, weight_decay, length)
    batches = DataLoader(torch.tensor([[[1.0, 2.0]]] * 4), batch_size=None)
    trainer.fit(module, batches, ckpt_path=str(path) if resume else None, weights_only=True)
    return module


def test_without_the_average_training_goes_on_from_the_trained_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fitted(tmp_path / "whole", 6)
    path = tmp_path / "last.ckpt"
    fitted(path, 3, EMA(decay=0.9))
    with caplog.at_level(logging.WARNING):
        module = fitted(path, 6, Resumed(), resume=True)
    assert torch.equal(module.weights[0], whole.weights[3]), "the average was taken for the weights"
    assert torch.equal(module.layer.weight, whole.layer.weight)
    assert "run with callbacks=ema, this one is without" in caplog.text


def test_the_same_settings_change_no_bit(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", 9)
    path = tmp_path / "last.ckpt"
    fitted(path, 4)
    module = fitted(path, 9, Resumed(), resume=True)
    assert module.rates == whole.rates[4:] and torch.equal(module.layer.weight, whole.layer.weight)


def test_new_settings_of_optimizer_and_schedule_hold_from_the_next_step_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.ckpt"
    fitted(path, 4)
    with caplog.at_level(logging.INFO):
        module = fitted(path, 9, Resumed(), resume=True, lr=0.02, weight_decay=0.5, length=20)
    factor = Schedule(20, [], decay="cosine", warmup_steps=2).factor
    assert module.rates == [0.02 * factor(step) for step in range(4, 9)]
    (group,) = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.5, 0.02)
    assert "weight_decay 0.01 -> 0.5" in caplog.text and "initial_lr 0.1 -> 0.02" in caplog.text
