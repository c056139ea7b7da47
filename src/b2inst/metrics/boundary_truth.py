"""True boundaries of an image from its annotations, at full resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from b2inst.metrics.ground_truth import GroundTruth

CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def true_boundaries(truth: GroundTruth, image_id: int, category_ids: Sequence[int] = ()) -> Iterator[Tensor]:
    """Boundaries of the instances of an image, each one pixel wide.

    The boundary of an instance is its inner contour: its pixels beside, above or below one that is not its own. Where
    the image cuts it off there is none. Two instances that touch have both of theirs, side by side, of which a
    single thin line has the pixels to find one. The Laplacian of the target finds those at corners too, 1.4 times as
    many on a slope, which no thin line could be matched with one to one.

    Args:
        truth: annotations, rasterized.
        image_id: of the image.
        category_ids: C categories with a map of their own.

    Yields:
        (H, W) bool, the boundary of all instances and then that of each category, in pixels of the file.
    """
    objects, masks = _decoded(truth, image_id, crowds=False)
    yield _contours(masks)
    for category in category_ids:
        own = [index for index, annotation in enumerate(objects) if annotation["category_id"] == category]
        yield _contours(masks[own])


def crowd_area(truth: GroundTruth, image_id: int) -> Tensor:
    """(H, W) bool, where the crowds of an image are, whose boundaries are not known."""
    return _decoded(truth, image_id, crowds=True)[1].any(dim=0)


def _contours(masks: Tensor) -> Tensor:
    """(H, W) bool, the inner contours of masks (I, H, W)."""
    found = np.zeros(masks.shape[1:], bool)
    for mask in masks.numpy():
        found |= mask & (cv2.erode(mask.view(np.uint8), CROSS, borderValue=1) == 0)
    return torch.from_numpy(found)


def _decoded(truth: GroundTruth, image_id: int, crowds: bool) -> tuple[list[dict[str, Any]], Tensor]:
    """The I annotations of an image that are crowds, or are none, and their masks (I, H, W) bool."""
    height, width = truth.image_size(image_id)
    chosen = [ann for ann in truth.imgToAnns.get(image_id, []) if bool(ann["iscrowd"]) == crowds]
    masks = np.zeros((len(chosen), height, width), np.uint8)
    for mask, annotation in zip(masks, chosen, strict=True):
        mask[:] = rle_tools.decode(annotation["segmentation"])
    return chosen, torch.from_numpy(masks).view(torch.bool)
