"""The LightningModule: a thin shell around the model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from b2inst.callbacks.evaluation import THRESHOLD_KEY
from b2inst.config import CHECKPOINT_TARGETS, ConfigError, PartError, build
from b2inst.data.collate import LARGEST_DIVISOR
from b2inst.ops.dist import reduce_mean
from b2inst.structures import Batch


class LitSegmenter(pl.LightningModule):
    """Trains and validates a `Model`.

    Everything it is made of comes from one plain dict, which is saved in the checkpoint; so a checkpoint is all
    that is needed to build the model again.

    Args:
        config: the resolved configuration of the run; `model`, `optim`, `schedule` and `training` are read here.
            `classes` (names by label) and `category_ids` of the training data belong to it.

    Attributes:
        best_threshold: score threshold with the best F1, where the module comes from a checkpoint that holds one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config})
        self.config = config
        self.best_threshold: float | None = None
        self.model = build(config["model"], CHECKPOINT_TARGETS, at="model")
        if config["training"]["channels_last"]:
            self.model.to(memory_format=torch.channels_last)

    def setup(self, stage: str) -> None:
        """Compile for a training, where the configuration says so; a first pass takes longer than it saves later."""
        if stage == "fit" and self.config["training"]["compile"]:
            self.model.compile_parts()

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return self.config["classes"]

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> LitSegmenter:
        """Build the module that a checkpoint holds, in evaluation mode on the CPU.

        Only tensors and plain values are read from the file, and only parts of this package are built from it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no checkpoint of this package, or asks for more.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        try:
            checkpoint = _read(path)
            config = checkpoint["hyper_parameters"]["config"]
            config["model"]["backbone"]["weights"] = None  # they are in the checkpoint
            if (mistake := _mistake(checkpoint)) is not None:
                raise ValueError(mistake)
            module = cls(config)
            module.load_state_dict(checkpoint["state_dict"])
        except Exception as error:  # whatever a wrong value leads to
            if isinstance(error, ConfigError) and not isinstance(error, PartError):  # a target that is refused
                raise ValueError(f"{path}: {error}") from error
            reason = " ".join(str(error).split()) or "nothing more is known"
            reason = f"{type(error).__name__}: {reason[:300]}" if not isinstance(error, ValueError) else reason
            raise ValueError(f"{path}: not a checkpoint of b2inst, or damaged ({reason})") from error
        module.best_threshold = checkpoint.get(THRESHOLD_KEY)
        return module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch; logs each loss of all processes with and without its weight."""
        losses, stats = self.model.losses(self.model(batch.images), batch)
        total = self.model.total_loss(losses, self.current_epoch)
        self._log_losses("train", losses, total, len(batch))
        self.log_dict({f"train/{k}": v for k, v in stats.items()}, batch_size=len(batch))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Losses and detections of a batch; callbacks evaluate and draw what it returns."""
        outputs = self.model(batch.images)
        if batch.targets is not None:
            losses, _ = self.model.losses(outputs, batch)
            self._log_losses("val", losses, self.model.total_loss(losses, self.current_epoch), len(batch))
        return {"detections": self.model.detect(outputs, batch.images), "outputs": outputs}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Detections of a batch."""
        outputs = self.model(batch.images)
        return {"detections": self.model.detect(outputs, batch.images), "outputs": outputs}

    def _log_losses(self, stage: str, losses: dict[str, Tensor], total: Tensor, batch_size: int) -> None:
        factors = self.model.weights(self.current_epoch)
        total, *parts = reduce_mean(torch.stack([v.detach().float() for v in (total, *losses.values())]))
        values = {f"{stage}/loss": total}
        for name, value in zip(losses, parts, strict=True):
            values[f"{stage}/loss_{name}"] = value
            values[f"{stage}/weighted_{name}"] = factors[name] * value
        self.log_dict(values, batch_size=batch_size, sync_dist=stage == "val", on_epoch=stage == "val")
        self.log(f"{stage}_loss", total, prog_bar=True, logger=False, batch_size=batch_size)

    def effective_batch(self) -> int:
        """Images of one optimizer step, over all devices and accumulated batches."""
        per_device = self.trainer.datamodule.batch_sizes["train"]  # type: ignore[attr-defined]
        return per_device * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and learning rate schedule, stepped once per optimizer step."""
        optimizer: Optimizer = build(self.config["optim"], CHECKPOINT_TARGETS, at="optim")(
            self.model, self.effective_batch()
        )
        scheduler = build(self.config["schedule"], CHECKPOINT_TARGETS, at="schedule")(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of PyTorch: tensors and plain values."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no file of PyTorch, or cut off")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch advises to read the file all the same, which would run its code
        reason = "it is no file of PyTorch, or holds more than tensors and plain values, which is refused"
        raise ValueError(reason) from error


def _mistake(checkpoint: dict[str, Any]) -> str | None:
    """What is wrong with the values of a checkpoint that are used long after it was read."""
    config, threshold = checkpoint["hyper_parameters"]["config"], checkpoint.get(THRESHOLD_KEY)
    names, ids, divisor = config["classes"], config["category_ids"], config["data"]["size_divisor"]
    count = config["model"]["num_classes"]
    if not isinstance(names, list) or not isinstance(ids, list) or not len(names) == len(ids) == count:
        return f"classes and category_ids do not name {count} classes"
    if not isinstance(divisor, int) or not 1 <= divisor <= LARGEST_DIVISOR:
        return f"data.size_divisor is {divisor!r}, not a number of pixels from 1 to {LARGEST_DIVISOR}"
    if threshold is not None and not (isinstance(threshold, float) and 0 <= threshold <= 1):
        return f"{THRESHOLD_KEY} is {threshold!r}, not a score from 0 to 1"
    return None
