"""Boundary-preserving Mask R-CNN: a mask head that learns the boundaries of the objects as well, and uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from b2inst.models.mask_head import Features, MaskHead, Rois, mask_losses, of_class
from b2inst.ops.laplacian import boundary, check_options


class BoundaryMaskHead(MaskHead):
    """Mask R-CNN's head and a branch for the boundary, pooled from the finest level, that exchange features.

    The boundary features take in those of the masks, and the masks those of the boundary. The boundary logits are
    there for the training alone.

    Args:
        in_channels, num_classes, levels, channels: as in `MaskHead`.
        threshold: on the Laplacian of the cropped true mask.
        padding: of the Laplacian; with `zeros`, as published, the frame of a box is a boundary of what touches it,
            and with `replicate` it is not.

    Raises:
        ValueError: for an unknown padding, or a threshold that no response exceeds.

    Source: BMask R-CNN (arXiv 2007.08921), section 3.
    """

    learns_boundary = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        levels: int,
        *,
        channels: int = 256,
        threshold: float = 0.1,
        padding: str = "zeros",
    ) -> None:
        super().__init__(in_channels, num_classes, levels, channels=channels)
        check_options(threshold, padding)
        self.threshold = threshold
        self.padding = padding
        self.boundary_pool = MultiScaleRoIAlign(["0"], output_size=self.size, sampling_ratio=2)
        self.boundary_reduce = _conv(in_channels, channels, 3, stride=2)
        self.mask_to_boundary = _conv(channels, channels, 1)
        self.boundary_head = MaskRCNNHeads(channels, (channels,) * 2, 1)
        self.boundary_to_mask = _conv(channels, channels, 1)
        self.fusion = _conv(channels, channels, 3)
        self.boundary_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)

    def forward(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """See `MaskHead.forward`."""
        masks, _ = self._joined(features, boxes)
        return self.predictor(masks).float()

    def losses(self, features: Features, rois: Rois, wanted: Tensor, terms: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `MaskHead.losses`; and `boundary_` with the name of each term that supervises the boundary."""
        masks, edges = self._joined(features, rois.boxes)
        losses = mask_losses(of_class(self.predictor(masks).float(), rois.labels), wanted, terms)
        logits = of_class(self.boundary_predictor(edges).float(), rois.labels)
        target = boundary(wanted, self.threshold, self.padding)
        for name, term in terms.items():
            if term.supervises == "boundary":
                losses[f"boundary_{name}"] = term(logits, target, target.new_ones(target.shape))
        return losses

    def _joined(self, features: Features, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (S, channels, 14, 14) of the masks and of the boundaries of S boxes."""
        masks = self.head(self.pool(features.levels, boxes, features.canvas_sizes))
        finest = self.boundary_pool(features.levels, boxes, features.canvas_sizes)
        edges = F.relu(self.boundary_reduce(finest)) + F.relu(self.mask_to_boundary(masks))
        edges = self.boundary_head(edges)
        return F.relu(self.fusion(masks + F.relu(self.boundary_to_mask(edges)))), edges


def _conv(in_channels: int, channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that starts as those of the mask head do."""
    conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv
