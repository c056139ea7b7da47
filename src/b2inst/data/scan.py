"""Goes through a whole annotation file and reports everything that is wrong in it; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from b2inst.data.errors import DataError
from b2inst.data.index import CocoImage, load_sections
from b2inst.data.problems import Problem, from_error
from b2inst.data.records import (
    Place,
    Problems,
    annotation_problems,
    id_problems,
    image_problems,
    is_integer,
    key_problems,
    number_problems,
)  # fmt: skip

Report = Callable[[Problem], None]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
SHOWN = 5  # unused categories that are named
TOLERANCE = 1.0  # pixels that a box or polygon may lie outside: annotation tools round


@dataclass
class Scan:
    """What of an annotation file can be used.

    Attributes:
        path: of the file.
        categories: names by id.
        images: those whose records are sound.
        objects: the sound annotation records by image id.
        used: ids of the categories that have an annotation.
    """

    path: Path
    categories: dict[int, str] = field(default_factory=dict)
    images: list[CocoImage] = field(default_factory=list)
    objects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def counts(self) -> dict[str, int]:
        """Sizes of the set, crowds and images without any annotation among them."""
        annotations = [record for records in self.objects.values() for record in records]
        return {
            "images": len(self.images),
            "images without annotations": sum(image.id not in self.objects for image in self.images),
            "annotations": len(annotations),
            "crowds": sum(bool(record.get("iscrowd", 0)) for record in annotations),
            "categories": len(self.categories),
        }


def scan_annotations(path: Path, report: Report) -> Scan:
    """Check every record of an annotation file.

    Args:
        path: of the file.
        report: called with each problem.

    Returns:
        what can be used, nothing if the file cannot be read.
    """
    scan = Scan(path)
    try:
        content = load_sections(path)
    except DataError as error:
        report(from_error("annotation file", error))
        return scan
    for place in _sound(path, content, "categories", report):
        scan.categories[place.record["id"]] = place.record["name"]
    for place in _sound(path, content, "images", report):
        record = place.record
        scan.images.append(CocoImage(record["id"], record["file_name"], (record["height"], record["width"])))
    sizes = {image.id: image.size for image in scan.images}
    for place in _sound_annotations(scan, content, report):
        scan.objects.setdefault(place.record["image_id"], []).append(place.record)
        scan.used.add(place.record["category_id"])
        _report_all(suspicions(place, sizes[place.record["image_id"]]), report)
    _report_all(number_problems(path, {id: len(records) for id, records in scan.objects.items()}), report)
    _report_all(_repetitions(scan), report)
    return scan


def _report_all(problems: Iterable[Problem], report: Report) -> bool:
    """Report problems; whether there are any."""
    found = False
    for problem in problems:
        report(problem)
        found = True
    return found


def _sound(path: Path, content: Mapping[str, list[Any]], section: str, report: Report) -> Iterator[Place]:
    """The records of `images` or `categories` without errors."""
    first: dict[int, int] = {}
    for index, record in enumerate(content[section]):
        place = Place(path, section, index, record)
        if _report_all(key_problems(place), report):
            continue
        wrong = _report_all(id_problems(place, first), report)
        if section == "images":
            wrong |= _report_all(image_problems(place), report)
        if not wrong:
            yield place


def _sound_annotations(scan: Scan, content: Mapping[str, list[Any]], report: Report) -> Iterator[Place]:
    """The records of `annotations` without errors."""
    sizes = {image.id: image.size for image in scan.images}
    listed = {"unknown image": _ids(content["images"]), "unknown category": _ids(content["categories"])}
    first: dict[int, int] = {}
    for index, record in enumerate(content["annotations"]):
        place = Place(scan.path, "annotations", index, record)
        if _report_all(key_problems(place), report):
            continue
        wrong = [*id_problems(place, first), *annotation_problems(place, sizes, scan.categories)]
        _report_all((problem for problem in wrong if not _is_listed(problem, record, listed)), report)
        if not wrong:
            yield place


def _is_listed(problem: Problem, record: Mapping[str, Any], listed: Mapping[str, Collection[int]]) -> bool:
    """Whether what is unknown has an unsound record, which was reported: its objects need not say it again."""
    id = record["image_id" if problem.kind == "unknown image" else "category_id"]
    return problem.kind in listed and is_integer(id) and id in listed[problem.kind]


def _ids(records: Sequence[Any]) -> set[int]:
    ids = (record.get("id") for record in records if isinstance(record, dict))
    return {id for id in ids if is_integer(id)}


def suspicions(place: Place, size: tuple[int, int]) -> Problems:
    """What training bears, but is hardly meant, of a sound annotation in an image of this (height, width)."""
    x, y, width, height = map(float, place.record["bbox"])
    if width <= 0 or height <= 0:
        remedy = "width and height are > 0: remove the annotation or correct its box"
        yield place.problem("zero area", "bbox", f"is {place.record['bbox']}", remedy)
    boxes = {"bbox": (x, y, x + width, y + height)}
    segmentation = place.record["segmentation"]
    if isinstance(segmentation, list):
        boxes["segmentation"] = extent(segmentation)
    for key, (x0, y0, x1, y1) in boxes.items():
        if min(x0, y0) < -TOLERANCE or x1 > size[1] + TOLERANCE or y1 > size[0] + TOLERANCE:
            what = f"reaches from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) in an image of {size[1]} x {size[0]}"
            yield place.problem(
                "outside of the image", key, what, "cut box and polygon at the frame: the rest is not learned"
            )
            return


def extent(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Least and greatest coordinates of polygons, as x0, y0, x1, y1."""
    xs, ys = [p[0::2] for p in polygons], [p[1::2] for p in polygons]
    return min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys))


