"""The inspection of a model during validation, and pictures of crops that are the same for every model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst import viz
from b2inst.inspection import Inspector
from b2inst.metrics.scores import write_json
from b2inst.structures import Batch, Targets

MIN_SIDE = 256  # pixels of a drawn crop
DEFAULT_THRESHOLD = 0.3  # where the checkpoint holds no better one


class Inspection(pl.Callback):
    """Measures the inside of the model in each validation pass, see `b2inst.inspection`.

    Args:
        path: of the JSON file that the last pass is written to.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._inspector: Inspector | None = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start afresh.

        Raises:
            ValueError: masks of this model are made without bases, and there is nothing to inspect.
        """
        if not pl_module.model.has_bases:
            name = type(pl_module.model).__name__
            raise ValueError(f"an inspection shows how masks are made of bases, and {name} has none")
        self._inspector = Inspector(pl_module.model)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Add a batch."""
        with trainer.precision_plugin.val_step_context():  # as the step was, whose outputs meet more weights here
            self._inspector.update(outputs["outputs"], batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write; in a distributed run what the first process saw."""
        if trainer.is_global_zero:
            write_json(self._inspector.result(), self.path, indent=2)


class Crops(pl.Callback):
    """Draws image, ground truth and predictions of a square around the closest instances of some images.

    Which squares depends on the ground truth alone, so that those of two models can be put side by side.

    Args:
        folder: gets `00_image.png`, `00_truth.png`, `00_found.png`, `01_image.png`, ...
        count: how many squares, of the first images with at least two instances.
        size: of a square in pixels of the network input, less where the image is smaller.
        score_threshold: detections below are not drawn; None: the best F1 of the checkpoint, or 0.3.
    """

    def __init__(self, folder: str, count: int = 4, size: int = 96, score_threshold: float | None = None) -> None:
        self.folder = Path(folder)
        self.count = count
        self.size = size
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
        """Draw what is still wanted."""
        threshold = self.score_threshold
        if threshold is None:
            threshold = DEFAULT_THRESHOLD if pl_module.best_threshold is None else pl_module.best_threshold
        for n in range(len(batch) if trainer.is_global_zero and batch.targets is not None else 0):
            own = batch.targets.image_index == n
            if self._drawn < self.count and int(own.sum()) >= 2:
                for name, picture in self._pictures(batch, outputs["detections"][n], n, own, threshold).items():
                    viz.save(picture, self.folder / f"{self._drawn:02d}_{name}.png")
                self._drawn += 1

    def _pictures(self, batch: Batch, detections: Any, n: int, own: Tensor, threshold: float) -> dict[str, Tensor]:
        height, width = batch.images.sizes[n].tolist()
        side = min(self.size, height, width)
        zoom = math.ceil(MIN_SIDE / side)
        x, y = (zoom * value for value in corner(batch.targets, own, (height, width), side))

        def enlarged(maps: Tensor) -> Tensor:
            maps = maps[..., :height, :width].cpu()
            return maps.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)

        image = enlarged(batch.images.pixels[n])
        masks, labels = enlarged(batch.targets.masks[own]), batch.targets.labels[own].cpu()
        found = detections.to("cpu").resized((zoom * height, zoom * width))
        pictures = {
            "image": image,
            "truth": viz.draw_instances(image, masks, labels, None),
            "found": viz.draw_detections(image, found, None, threshold, max_instances=200),
        }
        return {name: picture[:, y : y + zoom * side, x : x + zoom * side] for name, picture in pictures.items()}


def corner(targets: Targets, own: Tensor, size: tuple[int, int], side: int, stride: int = 4) -> tuple[int, int]:
    """Upper left corner (x, y) of the square around the instance that is closest to others.

    Args:
        targets: of the batch.
        own: (I,) bool, the instances of the image, at least one.
        size: (height, width) of the image.
        side: of the square, in pixels, at most the image's sides.
        stride: pixels of a cell in which closeness is measured.
    """
    cells = targets.masks[own][:, stride // 2 :: stride, stride // 2 :: stride].float()  # [I, h, w]
    grown = F.max_pool2d(cells[:, None], 3, stride=1, padding=1)[:, 0]
    others = ((cells.sum(dim=0) - cells) > 0).float()
    closest = int((grown * others).flatten(1).sum(1).argmax())
    x0, y0, x1, y1 = targets.boxes[own][closest].tolist()
    height, width = size
    x, y = (round((low + high - side) / 2) for low, high in ((x0, x1), (y0, y1)))
    return min(max(x, 0), width - side), min(max(y, 0), height - side)
