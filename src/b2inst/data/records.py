"""Checks of the records of a COCO annotation file, one function for each kind of record.

Each check raises a `DataError` at the first thing that is wrong, before any training starts, with the file, the
index and id of the record, the key, what it is, what it has to be, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from b2inst.data.errors import DataError

REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "segmentation", "bbox"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is: `file`, `section` ("images", ...), `index` in the section and the record itself."""

    file: Path
    section: str
    index: int
    record: Any

    def error(self, key: str, problem: str, remedy: str) -> DataError:
        """Build the error for `key` of this record."""
        name = f"{self.section}[{self.index}]"
        if isinstance(self.record, dict) and "id" in self.record:
            name += f" (id {self.record['id']!r})"
        return DataError(f"{self.file}: {name}: key '{key}' {problem}; {remedy}")


def check_keys(place: Place) -> None:
    """Check that the record is an object with all required keys and an integer id."""
    if not isinstance(place.record, dict):
        kind = type(place.record).__name__
        raise DataError(f"{place.file}: {place.section}[{place.index}] is a {kind}, it has to be an object with keys")
    for key in REQUIRED[place.section]:
        if key not in place.record:
            raise place.error(key, "is missing", f"a record of '{place.section}' needs {REQUIRED[place.section]}")
    if not is_integer(place.record["id"]):
        raise place.error("id", f"is {place.record['id']!r}", "ids have to be integers: renumber them")


def check_image(place: Place) -> None:
    """Check size and file name of a record of `images`."""
    for key in ("height", "width"):
        if not is_integer(place.record[key]) or place.record[key] <= 0:
            raise place.error(key, f"is {place.record[key]!r}", "it has to be the pixels of the file, an integer > 0")
    name = place.record["file_name"]
    if not isinstance(name, str) or not name:
        raise place.error("file_name", f"is {name!r}", "it has to be a path inside the image folder")
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or PureWindowsPath(name).drive
    if outside or ".." in PureWindowsPath(name).parts:  # Windows paths split at both kinds of slash
        remedy = "make it relative to the image folder, without '..'"
        raise place.error("file_name", f"is {name!r}, which leaves the image folder", remedy)


def check_annotation(place: Place, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, int]) -> None:
    """Check references, box and segmentation of a record of `annotations`.

    Args:
        place: the record.
        sizes: (height, width) by image id.
        categories: any mapping whose keys are the known category ids.
    """
    record = place.record
    if record["image_id"] not in sizes:
        remedy = "no record of 'images' has this id: remove the annotation or add the image"
        raise place.error("image_id", f"is {record['image_id']!r}", remedy)
    if record["category_id"] not in categories:
        remedy = f"'categories' has {_some(sorted(categories))}: remove the annotation or add the category"
        raise place.error("category_id", f"is {record['category_id']!r}", remedy)
    if record.get("iscrowd", 0) not in (0, 1):
        raise place.error("iscrowd", f"is {record['iscrowd']!r}", "it has to be 0 or 1")
    box = record["bbox"]
    if not _numbers(box) or len(box) != 4:
        raise place.error("bbox", f"is {_short(box)}", "it has to be [x, y, width, height] in pixels")
    segmentation = record["segmentation"]
    if isinstance(segmentation, dict):
        _check_rle(place, segmentation, sizes[record["image_id"]])
    elif isinstance(segmentation, list):
        _check_polygons(place, segmentation)
    else:
        remedy = "it has to be a list of polygons or an RLE object"
        raise place.error("segmentation", f"is a {type(segmentation).__name__}", remedy)


def _check_polygons(place: Place, polygons: list[Any]) -> None:
    if not polygons:
        raise place.error("segmentation", "is an empty list", "give the outline, or remove the annotation")
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            remedy = "it has to be a list of polygons: [[x, y, x, y, ...], ...], also if there is only one"
            raise place.error("segmentation", f"holds a {type(polygon).__name__} at position {number}", remedy)
        if not _numbers(polygon) or len(polygon) % 2:
            remedy = "a polygon has to be a flat list of finite numbers x, y, x, y, ..."
            raise place.error("segmentation", f"has polygon {number} = {_short(polygon)}", remedy)
        if len(polygon) < 6:
            remedy = "at least 3 are needed: remove or repair the polygon"
            raise place.error("segmentation", f"has polygon {number} with {len(polygon) // 2} point(s)", remedy)


def _check_rle(place: Place, rle: dict[str, Any], size: tuple[int, int]) -> None:
    counts = rle.get("counts")
    if rle.get("size") != list(size):
        remedy = f"an RLE has the 'size' [height, width] of its image, here {list(size)}"
        raise place.error("segmentation", f"has size {rle.get('size')!r}", remedy)
    if isinstance(counts, list):
        if not all(is_integer(c) and c >= 0 for c in counts) or sum(counts) != size[0] * size[1]:
            remedy = f"uncompressed 'counts' are integers >= 0 with the sum height * width = {size[0] * size[1]}"
            raise place.error("segmentation", f"has counts {_short(counts)}", remedy)
    elif not isinstance(counts, str):
        remedy = "'counts' has to be a string (compressed) or a list of integers"
        raise place.error("segmentation", f"has counts of type {type(counts).__name__}", remedy)


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(values: Any) -> bool:
    """Whether `values` is a list of finite numbers; by its sum, because COCO has tens of millions of them."""
    try:
        return isinstance(values, list) and math.isfinite(sum(values))
    except TypeError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{len(ids)} ids from {ids[0]} to {ids[-1]}"
