"""Box, mask and boundary AP of the validation set."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.convert import to_records
from b2inst.metrics.scores import Scores
from b2inst.structures import Batch

log = logging.getLogger(__name__)


class CocoEvaluation(pl.Callback):
    """Collects the detections of a validation pass as run-length codes, scores them and logs the result.

    Args:
        kinds: which of `box`, `mask` and `boundary`.
        dilation_ratio: boundary width of Boundary AP, as a share of the image diagonal.

    Attributes:
        scores: of the last pass, None before it.
        records: COCO results of the last pass.
    """

    def __init__(self, kinds: tuple[str, ...] | list[str] = ("box", "mask", "boundary"), dilation_ratio: float = 0.02):
        self.kinds = tuple(kinds)
        self.dilation_ratio = dilation_ratio
        self.evaluator: CocoEvaluator | None = None
        self.scores: Scores | None = None
        self.records: list[dict[str, Any]] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start afresh; the annotations are read once."""
        if self.evaluator is None:
            annotations = trainer.datamodule.val_annotations  # type: ignore[attr-defined]
            self.evaluator = CocoEvaluator(annotations, self.kinds, self.dilation_ratio)
        self.evaluator.reset()
        self.records = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Encode the detections of a batch."""
        images = batch.images
        category_ids = pl_module.config["category_ids"]
        ids = images.image_ids.tolist()
        records = []
        for i, detections in enumerate(outputs["detections"]):
            height, width = images.original_sizes[i].tolist()
            records += to_records(detections.resized((height, width)), ids[i], category_ids)
        self.records += records
        self.evaluator.update(ids, records)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score and log."""
        if trainer.world_size > 1:
            self._gather(trainer.world_size)
        self.scores = self.evaluator.compute()
        values = {k: v for k, v in self.scores.metrics.items() if v == v}  # NaN: there is no such ground truth
        pl_module.log_dict(values)
        log.info("step %d: %s", trainer.global_step,
                 ", ".join(f"{k} {v:.4f}" for k, v in values.items() if k.endswith("/AP")))  # fmt: skip

    def _gather(self, world_size: int) -> None:
        """Join the results of all processes; an image that the sampler gave to two of them counts once."""
        states: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(states, self.evaluator.state)
        self.evaluator.reset()
        for image_ids, records in states:
            self.evaluator.update(image_ids, records)
        self.records = self.evaluator.state[1]
