"""Fast NMS: a non-maximum suppression of matrices, without a loop."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of all pairs of boxes.

    Args:
        a: (..., P, 4) XYXY.
        b: (..., Q, 4) XYXY.

    Returns:
        (..., P, Q), 0 for a pair of empty boxes.
    """
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1) for boxes in (a, b)]
    union = areas[0][..., :, None] + areas[1][..., None, :] - shared
    return shared / union.clamp(min=1e-6)


def fast_nms(boxes: Tensor, threshold: float) -> Tensor:
    """Which boxes no better one of their group overlaps.

    A box that is itself suppressed still suppresses others, which is what lets all be decided at once; so a few more
    are lost than with the usual suppression.

    Args:
        boxes: (..., P, 4) XYXY, those of a group in the order of their scores, best first.
        threshold: IoU above which the worse of two boxes is dropped.

    Returns:
        (..., P) bool.

    Source: YOLACT (arXiv 1904.02689), section 4.

    Example:
        >>> fast_nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 2]]), 0.6).tolist()
        [True, False, False]
    """
    if boxes.shape[-2] == 0:
        return boxes.new_zeros(boxes.shape[:-1], dtype=torch.bool)
    return pairwise_iou(boxes, boxes).triu(diagonal=1).amax(dim=-2) <= threshold
