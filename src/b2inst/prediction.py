"""What was found in one image, in its own pixels, and the formats that other programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from b2inst import viz
from b2inst.data.pixels import ImageLike, to_rgb
from b2inst.metrics.convert import make_records
from b2inst.ops.masks import masks_to_rle
from b2inst.ops.polygons import mask_to_polygons
from b2inst.structures import Detections
from b2inst.viz_draw import RIM, Patch, cut_out

LABELME_VERSION = "5.5.0"  # of the format that is written; LabelMe 5 and later read it


@dataclass(frozen=True, eq=False)
class Prediction:
    """Instances found in one image, best first; everything but `size` has one entry per instance.

    Pixel (0, 0) of the image covers [0, 1).

    Attributes:
        boxes: (D, 4) float32, XYXY in pixels of the image as it was given.
        scores: (D,) float32, the mask score: class score times mask quality.
        box_scores: (D,) float32, the class score alone.
        labels: (D,) int64 in [0, C).
        class_names: D names.
        category_ids: (D,) int64, ids of the annotation file that the model was trained with.
        masks: D masks as COCO's compressed RLE, `{"size": [height, width], "counts": str}`.
        size: (height, width) of the image.

    Example:
        >>> nothing = Prediction(np.zeros((0, 4)), *(np.zeros(0) for _ in range(3)), (), np.zeros(0), (), (4, 6))
        >>> len(nothing), nothing.bool_masks().shape
        (0, (0, 4, 6))
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    box_scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    masks: tuple[dict[str, Any], ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_detections(
        cls, detections: Detections, size: tuple[int, int], class_names: Sequence[str], category_ids: Sequence[int]
    ) -> Prediction:
        """Bring detections into the pixels of their image.

        Args:
            detections: with boxes in pixels of `detections.size`, the image as the network saw it.
            size: (height, width) of the image itself.
            class_names: by label.
            category_ids: by label.
        """
        found = detections.to("cpu").resized(size)
        labels = found.labels.tolist()
        return cls(
            boxes=found.boxes.float().numpy(),
            scores=found.scores.float().numpy(),
            box_scores=found.box_scores.float().numpy(),
            labels=found.labels.numpy(),
            class_names=tuple(class_names[label] for label in labels),
            category_ids=np.array([category_ids[label] for label in labels], np.int64),
            masks=tuple(masks_to_rle(found.mask_logits.float().sigmoid(), found.boxes, *size)),
            size=size,
        )

    def bool_masks(self) -> NDArray[np.bool_]:
        """Decode all masks: (D, height, width) bool."""
        masks = np.zeros((len(self), *self.size), bool)
        for mask, rle in zip(masks, self.masks, strict=True):
            mask[:] = _decode(rle)
        return masks

    def patches_at(self, size: tuple[int, int]) -> list[Patch]:
        """Cut out all masks at another size (height, width), pixels repeated or left out; one is decoded at a time."""
        rows, columns = (_nearest(*lengths) for lengths in zip(self.size, size, strict=True))
        return [_patch(rle, rows, columns) for rle in self.masks]

    def polygons(self, tolerance: float = 0.0) -> list[list[NDArray[np.float64]]]:
        """Outline the masks, see `b2inst.ops.polygons`.

        Args:
            tolerance: in pixels; 0 follows the edges of the pixels, more leaves out corners.

        Returns:
            of each instance the polygons of its pieces, (P, 2) xy in pixels of the image; filled by the even-odd rule
            they give the mask.
        """
        return [mask_to_polygons(_decode(rle), tolerance) for rle in self.masks]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Write records as of a COCO results file, ready for `json.dump`.

        Args:
            image_id: of the image in the annotation file that the results belong to.

        Returns:
            One record an instance: `image_id`, `category_id`, `bbox` (XYWH), `segmentation` (RLE), `score` (mask
            score) and `box_score` (class score, which ranks the boxes).
        """
        return make_records(
            image_id, self.category_ids.tolist(), self.boxes.astype(np.float64).tolist(), self.masks,
            self.scores.tolist(), self.box_scores.tolist(),
        )  # fmt: skip

    def to_labelme(self, file_name: str, tolerance: float = 0.0) -> dict[str, Any]:
        """Write a LabelMe annotation, ready for `json.dump`.

        Args:
            file_name: of the image, relative to the JSON file.
            tolerance: as in `polygons`; 0.5 to 1 leaves outlines that can be edited by hand.

        Returns:
            The annotation. The pieces of an instance have its number as their `group_id`; the score is in
            `description`.
        """
        shapes = [
            {
                "label": name,
                "points": polygon.tolist(),
                "group_id": number,
                "description": f"score {score:.3f}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for number, (name, score, pieces) in enumerate(
                zip(self.class_names, self.scores.tolist(), self.polygons(tolerance), strict=True)
            )
            for polygon in pieces
        ]
        height, width = self.size
        return {
            "version": LABELME_VERSION, "flags": {}, "shapes": shapes, "imagePath": file_name, "imageData": None,
            "imageHeight": height, "imageWidth": width,
        }  # fmt: skip

    def draw(self, image: ImageLike, max_side: int | None = None, min_side: int | None = None) -> Image.Image:
        """Paint the instances on their image: masks, outlines, names and scores.

        Args:
            image: the one that was given to `predict`, in any form that it takes.
            max_side: a larger picture is made smaller until its longer side has this many pixels; bounds the memory.
            min_side: a smaller picture is enlarged by a whole number until its shorter side has this many pixels.

        Returns:
            The picture, RGB.

        Raises:
            ValueError: the image has another size than the one that these instances were found in.
        """
        pixels = to_rgb(image)
        if pixels.shape[:2] != tuple(self.size):
            raise ValueError(
                f"the image is {pixels.shape[0]} x {pixels.shape[1]} (height x width), these instances were found in "
                f"one of {self.size[0]} x {self.size[1]}: give the image that predict() was given"
            )
        size = shown_size(self.size, max_side, min_side)
        picture = torch.from_numpy(resized(pixels, size).transpose(2, 0, 1).copy())
        if len(self) == 0:
            return Image.fromarray(picture.permute(1, 2, 0).numpy())
        names = list(dict.fromkeys(self.class_names))
        labels = torch.tensor([names.index(name) for name in self.class_names])
        drawn = viz.draw_patches(picture, self.patches_at(size), labels, names, torch.from_numpy(self.scores))
        return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def shown_size(size: tuple[int, int], max_side: int | None = None, min_side: int | None = None) -> tuple[int, int]:
    """Size (height, width) at which an image of `size` is drawn, see `Prediction.draw`."""
    if max_side is not None and max(size) > max_side:
        scale = max_side / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    zoom = 1 if min_side is None else math.ceil(min_side / min(size))
    if max_side is not None:  # of a long and thin image
        zoom = max(1, min(zoom, max_side // max(size)))
    return size[0] * zoom, size[1] * zoom


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image at another size (height, width): areas are averaged if it shrinks, pixels repeated if it grows."""
    shrinks = size[0] < image.shape[0]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST_EXACT)


