"""What is measured, in plain values that another process can build it from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from b2inst.models.inference import Switches
from b2inst.structures import Batch, ImageBatch, Targets

CLASSES = 80


@dataclass(frozen=True)
class Setting:
    """The work that every model is given.

    Attributes:
        height, width: of an image in pixels, as the network gets it.
        batch_size: images of a pass or of a training step.
        detections: kept in an image at most.
        candidates: scores of an image that pass the threshold of a model with random weights.
        objects: of a training image.
        seed: of weights and images.
        device: where.
        switches: of our models; in training all but `fold_batch_norm`, and `precision` of torchvision's as well.
    """

    height: int = 800
    width: int = 1333
    batch_size: int = 1
    detections: int = 100
    candidates: int = 1000
    objects: int = 10
    seed: int = 0
    device: str = "cpu"
    switches: Switches = field(default_factory=Switches)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width, padded to what an FPN needs."""
        return -(-self.height // 32) * 32, -(-self.width // 32) * 32


@dataclass(frozen=True)
class Spec:
    """One model to be measured.

    Attributes:
        name: in the report.
        train: a training step and not a detection.
        model: configuration of one of ours; None: one of torchvision's, or a checkpoint.
        optim: configuration of its optimizer, for a training step.
        ckpt: a checkpoint, whose weights and thresholds are used as they are.
        setting: the work.
    """

    name: str
    train: bool
    setting: Setting
    model: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None
    ckpt: str | None = None


def noise(setting: Setting) -> ImageBatch:
    """Images of noise, at the upper left of the canvas."""
    generator = torch.Generator().manual_seed(setting.seed)
    n, size = setting.batch_size, (setting.height, setting.width)
    pixels = torch.zeros(n, 3, *setting.canvas, dtype=torch.uint8)
    pixels[:, :, : size[0], : size[1]] = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([size] * n)
    return ImageBatch(pixels, sizes, sizes.clone(), torch.arange(n)).to(setting.device)


def labelled(setting: Setting) -> Batch:
    """The same images with ellipses as ground truth, without the boundary target, which is part of a step."""
    generator = torch.Generator().manual_seed(setting.seed)
    count = setting.batch_size * setting.objects
    limit = torch.tensor([setting.width, setting.height]).float()
    side = limit * (0.05 + 0.35 * torch.rand(count, 2, generator=generator))
    low = ((limit - side) * torch.rand(count, 2, generator=generator)).floor()
    boxes = torch.cat([low, (low + side).floor()], dim=1)
    images = noise(setting)
    targets = Targets(
        boxes=boxes,
        labels=torch.randint(0, CLASSES, (count,), generator=generator),
        image_index=torch.arange(setting.batch_size).repeat_interleave(setting.objects),
        masks=_ellipses(boxes, *setting.canvas),
        crowd=torch.zeros(setting.batch_size, *setting.canvas, dtype=torch.bool),
    ).to(setting.device)
    return Batch(images, targets)


def _ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """(I, H, W) bool ellipses that fill the boxes."""
    y, x = (torch.arange(side) + 0.5 for side in (height, width))
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    dx = ((x[None] - center[:, :1]) / half[:, :1]).square()  # (I, W)
    dy = ((y[None] - center[:, 1:]) / half[:, 1:]).square()  # (I, H)
    return dy[:, :, None] + dx[:, None] < 1
