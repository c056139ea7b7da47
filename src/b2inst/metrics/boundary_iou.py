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

from b2inst.metrics.records import rle_runs


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
    mask, top, left = mask_crop(rle)
    if min(mask.shape) > 2 * distance:
        kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
        # borderValue 0: beyond its tight box a mask is 0, also where the box ends at the image
        mask = mask - cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    # else: no pixel is further than d from the outside, the whole mask is boundary
    return BoundaryCrop(mask.view(bool).T, top, left, int(np.count_nonzero(mask)))


def mask_crop(rle: Mapping[str, Any]) -> tuple[np.ndarray, int, int]:
    """Decode a mask inside its tight box only; a canvas of the whole image costs ten times as much.

    Args:
        rle: compressed RLE.

    Returns:
        (box width, box height) uint8, columns first and contiguous, with the first row and the first column of the
        box; of zero size for an empty mask.
    """
    height = int(rle["size"][0])
    edges = np.cumsum(rle_runs(rle["counts"]))
    starts, ends = edges[:-1:2], edges[1::2]  # of the runs of ones
    starts, ends = starts[starts < ends], ends[starts < ends]
    if len(starts) == 0:
        return np.zeros((0, 0), np.uint8), 0, 0
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    top, bottom = 0, height
    first_row, last_row = starts % height, (ends - 1) % height
    if (first_row + ends - starts <= height).all():  # no run goes on in the next column
        top, bottom = int(first_row.min()), int(last_row.max()) + 1
    changes = np.stack([starts, ends], axis=1).ravel() - left * height
    runs = np.diff(changes, prepend=0, append=(right - left) * height)
    ones = np.zeros(len(runs), np.uint8)
    ones[1::2] = 1
    band = np.repeat(ones, runs).reshape(right - left, height)
    return np.ascontiguousarray(band[:, top:bottom]), top, left


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


def boundary_ious(
    detections: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    found: np.ndarray,
    real: np.ndarray,
    dilation_ratio: float = 0.02,
) -> np.ndarray:
    """Boundary IoU of pairs of one image; each boundary is computed once.

    Args:
        detections: compressed RLEs.
        truths: compressed RLEs of the same size.
        found: (P,) indices of detections.
        real: (P,) indices of truths.
        dilation_ratio: thickness of the boundary as a fraction of the image diagonal.

    Returns:
        (P,) float64.
    """
    distance = boundary_width(*truths[int(real[0])]["size"], dilation_ratio)
    detected = {index: boundary_crop(detections[index], distance) for index in set(found.tolist())}
    true = {index: boundary_crop(truths[index], distance) for index in set(real.tolist())}
    pairs = zip(found.tolist(), real.tolist(), strict=True)
    return np.array([crop_iou(detected[row], true[column]) for row, column in pairs])


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
    boundary = boundary_ious(detections, truths, rows, columns, dilation_ratio)
    result[rows, columns] = np.minimum(result[rows, columns], boundary)
    return result
