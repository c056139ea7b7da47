"""Reads and checks an annotation file."""

from __future__ import annotations

import contextlib
import gc
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from b2inst.data.columns import Columns, flatten
from b2inst.data.errors import DataError
from b2inst.data.problems import refuse
from b2inst.data.records import Place, check_annotation, check_image, check_keys, check_unique, number_problems
from b2inst.ops.rasterize import Segmentation

SECTIONS = ("images", "categories", "annotations")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of the file; `size` is (height, width) in pixels, `file_name` relative to the image folder."""

    id: int
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One annotation; `label` in [0, C) counts the categories in the order of their ids."""

    id: int
    label: int
    crowd: bool
    segmentation: Segmentation


class ImageTable(Sequence[CocoImage]):
    """Images as arrays; an item is made when it is asked for.

    Attributes:
        ids: (N,) int64.
        sizes: (N, 2) int64, (height, width) in pixels.
        names: (N,) bytes, UTF-8, of one length.
    """

    def __init__(self, ids: NDArray[np.int64], sizes: NDArray[np.int64], names: NDArray[np.bytes_]) -> None:
        self.ids = ids
        self.sizes = sizes
        self.names = names

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> ImageTable:
        """The table of checked records."""
        return cls(
            np.array([record["id"] for record in records], np.int64),
            np.array([(record["height"], record["width"]) for record in records], np.int64).reshape(-1, 2),
            np.array([record["file_name"].encode() for record in records], np.bytes_),
        )

    def take(self, rows: NDArray[np.int64]) -> ImageTable:
        """The images of these rows."""
        return ImageTable(self.ids[rows], self.sizes[rows], self.names[rows])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> CocoImage: ...
    @overload
    def __getitem__(self, row: slice) -> ImageTable: ...

    def __getitem__(self, row: int | slice) -> CocoImage | ImageTable:
        if isinstance(row, slice):
            return ImageTable(self.ids[row], self.sizes[row], self.names[row])
        height, width = self.sizes[row].tolist()
        return CocoImage(int(self.ids[row]), self.names[row].decode(), (height, width))


class CocoIndex:
    """What an annotation file says, checked; in arrays, which processes made by fork share.

    Attributes:
        path: of the file.
        images: all images, in the order of the file.
        category_ids: C ids, ascending; `category_ids[label]` leads back to the file.
        class_names: C names, in the order of the labels.
    """

    def __init__(self, path: Path, images: ImageTable, categories: Mapping[int, str], columns: Columns) -> None:
        self.path = path
        self.images = images
        self.category_ids = tuple(sorted(categories))
        self.class_names = tuple(categories[id] for id in self.category_ids)
        self._columns = columns
        self._labels = np.searchsorted(self.category_ids, columns.category_ids).astype(np.int64)
        self._by_id = np.argsort(images.ids)
        self._rows = self._by_id[np.searchsorted(images.ids, columns.image_ids, sorter=self._by_id)]
        self._order = np.argsort(self._rows, kind="stable")  # of the objects, image by image
        self._first = np.searchsorted(self._rows[self._order], np.arange(len(images) + 1))

    @classmethod
    def read(cls, annotations: str | Path) -> CocoIndex:
        """Read and check an annotation file.

        Args:
            annotations: path of a COCO `instances_*.json`.

        Returns:
            the index.

        Raises:
            DataError: at the first thing that is wrong; the message names file, record, key and remedy.
        """
        path = Path(annotations)
        with without_collection():
            content = load_sections(path)
            images, categories, columns = _check_sections(path, content)
            return cls(path, images, categories, columns)

    def objects(self, image_id: int) -> list[CocoObject]:
        """The annotations of an image, crowds included, in the order of the file."""
        row = self._row(image_id)
        size = (int(self.images.sizes[row, 0]), int(self.images.sizes[row, 1]))
        columns = self._columns
        return [
            CocoObject(int(columns.ids[i]), int(self._labels[i]), bool(columns.crowd[i]), columns.segmentation(i, size))
            for i in self._order[self._first[row] : self._first[row + 1]].tolist()
        ]

    @cached_property
    def instance_counts(self) -> NDArray[np.int64]:
        """(N,) int64, the number of instances of each image, crowds left out."""
        return np.bincount(self._rows[~self._columns.crowd], minlength=len(self.images))

    def class_counts(self) -> dict[str, int]:
        """The number of instances of each class, crowds left out."""
        counts = np.bincount(self._labels[~self._columns.crowd], minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def _row(self, image_id: int) -> int:
        return int(self._by_id[np.searchsorted(self.images.ids, image_id, sorter=self._by_id)])


def load_checked(path: Path, optional: Collection[str] = ()) -> dict[str, Any]:
    """The content of an annotation file, after the checks of `CocoIndex.read`.

    Args:
        path: of the file.
        optional: keys of annotations that may be missing, null or an empty list.

    Raises:
        DataError: at the first thing that is wrong; the message names file, record, key and remedy.
    """
    with without_collection():
        content = load_sections(path)
        _check_sections(path, content, optional)
        return content


def _check_sections(
    path: Path, content: dict[str, Any], optional: Collection[str] = ()
) -> tuple[ImageTable, dict[int, str], Columns | None]:
    """Check all records; images, names of the categories, and columns, which are None if optional keys are missing."""
    categories = {record["id"]: record["name"] for record in _records(path, content, "categories")}
    images = ImageTable.of(_records(path, content, "images"))
    sizes = dict(zip(images.ids.tolist(), map(tuple, images.sizes.tolist()), strict=True))
    records = content["annotations"]

    def check(index: int) -> None:
        record = records[index]
        if optional and isinstance(record, dict):
            record = {key: value for key, value in record.items() if key not in optional or value not in (None, [])}
        place = Place(path, "annotations", index, record)
        check_keys(place, optional)
        check_annotation(place, sizes, categories)

    try:
        columns = flatten(records, check, sizes, categories)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        _records(path, content, "annotations", optional)  # one by one, to say which
        for index in range(len(records)):
            check(index)
        if not optional:
            raise
        columns = None
    refuse(number_problems(path, Counter(record["image_id"] for record in records)))
    return images, categories, columns


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Pause the collector: it goes through all objects again and again while millions are made, none of them cyclic."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_sections(path: Path) -> dict[str, Any]:
    """The content of an annotation file; the three sections are lists, images and categories not empty."""
    try:
        with path.open("rb") as file:
            content = _parse(file.read())
    except OSError as error:
        remedy = "give the annotation file of the data set"
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply for annotations; fetch or export it again") from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON file ({error}); fetch or export it again") from error
    remedy = f"a COCO annotation file is an object with {SECTIONS}"
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__} (a result file?); {remedy}")
    for section in SECTIONS:
        if not isinstance(content.get(section), list):
            raise DataError(f"{path}: the list '{section}' is missing; {remedy}")
    for section in ("images", "categories"):
        if not content[section]:
            raise DataError(f"{path}: the list '{section}' is empty; there is nothing to learn from")
    return content


def _parse(text: bytes) -> Any:
    with contextlib.suppress(ValueError):  # orjson knows no NaN, which the checks name better
        return orjson.loads(text)
    return json.loads(text)


def _records(
    path: Path, content: dict[str, Any], section: str, optional: Collection[str] = ()
) -> list[dict[str, Any]]:  # fmt: skip
    """The records of a section, with their keys and the uniqueness of their ids checked."""
    first: dict[int, int] = {}  # id -> index
    for index, record in enumerate(content[section]):
        place = Place(path, section, index, record)
        check_keys(place, optional)
        if section == "images":
            check_image(place)
        check_unique(place, first)
    return content[section]
