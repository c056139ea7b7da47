"""Masks from the frames of their boxes onto a small picture of their whole image, as products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.ops.precision import without_autocast


def masks_on_canvas(probs: Tensor, boxes: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Interpolate masks where the cells of a square grid over the image have their centers.

    The image is squeezed to a square, whatever its shape. The values are those of `ops.masks.paste_masks`, but rows
    and columns are interpolated one after the other, without a grid of points for every mask; and the number of masks
    may be unknown, as in a graph that is traced.

    Args:
        probs: (P, R, R) mask values in the frame of the boxes.
        boxes: (P, 4) XYXY in pixels of the image.
        sizes: (P, 2) height and width of the image of each mask, in pixels.
        side: cells S of a side of the grid.

    Returns:
        (P, S, S) float32; 0 outside of the box.

    Example:
        >>> masks_on_canvas(torch.ones(1, 2, 2), torch.tensor([[0.0, 4.0, 8.0, 8.0]]), torch.tensor([[8, 16]]), 4)[0]
        tensor([[0., 0., 0., 0.],
                [0., 0., 0., 0.],
                [1., 1., 0., 0.],
                [1., 1., 0., 0.]])
    """
    with without_autocast(probs):
        probs, boxes, sizes = probs.float(), boxes.float(), sizes.float()
        rows = _weights(boxes[:, 1], boxes[:, 3], sizes[:, 0], side, probs.shape[1])
        columns = _weights(boxes[:, 0], boxes[:, 2], sizes[:, 1], side, probs.shape[2])
        return rows @ probs @ columns.mT  # [P, S, R] [P, R, R] [P, R, S]


def _weights(low: Tensor, high: Tensor, extent: Tensor, side: int, cells: int) -> Tensor:
    """(P, S, R) linear weights of the R cells between `low` and `high` at the centers of S cells from 0 to `extent`."""
    centers = (torch.arange(side, device=low.device) + 0.5) / side * extent[:, None]  # [P, S] pixels
    place = (centers - low[:, None]) / (high - low).clamp(min=1e-6)[:, None] * cells - 0.5  # in cells of the mask
    return (1 - (place[:, :, None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
