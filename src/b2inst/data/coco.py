"""The data set made of COCO annotations.

`CocoDataset` turns the images of a `CocoIndex` into samples: decode, rasterize, augment, and boxes from the masks that
are left. Masks are bitmaps from here on, whatever they were in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from b2inst.data.damaged import Damaged
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.data.index import CocoIndex, CocoObject
from b2inst.data.sampler import Draw
from b2inst.ops.rasterize import INDEX_DTYPE, Patch, assemble, pack, patches, rasterize, rasterize_window

STAND_INS = 16  # images that are tried in place of a damaged one


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


@runtime_checkable
class PointAugmentation(Augmentation, Protocol):
    """An augmentation that can say where points go, if `moves_points` holds."""

    moves_points: bool

    def with_matrix(
        self, image: NDArray[np.uint8], maps: NDArray[np.uint16], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float64]]:
        """Return image, maps and the (2, 3) matrix that moves points (x, y, 1)."""


class CocoDataset(Dataset[Sample | Damaged]):
    """Images and instances of a COCO-format set.

    A `Draw` as the index names all randomness of a sample. With a plain position it comes from torch's generator of
    the process (a worker has its own, seeded by the loader).

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
        rows = index.instance_counts > 0 if skip_empty else np.ones(len(index.images), bool)
        self.images = index.images.take(np.flatnonzero(rows)[:limit])
        if not self.images:
            why = "skip_empty=true leaves out those without an instance" if skip_empty else f"limit={limit}"
            raise DataError(
                f"{index.path}: no image is left of {len(index.images)}, {why}; add annotations, or give another file: "
                "data.train.annotations=FILE, data.val.annotations=FILE"
            )
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: is no folder; give the images of {index.path.name}: data.train.images=DIR")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Draw) -> Sample | Damaged:
        position = index.position if isinstance(index, Draw) else index
        try:
            image = self._read(position)
        except DataError as error:
            if not self.skip_damaged:
                raise
            return Damaged(str(error), self._another(position, index))
        return self._sample(position, image, index)

    def _read(self, position: int) -> NDArray[np.uint8]:
        record = self.images[position]
        return read_image(self.folder / record.file_name, record.size)

    def _another(self, position: int, index: int | Draw) -> Sample | None:
        """The sample of the next image that can be used, if there is one among the next few."""
        for offset in range(1, min(STAND_INS, len(self) - 1) + 1):
            other = (position + offset) % len(self)
            try:
                image = self._read(other)
            except DataError:
                continue
            return self._sample(other, image, index)
        return None

    def _sample(self, position: int, image: NDArray[np.uint8], index: int | Draw) -> Sample:
        record = self.images[position]
        seed = index.sample_seed(record.id) if isinstance(index, Draw) else _draw_seed(record.id)
        path = self.folder / record.file_name
        objects = self.index.objects(record.id)
        image, found, crowd = augment_objects(image, objects, self.augment, seed)
        masks, boxes, kept = assemble(found, *image.shape[:2])
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # (H, W, 3) -> (3, H, W)
            masks=torch.from_numpy(masks),
            boxes=torch.from_numpy(boxes),
            labels=torch.tensor([objects[k].label for k in kept], dtype=torch.int64),
            crowd=torch.from_numpy(crowd),
            image_id=record.id,
            original_size=record.size,
            file_name=str(path),
        )


def augment_objects(
    image: NDArray[np.uint8], objects: Sequence[CocoObject], augment: Augmentation | None, seed: int
) -> tuple[NDArray[np.uint8], dict[int, Patch], NDArray[np.bool_]]:
    """Augment an image and its objects.

    Polygons are rasterized after the augmentation if it can say where points go, else before it.

    Args:
        image: (H, W, 3) uint8.
        objects: of the image, crowds included.
        augment: what happens to them; None for nothing.
        seed: of the augmentation.

    Returns:
        The image (H', W', 3), the objects left, by their place in `objects`, and the (H', W') bool union of crowds.
    """
    height, width = image.shape[:2]
    follow = augment is None or _moves_points(augment)
    places = {True: [], False: []}  # in `objects`, of what is rasterized after the augmentation, and before it
    for k, found in enumerate(objects):
        if not found.crowd:
            places[follow and not isinstance(found.segmentation, Mapping)].append(k)
    maps = pack([objects[k].segmentation for k in places[False]], height, width)
    crowd = np.zeros((1, height, width), INDEX_DTYPE)  # travels as the last map
    for found in objects:
        if found.crowd:
            crowd[0] |= rasterize(found.segmentation, height, width)
    image, maps, matrix = _augment(image, np.concatenate([maps, crowd]), augment, seed)
    left = {places[False][k]: patch for k, patch in patches(maps[:-1]).items()}
    for k in places[True]:
        polygons = [np.asarray(p, np.float64).reshape(-1, 2) for p in objects[k].segmentation]
        patch = rasterize_window([p @ matrix[:, :2].T + matrix[:, 2] for p in polygons], *image.shape[:2])
        if patch is not None:
            left[k] = patch
    return image, left, maps[-1] > 0


def _augment(
    image: NDArray[np.uint8], maps: NDArray[np.uint16], augment: Augmentation | None, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float64]]:
    """Image and maps, augmented, and where points go if that can be said (else nowhere)."""
    if augment is None:
        return image, maps, np.eye(2, 3)
    if _moves_points(augment):
        return augment.with_matrix(image, maps, seed)
    return *augment(image, maps, seed), np.full((2, 3), np.nan)


def _moves_points(augment: Augmentation) -> TypeGuard[PointAugmentation]:
    return isinstance(augment, PointAugmentation) and augment.moves_points


def _draw_seed(image_id: int) -> int:
    """A seed for one sample; the image is mixed in because the processes of DDP may have equal generators."""
    draw = int(torch.randint(2**31, ()))
    return (draw + 0x9E3779B1 * image_id) % 2**32