def _repetitions(scan: Scan) -> Problems:
    """Equal annotations of an image, image files with two records, and the categories without an object."""
    for image_id, records in scan.objects.items():
        first: dict[Any, int] = {}
        for record in records:
            earlier = first.setdefault((record["category_id"], _frozen(record["segmentation"])), record["id"])
            if earlier != record["id"]:
                where, what = f"{scan.path}: annotation {record['id']}", f"repeats annotation {earlier}"
                remedy = "same image, category and segmentation: remove one, as only one of them can be found"
                yield Problem("duplicate annotation", where, what, remedy, image_id)
    names: dict[str, int] = {}
    for image in scan.images:
        earlier = names.setdefault(image.file_name, image.id)
        if earlier != image.id:
            where, what = f"{scan.path}: image {image.id}", f"has the file {image.file_name!r} of image {earlier}"
            yield Problem("duplicate image file", where, what, "remove one of the two records", image.id)
    if unused := [id for id in scan.categories if id not in scan.used]:  # one problem, a small set of COCO has 50
        first = ", ".join(f"{scan.categories[id]!r} (id {id})" for id in unused[:SHOWN])
        what = f"{len(unused)} of {len(scan.categories)} have no annotation: {first}{', ...' * (len(unused) > SHOWN)}"
        remedy = "remove them, unless other splits have objects of them"
        yield Problem("unused category", f"{scan.path}: categories", what, remedy)


def _frozen(segmentation: Any) -> Any:
    if isinstance(segmentation, list):
        return tuple(map(tuple, segmentation))
    counts = segmentation["counts"]
    return tuple(counts) if isinstance(counts, list) else counts


def category_problems(path: Path, ours: Mapping[int, str], val: Path, theirs: Mapping[int, str]) -> Problems:
    """Whether the categories of the training split (`path`, `ours`) are not those of the validation split."""
    different = set(ours.items()) ^ set(theirs.items())
    if different:
        what = f"its categories differ from those of {val}, first in (id, name) {sorted(different)[:5]}"
        remedy = "labels would be mixed up: give both files the same 'categories'"
        yield Problem("categories differ", str(path), what, remedy)


# -------------------------------------------------------------------------------------------------- image folders


def missing_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that are not in the folder, by one listing of each folder instead of one look at each file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listings:
            listings[parent] = _listing(folder / parent)
        # asked again, because a file system may take names for equal that are not
        if base not in listings[parent] and not os.path.isfile(folder / name):  # False for a name that is too long
            missing.append(name)
    return missing


def missing_problems(folder: Path, images: Iterable[CocoImage]) -> Problems:
    """The images whose files are not in the folder."""
    images = list(images)
    missing = set(missing_files(folder, [image.file_name for image in images]))
    for image in images:
        if image.file_name in missing:
            remedy = "fetch it, or remove its record"
            path = str(folder / image.file_name)
            yield Problem("missing image file", path, "does not exist", remedy, image.id)


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def unrecorded_files(folder: Path, known: Collection[str]) -> Iterator[Path]:
    """Image files in the folder, and in those below it, whose normalized paths are not among the known ones."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and path not in known:
                yield Path(path)
