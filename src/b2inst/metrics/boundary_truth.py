"""True boundaries of an image from its annotations, at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from b2inst.metrics.ground_truth import GroundTruth
from b2inst.ops.laplacian import any_boundary


def true_boundaries(truth: GroundTruth, image_id: int, category_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Boundaries of the instances of an image, as the boundary basis learns them: what the Laplacian finds in a mask.

    The boundary of an instance is its inner contour, one pixel wide; where the image cuts it off there is none. Two
    instances that touch have both of theirs.

    Args:
        truth: annotations, rasterized.
        image_id: of the image.
        category_ids: C categories with a map of their own.

    Returns:
        (1 + C, H, W) bool, the boundary of all instances and that of each category, in pixels of the file; and (H, W)
        bool, where crowds are, whose boundaries are not known.
    """
    annotations = truth.imgToAnns.get(image_id, [])
    height, width = truth.image_size(image_id)
    objects = [annotation for annotation in annotations if not annotation["iscrowd"]]
    masks = _decoded(objects, height, width)
    maps = [any_boundary(masks)]
    for category in category_ids:
        own = [index for index, annotation in enumerate(objects) if annotation["category_id"] == category]
        maps.append(any_boundary(masks[own]))
    crowds = _decoded([annotation for annotation in annotations if annotation["iscrowd"]], height, width)
    return torch.stack(maps).bool(), crowds.any(dim=0)


def _decoded(annotations: Sequence[dict], height: int, width: int) -> Tensor:
    """(I, H, W) bool masks."""
    if not annotations:
        return torch.zeros(0, height, width, dtype=torch.bool)
    masks = np.stack([rle_tools.decode(annotation["segmentation"]) for annotation in annotations])
    return torch.from_numpy(masks).bool()
