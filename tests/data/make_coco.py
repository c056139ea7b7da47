"""Writes a tiny COCO-format set with everything that real ones hold.

Ellipses (compressed RLE), polygons, uncompressed RLE, crowds, an image without objects, an image with nothing but a
crowd, objects at the border, one-pixel objects, overlaps, and category ids with gaps. Objects of a class have a
color of their own, with red and blue apart, so that a wrong channel order shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CATEGORIES = {3: "ellipse", 7: "polygon", 20: "dot"}  # in the file in another order, to be sorted by the reader
COLORS = {3: (220, 60, 20), 7: (30, 200, 90), 20: (20, 40, 230)}  # RGB
BACKGROUND = (90, 90, 90)


def write_coco(root: Path, train_images: int = 6, val_images: int = 3, size: int = 64, seed: int = 0) -> Path:
    """Write `root/annotations/instances_{train,val}.json`, `root/train` and `root/val`.

    Image 1 has three overlapping objects, 2 objects cut by the frame and a one-pixel object, 3 a crowd and an object,
    4 nothing, 5 only a crowd; then they repeat with other positions. Heights are `size`, widths differ.
    """
    for split, count, first in (("train", train_images, 1), ("val", val_images, 1001)):
        rng = np.random.default_rng((seed, first))
        (root / split).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": k, "name": CATEGORIES[k]} for k in sorted(CATEGORIES, reverse=True)]
        for number in range(count):
            width = size + 16 * (number % 3)
            image = np.full((size, width, 3), BACKGROUND, np.uint8)
            record = {"id": first + number, "file_name": f"{first + number:06d}.png", "height": size, "width": width}
            for annotation in KINDS[number % len(KINDS)](rng, image):
                id = 10 * (len(content["annotations"]) + first)
                content["annotations"].append({"id": id, "image_id": record["id"], **annotation})
            content["images"].append(record)
            cv2.imwrite(str(root / split / record["file_name"]), image[:, :, ::-1])
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _three(rng: np.random.Generator, image: np.ndarray) -> list[dict[str, Any]]:
    h, w = image.shape[:2]
    x, y = w // 2 + int(rng.integers(-3, 4)), h // 2 + int(rng.integers(-3, 4))
    triangle = [x, y, x + w // 4, y + 2, x + 3, y + h // 3]
    return [
        ellipse(image, (x - w // 5, y), (w // 6, h // 4)),
        ellipse(image, (x, y - h // 8), (w // 6, h // 6)),
        polygon(image, [triangle]),
    ]


def _frame(rng: np.random.Generator, image: np.ndarray) -> list[dict[str, Any]]:
    h, w = image.shape[:2]
    x = int(rng.integers(w // 3, w // 2))
    return [
        ellipse(image, (0, h // 2), (w // 5, h // 4)),
        polygon(image, [[w - 12, h - 20, w, h - 20, w, h, w - 12, h]]),
        square(image, x, 5, 1),
        polygon(image, [[x, 20, x + 8, 20, x + 8, 26, x, 26], [x, 34, x + 8, 34, x + 4, 44]]),  # in two parts
    ]


def _crowd(rng: np.random.Generator, image: np.ndarray) -> list[dict[str, Any]]:
    h, w = image.shape[:2]
    return [ellipse(image, (w // 4, h // 2), (w // 6, h // 4)), square(image, w // 2, h // 4, h // 3, crowd=True)]


def _nothing(rng: np.random.Generator, image: np.ndarray) -> list[dict[str, Any]]:
    return []


def _only_crowd(rng: np.random.Generator, image: np.ndarray) -> list[dict[str, Any]]:
    return [square(image, 4, 4, image.shape[0] // 2, crowd=True)]


KINDS: list[Callable[[np.random.Generator, np.ndarray], list[dict[str, Any]]]] = [
    _three,
    _frame,
    _crowd,
    _nothing,
    _only_crowd,
]


def ellipse(image: np.ndarray, center: tuple[int, int], axes: tuple[int, int]) -> dict[str, Any]:
    """Paint an ellipse; its annotation is compressed RLE."""
    mask = cv2.ellipse(np.zeros(image.shape[:2], np.uint8), center, axes, 0, 0, 360, 1, -1)
    rle = coco_mask.encode(np.asfortranarray(mask))
    return _annotation(image, mask, 3, {"size": list(mask.shape), "counts": rle["counts"].decode()})


def polygon(image: np.ndarray, polygons: list[list[int]]) -> dict[str, Any]:
    """Paint polygons; they are the annotation."""
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *image.shape[:2])))
    return _annotation(image, mask, 7, polygons)


def square(image: np.ndarray, x: int, y: int, side: int, crowd: bool = False) -> dict[str, Any]:
    """Paint a square; its annotation is uncompressed RLE."""
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[y : y + side, x : x + side] = 1
    return _annotation(image, mask, 20, {"size": list(mask.shape), "counts": counts(mask)}, crowd)


def counts(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE counts: runs of 0 and 1 in turn, column by column, the first one of 0."""
    flat = mask.astype(np.int8).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(edges, prepend=0).tolist()


def _annotation(
    image: np.ndarray, mask: np.ndarray, category: int, segmentation: Any, crowd: bool = False
) -> dict[str, Any]:
    image[mask > 0] = COLORS[category]
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    return {
        "category_id": category,
        "segmentation": segmentation,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": int(crowd),
    }
