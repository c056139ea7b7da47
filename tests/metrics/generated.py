"""A generated evaluation with everything that makes scoring hard, and plain routes to the same numbers."""

from __future__ import annotations

import contextlib
import copy
import io

import cv2
import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 120, 160
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def encode(mask):
    rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def ellipse(rng, height=HEIGHT, width=WIDTH, largest=60):
    mask = np.zeros((height, width), np.uint8)
    center = (int(rng.integers(-5, width + 5)), int(rng.integers(-5, height + 5)))
    axes = (int(rng.integers(2, largest)), int(rng.integers(2, largest)))
    cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def shaken(rng, mask):
    """The mask moved by a few pixels and sometimes thinned: overlaps on both sides of every threshold."""
    dx, dy = rng.integers(-4, 5, 2)
    moved = cv2.warpAffine(mask, np.float32([[1, 0, dx], [0, 1, dy]]), mask.shape[::-1])
    return cv2.erode(moved, np.ones((3, 3), np.uint8)) if rng.random() < 0.3 else moved


def make_case(seed=0, images=8):
    """Annotations and results: crowds, sizes of all three kinds, ties, an empty class, images without objects and
    without detections, more than 100 detections of one class, objects of 1 pixel and at the border.

    Image ids have gaps, category ids too; category 9 has no annotations, but detections.
    """
    rng = np.random.default_rng(seed)
    image_ids = [3 + 4 * index for index in range(images)]
    truth = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": key, "name": name} for key, name in [(1, "disc"), (4, "leaf"), (9, "ghost")]]
    records = []
    for index, image_id in enumerate(image_ids):
        truth["images"].append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"})
        for _ in range(0 if index == 0 else int(rng.integers(2, 8))):  # the first image has no objects
            mask = ellipse(rng)
            if not mask.any():
                continue
            _annotate(truth, image_id, int(rng.choice([1, 4])), mask, crowd=rng.random() < 0.2)
            if index != 1:  # the second has no detections
                for _ in range(int(rng.integers(0, 4))):
                    category = truth["annotations"][-1]["category_id"] if rng.random() < 0.9 else 9
                    _detect(rng, records, image_id, category, shaken(rng, mask))
        for _ in range(0 if index == 1 else 4):
            _detect(rng, records, image_id, int(rng.choice([1, 4])), ellipse(rng, largest=20))
    point = np.zeros((HEIGHT, WIDTH), np.uint8)
    point[0, 5] = 1
    _annotate(truth, image_ids[2], 1, point, crowd=False)
    _detect(rng, records, image_ids[2], 1, point)
    for _ in range(130):  # more than 100 of one class in one image
        _detect(rng, records, image_ids[3], 4, ellipse(rng, largest=15))
    order = rng.permutation(len(records))
    return truth, [records[position] for position in order]


def _annotate(truth, image_id, category, mask, crowd):
    rle = encode(mask)
    annotation = {
        "id": len(truth["annotations"]) + 1,
        "image_id": image_id,
        "category_id": category,
        "bbox": rle_tools.toBbox(rle).tolist(),
        "area": float(rle_tools.area(rle)),
        "iscrowd": int(crowd),
        "segmentation": rle,
    }
    truth["annotations"].append(annotation)


def _detect(rng, records, image_id, category, mask):
    rle = encode(mask)
    box = np.array(rle_tools.toBbox(rle)) + rng.uniform(-1, 1, 4)  # a predicted box is not the box of the mask
    records.append(
        {
            "image_id": image_id,
            "category_id": category,
            "score": float(rng.integers(1, 10)) / 10,  # many ties
            "bbox": np.maximum(box, [-5, -5, 0, 0]).tolist(),
            "segmentation": rle,
        }
    )


def plain_scores(truth, records, kind, image_ids=None, evaluation_class=COCOeval):
    """The 12 numbers by the usual calls of pycocotools; kind is its iouType."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(truth)}
        coco.createIndex()
        evaluation = evaluation_class(coco, coco.loadRes(copy.deepcopy(records)), kind)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def plain_boundary(mask, ratio=0.02):
    """Boundary by the definition: 3x3 erosions of the full-size mask, one after the other."""
    height, width = mask.shape
    steps = max(1, int(round(ratio * np.sqrt(height**2 + width**2))))
    eroded = np.pad(mask, 1)
    for _ in range(steps):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(eroded, 1), (3, 3))
        eroded = windows.min(axis=(2, 3))
    return mask - eroded[1:-1, 1:-1]


def plain_iou(first, second):
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


class PlainBoundaryEval(COCOeval):
    """Boundary AP by the definition: dense masks, every pair, no thresholds, no crops."""

    def computeIoU(self, imgId, catId):  # noqa: N802, N803
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        detections = sorted(self._dts[imgId, catId], key=lambda entry: -entry["score"])[:100]
        found = [plain_boundary_of(entry["segmentation"]) for entry in detections]
        for column, truth in enumerate(self._gts[imgId, catId]):
            if truth["iscrowd"]:
                continue
            real = plain_boundary_of(truth["segmentation"])
            for row, boundary in enumerate(found):
                ious[row, column] = min(ious[row, column], plain_iou(boundary, real))
        return ious


_CACHE: dict = {}


def plain_boundary_of(rle):
    key = (tuple(rle["size"]), bytes(rle["counts"], "ascii") if isinstance(rle["counts"], str) else rle["counts"])
    if key not in _CACHE:
        _CACHE[key] = plain_boundary(rle_tools.decode(rle))
    return _CACHE[key]
