"""A training sample from its JPEG: decode, short side to 800, flip, 20 masks and boxes; samples per second per core."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Result, compare, main  # isort: skip - sets the number of threads
import albumentations as A  # noqa: N812
import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools
from torchvision import io, tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from b2inst.data.augment import Augment, Resize, flip
from b2inst.data.coco import CocoDataset
from b2inst.data.index import CocoIndex

IMAGES, OBJECTS, HEIGHT, WIDTH, SHORT, LONG = 8, 20, 480, 640, 800, 1333
Route = Callable[[], list[tuple[Any, ...]]]


def benchmarks() -> Iterator[Result]:
    """Each route loads the same images, mirrored, on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder))
        index = CocoIndex.read(Path(folder) / "annotations.json")
        ours = CocoDataset(index, folder, Augment({"resize": Resize(SHORT, max_long=LONG), "flip": flip(1.0)}))
        for name, route in (("torchvision v2", _torchvision(ours)), ("albumentations", _albumentations(ours))):
            yield compare(
                f"loader, {IMAGES} images of {OBJECTS} objects", _ours(ours), f"{name}, stacked masks", route, _agree
            )


def write_set(folder: Path, seed: int = 0) -> None:
    """Write blurred noise as JPEG, and blobs of 27 points and 8 to 120 pixels' radius as polygons."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for id in range(1, IMAGES + 1):
        noise = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 3)
        pixels = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / f"{id}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": id, "file_name": f"{id}.jpg", "height": HEIGHT, "width": WIDTH})
        for _ in range(OBJECTS):
            angle, radius = np.sort(rng.random(27)) * 2 * np.pi, np.exp(rng.uniform(np.log(8), np.log(120)))
            reach = radius * rng.uniform(0.7, 1.3, 27)
            circle = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
            points = np.clip(circle + rng.uniform(0.1, 0.9, 2) * (WIDTH, HEIGHT), 0, (WIDTH, HEIGHT)).round(2)
            annotations.append({"id": len(annotations) + 1, "image_id": id, "category_id": 1, "iscrowd": 0,
                                "bbox": [0, 0, 1, 1], "segmentation": [points.ravel().tolist()]})  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


def _ours(dataset: CocoDataset) -> Route:
    def route() -> list[tuple[Any, ...]]:
        samples = [dataset[position] for position in range(len(dataset))]
        return [(sample.image, sample.masks, sample.boxes) for sample in samples]

    return route


def _torchvision(dataset: CocoDataset) -> Route:
    transform = v2.Compose([v2.Resize(SHORT, max_size=LONG, antialias=True), v2.RandomHorizontalFlip(1.0)])

    def sample(path: Path, masks: np.ndarray) -> tuple[Any, ...]:
        image = tv_tensors.Image(io.decode_image(str(path)))
        image, masks = transform(image, tv_tensors.Mask(torch.from_numpy(masks)))
        return image, masks, masks_to_boxes(masks)

    return _stacked(dataset, sample)


def _albumentations(dataset: CocoDataset) -> Route:
    transform = A.Compose([A.SmallestMaxSize(SHORT), A.HorizontalFlip(p=1.0)])

    def sample(path: Path, masks: np.ndarray) -> tuple[Any, ...]:
        out = transform(image=cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), masks=masks)
        masks = torch.from_numpy(out["masks"])
        image = torch.from_numpy(np.ascontiguousarray(out["image"].transpose(2, 0, 1)))
        return image, masks, masks_to_boxes(masks)

    return _stacked(dataset, sample)


def _stacked(dataset: CocoDataset, sample: Callable[[Path, np.ndarray], tuple[Any, ...]]) -> Route:
    polygons = [
        [[p.tolist() for p in found.segmentation] for found in dataset.index.objects(image.id)]
        for image in dataset.images
    ]

    def route() -> list[tuple[Any, ...]]:
        samples = []
        for image, objects in zip(dataset.images, polygons, strict=True):
            rles = [rle_tools.frPyObjects(polygon, *image.size)[0] for polygon in objects]
            masks = np.ascontiguousarray(rle_tools.decode(rles).transpose(2, 0, 1))  # (H, W, I) -> (I, H, W)
            samples.append(sample(dataset.folder / image.file_name, masks))
        return samples

    return route


def _agree(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> str:
    """IoU of the masks; the peers enlarge bitmaps, and lose what is finer than a pixel of the file."""
    ious = []
    for (_, masks, _), (_, others, _) in zip(ours, theirs, strict=True):
        width = min(masks.shape[2], others.shape[2])
        a, b = masks[:, :, :width].bool(), torch.as_tensor(others)[:, :, :width].bool()
        ious += ((a & b).sum((1, 2)) / (a | b).sum((1, 2))).tolist()
    return f"mean mask IoU {np.mean(ious):.3f}"


if __name__ == "__main__":
    main(benchmarks)
