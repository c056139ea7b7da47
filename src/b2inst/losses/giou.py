"""Box loss of FCOS: generalized IoU of boxes that share a point."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.ops.precision import full_precision, without_autocast


def giou_ltrb(pred: Tensor, target: Tensor) -> Tensor:
    r"""1 - GIoU of boxes given as distances from a common point to their four sides.

    .. math:: L = 1 - \left( \frac{I + 1}{U + 1} - \frac{C - U}{C} \right)

    I, U and C are the areas of intersection, union and enclosing box. The + 1 is AdelaiDet's smoothing, in units of
    the stride: it weakens the gradient of small boxes, so it belongs to the published results. Two consequences: two
    boxes of area zero are equal (loss 0), and the loss of an empty prediction depends on the size of its target.

    Args:
        pred: (P, 4), distances left, top, right, bottom >= 0, in units of the stride of their level.
        target: (P, 4), likewise.

    Returns:
        (P,) float32 in [0, 2), not reduced: the caller weights by centerness and divides by its sum.

    Raises:
        ValueError: shapes that differ, or are not (P, 4).

    Example:
        >>> giou_ltrb(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 3.0]]))  # 1 - (4+1)/(8+1)
        tensor([0.4444])
    """
    if pred.ndim != 2 or pred.shape[1] != 4 or pred.shape != target.shape:
        given = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred and target have shapes {given}, but both have to be the same (P, 4)")
    with without_autocast(pred):
        pred = full_precision(pred)
        target = target.to(pred.dtype)
        intersection = _area(torch.minimum(pred, target))
        union = _area(pred) + _area(target) - intersection
        enclosing = _area(torch.maximum(pred, target))
        iou = (intersection + 1) / (union + 1)
        tiny = torch.finfo(pred.dtype).tiny  # two boxes without area: 0 / tiny
        return 1 - (iou - (enclosing - union) / enclosing.clamp(min=tiny))


def _area(sides: Tensor) -> Tensor:
    left, top, right, bottom = sides.unbind(dim=1)
    return (left + right) * (top + bottom)
