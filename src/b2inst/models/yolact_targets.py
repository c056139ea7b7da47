"""YOLACT's anchors: their shapes, which instance each stands for, their boxes as numbers, and hard negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst.ops.fast_nms import pairwise_iou
from b2inst.structures import Targets

BACKGROUND, NEUTRAL = -1, -2
VARIANCES = (0.1, 0.2)  # SSD's units of the offsets of centers and of the logarithms of sizes
MAX_LOG_GROWTH = math.log(1000 / 16)  # as in torchvision: keeps exp() of a wild prediction finite


def anchor_shapes(scale: float, ratios: Sequence[float], square: bool) -> list[tuple[float, float]]:
    """Width and height of the anchors of a cell.

    Args:
        scale: side in pixels of the anchor of ratio 1.
        ratios: width by height.
        square: let all be as high as they are wide, as in the published models: the ratios then only give other sizes.

    Example:
        >>> anchor_shapes(24, [1.0, 4.0, 0.25], square=False)
        [(24.0, 24.0), (48.0, 12.0), (12.0, 48.0)]
    """
    widths = [scale * math.sqrt(ratio) for ratio in ratios]
    return [(width, width if square else scale**2 / width) for width in widths]


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as offsets from anchors.

    Args:
        boxes: (P, 4) XYXY in pixels, none of them empty.
        anchors: (P, 4) XYXY in pixels.

    Returns:
        (P, 4): the move of the center in anchor sizes, and the logarithm of the growth, each in units of its variance.

    Source: SSD (arXiv 1512.02325), section 2.2.
    """
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    move = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return torch.cat([move / anchor_size / VARIANCES[0], (size / anchor_size).log() / VARIANCES[1]], dim=1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) XYXY boxes from offsets of `encode` and anchors, (..., 4) each; growth is limited to 62.5 times."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * VARIANCES[0] * anchor_size
    half = (offsets[..., 2:] * VARIANCES[1]).clamp(max=MAX_LOG_GROWTH).exp() * anchor_size / 2
    return torch.cat([center - half, center + half], dim=-1)


@torch.no_grad()
def match(
    anchors: Tensor, targets: Targets, num_images: int, positive_iou: float, negative_iou: float, crowd_share: float
) -> Tensor:
    """Which instance each anchor of each image stands for.

    An anchor is positive for the instance that it overlaps most, from `positive_iou` on; below `negative_iou` it is
    background, between the two it is neutral. Every instance gets one anchor at least, the one that it overlaps most;
    where two want the same, the one with the larger overlap has it. Background that lies in crowds is neutral too.

    Args:
        anchors: (L, 4) XYXY in pixels of the network input.
        targets: ground truth of the batch.
        num_images: N.
        positive_iou, negative_iou: see above.
        crowd_share: share of an anchor's area in crowds above which it is neutral.

    Returns:
        (N, L) int64 index into the instances of the batch, -1 for background, -2 for neutral anchors.

    Source: YOLACT's public code (behavior); a crowd is its area here, and its box there.
    """
    matched = []
    for n in range(num_images):
        index = (targets.image_index == n).nonzero(as_tuple=True)[0]
        own = _match_image(anchors, targets.boxes[index], positive_iou, negative_iou)
        matched.append(torch.where(own >= 0, index[own.clamp(min=0)], own) if len(index) else own)
    instance = torch.stack(matched)
    in_crowd = _share_inside(anchors, targets.crowd) > crowd_share
    return torch.where((instance < 0) & in_crowd, NEUTRAL, instance)


def _match_image(anchors: Tensor, boxes: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    overlaps = pairwise_iou(boxes, anchors)  # [G, L]
    largest, best = overlaps.max(dim=0)
    matched = torch.where(largest >= negative_iou, NEUTRAL, BACKGROUND)
    matched = torch.where(largest >= positive_iou, best, matched)
    for _ in range(min(overlaps.shape)):  # the largest overlap of all first; what is served leaves the table
        pair = overlaps.argmax()
        instance, anchor = (pair // len(anchors))[None], (pair % len(anchors))[None]
        matched.index_copy_(0, anchor, instance)
        overlaps.index_fill_(0, instance, -1.0).index_fill_(1, anchor, -1.0)
    return matched


def _share_inside(anchors: Tensor, areas: Tensor) -> Tensor:
    """(N, L) share of each anchor, to whole pixels, that lies in areas (N, H, W) bool."""
    height, width = areas.shape[-2:]
    summed = F.pad(areas.float().cumsum(1).cumsum(2), (1, 0, 1, 0))  # [N, H + 1, W + 1]
    x0, y0, x1, y1 = anchors.round().long().unbind(1)
    (x0, x1), (y0, y1) = (x.clamp(0, width) for x in (x0, x1)), (y.clamp(0, height) for y in (y0, y1))
    inside = summed[:, y1, x1] - summed[:, y0, x1] - summed[:, y1, x0] + summed[:, y0, x0]
    return inside / (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)


@torch.no_grad()
def hard_negatives(difficulty: Tensor, instance: Tensor, ratio: float) -> Tensor:
    """The background anchors of each image that are learned from: the most difficult ones.

    Args:
        difficulty: (N, L), the loss of the anchor as background.
        instance: (N, L) as `match` returns it.
        ratio: how many there are for each positive of the image.

    Returns:
        (N, L) bool; none in an image without positives.

    Source: SSD (arXiv 1512.02325), section 2.2.
    """
    background = instance == BACKGROUND
    wanted = ratio * (instance >= 0).sum(dim=1, keepdim=True)
    order = difficulty.masked_fill(~background, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return background & (rank < wanted)
