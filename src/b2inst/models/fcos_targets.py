"""Which location is responsible for which instance (FCOS), and the centerness target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from b2inst.structures import Targets

INF = 1e8


@dataclass(frozen=True)
class Assignment:
    """Training targets of all N * L locations of a batch, image by image, level by level.

    Attributes:
        instance: (N, L) int64 index into the instances of the batch, -1 for background.
        ltrb: (N, L, 4) float32 distances to the sides of the box, in units of the level's stride.
    """

    instance: Tensor
    ltrb: Tensor


def assign(
    points: Tensor, strides: Tensor, ranges: Tensor, targets: Targets, num_images: int, radius: float = 1.5
) -> Assignment:
    """Assign instances to locations as FCOS does.

    A location is positive for an instance when it lies within `radius * stride` of the center of its box and inside
    the box, and the largest distance to a side falls into the range of its level. Of several, the smallest box wins.

    Args:
        points: (L, 2) float32 (x, y) of all levels' locations, in pixels of the network input.
        strides: (L,) float32 stride of the level of each location.
        ranges: (L, 2) float32 smallest and largest regression distance of the level, in pixels, both inclusive.
        targets: ground truth of the batch.
        num_images: N.
        radius: center sampling radius in strides; 0 or less: anywhere in the box.

    Source: AdelaiDet's FCOS (behavior); center sampling after FCOS v2 (arXiv 2006.09214).
    """
    instances, distances = [], []
    for n in range(num_images):
        index = (targets.image_index == n).nonzero(as_tuple=True)[0]
        instance, ltrb = _assign_image(points, strides, ranges, targets.boxes[index], radius)
        instances.append(torch.where(instance >= 0, index[instance.clamp(min=0)], -1) if len(index) else instance)
        distances.append(ltrb / strides[:, None])
    return Assignment(torch.stack(instances), torch.stack(distances))


def _assign_image(
    points: Tensor, strides: Tensor, ranges: Tensor, boxes: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    if len(boxes) == 0:
        return points.new_full((len(points),), -1, dtype=torch.int64), points.new_zeros(len(points), 4)
    low = points[:, None] - boxes[None, :, :2]  # [L, G, 2]: left, top
    high = boxes[None, :, 2:] - points[:, None]  # [L, G, 2]: right, bottom
    ltrb = torch.cat([low, high], dim=2)
    inside = _center_windows(points, strides, boxes, radius) if radius > 0 else ltrb.amin(dim=2) > 0
    reach = ltrb.amax(dim=2)
    fits = (reach >= ranges[:, None, 0]) & (reach <= ranges[:, None, 1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = torch.where(inside & fits, areas[None], INF)  # [L, G]
    smallest, best = areas.min(dim=1)
    picked = ltrb[torch.arange(len(points), device=points.device), best]
    return torch.where(smallest < INF, best, -1), picked


def _center_windows(points: Tensor, strides: Tensor, boxes: Tensor, radius: float) -> Tensor:
    """(L, G) whether a location lies strictly inside the window around the center, cut off at the box."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = (strides * radius)[:, None, None]  # [L, 1, 1]
    low = torch.maximum(center[None] - reach, boxes[None, :, :2])
    high = torch.minimum(center[None] + reach, boxes[None, :, 2:])
    return torch.cat([points[:, None] - low, high - points[:, None]], dim=2).amin(dim=2) > 0


def centerness(ltrb: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        ltrb: (P, 4) positive distances.

    Returns:
        (P,) in [0, 1].

    Example:
        >>> centerness(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 2.0]])).tolist()
        [1.0, 0.5]
    """
    horizontal, vertical = ltrb[:, [0, 2]], ltrb[:, [1, 3]]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.clamp(min=0).sqrt()
