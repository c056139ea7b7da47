"""Annotations as a few flat arrays.

COCO's training split has 860,001 annotations. As Python objects they cost gigabytes, and each loader process comes to
own a copy of them, because counting references writes into every object. Arrays are only read, so that processes made
by fork share them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from b2inst.data.limits import MAX_EXTENT
from b2inst.data.records import longest_outline
from b2inst.ops.rasterize import Segmentation, to_rle

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Columns:
    """The annotations of a file, I of them, in its order.

    Attributes:
        ids: (I,) int64.
        image_ids: (I,) int64.
        category_ids: (I,) int64.
        crowd: (I,) bool.
        polygons: (I + 1,) int64, object i has the polygons from `polygons[i]` to `polygons[i + 1]`, or none: then it
            has an RLE.
        points: (P + 1,) int64, where the numbers of each polygon begin in `coordinates`.
        coordinates: (Q,) float64, x and y in turn, in pixels. float32 would move points that lie exactly between two
            of the rasterizer's sub-pixels, and masks with them.
        rle: (I + 1,) int64, where the counts of each RLE begin in `counts`.
        counts: of the compressed RLEs, one after the other.
    """

    ids: Ints
    image_ids: Ints
    category_ids: Ints
    crowd: NDArray[np.bool_]
    polygons: Ints
    points: Ints
    coordinates: NDArray[np.float64]
    rle: Ints
    counts: bytes

    def segmentation(self, i: int, size: tuple[int, int]) -> Segmentation:
        """The segmentation of object i, in an image of this (height, width): polygons, or compressed RLE."""
        first, last = self.polygons[i : i + 2]
        if first == last:
            return {"size": list(size), "counts": self.counts[self.rle[i] : self.rle[i + 1]].decode()}
        bounds = self.points[first : last + 1].tolist()
        return [self.coordinates[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def flatten(
    records: Sequence[Mapping[str, Any]],
    check: Callable[[int], None],
    sizes: Mapping[int, tuple[int, int]],
    categories: Mapping[int, Any],
) -> Columns:
    """Put annotation records into arrays, and check them on the way, all at once where that is possible.

    Args:
        records: of the file.
        check: called with the index of each record that cannot be checked with the others; raises.
        sizes: (height, width) by image id.
        categories: a mapping with the known category ids.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: a record is wrong; it is not said which.
    """
    boxes, coordinates, lengths = array("d"), array("d"), array("q")
    polygons, rle, counts = array("q"), array("q"), bytearray()
    for index, record in enumerate(records):
        segmentation, box = record["segmentation"], record["bbox"]
        boxes.fromlist(box)
        number, text = 0, b""
        if isinstance(segmentation, list):
            number = len(segmentation)
            for polygon in segmentation:
                coordinates.fromlist(polygon)
                lengths.append(len(polygon))
        else:
            check(index)
            text = compress(segmentation, sizes[record["image_id"]])
        _demand(len(box) == 4 and (number or text))
        polygons.append(number)
        rle.append(len(text))
        counts += text
    ends = np.frombuffer(lengths, np.int64)
    _demand(((ends >= 6) & (ends % 2 == 0)).all())
    _demand(np.isfinite(np.frombuffer(boxes)).all() and np.isfinite(np.frombuffer(coordinates)).all())
    if coordinates:
        side = min(map(max, sizes.values()))  # of all images; those that it leaves in doubt are asked for their own
        far = _far(np.frombuffer(polygons, np.int64), ends, np.frombuffer(coordinates))
        doubt = (far[1] > MAX_EXTENT * side) | (far[2] > longest_outline(side))
        for index, extent, length in zip(*(column[doubt].tolist() for column in far), strict=True):
            side = max(sizes[records[index]["image_id"]])
            if extent > MAX_EXTENT * side or length > longest_outline(side):
                check(index)
    areas = [record.get("area", 0) for record in records]
    _demand(set(map(type, areas)) <= {int, float})
    _demand(((numbers := np.array(areas, np.float64)) >= 0).all() and (numbers < np.inf).all())
    ids = [record["id"] for record in records]
    _demand(set(map(type, ids)) <= {int} and len(set(ids)) == len(ids))
    return Columns(
        np.array(ids, np.int64),
        _known([record["image_id"] for record in records], sizes),
        _known([record["category_id"] for record in records], categories),
        _flags([record.get("iscrowd", 0) for record in records]),
        _offsets(polygons),
        _offsets(lengths),
        np.frombuffer(coordinates),
        _offsets(rle),
        bytes(counts),
    )


def _far(polygons: Ints, lengths: Ints, coordinates: NDArray[np.float64]) -> tuple[Ints, Floats, Floats]:
    """How far from the origin the polygons of each record that has some reach, and how long their outlines may be."""
    ends, records = np.cumsum(lengths), np.flatnonzero(polygons)
    extents = np.maximum.reduceat(np.abs(coordinates), ends - lengths)
    first = np.cumsum(polygons)[records] - polygons[records]
    return records, np.maximum.reduceat(extents, first), np.add.reduceat(lengths * extents, first)


def compress(rle: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    """The compressed counts of an RLE, compressed or not."""
    counts = to_rle(rle, *size)["counts"]
    return counts if isinstance(counts, bytes) else counts.encode()


def _demand(fulfilled: Any) -> None:
    if not fulfilled:
        raise ValueError("a record is wrong")


def _known(ids: list[Any], known: Mapping[int, Any]) -> Ints:
    _demand(set(ids) <= known.keys())
    return np.array(ids, np.int64)


def _flags(values: list[Any]) -> NDArray[np.bool_]:
    _demand(set(values) <= {0, 1})
    return np.array(values, np.bool_)


def _offsets(lengths: array[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))]).astype(np.int64)
