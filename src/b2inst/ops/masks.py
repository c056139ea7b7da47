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


# Pixels of a crop that are interpolated at a time: bounds the memory, and stays in the cache.
_STRIP = 1 << 17
# Share of the largest mask value within which the quick interpolation may disagree with `paste_masks`; on noise of
# 112 x 112 cells they differ by 4e-6.
_GUARD = 1e-4


def masks_to_rle(
    probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[dict[str, object]]:
    """Encode masks one by one, on the CPU; only the part inside of the box is interpolated, and there is no canvas.

    Lines of the mask are interpolated first, then columns between them; the few pixels that come out too close to the
    threshold to be sure are sampled again as `paste_masks` does it.

    Args:
        probs: (D, R, R) mask values in the frame of the boxes.
        boxes: (D, 4) XYXY in pixels of the image.
        height, width: of the image.
        threshold: a pixel belongs to the object from this value on; more than 0, the value outside of the box.

    Yields:
        COCO's RLE, `{"size": [height, width], "counts": str}`; the same as encoding `paste_masks(...) >= threshold`.

    Raises:
        ValueError: a coordinate of a box is not finite.
    """
    probs, boxes = probs.detach().float().cpu(), boxes.detach().float().cpu().numpy()
    if not np.isfinite(boxes).all():
        index = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(f"boxes[{index}] is {boxes[index].tolist()}; give finite numbers: does the model diverge?")
    # A pixel outside of the box by more than one cell of the mask gets 0; one pixel more guards the rounding.
    margin = (boxes[:, 2:] - boxes[:, :2]) / np.float32(probs.shape[-1]) + 1
    low = np.floor(boxes[:, :2] - margin).clip(0, (width, height)).astype(np.int64).tolist()
    high = np.ceil(boxes[:, 2:] + margin).clip(0, (width, height)).astype(np.int64).tolist()
    largest = np.abs(probs.numpy()).max(axis=(1, 2), initial=abs(threshold))
    padded = np.pad(probs.numpy(), ((0, 0), (1, 2), (1, 2)))  # beyond a mask all is 0
    for index, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        edges = [np.zeros(0, np.int64)]
        if x1 > x0 and y1 > y0:
            crop = _Crop(probs[index], padded[index], boxes[index], y0, y1, threshold, _GUARD * largest[index])
            step = max(1, _STRIP // (y1 - y0))
            for start in range(x0, x1, step):
                inside = crop.columns(start, min(start + step, x1))
                edges.append(run_edges(inside, y0, start, height))
        yield edges_to_rle(edges[-1] if len(edges) == 2 else np.concatenate(edges), height, width)


class _Crop:
    """The rows `top` to `bottom` of a pasted mask; the mask is interpolated to these rows at once."""

    def __init__(
        self, prob: Tensor, padded: np.ndarray, box: np.ndarray, top: int, bottom: int, threshold: float, guard: float
    ) -> None:
        self.prob, self.box = prob, box
        self.low, self.high, self.threshold = threshold - guard, threshold + guard, threshold
        self.grid_y = _grid(top, bottom, box[1], box[3])
        index, share = _cells(self.grid_y, prob.shape[0])
        lines = padded.T  # [R + 3 columns, R + 3 rows]
        self.lines = lines[:, index]
        self.lines += (lines[:, 1:] - lines[:, :-1])[:, index] * share
        self.steps = self.lines[1:] - self.lines[:-1]

    def columns(self, start: int, end: int) -> np.ndarray:
        """Whether each pixel of some columns, (columns, rows), reaches the threshold."""
        grid_x = _grid(start, end, self.box[0], self.box[2])
        index, share = _cells(grid_x, self.prob.shape[1])
        values = self.steps[index]
        values *= share[:, None]
        values += self.lines[index]
        inside = values >= self.high
        # written so that NaN is unsure as well
        unsure = np.flatnonzero(inside == (values < self.low))
        if len(unsure):
            column, row = np.divmod(unsure, len(self.grid_y))
            points = torch.from_numpy(np.stack([grid_x[column], self.grid_y[row]], axis=1))
            exact = F.grid_sample(self.prob[None, None], points[None, None], align_corners=False)[0, 0, 0]
            inside.ravel()[unsure] = (exact >= self.threshold).numpy()
        return inside


def _grid(start: int, end: int, low: np.float32, high: np.float32) -> np.ndarray:
    """`_relative` of the pixels from `start` to `end` for one box, with the same bits."""
    size = np.maximum(high - low, np.float32(1e-6))
    grid = np.arange(start, end, dtype=np.float32)
    grid += np.float32(0.5)
    grid -= low
    grid /= size
    grid *= np.float32(2)
    grid -= np.float32(1)
    return grid


def _cells(grid: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of -1 ... 1 as the index of a line of the padded mask and the way from there to the next, 0 ... 1."""
    place = ((grid + np.float32(1)) * np.float32(side / 2) + np.float32(0.5)).clip(0, side + 1)
    index = place.astype(np.int32)
    place -= index
    return index, place


def run_edges(inside: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """Where the value of an image changes in column-major order, if all of it is 0 but a crop.

    Args:
        inside: (columns, rows) bool, the crop with columns first.
        top, left: the first row and column of the crop.
        height: of the image.

    Returns:
        (edges,) int64 ascending positions `column * height + row`, alternately of the first pixel that is 1 and the
        first one that is 0 again. A position that occurs twice, an end and a start, is no change.
    """
    columns, rows = inside.shape
    padded = np.zeros(columns * (rows + 1) + 1, np.bool_)  # a 0 before all, and one below each column
    padded[1:].reshape(columns, rows + 1)[:, :rows] = inside
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), rows + 1)
    return (column + left) * height + row + top


def edges_to_rle(edges: np.ndarray, height: int, width: int) -> dict[str, object]:
    """Write the edges of `run_edges` as COCO's compressed RLE.

    Example:
        >>> edges_to_rle(np.array([2, 3]), 2, 3)  # runs of 2, 1 and 3 pixels
        {'size': [2, 3], 'counts': '213'}
    """
    twice = edges[1:] == edges[:-1]  # columns that reach from the top to the bottom join
    if twice.any():
        edges = edges[~(np.append(twice, False) | np.append(False, twice))]
    bounds = np.empty(len(edges) + 2, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, edges, height * width
    runs = bounds[1:] - bounds[:-1]
    if len(edges) and runs[-1] == 0:
        runs = runs[:-1]  # COCO writes a run of no pixels at the beginning, but not at the end
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
