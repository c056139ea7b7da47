"""True boundaries of an image from its annotations, at full resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from b2inst.metrics.ground_truth import GroundTruth
from b2inst.ops.laplacian import any_boundary


def true_boundaries(truth: GroundTruth, image_id: int, category_ids: Sequence[int] = ()) -> Iterator[Tensor]:
    """Boundaries of the instances of an image, as the boundary basis learns them: what the Laplacian finds in a mask.

    The boundary of an instance is its inner contour, one pixel wide; where the image cuts it off there is none. Two
    instances that touch have both of theirs.

    Args:
        truth: annotations, rasterized.
        image_id: of the image.
        category_ids: C categories with a map of their own.

    Yields:
        (H, W) bool, the boundary of all instances and then that of each category, in pixels of the file.
    """
    objects, masks = _decoded(truth, image_id, crowds=False)
    yield any_boundary(masks).bool()
    for category in category_ids:
        own = [index for index, annotation in enumerate(objects) if annotation["category_id"] == category]
        yield any_boundary(masks[own]).bool()


def crowd_area(truth: GroundTruth, image_id: int) -> Tensor:
    """(H, W) bool, where the crowds of an image are, whose boundaries are not known."""
    return _decoded(truth, image_id, crowds=True)[1].any(dim=0)


def _decoded(truth: GroundTruth, image_id: int, crowds: bool) -> tuple[list[dict[str, Any]], Tensor]:
    """The I annotations of an image that are crowds, or are none, and their masks (I, H, W) bool."""
    height, width = truth.image_size(image_id)
    chosen = [ann for ann in truth.imgToAnns.get(image_id, []) if bool(ann["iscrowd"]) == crowds]
    masks = np.zeros((len(chosen), height, width), np.uint8)
    for mask, annotation in zip(masks, chosen, strict=True):
        mask[:] = rle_tools.decode(annotation["segmentation"])
    return chosen, torch.from_numpy(masks).view(torch.bool)
