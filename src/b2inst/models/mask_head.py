"""The mask head of a two-stage model: masks of what is pooled in boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from b2inst.ops.dist import normalizer


@dataclass(frozen=True)
class Features:
    """What the network makes of a batch before there are boxes.

    Attributes:
        levels: P2, P3, ... by the names "0", "1", ...: (N, F, h, w) float32.
        canvas: (N, 3, H, W) the normalized images.
        sizes: (height, width) of each image in it.
    """

    levels: dict[str, Tensor]
    canvas: Tensor
    sizes: list[tuple[int, int]]

    @property
    def canvas_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the canvas for each image: `MultiScaleRoIAlign` takes the strides of the levels from them.

        It does so once, with the first batch, and would take half a stride from an image that is much smaller.
        """
        return [(self.canvas.shape[2], self.canvas.shape[3])] * len(self.sizes)


@dataclass(frozen=True)
class Rois:
    """The sampled proposals of a batch that stand for an instance.

    Attributes:
        boxes: of each image (P_n, 4) XYXY in pixels of the network input.
        labels: (P,) int64 class in [1, C], of all images in one list.
        instance: (P,) int64 index into the instances of the batch.
    """

    boxes: list[Tensor]
    labels: Tensor
    instance: Tensor


class MaskHead(nn.Module):
    """Mask R-CNN's: four convolutions on 14 x 14 cells of a box, enlarged to 28 x 28, a mask for each class.

    Args:
        in_channels: of the levels.
        num_classes: C, without the background.
        levels: how many are pooled from, the finest first.
        channels: of all layers.

    Attributes:
        size: side R of a mask.
        learns_boundary: whether there have to be loss terms for the boundary.
    """

    size: ClassVar[int] = 28
    learns_boundary: ClassVar[bool] = False

    def __init__(self, in_channels: int, num_classes: int, levels: int, *, channels: int = 256) -> None:
        super().__init__()
        names = [str(i) for i in range(levels)]
        self.pool = MultiScaleRoIAlign(names, output_size=self.size // 2, sampling_ratio=2)
        self.head = MaskRCNNHeads(in_channels, (channels,) * 4, 1)
        self.predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)

    def forward(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Mask logits (S, C + 1, R, R) of the S boxes of all images; class 0 has no meaning."""
        return self.predictor(self.head(self.pool(features.levels, boxes, features.canvas_sizes))).float()

    def losses(self, features: Features, rois: Rois, wanted: Tensor, terms: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the masks, and what further terms say of them, as means over the positives of all processes.

        Args:
            features: of the batch.
            rois: the P positives.
            wanted: (P, R, R) float32, 0 or 1, true masks in the frames of their boxes.
            terms: `losses.term.Term` by name; those that supervise the boundary do nothing here.

        Returns:
            Unweighted scalars, each attached to the graph: `mask`, and the terms by name.
        """
        return mask_losses(of_class(self(features, rois.boxes), rois.labels), wanted, terms)


def mask_losses(logits: Tensor, wanted: Tensor, terms: Mapping[str, Any]) -> dict[str, Tensor]:
    """Losses of the mask logits (P, R, R) of the positives; see `MaskHead.losses`."""
    count = normalizer(logits.new_tensor(float(len(logits))), 1)
    pixels = wanted.shape[-1] ** 2
    losses = {"mask": F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / (count * pixels)}
    for name, term in terms.items():
        if term.supervises == "mask":
            losses[name] = term(logits, wanted, torch.ones_like(wanted), reduction="none").sum() / count
    return losses


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(P, R, R) maps of the classes (P,) out of (P, C + 1, R, R)."""
    return logits[torch.arange(len(labels), device=labels.device), labels]
