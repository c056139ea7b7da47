"""Boundary IoU of masks in RLE (Cheng et al., "Boundary IoU", CVPR 2021), exact and only where it is needed.

The boundary of a mask is the mask minus its erosion: all its pixels closer than d to the outside, where d is 2 %
of the image diagonal and everything beyond the image counts as outside. The behavior is that of the reference
implementation (boundary-iou-api), which erodes full-size masks d times with 3x3 ones; one erosion of the tight box
with (2d+1) x (2d+1) ones is the same set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_tools


@dataclass(frozen=True)
class BoundaryCrop:
    """Boundary of one mask in its tight box.

    Attributes:
        pixels: (box height, box width) bool.
        top: first row of the box in the image, in pixels.
        left: first column of the box.
        area: number of boundary pixels.
    """

    pixels: np.ndarray
    top: int
    left: int
    area: int


def boundary_width(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Return the thickness d of the boundary in pixels: max(1, round(ratio * diagonal)), halves to the even side.

    Example:
        >>> boundary_width(480, 640)
        16
    """
    # The diagonal as the reference computes it: math.hypot may differ in the last bit and so in the rounding.
    return max(1, round(dilation_ratio * math.sqrt(height**2 + width**2)))


def boundary_crop(rle: Mapping[str, Any], distance: int) -> BoundaryCrop:
    """Compute the boundary of a mask inside its tight box.

    Args:
        rle: compressed RLE of the mask, `size` (height, width).
        distance: thickness d in pixels.

    Returns:
        The boundary; of zero size for an empty mask.

    Raises:
        ValueError: `distance` is less than 1.
    """
    if distance < 1:
        raise ValueError(f"distance {distance} is not allowed: a boundary is at least 1 pixel thick")
    left, top, width, height = (int(number) for number in rle_tools.toBbox(rle))
    mask = rle_tools.decode(rle)[top : top + height, left : left + width]
    if min(width, height) > 2 * distance:
        kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
        # borderValue 0: beyond its tight box a mask is 0, also where the box ends at the image
        eroded = cv2.erode(np.ascontiguousarray(mask), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        mask = mask - eroded
    # else: no pixel is further than d from the outside, the whole mask is boundary
    return BoundaryCrop(mask.astype(bool), top, left, int(np.count_nonzero(mask)))


def boundary_rle(rle: Mapping[str, Any], dilation_ratio: float = 0.02) -> dict[str, Any]:
    """Compute the boundary of a mask as an RLE of the same size.

    Args:
        rle: compressed RLE of the mask.
        dilation_ratio: thickness as a fraction of the image diagonal.

    Returns:
        Compressed RLE of the boundary.

    Example:
        >>> rle = rle_tools.encode(np.ones((5, 5), np.uint8, order="F"))
        >>> int(rle_tools.area(boundary_rle(rle)))  # the border of the image is a boundary
        16
    """
    height, width = rle["size"]
    crop = boundary_crop(rle, boundary_width(height, width, dilation_ratio))
    canvas = np.zeros((height, width), np.uint8, order="F")
    canvas[crop.top : crop.top + crop.pixels.shape[0], crop.left : crop.left + crop.pixels.shape[1]] = crop.pixels
    return rle_tools.encode(canvas)


def crop_iou(first: BoundaryCrop, second: BoundaryCrop) -> float:
    """Intersection over union of two boundaries of the same image; 0 where they do not meet."""
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom = min(first.top + first.pixels.shape[0], second.top + second.pixels.shape[0])
    right = min(first.left + first.pixels.shape[1], second.left + second.pixels.shape[1])
    if bottom <= top or right <= left:
        return 0.0
    one, two = (
        crop.pixels[top - crop.top : bottom - crop.top, left - crop.left : right - crop.left]
        for crop in (first, second)
    )
    intersection = int(np.count_nonzero(one & two))
    return intersection / (first.area + second.area - intersection) if intersection else 0.0


def lower_to_boundary_iou(
    mask_ious: np.ndarray,
    detections: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    is_crowd: Sequence[bool],
    dilation_ratio: float = 0.02,
    min_iou: float = 0.0,
) -> np.ndarray:
    """Replace the mask IoU of pairs by min(mask IoU, boundary IoU), the measure behind Boundary AP.

    Args:
        mask_ious: (D, G) mask IoU of D detections and G objects; it is not changed.
        detections: D compressed RLEs.
        truths: G compressed RLEs of the same size.
        is_crowd: G flags; columns of crowds keep the mask IoU.
        dilation_ratio: thickness of the boundary as a fraction of the image diagonal.
        min_iou: pairs with a smaller mask IoU keep it. With the lowest matching threshold this changes no
            match, since the minimum is below it as well, and saves most boundaries.

    Returns:
        (D, G) float64.
    """
    result = np.array(mask_ious, dtype=np.float64)
    needed = (result >= min_iou) & (result > 0) & ~np.asarray(is_crowd, dtype=bool)[None, :]
    rows, columns = np.nonzero(needed)
    if len(rows) == 0:
        return result
    distance = boundary_width(*truths[0]["size"], dilation_ratio)
    detected = {int(row): boundary_crop(detections[row], distance) for row in np.unique(rows)}
    real = {int(column): boundary_crop(truths[column], distance) for column in np.unique(columns)}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        result[row, column] = min(result[row, column], crop_iou(detected[row], real[column]))
    return result
