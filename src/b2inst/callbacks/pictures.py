"""Pictures of some validation images: truth, predictions, bases, and the boundary basis beside its target."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from b2inst import viz
from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.structures import Batch
from b2inst.writing import may_fail

DEFAULT_THRESHOLD = 0.3  # where no pass has found a better one
MIN_SIDE = 320  # pixels; smaller images are drawn enlarged, so that outlines and labels can be told apart


class Pictures(pl.Callback):
    """Draws the first images of each validation pass into files, and into W&B where that is a logger.

    Stands after `CocoEvaluation` among the callbacks, whose threshold it takes.

    Args:
        folder: where the files go; those of an earlier pass are overwritten.
        images: how many.
        score_threshold: detections below are not drawn; None for the threshold with the best F1 of the pass, or 0.3
            where there is none.
    """

    def __init__(self, folder: str, images: int = 4, score_threshold: float | None = None) -> None:
        self.folder = Path(folder)
        self.images = images
        self.score_threshold = score_threshold
        self._kept: list[tuple[Batch, dict[str, Any], int]] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with the first image again."""
        self._kept = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep what is still wanted of this batch until the threshold is known."""
        wanted = min(len(batch), self.images - len(self._kept)) if trainer.is_global_zero else 0
        self._kept += [(batch, outputs, i) for i in range(wanted)]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        threshold = self._threshold(trainer)
        for number, (batch, outputs, i) in enumerate(self._kept):
            panels = draw_panels(pl_module.model, batch, outputs, i, pl_module.class_names, threshold)
            name = f"{number:02d}_{Path(batch.images.file_names[i]).stem}.png"
            with may_fail("pictures"):
                viz.save(viz.side_by_side(panels, columns=3), self.folder / name)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    pictures = [picture.permute(1, 2, 0).numpy() for picture in panels.values()]
                    logger.log_image(f"pictures/{number}", pictures, trainer.global_step, caption=list(panels))
        self._kept = []

    def _threshold(self, trainer: pl.Trainer) -> float:
        if self.score_threshold is not None:
            return self.score_threshold
        passes = [c.threshold for c in trainer.callbacks if isinstance(c, CocoEvaluation)]  # type: ignore[attr-defined]
        return next((threshold for threshold in passes if threshold is not None), DEFAULT_THRESHOLD)


def draw_panels(
    model: Segmenter, batch: Batch, outputs: dict[str, Any], index: int, class_names: list[str], threshold: float
) -> dict[str, Tensor]:
    """Pictures of one image of a batch, by caption.

    Args:
        model: tells the boundary basis from the others.
        batch: with or without targets.
        outputs: `detections` and `outputs` of the batch, as the validation step returns them.
        index: which image.
        class_names: by label.
        threshold: detections below this score are not drawn.

    Returns:
        (3, H, W) uint8 each: the image without its padding, enlarged by a whole number where it is small.
    """
    raw: Outputs = outputs["outputs"]
    height, width = batch.images.sizes[index].tolist()
    zoom = math.ceil(MIN_SIDE / min(height, width, MIN_SIDE))
    size = (zoom * height, zoom * width)
    canvas = tuple(zoom * side for side in batch.images.pixels.shape[-2:])

    def shown(picture: Tensor) -> Tensor:
        return picture[:, : size[0], : size[1]]

    image = shown(_enlarged(batch.images.pixels[index].cpu(), zoom))
    panels = {"image": image}
    targets = batch.targets
    if targets is not None:
        own = (targets.image_index == index).cpu()
        masks = shown(_enlarged(targets.masks.cpu()[own], zoom))
        panels["ground truth"] = viz.draw_instances(image, masks, targets.labels.cpu()[own], class_names)
    detections = outputs["detections"][index].to("cpu").resized(size)
    panels["predictions"] = viz.draw_detections(image, detections, class_names, threshold)
    bases = raw.bases[index].float().cpu()
    logits = model.boundary.logits(model.split(bases[None])[1])
    boundary = None if logits is None else logits[0]
    panels["bases"] = shown(viz.draw_bases(bases[: model.num_bases], canvas, boundary))
    if boundary is not None:
        panels["boundary basis"] = shown(viz.draw_boundary(boundary.sigmoid(), canvas))
    if targets is not None and targets.boundary is not None:
        target, weight = targets.boundary[index].cpu(), targets.boundary_weight[index].cpu()
        panels["boundary target"] = shown(viz.draw_boundary(target, canvas, weight))
    return panels


def _enlarged(maps: Tensor, zoom: int) -> Tensor:
    return maps.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)
