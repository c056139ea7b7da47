"""What all scoring heads have in common: what they see, what they learn from, and how scores are combined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BOXES = ("gt_box", "pred_box")


@dataclass(frozen=True)
class PredictedMasks:
    """P masks that are to be scored, in images of a batch of N.

    Attributes:
        logits: (P, R, R) in the frame of the boxes.
        boxes: (P, 4) XYXY in pixels of the network input.
        image: (P,) int64, the image of each.
        labels: (P,) int64 in [0, C).
        sizes: (N, 2) int64, (height, width) of each image in the network input, without the padding.
    """

    logits: Tensor
    boxes: Tensor
    image: Tensor
    labels: Tensor
    sizes: Tensor


def iou_score(a: Tensor, b: Tensor, outside: Tensor | None = None) -> Tensor:
    """Intersection over union of each pair of binary maps; the denominator is at least 1 cell.

    Args:
        a, b: (P, R, R), 0 or 1.
        outside: (P,) cells of `b` that lie outside of the frame; they count in the union.

    Returns:
        (P,) in [0, 1].

    Source: Mask Scoring R-CNN (arXiv 1903.00241).
    """
    both = (a * b).flatten(1).sum(1)
    union = a.flatten(1).sum(1) + b.flatten(1).sum(1) - both
    return both / (union if outside is None else union + outside).clamp(min=1)


class MaskScoring(nn.Module):
    """Predicts qualities of masks, which multiply the class score.

    A head says which qualities it predicts, predicts them (`forward`) and has a loss for them (`losses`).

    Args:
        qualities: names of what is predicted, `iou` first.
        detach_masks: no gradient from this head into the masks.
        boxes: RoIs in training: `gt_box` or `pred_box` (the decoded box of each positive).
        max_positives: positives per image that are scored in training.
        clamp: limit predictions to [0, 1] before they are combined.

    Raises:
        ValueError: for unknown boxes.
    """

    def __init__(
        self,
        qualities: tuple[str, ...],
        *,
        detach_masks: bool = True,
        boxes: str = "gt_box",
        max_positives: int = 64,
        clamp: bool = True,
    ) -> None:
        super().__init__()
        if boxes not in BOXES:
            raise ValueError(f"scoring boxes={boxes!r}; allowed: {', '.join(BOXES)}")
        self.qualities = qualities
        self.detach_masks = detach_masks
        self.boxes = boxes
        self.max_positives = max_positives
        self.clamp = clamp

    def forward(self, features: list[Tensor], masks: PredictedMasks) -> dict[str, Tensor]:
        """Predict the qualities of masks.

        Args:
            features: of the FPN, (N, F, h, w) each.
            masks: P of them.

        Returns:
            (P,) for each quality, not limited to [0, 1].
        """
        raise TypeError(f"{type(self).__name__} has to define forward()")

    def learned(self, shares: Tensor) -> Tensor:
        """Which true masks are large enough to learn from.

        Args:
            shares: (P,) area of each, as a share of the area of its image.

        Returns:
            (P,) bool.
        """
        return torch.ones_like(shares, dtype=torch.bool)

    @torch.no_grad()
    def targets(self, mask_logits: Tensor, true_masks: Tensor, outside: Tensor | None = None) -> dict[str, Tensor]:
        """True qualities of predicted masks; here the IoU of the mask that is cut at 0.5.

        Args:
            mask_logits: (P, R, R).
            true_masks: (P, R, R), 0 or 1, in the same frames.
            outside: (P,) area of the true mask outside of the frame, in cells; None: all of it is inside.

        Returns:
            (P,) in [0, 1] for each quality.
        """
        return {"iou": iou_score((mask_logits.float().sigmoid() >= 0.5).float(), true_masks, outside)}

    def losses(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted scalar of each quality."""
        raise TypeError(f"{type(self).__name__} has to define losses()")

    def combine(self, class_scores: Tensor, qualities: dict[str, Tensor]) -> Tensor:
        """Mask scores: the class score times the geometric mean of the qualities.

        Args:
            class_scores: (P,).
            qualities: (P,) each.

        Returns:
            (P,).
        """
        values = torch.stack([qualities[name] for name in self.qualities])
        if self.clamp:
            values = values.clamp(0, 1)
        if len(values) == 1:
            return class_scores * values[0]
        # Predictions that are not clamped can be negative, and a root of that would be NaN.
        return class_scores * values.prod(dim=0).clamp(min=0).sqrt()
