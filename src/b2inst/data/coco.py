"""COCO annotations and the data set made of them.

`CocoIndex` reads and checks an annotation file; `CocoDataset` turns its images into samples: decode, rasterize,
augment, and boxes from the masks that are left. Masks are bitmaps from here on, whatever they were in the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from b2inst.data.damaged import Damaged
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.data.records import Place, check_annotation, check_image, check_keys, check_unique
from b2inst.ops.rasterize import INDEX_DTYPE, Segmentation, pack, rasterize, unpack

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


class CocoIndex:
    """What an annotation file says, checked.

    Attributes:
        path: of the file.
        images: all images, in the order of the file.
        category_ids: C ids, ascending; `category_ids[label]` leads back to the file.
        class_names: C names, in the order of the labels.
    """

    def __init__(
        self,
        path: Path,
        images: Sequence[CocoImage],
        categories: dict[int, str],
        objects: dict[int, list[CocoObject]],
    ) -> None:
        self.path = path
        self.images = tuple(images)
        self.category_ids = tuple(sorted(categories))
        self.class_names = tuple(categories[id] for id in self.category_ids)
        self._objects = objects

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
        content = load_sections(path)
        categories = {record["id"]: record["name"] for record in _records(path, content, "categories")}
        labels = {id: label for label, id in enumerate(sorted(categories))}
        images = [
            CocoImage(record["id"], record["file_name"], (record["height"], record["width"]))
            for record in _records(path, content, "images")
        ]
        sizes = {image.id: image.size for image in images}
        objects: dict[int, list[CocoObject]] = {}
        for index, record in enumerate(_records(path, content, "annotations")):
            check_annotation(Place(path, "annotations", index, record), sizes, labels)
            label, crowd = labels[record["category_id"]], bool(record.get("iscrowd", 0))
            found = CocoObject(record["id"], label, crowd, record["segmentation"])
            objects.setdefault(record["image_id"], []).append(found)
        return cls(path, images, categories, objects)

    def objects(self, image_id: int) -> list[CocoObject]:
        """The annotations of an image, crowds included, in the order of the file."""
        return self._objects.get(image_id, [])

    def has_instances(self, image_id: int) -> bool:
        """Whether an image has an annotation that is not a crowd."""
        return any(not found.crowd for found in self.objects(image_id))

    def class_counts(self) -> dict[str, int]:
        """The number of instances of each class, crowds left out."""
        counts = [0] * len(self.class_names)
        for objects in self._objects.values():
            for found in objects:
                counts[found.label] += not found.crowd
        return dict(zip(self.class_names, counts, strict=True))


def load_sections(path: Path) -> dict[str, Any]:
    """The content of an annotation file; the three sections are lists, images and categories not empty."""
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except OSError as error:
        remedy = "give the annotation file of the data set"
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
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


def _records(path: Path, content: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The records of a section, with their keys and the uniqueness of their ids checked."""
    first: dict[int, int] = {}  # id -> index
    for index, record in enumerate(content[section]):
        place = Place(path, section, index, record)
        check_keys(place)
        if section == "images":
            check_image(place)
        check_unique(place, first)
    return content[section]


@dataclass(frozen=True)
class Sample:
    """One image of a data set, augmented.

    Attributes:
        image: (3, H, W) uint8, RGB.
        masks: (I, H, W) bool; none is empty.
        boxes: (I, 4) float32, XYXY in pixels of `image`, tight: x1 and y1 are one past the last column and row.
        labels: (I,) int64 in [0, C).
        crowd: (H, W) bool, the union of the crowd annotations.
        image_id: of the annotation file.
        original_size: (height, width) of the file.
        file_name: path of the file.
    """

    image: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    image_id: int
    original_size: tuple[int, int]
    file_name: str


class Augmentation(Protocol):
    """Transforms an (H, W, 3) image and its (L, H, W) index maps in the same way, all randomness from `seed`."""

    def __call__(
        self, image: NDArray[np.uint8], maps: NDArray[np.uint16], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return image (H', W', 3) and maps (L, H', W')."""


class CocoDataset(Dataset[Sample | Damaged]):
    """Images and instances of a COCO-format set.

    The randomness of a sample comes from torch's generator of the process (a worker has its own, seeded by the
    loader), so that workers and epochs differ and a seed reproduces them.

    Args:
        index: the annotations.
        folder: where the images are.
        augment: what happens to image and masks; None for nothing.
        skip_empty: leave out images without an instance; detectron2 does so in training.
        limit: take only the first `limit` images of those left.
        skip_damaged: give `Damaged` instead of a sample for an image file that cannot be used; else raise.

    Raises:
        DataError: no image is left, or the folder does not exist.
    """

    def __init__(
        self,
        index: CocoIndex,
        folder: str | Path,
        augment: Augmentation | None = None,
        skip_empty: bool = False,
        limit: int | None = None,
        skip_damaged: bool = False,
    ) -> None:
        self.index = index
        self.folder = Path(folder)
        self.augment = augment
        self.skip_damaged = skip_damaged
        self.images = [image for image in index.images if not skip_empty or index.has_instances(image.id)][:limit]
        if not self.images:
            raise DataError(f"{index.path}: no image is left with skip_empty={skip_empty} and limit={limit}")
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: is no folder; give the images of {index.path.name}: data.train.images=DIR")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Sample | Damaged:
        record = self.images[position]
        path = self.folder / record.file_name
        try:
            image = read_image(path, record.size)
        except DataError as error:
            if not self.skip_damaged:
                raise
            return Damaged(str(error))
        instances = [found for found in self.index.objects(record.id) if not found.crowd]
        maps = pack([found.segmentation for found in instances], *record.size)
        maps = np.concatenate([maps, self._crowd(record)[None]])  # the crowd travels as the last map
        if self.augment is not None:
            image, maps = self.augment(image, maps, seed=_draw_seed(record.id))
        masks, boxes, kept = unpack(maps[:-1])
        labels = np.array([found.label for found in instances], np.int64)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # (H, W, 3) -> (3, H, W)
            masks=torch.from_numpy(masks),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels[kept]),
            crowd=torch.from_numpy(maps[-1] > 0),
            image_id=record.id,
            original_size=record.size,
            file_name=str(path),
        )

    def _crowd(self, record: CocoImage) -> NDArray[np.uint16]:
        crowd = np.zeros(record.size, INDEX_DTYPE)
        for found in self.index.objects(record.id):
            if found.crowd:
                crowd |= rasterize(found.segmentation, *record.size)
        return crowd


def _draw_seed(image_id: int) -> int:
    """A seed for one sample; the image is mixed in because the processes of DDP may have equal generators."""
    draw = int(torch.randint(2**31, ()))
    return (draw + 0x9E3779B1 * image_id) % 2**32
