"""Regions of interest: pooling on the bases, crops of ground-truth masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def with_image_index(boxes: Tensor, image_index: Tensor) -> Tensor:
    """(P, 5) boxes with the image in front, as `torchvision.ops.roi_align` wants them."""
    return torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(P, 4) boxes cut at their images, whose (height, width) are (P, 2)."""
    limit = sizes.flip(1).repeat(1, 2).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limit)


def crop_masks(masks: Tensor, boxes: Tensor, size: int, chunk: int = 16) -> Tensor:
    """Crop one mask per box and scale it to a square.

    Args:
        masks: (B, H, W) bool, one per box.
        boxes: (B, 4) XYXY in pixels of the masks.
        size: side R of the result.
        chunk: how many masks are cast to float at a time; bounds the memory.

    Returns:
        (B, R, R) float32, 1 in cells of which half or more is covered. Averages the exact samples of each cell, so that
        thin parts survive down-scaling.

    Example:
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> mask[0, 2:6, 2:4] = True
        >>> crop_masks(mask, torch.tensor([[2.0, 2.0, 6.0, 6.0]]), 2).tolist()
        [[[1.0, 0.0], [1.0, 0.0]]]
    """
    if len(masks) == 0:
        return boxes.new_zeros(0, size, size)
    crops = []
    for start in range(0, len(masks), chunk):
        part = boxes[start : start + chunk].float()
        rois = with_image_index(part, torch.arange(len(part), device=boxes.device))
        dense = masks[start : start + chunk, None].float()
        crops.append(roi_align(dense, rois, size, spatial_scale=1.0, sampling_ratio=-1, aligned=True)[:, 0])
    return (torch.cat(crops) >= 0.5).float()


def fpn_level(boxes: Tensor) -> Tensor:
    """FPN level of each box: floor(4 + log2(sqrt(area) / 224)), limited to P3, P4, P5.

    Returns:
        (P,) int64 in [3, 5].

    Source: FPN (arXiv 1612.03144), equation 1.

    Example:
        >>> corners = torch.tensor([10.0, 224.0, 900.0])[:, None]
        >>> fpn_level(torch.cat([corners * 0, corners * 0, corners, corners], dim=1)).tolist()
        [3, 4, 5]
    """
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1e-6)
    level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8))
    return level.clamp(3, 5).long()
