"""Checks of the records of a COCO annotation file, in two forms.

The `*_problems` functions yield everything that is wrong with a record, with the file, the index and id of the
record, the key, what it is, what it has to be, and what to do; `b2inst.verify` collects it. The `check_*` functions
raise a `DataError` at the first of these problems; training reads a file with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from b2inst.data.problems import Problem, refuse
from b2inst.data.rle import covers

Problems = Iterator[Problem]

SUSPICIOUS = re.compile(r"^[/\\]|:|\.\.")  # every name that may leave the folder has one of them

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

    def problem(self, kind: str, key: str | None, what: str, remedy: str) -> Problem:
        """Build the problem of this record, or of a key of it."""
        where = f"{self.file}: {self.section}[{self.index}]"
        known = self.record if isinstance(self.record, dict) else {}
        if "id" in known:
            where += f" (id {known['id']!r})"
        image_id = known.get("id" if self.section == "images" else "image_id")
        what = what if key is None else f"key '{key}' {what}"
        return Problem(kind, where, what, remedy, image_id if is_integer(image_id) else None)


def check_keys(place: Place) -> None:
    """Raise the first of `key_problems` as a DataError."""
    refuse(key_problems(place))


def check_unique(place: Place, first: MutableMapping[int, int]) -> None:
    """Raise the first of `id_problems` as a DataError."""
    refuse(id_problems(place, first))


def check_image(place: Place) -> None:
    """Raise the first of `image_problems` as a DataError."""
    refuse(image_problems(place))


def check_annotation(place: Place, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, Any]) -> None:
    """Raise the first of `annotation_problems` as a DataError."""
    refuse(annotation_problems(place, sizes, categories))


def key_problems(place: Place) -> Problems:
    """What keeps a record from being an object with all required keys and an integer id."""
    record, needed = place.record, REQUIRED[place.section]
    if not isinstance(record, dict):
        what = f"is a {type(record).__name__}, it has to be an object with keys"
        yield place.problem("malformed record", None, what, f"give it the keys {needed}, or remove it")
        return
    for key in needed:
        if key not in record:
            remedy = f"a record of '{place.section}' needs {needed}"
            yield place.problem("malformed record", key, "is missing", remedy)
    if "id" in record and not is_integer(record["id"]):
        remedy = "ids have to be integers: renumber them"
        yield place.problem("malformed record", "id", f"is {_short(record['id'])}", remedy)


def id_problems(place: Place, first: MutableMapping[int, int]) -> Problems:
    """Whether a record has the id of an earlier one of its section.

    Args:
        place: the record; its keys are fine.
        first: index of the first record of each id; this record is added to it.
    """
    earlier = first.setdefault(place.record["id"], place.index)
    if earlier != place.index:
        remedy = f"{place.section}[{earlier}] has it too: renumber, or remove the duplicate"
        yield place.problem("duplicate id", "id", "is not unique", remedy)


def image_problems(place: Place) -> Problems:
    """What is wrong with size and file name of a record of `images`; its keys are fine."""
    for key in ("height", "width"):
        if not is_integer(place.record[key]) or place.record[key] <= 0:
            remedy = "it has to be the pixels of the file, an integer > 0"
            yield place.problem("malformed record", key, f"is {place.record[key]!r}", remedy)
    name = place.record["file_name"]
    if not isinstance(name, str) or not name:
        remedy = "it has to be a path inside the image folder"
        yield place.problem("malformed record", "file_name", f"is {name!r}", remedy)
        return
    if not SUSPICIOUS.search(name):  # building paths takes longer than reading the record
        return
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or PureWindowsPath(name).drive
    if outside or ".." in PureWindowsPath(name).parts:  # Windows paths split at both kinds of slash
        remedy = "make it relative to the image folder, without '..'"
        yield place.problem("malformed record", "file_name", f"is {name!r}, which leaves the image folder", remedy)


def annotation_problems(
    place: Place, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, Any]
) -> Problems:  # fmt: skip
    """What is wrong with references, box and segmentation of a record of `annotations`; its keys are fine.

    Args:
        place: the record.
        sizes: (height, width) by image id.
        categories: any mapping whose keys are the known category ids.
    """
    record = place.record
    if not _known(record["image_id"], sizes):
        remedy = "no record of 'images' has this id: remove the annotation or add the image"
        yield place.problem("unknown image", "image_id", f"is {record['image_id']!r}", remedy)
    if not _known(record["category_id"], categories):
        remedy = f"'categories' has {_some(sorted(categories))}: remove the annotation or add the category"
        yield place.problem("unknown category", "category_id", f"is {record['category_id']!r}", remedy)
    if record.get("iscrowd", 0) not in (0, 1):
        yield place.problem("malformed record", "iscrowd", f"is {record['iscrowd']!r}", "it has to be 0 or 1")
    if not is_box(record["bbox"]):
        remedy = "it has to be [x, y, width, height] in pixels"
        yield place.problem("malformed record", "bbox", f"is {_short(record['bbox'])}", remedy)
    segmentation = record["segmentation"]
    if isinstance(segmentation, list):
        yield from _polygon_problems(place, segmentation)
    elif not isinstance(segmentation, dict):
        remedy = "it has to be a list of polygons or an RLE object"
        yield _segmentation_problem(place, f"is a {type(segmentation).__name__}", remedy)
    elif _known(record["image_id"], sizes):
        yield from _rle_problems(place, segmentation, sizes[record["image_id"]])


def _segmentation_problem(place: Place, what: str, remedy: str, kind: str = "malformed segmentation") -> Problem:
    return place.problem(kind, "segmentation", what, remedy)


def _polygon_problems(place: Place, polygons: list[Any]) -> Problems:
    if not polygons:
        yield _segmentation_problem(place, "is an empty list", "give the outline, or remove the annotation")
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            remedy = "it has to be a list of polygons: [[x, y, x, y, ...], ...], also if there is only one"
            yield _segmentation_problem(place, f"holds a {type(polygon).__name__} at position {number}", remedy)
            return  # the other numbers of this polygon would say the same
        if not _numbers(polygon) or len(polygon) % 2:
            remedy = "a polygon has to be a flat list of finite numbers x, y, x, y, ..."
            yield _segmentation_problem(place, f"has polygon {number} = {_short(polygon)}", remedy)
        elif len(polygon) < 6:
            what, remedy = f"has polygon {number} with {len(polygon) // 2} point(s)", "remove or repair the polygon"
            yield _segmentation_problem(place, what, f"at least 3 are needed: {remedy}", "polygon with < 3 points")


def _rle_problems(place: Place, rle: dict[str, Any], size: tuple[int, int]) -> Problems:
    counts, pixels = rle.get("counts"), size[0] * size[1]
    if rle.get("size") != list(size):
        remedy = f"an RLE has the 'size' [height, width] of its image, here {list(size)}"
        yield _segmentation_problem(place, f"has size {rle.get('size')!r}", remedy, "RLE of another size")
    elif isinstance(counts, list):
        if not all(is_integer(c) and c >= 0 for c in counts) or sum(counts) != pixels:
            remedy = f"uncompressed 'counts' are integers >= 0 with the sum height * width = {pixels}"
            yield _segmentation_problem(place, f"has counts {_short(counts)}", remedy, "RLE counts do not fit")
    elif not isinstance(counts, str):
        remedy = "'counts' has to be a string (compressed) or a list of integers"
        yield _segmentation_problem(place, f"has counts of type {type(counts).__name__}", remedy)
    elif not covers(counts, pixels):
        remedy = f"compressed 'counts' have to decode to runs with the sum height * width = {pixels}"
        yield _segmentation_problem(place, f"has counts {_short(counts)}", remedy, "RLE counts do not fit")


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_box(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return _numbers(value) and len(value) == 4


def _known(value: Any, ids: Mapping[int, Any]) -> bool:
    return isinstance(value, int | float) and value in ids


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
