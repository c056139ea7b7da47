"""Box, mask and boundary AP of the validation set, and the F-measure of the boundary basis."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from b2inst.callbacks.boundary_output import BoundaryOutput
from b2inst.metrics.coco import BACKENDS, CocoEvaluator
from b2inst.metrics.convert import to_records
from b2inst.metrics.curves import write_curves
from b2inst.metrics.scores import Scores
from b2inst.structures import Batch
from b2inst.writing import may_fail

log = logging.getLogger(__name__)

BOUNDARY_CURVES = "boundary_f.csv"  # precision, recall and F at each threshold
THRESHOLD_KEY = "best_threshold"
SHOWN = ("/AP", "/best_threshold", "/best_f1", "/ODS", "/OIS")  # ends of the metrics that are told after a pass


class CocoEvaluation(pl.Callback):
    """Collects the detections of a validation pass as run-length codes, scores them and logs the result.

    Checkpoints get the score threshold with the best F1 of the last pass as `best_threshold`, a float; they lack it
    before the first pass and where nothing was hit. Lightning writes the best checkpoint after a pass has ended, so
    that it holds the threshold of its own weights.

    In a distributed run the first process scores what all have found, and the others get its scores.

    Args:
        kinds: which of `box`, `mask` and `boundary`.
        dilation_ratio: boundary width of Boundary AP, as a share of the image diagonal.
        backend: `fast`, or `pycocotools`, the reference with the same numbers.
        folder: where the precision-recall curves of the last pass go, None for nowhere.
        boundary_f: score the boundary basis as an output of its own, too, see `BoundaryOutput`.

    Attributes:
        scores: of the last pass, None before it.
        threshold: best score threshold of the last pass, None where there is none.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(
        self,
        kinds: tuple[str, ...] | list[str] = ("box", "mask", "boundary"),
        dilation_ratio: float = 0.02,
        backend: str = "fast",
        folder: str | None = None,
        boundary_f: bool = False,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"callbacks.evaluation.backend {backend!r}: give one of {', '.join(BACKENDS)}")
        self.kinds = tuple(kinds)
        self.dilation_ratio = dilation_ratio
        self.backend = backend
        self.folder = folder
        self.boundary_f = boundary_f
        self.evaluator: CocoEvaluator | None = None
        self.boundaries: BoundaryOutput | None = None
        self.scores: Scores | None = None
        self.threshold: float | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        """COCO results of the last pass; in a distributed run the first process has those of all."""
        return [] if self.evaluator is None else self.evaluator.records()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start afresh; the annotations are read once."""
        if self.evaluator is None:
            annotations = trainer.datamodule.val_annotations  # type: ignore[attr-defined]
            self.evaluator = CocoEvaluator(annotations, self.kinds, self.dilation_ratio, backend=self.backend)
        self.evaluator.reset()
        if self.boundary_f:
            category_ids = pl_module.config["category_ids"]
            self.boundaries = BoundaryOutput(pl_module.model, self.evaluator.truth, category_ids)

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
        self.evaluator.update(ids, records)
        if self.boundaries is not None:
            self.boundaries.add(outputs["outputs"], images)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score and log."""
        self.scores = self._score() if trainer.world_size == 1 else self._score_once(trainer)
        values = {k: v for k, v in self.scores.metrics.items() if v == v}  # NaN: there is no such ground truth
        pl_module.log_dict(values)
        shown = {k: v for k, v in values.items() if k.endswith(SHOWN)}
        log.info("step %d: %s", trainer.global_step, ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        if trainer.sanity_checking:
            return
        threshold = self.scores.metrics.get("mask/best_threshold", math.nan)
        self.threshold = None if math.isnan(threshold) else threshold
        if self.folder is not None and trainer.is_global_zero:
            with may_fail("precision-recall curves"):
                write_curves(self.scores, self.folder)
                if self.boundaries is not None:
                    self.boundaries.write(Path(self.folder) / BOUNDARY_CURVES)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the threshold; a float, as checkpoints are read with `weights_only=True`."""
        if self.threshold is not None:
            checkpoint[THRESHOLD_KEY] = self.threshold

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the threshold, for checkpoints that are written before the next pass."""
        self.threshold = checkpoint.get(THRESHOLD_KEY)

    def _score(self) -> Scores:
        """Score what this process holds."""
        scores = self.evaluator.compute()
        return scores if self.boundaries is None else scores.joined(*self.boundaries.compute())

    def _score_once(self, trainer: pl.Trainer) -> Scores:
        """Join the results of all processes in the first one; an image that the sampler gave to two counts once."""
        states: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        counted = None if self.boundaries is None else self.boundaries.state
        torch.distributed.gather_object((self.evaluator.state, counted), states)
        scores: list[Scores | None] = [None]
        if trainer.is_global_zero:
            for state, _ in states:
                self.evaluator.merge(state)
            if self.boundaries is not None:
                self.boundaries.join([state for _, state in states])
            scores = [self._score()]
        torch.distributed.broadcast_object_list(scores)
        return scores[0]
