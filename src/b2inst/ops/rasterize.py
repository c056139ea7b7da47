"""From COCO segmentations to pixels, and index maps: many masks in one array.

Pixels come from pycocotools, the rasterizer of the reference evaluator, so that the masks which are learned
are the masks which are scored.

An index map is an (H, W) array that holds k + 1 where object k is. Objects that overlap go to different maps, so
an image needs few of them (one for nuclei, two or three for COCO), and a flip, a crop or a nearest-neighbor resize
costs a few maps instead of one mask for each object. The result is the same, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]
"""Polygons ([[x, y, x, y, ...], ...]) or RLE ({"size": [h, w], "counts": str or list})."""

Patch = tuple[int, int, NDArray[np.bool_]]
"""An object: left column, upper row, and the pixels of its tight box."""

INDEX_DTYPE = np.uint16  # OpenCV resizes it, and 65,535 objects are enough for an image


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Turn any COCO segmentation into one compressed RLE.

    Args:
        segmentation: polygons in pixels of the image, or RLE, compressed or not.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        `{"size": [height, width], "counts": bytes}`; several polygons are united.

    Polygons must not reach far outside of the image, and an RLE must cover it, as those of a `CocoIndex`: pycocotools
    looks at neither, and writes and reads outside of its memory.
    """
    if not isinstance(segmentation, Mapping):
        polygons = [np.asarray(p, np.float64).ravel().tolist() for p in segmentation]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    return dict(segmentation)


