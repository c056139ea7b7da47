"""Masks from the frame of their boxes into the image, and to COCO's run-length code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F


def paste_masks(probs: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Interpolate masks from their boxes onto the whole image.

    Pixel (x, y) is sampled at its center (x + 0.5, y + 0.5); outside of the box the value is 0.

    Args:
        probs: (D, R, R) mask values in the frame of the boxes.
        boxes: (D, 4) XYXY in pixels of the image.
        height, width: of the image.

    Returns:
        (D, height, width) float32.

    Example:
        >>> paste_masks(torch.ones(1, 2, 2), torch.tensor([[1.0, 0.0, 3.0, 2.0]]), 2, 4)[0].tolist()
        [[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    """
    if len(probs) == 0:
        return probs.new_zeros(0, height, width)
    grid_y = _relative(torch.arange(height, device=probs.device), boxes[:, 1], boxes[:, 3])  # [D, height]
    grid_x = _relative(torch.arange(width, device=probs.device), boxes[:, 0], boxes[:, 2])  # [D, width]
    grid = torch.stack([grid_x[:, None, :].expand(-1, height, -1), grid_y[:, :, None].expand(-1, -1, width)], dim=3)
    return F.grid_sample(probs[:, None].float(), grid, align_corners=False)[:, 0]


def _relative(index: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Pixel centers in the coordinates of a box, -1 at its low side and 1 at its high side."""
    size = (high - low).clamp(min=1e-6)
    return (index + 0.5 - low[:, None]) / size[:, None] * 2 - 1


def masks_to_rle(
    probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[dict[str, object]]:
    """Encode masks one by one; only the part inside of the box is interpolated, in memory of one image.

    Args:
        probs: (D, R, R) mask values in the frame of the boxes.
        boxes: (D, 4) XYXY in pixels of the image.
        height, width: of the image.
        threshold: a pixel belongs to the object from this value on.

    Yields:
        COCO's RLE, `{"size": [height, width], "counts": str}`; the same as encoding `paste_masks(...) >= threshold`.
    """
    boxes = boxes.float()
    # A pixel outside of the box by more than one cell of the mask gets 0; one pixel more guards the rounding.
    margin = (boxes[:, 2:] - boxes[:, :2]) / probs.shape[-1] + 1
    low = (boxes[:, :2] - margin).floor()
    high = (boxes[:, 2:] + margin).ceil()
    limit = torch.tensor([width, height], device=boxes.device)
    low, high = low.clamp(min=0).minimum(limit).long().tolist(), high.clamp(min=0).minimum(limit).long().tolist()
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        canvas = np.zeros((height, width), dtype=np.uint8, order="F")
        if x1 > x0 and y1 > y0:
            shifted = boxes[i : i + 1] - boxes.new_tensor([x0, y0, x0, y0])
            inside = paste_masks(probs[i : i + 1], shifted, y1 - y0, x1 - x0)[0] >= threshold
            canvas[y0:y1, x0:x1] = inside.cpu().numpy()
        rle = coco_mask.encode(canvas)
        yield {"size": [height, width], "counts": rle["counts"].decode("ascii")}
