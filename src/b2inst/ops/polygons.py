"""Masks as polygons along the edges of their pixels; filled, they give the very same pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def mask_to_polygons(mask: NDArray[np.bool_], tolerance: float = 0.0) -> list[NDArray[np.float64]]:
    """Outline the pieces of a mask.

    Pixels that share a side are one piece. A hole is joined to the outline around it by a cut of no width, which is
    run through there and back, so that one polygon says all of a piece and an even-odd filling leaves the hole out.

    Args:
        mask: (H, W) bool.
        tolerance: corners may be left out as long as the outline moves by no more than this, in pixels; 0 keeps every
            corner, and then the polygons fill back to the mask. Pieces smaller than that may be left without three
            corners, and are left out.

    Returns:
        one (P, 2) polygon per piece, xy in pixels of the mask, pixel (0, 0) covers [0, 1); from top to bottom.

    Raises:
        ValueError: a tolerance below 0, or NaN.

    Example:
        >>> mask_to_polygons(np.array([[False, True, True]]))[0].tolist()
        [[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]]
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: give pixels of at least 0")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    outlines, holes = _rings(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):  # what lies to the left of a hole is joined by then
        _join(outlines, hole)
    polygons = [outline + (left, top) for outline in outlines]
    if tolerance > 0:
        polygons = [cv2.approxPolyDP(p.astype(np.float32), tolerance, True)[:, 0] for p in polygons]
    return [polygon.astype(np.float64) for polygon in polygons if len(polygon) >= 3]


def _rings(mask: NDArray[np.bool_]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Outlines of the pieces of a mask and of their holes, each as its corners (P, 2) xy."""
    padded = np.pad(mask, 1)
    x, y, beside, above = _corners(padded)
    # Along a row of the grid every two corners in a row are the ends of an edge; so they are along a column.
    along_row = _partners(np.lexsort((beside, x, y)))
    along_column = _partners(np.lexsort((above, y, x)))
    outlines, holes = [], []
    seen = bytearray(len(x))
    for start in range(len(x)):  # from the upper left, so that a ring begins at its highest corner
        if seen[start]:
            continue
        ring, corner = [], start
        while not seen[corner]:
            other = along_row[corner]
            seen[corner] = seen[other] = 1
            ring += (corner, other)
            corner = along_column[other]
        inside = padded[y[start] + 1, x[start] + 1]  # the pixel below and to the right of that corner
        (outlines if inside else holes).append(np.stack([x[ring], y[ring]], axis=1))
    return outlines, holes


def _corners(padded: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """Where outlines turn, from top to bottom: x, y, and whether the edges go to the right and go down.

    Where two pixels touch at a corner only, two outlines turn and the corner is there twice.
    """
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    odd = upper_left ^ upper_right ^ lower_left ^ lower_right
    touch = (upper_left == lower_right) & (lower_left == upper_right) & (upper_left != upper_right)
    y, x = np.nonzero(odd | touch)
    twice = touch[y, x]
    falling = upper_left[y, x] & twice  # the touching pixels are the upper left one and the lower right one
    index = np.repeat(np.arange(len(y)), 1 + twice)
    second = np.append(False, index[1:] == index[:-1])
    beside = twice[index] & (falling[index] == second)  # the upper pixel's outline comes first
    return x[index], y[index], beside, second


def _partners(order: NDArray[np.int64]) -> list[int]:
    """Of each corner the one at the other end of its edge, if every two in this order have an edge."""
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners.tolist()


def _join(outlines: list[NDArray[np.int64]], hole: NDArray[np.int64]) -> None:
    """Cut from the leftmost corner of a hole to the left, as far as an outline, and put the hole into it."""
    first = np.lexsort((hole[:, 1], hole[:, 0]))[0]
    x, y = hole[first]
    found = [(_edge_to_the_left(outline, x, y), number) for number, outline in enumerate(outlines)]
    (edge_x, edge), number = max(found)
    way = np.array([[edge_x, y]])
    around = np.concatenate([way, np.roll(hole, -first, axis=0), hole[first : first + 1], way])
    outlines[number] = np.insert(outlines[number], edge + 1, around, axis=0)


def _edge_to_the_left(outline: NDArray[np.int64], x: int, y: int) -> tuple[int, int]:
    """Place and number of the nearest upright edge beside the pixels of row `y`; the place is -1 if there is none."""
    ends = np.roll(outline, -1, axis=0)
    low, high = np.minimum(outline[:, 1], ends[:, 1]), np.maximum(outline[:, 1], ends[:, 1])
    beside = (outline[:, 0] == ends[:, 0]) & (outline[:, 0] < x) & (low <= y) & (y < high)
    places = np.where(beside, outline[:, 0], -1)
    edge = int(places.argmax())
    return int(places[edge]), edge
