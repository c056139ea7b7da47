"""The reference of the scores: pycocotools itself, an image and a class at a time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from b2inst.metrics.accumulate import Accumulated
from b2inst.metrics.boundary_iou import lower_to_boundary_iou
from b2inst.metrics.columns import Objects
from b2inst.metrics.ground_truth import GroundTruth
from b2inst.metrics.matching import Matches


def evaluate(
    kind: str, detections: Objects, image_ids: Sequence[int], truth: GroundTruth,
    max_detections: Sequence[int], dilation_ratio: float,
) -> tuple[Matches, Accumulated]:  # fmt: skip
    """Score with pycocotools.

    Args:
        kind: `box`, `mask` or `boundary`.
        detections: of these images.
        image_ids: ascending.
        truth: the annotations.
        max_detections: numbers of detections per image and class.
        dilation_ratio: thickness of the boundary.
    """
    # pycocotools reports its progress on stdout; errors are exceptions and pass through
    with contextlib.redirect_stdout(io.StringIO()):
        results = _results(kind, detections, image_ids, truth)
        if kind == "boundary":
            evaluation: COCOeval = _BoundaryEval(truth, results, dilation_ratio)
        else:
            evaluation = COCOeval(truth, results, {"box": "bbox", "mask": "segm"}[kind])
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]
    return _matches(evaluation, image_ids), Accumulated(precision, evaluation.eval["recall"])


def _results(kind: str, detections: Objects, image_ids: Sequence[int], truth: GroundTruth) -> COCO:
    # `COCO.loadRes` would replace areas and fails on an empty list; the fields are the ones it makes.
    category_ids = sorted(truth.cats)
    field = "bbox" if kind == "box" else "segmentation"
    entries = [
        {
            "id": index + 1, "image_id": image_ids[group // len(category_ids)],
            "category_id": category_ids[group % len(category_ids)], "score": score, "area": area, "iscrowd": 0,
            field: shape,
        }
        for index, (group, score, area, shape) in enumerate(
            zip(
                detections.groups.tolist(), detections.scores.tolist(), detections.areas.tolist(), detections.shapes,
                strict=True,
            )
        )
    ]  # fmt: skip
    results = COCO()
    results.dataset = {
        "images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": entries,
    }  # fmt: skip
    results.createIndex()
    return results


def _matches(evaluation: COCOeval, image_ids: Sequence[int]) -> Matches:
    """Collect what `COCOeval.evaluateImg` has left, in the order of images, classes and scores."""
    params = evaluation.params
    images, classes, areas = len(image_ids), len(params.catIds), len(params.areaRng)
    positives = np.zeros((classes, areas), np.int64)
    parts = []
    for image in range(images):
        for index in range(classes):
            entries = [evaluation.evalImgs[(index * areas + area) * images + image] for area in range(areas)]
            if entries[0] is None:
                continue
            positives[index] += [np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0) for entry in entries]
            parts.append(_part(entries, index, evaluation.ious[image_ids[image], params.catIds[index]], evaluation))
    shape = (0, len(params.iouThrs), areas)
    empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(shape, bool), np.zeros(shape, bool),
             np.zeros((0, areas)))  # fmt: skip
    columns = [np.concatenate(column) for column in zip(empty, *parts, strict=True)]
    return Matches(*columns, positives)


def _part(entries: Sequence[Mapping[str, Any]], index: int, ious: Any, evaluation: COCOeval) -> tuple[np.ndarray, ...]:
    scores = np.asarray(entries[0]["dtScores"], np.float64)
    partner = np.stack([entry["dtMatches"] for entry in entries], axis=-1).transpose(1, 0, 2)  # (D, T, A) ids
    ignored = np.stack([entry["dtIgnore"] for entry in entries], axis=-1).transpose(1, 0, 2).astype(bool)
    overlap = np.full((len(scores), len(entries)), np.nan)
    if partner[:, 0].any():
        # columns of the overlaps: the objects in their own order, not in the one that the matching sorts them into
        key = (entries[0]["image_id"], entries[0]["category_id"])
        column = {truth["id"]: place for place, truth in enumerate(evaluation._gts[key])}
        for row, area in zip(*np.nonzero(partner[:, 0]), strict=True):
            overlap[row, area] = ious[row, column[int(partner[row, 0, area])]]
    return np.full(len(scores), index), scores, np.arange(len(scores)), partner > 0, ignored, overlap


class _BoundaryEval(COCOeval):
    """COCOeval of masks with min(mask IoU, boundary IoU) as the overlap of a detection and an object."""

    def __init__(self, truth: COCO, results: COCO, dilation_ratio: float) -> None:
        super().__init__(truth, results, "segm")
        self.dilation_ratio = dilation_ratio

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 - names of pycocotools
        """Overlaps of one image and class, (detections, objects), lowered to the boundary IoU."""
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truths, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        # the order of the rows that super() has made: best first, ties in the order of the results
        order = np.argsort([-detection["score"] for detection in detections], kind="mergesort")[: len(ious)]
        return lower_to_boundary_iou(
            ious,
            [detections[index]["segmentation"] for index in order],
            [truth["segmentation"] for truth in truths],
            [truth["iscrowd"] for truth in truths],
            self.dilation_ratio,
            min_iou=float(min(self.params.iouThrs)),
        )