def _decode(rle: dict[str, Any]) -> NDArray[np.bool_]:
    return coco_mask.decode([rle])[:, :, 0].view(bool)


def _nearest(length: int, other: int) -> NDArray[np.int64]:
    """Which of `length` pixels in a row stands at each of `other` ones: (other,), as OpenCV chooses them."""
    pixels = np.arange(length, dtype=np.float32)[:, None]  # exact below 2**24
    return cv2.resize(pixels, (1, other), interpolation=cv2.INTER_NEAREST_EXACT)[:, 0].astype(np.int64)


def _patch(rle: dict[str, Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Patch:
    """Cut a mask out of the pixels in some rows and columns of its image."""
    x, y, width, height = coco_mask.toBbox(rle).astype(np.int64).tolist()
    left, right = np.searchsorted(columns, (x, x + width)).tolist()
    top, bottom = np.searchsorted(rows, (y, y + height)).tolist()
    left, top = max(0, left - RIM), max(0, top - RIM)
    part = _decode(rle)[np.ix_(rows[top : bottom + RIM], columns[left : right + RIM])]
    patch = cut_out(torch.from_numpy(np.ascontiguousarray(part)))
    x0, y0, x1, y1 = patch.extent
    place = (x0 + left, y0 + top, x1 + left, y1 + top)
    return Patch(patch.mask, patch.left + left, patch.top + top, place)
