"""Pictures of some validation images: truth, predictions, bases, and the boundary basis beside its target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from b2inst import viz
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.structures import Batch


class Pictures(pl.Callback):
    """Draws the first images of each validation pass into files, and into W&B where that is a logger.

    Args:
        folder: where the files go; those of an earlier pass are overwritten.
        images: how many.
        score_threshold: detections below are not drawn.
    """

    def __init__(self, folder: str, images: int = 4, score_threshold: float = 0.3) -> None:
        self.folder = Path(folder)
        self.images = images
        self.score_threshold = score_threshold
        self._drawn = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with the first image again."""
        self._drawn = 0

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw what is still wanted of this batch."""
        if not trainer.is_global_zero:
            return
        for i in range(min(len(batch), self.images - self._drawn)):
            panels = draw_panels(pl_module.model, batch, outputs, i, pl_module.class_names, self.score_threshold)
            name = f"{self._drawn:02d}_{Path(batch.images.file_names[i]).stem}"
            sheet = viz.side_by_side(panels, columns=3)
            viz.save(sheet, self.folder / f"{name}.png")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    pictures = [picture.permute(1, 2, 0).numpy() for picture in panels.values()]
                    logger.log_image(f"pictures/{self._drawn}", pictures, trainer.global_step, caption=list(panels))
            self._drawn += 1


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
        (3, H, W) uint8 each, at the size of the image without its padding.
    """
    raw: Outputs = outputs["outputs"]
    height, width = batch.images.sizes[index].tolist()
    canvas = tuple(batch.images.pixels.shape[-2:])
    image = batch.images.pixels[index, :, :height, :width].cpu()
    panels = {"image": image}
    targets = batch.targets
    if targets is not None:
        own = (targets.image_index == index).cpu()
        masks = targets.masks.cpu()[own][:, :height, :width]
        panels["ground truth"] = viz.draw_instances(image, masks, targets.labels.cpu()[own], class_names)
    detections = outputs["detections"][index].to("cpu")
    panels["predictions"] = viz.draw_detections(image, detections, class_names, threshold)
    bases = raw.bases[index].float().cpu()
    logits = model.boundary.logits(bases[None])
    boundary = None if logits is None else logits[0]
    panels["bases"] = viz.draw_bases(bases[: model.num_bases], canvas, boundary)[:, :height, :width]
    if boundary is not None:
        grey = (boundary.sigmoid() * 255).round().to(torch.uint8)[None].repeat(3, 1, 1)
        panels["boundary basis"] = torch.nn.functional.interpolate(grey[None], canvas)[0][:, :height, :width]
    if targets is not None and targets.boundary is not None:
        target, weight = targets.boundary[index].cpu(), targets.boundary_weight[index].cpu()
        panels["boundary target"] = viz.draw_boundary(target, canvas, weight)[:, :height, :width]
    return panels