def rasterize(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """Rasterize one object as the COCO evaluator does.

    Args:
        segmentation: polygons in pixels of the image, or RLE, compressed or not.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (height, width) bool.

    Example:
        >>> rasterize([[1, 1, 3, 1, 3, 2, 1, 2]], 3, 4).astype(int)
        array([[0, 0, 0, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    return np.ascontiguousarray(coco_mask.decode(to_rle(segmentation, height, width))).astype(bool)


def rasterize_window(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> Patch | None:
    """Rasterize polygons as `rasterize` does, but look at nothing outside of them.

    Args:
        polygons: (n, 2) points each, in pixels of the image; they are united.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The pixels in their tight box, None if there are none.

    Example:
        >>> rasterize_window([np.array([[1.0, 1], [3, 1], [3, 2], [1, 2]])], 3, 4)
        (1, 1, array([[ True,  True]]))
    """
    points = np.concatenate(polygons)
    x0, y0 = (int(v) for v in np.clip(np.floor(points.min(axis=0)) - 1, 0, (width, height)))
    x1, y1 = (int(v) for v in np.clip(np.ceil(points.max(axis=0)) + 1, 0, (width, height)))
    if x0 >= x1 or y0 >= y1:
        return None
    moved = [_move(polygon, x0, y0).ravel().tolist() for polygon in polygons]
    rles = coco_mask.frPyObjects(moved, y1 - y0, x1 - x0)
    rle = rles[0] if len(rles) == 1 else coco_mask.merge(rles)
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    if w == 0 or h == 0:
        return None
    return x0 + x, y0 + y, coco_mask.decode(rle)[y : y + h, x : x + w].astype(bool, order="C")


def _move(points: NDArray[np.float64], x: int, y: int) -> NDArray[np.float64]:
    """Move points so that the rasterizer rounds them to the same sub-pixels, fifths of a pixel, as before."""
    fifths = np.trunc(5 * points + 0.5) - (5 * x, 5 * y)
    return np.where(fifths < 0, fifths - 1, fifths) / 5  # it rounds towards 0


def outline(polygon: Sequence[float]) -> float:
    """The steps that pycocotools takes around a polygon, in pixels; time and memory grow with them.

    Example:
        >>> outline([0, 0, 4, 0, 4, 3])
        11.0
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def rasterize_in_box(polygons: Sequence[Sequence[float]], box: Sequence[float], size: int) -> NDArray[np.bool_]:
    """Rasterize polygons on a square grid laid over a box, without the detour over the pixels of the image.

    Args:
        polygons: [[x, y, x, y, ...], ...] in pixels of the image; they are united.
        box: XYXY in pixels of the image.
        size: side of the grid.

    Returns:
        (size, size) bool.

    Source: detectron2's cropping of polygon masks (behavior); sides below 0.1 pixel count as 0.1.

    Example:
        >>> rasterize_in_box([[2, 2, 6, 2, 6, 6, 2, 6]], [0, 0, 8, 8], 4).astype(int)
        array([[0, 0, 0, 0],
               [0, 1, 1, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    x0, y0, x1, y1 = box
    corner = np.array([x0, y0], np.float64)
    scale = size / np.maximum(np.array([x1 - x0, y1 - y0], np.float64), 0.1)
    scaled = [((np.asarray(p, np.float64).reshape(-1, 2) - corner) * scale).ravel().tolist() for p in polygons]
    return rasterize(scaled, size, size)


def pack(segmentations: Iterable[Segmentation], height: int, width: int) -> NDArray[np.uint16]:
    """Rasterize objects into as few index maps as a first-fit in the order given needs.

    Args:
        segmentations: of the objects, at most 65,535.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (L, height, width) uint16 with k + 1 at the pixels of object k; L = 0 without objects.

    Example:
        >>> square = [[0, 0, 2, 0, 2, 2, 0, 2]]
        >>> pack([square, square], 2, 3).tolist()
        [[[1, 1, 0], [1, 1, 0]], [[2, 2, 0], [2, 2, 0]]]
    """
    maps: list[NDArray[np.uint16]] = []
    for value, segmentation in enumerate(segmentations, start=1):
        rle = to_rle(segmentation, height, width)
        x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
        if w == 0 or h == 0:
            continue
        window = (slice(y, y + h), slice(x, x + w))  # all of the object; the rest need not be looked at
        mask = coco_mask.decode(rle)[window].astype(bool)
        free = next((m for m in maps if not m[window][mask].any()), None)
        if free is None:
            free = np.zeros((height, width), INDEX_DTYPE)
            maps.append(free)
        free[window][mask] = value
    return np.stack(maps) if maps else np.zeros((0, height, width), INDEX_DTYPE)


def unpack(maps: NDArray[np.uint16]) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.int64]]:
    """Split index maps into masks and their tight boxes; objects without a pixel are left out.

    Args:
        maps: (L, H, W) uint16 as made by `pack`, possibly flipped, cropped or resized since.

    Returns:
        masks: (I, H, W) bool, in the order of `kept`.
        boxes: (I, 4) float32 XYXY in pixels; x1 and y1 are one past the last column and row.
        kept: (I,) int64, ascending: which of the objects given to `pack` they are.

    Example:
        >>> masks, boxes, kept = unpack(np.array([[[0, 2, 2], [0, 2, 0]]], np.uint16))
        >>> masks.astype(int).tolist(), boxes.tolist(), kept.tolist()
        ([[[0, 1, 1], [0, 1, 0]]], [[1.0, 0.0, 3.0, 2.0]], [1])
    """
    return assemble(patches(maps), *maps.shape[1:])


def patches(maps: NDArray[np.uint16]) -> dict[int, Patch]:
    """Cut the objects out of index maps: by the place that they had when they were given to `pack`."""
    found = {}
    for index_map in maps:
        for k, window in enumerate(ndimage.find_objects(index_map)):
            if window is not None:
                rows, columns = window
                found[k] = (columns.start, rows.start, index_map[window] == k + 1)
    return found


def assemble(
    objects: Mapping[int, Patch], height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.int64]]:
    """Put objects onto full masks; the arguments and the result are as in `patches` and `unpack`."""
    kept = sorted(objects)
    masks = np.zeros((len(kept), height, width), bool)  # memory that nothing is written to costs nothing
    boxes = np.zeros((len(kept), 4), np.float32)
    for i, k in enumerate(kept):
        x, y, pixels = objects[k]
        h, w = pixels.shape
        masks[i, y : y + h, x : x + w] = pixels
        boxes[i] = x, y, x + w, y + h
    return masks, boxes, np.array(kept, np.int64)
