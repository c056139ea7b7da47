"""Checks of the records of a COCO annotation file, in two forms.

The `*_problems` functions yield everything that is wrong with a record, with the file, the index and id of the
record, the key, what it is, what it has to be, and what to do; `b2inst.verify` collects it. The `check_*` functions
raise a `DataError` at the first of these problems; training reads a file with them.
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from b2inst.data.limits import (
    MAX_EXTENT,
    MAX_ID,
    MAX_NAME,
    MAX_OBJECTS,
    MAX_OUTLINE,
    MAX_PIXELS,
    MAX_SIDE,
    MAX_STEPS,
)
from b2inst.data.problems import Problem, refuse
from b2inst.data.rle import covers
from b2inst.ops.rasterize import outline

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
            where += f" (id {_short(known['id'])})"
        image_id = known.get("id" if self.section == "images" else "image_id")
        what = what if key is None else f"key '{key}' {what}"
        return Problem(kind, where, what, remedy, image_id if is_integer(image_id) else None)


def check_keys(place: Place, optional: Collection[str] = ()) -> None:
    """Raise the first of `key_problems` as a DataError."""
    refuse(key_problems(place, optional))


def check_unique(place: Place, first: MutableMapping[int, int]) -> None:
    """Raise the first of `id_problems` as a DataError."""
    refuse(id_problems(place, first))


def check_image(place: Place) -> None:
    """Raise the first of `image_problems` as a DataError."""
    refuse(image_problems(place))


def check_annotation(place: Place, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, Any]) -> None:
    """Raise the first of `annotation_problems` as a DataError."""
    refuse(annotation_problems(place, sizes, categories))


def key_problems(place: Place, optional: Collection[str] = ()) -> Problems:
    """What keeps a record from being an object with all required keys and an integer id, a category from a name.

    Args:
        place: the record.
        optional: keys that it may lack.
    """
    record, needed = place.record, REQUIRED[place.section]
    if not isinstance(record, dict):
        what = f"is a {type(record).__name__}, it has to be an object with keys"
        yield place.problem("malformed record", None, what, f"give it the keys {needed}, or remove it")
        return
    for key in needed:
        if key not in record and key not in optional:
            remedy = f"a record of '{place.section}' needs {needed}"
            yield place.problem("malformed record", key, "is missing", remedy)
    if "id" in record and not (is_integer(record["id"]) and abs(record["id"]) <= MAX_ID):
        remedy = "ids have to be integers of at most 64 bits: renumber them"
        yield place.problem("malformed record", "id", f"is {_short(record['id'])}", remedy)
    if place.section == "categories" and "name" in record and not is_text(record["name"]):
        yield place.problem("malformed record", "name", f"is {_short(record['name'])}", "it has to be text")


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
    fits = True
    for key in ("height", "width"):
        if not is_integer(place.record[key]) or not 0 < place.record[key] <= MAX_SIDE:
            fits = False
            remedy = f"it has to be the pixels of the file, an integer > 0, of at most {MAX_SIDE:,}"
            yield place.problem("malformed record", key, f"is {_short(place.record[key])}", remedy)
    if fits and place.record["height"] * place.record["width"] > MAX_PIXELS:
        what = f"is {place.record['height']}, the image {place.record['width']} wide"
        yield place.problem("malformed record", "height", what, f"cut it into tiles of at most {MAX_PIXELS:,} pixels")
    name = place.record["file_name"]
    if not is_text(name) or not name or len(name.encode()) > MAX_NAME:
        remedy = f"it has to be a path inside the image folder, of at most {MAX_NAME:,} bytes"
        yield place.problem("malformed record", "file_name", f"is {_short(name)}", remedy)
        return
    if not SUSPICIOUS.search(name):  # building paths takes longer than reading the record
        return
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or PureWindowsPath(name).drive
    if outside or ".." in PureWindowsPath(name).parts:  # Windows paths split at both kinds of slash
        remedy = "make it relative to the image folder, without '..'"
        what = f"is {_short(name)}, which leaves the image folder"
        yield place.problem("malformed record", "file_name", what, remedy)


def annotation_problems(
    place: Place, sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, Any]
) -> Problems:  # fmt: skip
    """What is wrong with references, area, box and segmentation of a record of `annotations`; its keys are fine.

    Args:
        place: the record.
        sizes: (height, width) by image id.
        categories: any mapping whose keys are the known category ids.
    """
    record = place.record
    if not _known(record["image_id"], sizes):
        remedy = "no record of 'images' has this id: remove the annotation or add the image"
        yield place.problem("unknown image", "image_id", f"is {_short(record['image_id'])}", remedy)
    if not _known(record["category_id"], categories):
        remedy = f"'categories' has {_some(sorted(categories))}: remove the annotation or add the category"
        yield place.problem("unknown category", "category_id", f"is {_short(record['category_id'])}", remedy)
    if record.get("iscrowd", 0) not in (0, 1):
        yield place.problem("malformed record", "iscrowd", f"is {_short(record['iscrowd'])}", "it has to be 0 or 1")
    if "area" in record and not is_area(record["area"]):
        remedy = "it has to be a number of pixels >= 0: correct it, or remove the key"
        yield place.problem("malformed record", "area", f"is {_short(record['area'])}", remedy)
    if "bbox" in record and not is_box(record["bbox"]):
        remedy = "it has to be [x, y, width, height] in pixels"
        yield place.problem("malformed record", "bbox", f"is {_short(record['bbox'])}", remedy)
    if "segmentation" not in record:
        return
    segmentation = record["segmentation"]
    if isinstance(segmentation, list):
        wrong = list(_polygon_problems(place, segmentation))
        yield from wrong
        if not wrong and _known(record["image_id"], sizes):
            yield from _reach_problems(place, segmentation, max(sizes[record["image_id"]]))
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


def _reach_problems(place: Place, polygons: list[list[float]], side: int) -> Problems:
    """Whether polygons would take all memory when they are rasterized, in an image with this longer side."""
    extent = max(max(map(max, polygons)), -min(map(min, polygons)))
    if extent > MAX_EXTENT * side:
        remedy = f"polygons may reach {MAX_EXTENT} longer sides of their image far: cut them at its frame"
        yield _segmentation_problem(place, f"reaches to {float(extent):g}, its image to {side}", remedy)
    elif sum(map(len, polygons)) * extent > (limit := longest_outline(side)):  # it may be as long as that
        length = sum(map(outline, polygons))
        if length > limit:
            remedy = f"at most {limit:,} are allowed in this image: repair the polygons, or give an RLE"
            yield _segmentation_problem(place, f"has outlines of {length:,.0f} pixels", remedy)


def longest_outline(side: int) -> int:
    """What the outlines of an object may have together, in pixels, in an image with this longer side."""
    return min(MAX_OUTLINE * side, MAX_STEPS)


def number_problems(path: Path, counts: Mapping[int, int]) -> Problems:
    """Which images have more annotations than can be told apart; `counts` by image id."""
    for image_id, number in counts.items():
        if number > MAX_OBJECTS:
            where, what = f"{path}: images (id {image_id})", f"has {number:,} annotations"
            yield Problem("malformed record", where, what, f"at most {MAX_OBJECTS:,} are allowed: cut it", image_id)


def _rle_problems(place: Place, rle: dict[str, Any], size: tuple[int, int]) -> Problems:
    counts, pixels = rle.get("counts"), size[0] * size[1]
    if rle.get("size") != list(size) or not all(map(is_integer, rle["size"])):  # 4.0 is equal to 4
        remedy = f"an RLE has the 'size' [height, width] of its image, here {list(size)}"
        yield _segmentation_problem(place, f"has size {_short(rle.get('size'))}", remedy, "RLE of another size")
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


def is_text(value: Any) -> bool:
    """Whether a JSON value is a string that can be written: no half of a surrogate pair, no NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_box(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return _numbers(value) and len(value) == 4


def is_area(value: Any) -> bool:
    """Whether a JSON value is a finite number that is not negative; `true` is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= float(value) < math.inf
    except OverflowError:  # of an integer that no float can hold
        return False


def _known(value: Any, ids: Mapping[int, Any]) -> bool:
    return isinstance(value, int | float) and value in ids


def _numbers(values: Any) -> bool:
    """Whether `values` is a list of finite numbers; by its sum, because COCO has tens of millions of them."""
    try:
        return isinstance(values, list) and math.isfinite(sum(array("d", values)))
    except (TypeError, OverflowError):  # of an integer that no float can hold
        return False


_SHORT = reprlib.Repr()  # looks at the first elements only, and not into a value that is nested a thousand times
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxlong = 3, 12, 4, 120, 60


def _short(value: Any) -> str:
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{len(ids)} ids from {ids[0]} to {ids[-1]}"
