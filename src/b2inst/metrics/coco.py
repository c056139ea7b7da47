"""COCO's average precision of boxes, masks and boundaries, from results that arrive in a stream."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from b2inst.metrics.boundary_iou import lower_to_boundary_iou
from b2inst.metrics.ground_truth import GroundTruth, load_ground_truth
from b2inst.metrics.records import check_record
from b2inst.metrics.scores import Scores

KINDS = ("box", "mask", "boundary")
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # suffix of a metric -> row of COCOeval's area ranges
_AP50, _AP75 = 0, 5  # rows of COCOeval's thresholds 0.50, 0.55, ..., 0.95


class CocoEvaluator:
    """Scores results in COCO format against annotations; only images that were shown to it count.

    `update` takes the images of a batch with what was found in them, so that an image without detections lowers
    the recall, and an image that was never shown (a run over a subset) does not. An image shown twice, as a
    padded distributed sampler does, counts once: the first results win. Memory grows with the RLEs alone.

    Box and mask scores are those of pycocotools, which does the matching. Boundary AP is COCO's with the
    mask IoU of each pair replaced by min(mask IoU, boundary IoU); crowds keep the mask IoU (Cheng et al. 2021).

    In a distributed run each process updates its own evaluator and one process joins them:
    `for state in gathered: evaluator.update(*state)`, with `state` from the property of this name.

    Args:
        annotations: path of an annotation file, its content, or a loaded `GroundTruth`.
        kinds: which of `box`, `mask`, `boundary` to compute.
        dilation_ratio: thickness of the boundary as a fraction of the image diagonal (0.02 for COCO).
        max_detections: ascending numbers of detections per image and class: AR is computed at each, the rest at
            the last.
        detection_area: what makes a detection small, medium or large in mask and boundary scores. `box` is what
            pycocotools does with a results file: the area of `bbox` where a record has one, else of the mask.
            `mask` is always the area of the mask (detectron2 removes `bbox` to this end). It changes
            APs, APm and APl only.

    Raises:
        ValueError: an argument is outside the allowed, or the annotations are damaged.
        FileNotFoundError: there is no such annotation file.
    """

    def __init__(
        self,
        annotations: str | Path | dict[str, Any] | COCO,
        kinds: Sequence[str] = KINDS,
        dilation_ratio: float = 0.02,
        max_detections: Sequence[int] = (1, 10, 100),
        detection_area: str = "box",
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds or isinstance(kinds, str):
            raise ValueError(f"kinds {kinds!r} is not allowed: give a list of one or more of {', '.join(KINDS)}")
        if not max_detections or min(max_detections) < 1 or sorted(set(max_detections)) != list(max_detections):
            raise ValueError(f"max_detections {tuple(max_detections)} is not allowed: give ascending numbers from 1 on")
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio {dilation_ratio} is not allowed: give a fraction of the image diagonal")
        if detection_area not in ("box", "mask"):
            raise ValueError(f"detection_area {detection_area!r} is not allowed: give 'box' or 'mask'")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self.dilation_ratio = dilation_ratio
        self.max_detections = tuple(int(number) for number in max_detections)
        self.detection_area = detection_area
        self._needs_mask = self.kinds != ("box",)
        self.truth: GroundTruth = load_ground_truth(annotations)
        if self._needs_mask:
            self.truth.rasterize()
        self._found: dict[int, list[dict[str, Any]]] = {}

    def update(self, image_ids: Iterable[int], records: Iterable[Mapping[str, Any]]) -> None:
        """Add images and what was found in them.

        Args:
            image_ids: every image that was looked at, with and without detections.
            records: results of these images, in any order: `image_id`, `category_id`, `score`, `bbox` (XYWH in
                pixels of the original image, optional: the box of the mask takes its place), `segmentation`
                (compressed RLE, `counts` as str or bytes; optional for boxes), `box_score` (optional, ranks
                the boxes in place of `score`). They are not changed and not kept.

        Raises:
            ValueError: a record is malformed, of an image outside `image_ids` or the annotations, or an image
                with detections occurs twice in `image_ids`. Nothing has been added then.
        """
        ids = [int(image_id) for image_id in image_ids]
        found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in ids}
        for image_id in found:
            if image_id not in self.truth.imgs:
                raise ValueError(
                    f"image_id {image_id} is not in {self.truth.source}; evaluate with the annotations of these images"
                )
        for index, record in enumerate(records):
            try:
                check_record(record, self.truth, need_mask=self._needs_mask)
            except ValueError as error:
                raise ValueError(f"record {index} {error}") from None
            if record["image_id"] not in found:
                raise ValueError(
                    f"record {index} is of image {record['image_id']}, which is not in image_ids; add it there"
                )
            found[int(record["image_id"])].append(_compact(record))
        for image_id, times in Counter(ids).items():
            if times > 1 and found[image_id]:
                raise ValueError(
                    f"image_id {image_id} occurs {times} times in one call, so that its results cannot be told apart; "
                    "call update once for each batch or process: the first results of an image win"
                )
        for image_id, image_records in found.items():
            self._found.setdefault(image_id, image_records)

    @property
    def state(self) -> tuple[list[int], list[dict[str, Any]]]:
        """The image ids and records so far, ready to be sent to another process and given to its `update`."""
        return list(self._found), [record for records in self._found.values() for record in records]

    def reset(self) -> None:
        """Forget all images and results; the annotations stay."""
        self._found = {}

    def compute(self) -> Scores:
        """Score everything so far; results can be added and scored again afterwards.

        Returns:
            COCO's 12 numbers for each kind, and the scores of each class.

        Raises:
            RuntimeError: no image was shown.
        """
        if not self._found:
            raise RuntimeError("nothing to score: call update with the images first, also those without detections")
        metrics: dict[str, float] = {}
        per_class = {name: {} for name in self.truth.class_names().values()}
        for kind in self.kinds:
            evaluation = self._evaluate(kind)
            precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
            metrics.update({f"{kind}/{name}": value for name, value in self._summary(precision, recall).items()})
            for index, row in enumerate(per_class.values()):  # class_names and COCOeval both ascend in category id
                row.update(_class_scores(kind, precision[:, :, index, 0, -1]))
        for row, instances in zip(per_class.values(), self._count_instances(), strict=True):
            row["instances"] = instances
        return Scores(metrics, per_class)

    def _evaluate(self, kind: str) -> COCOeval:
        # pycocotools reports its progress on stdout; errors are exceptions and pass through
        with contextlib.redirect_stdout(io.StringIO()):
            results = self._results(kind)
            if kind == "boundary":
                evaluation = _BoundaryEval(self.truth, results, self.dilation_ratio)
            else:
                evaluation = COCOeval(self.truth, results, {"box": "bbox", "mask": "segm"}[kind])
            evaluation.params.imgIds = sorted(self._found)
            evaluation.params.maxDets = list(self.max_detections)
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _results(self, kind: str) -> COCO:
        # `COCO.loadRes` would write into the records and fails on an empty list; the fields are the ones it makes.
        entries = []
        for image_id in sorted(self._found):
            for record in self._found[image_id]:
                entry = self._entry(record, kind)
                entry["id"] = len(entries) + 1
                entries.append(entry)
        results = COCO()
        results.dataset = {
            "images": self.truth.dataset["images"],
            "categories": self.truth.dataset["categories"],
            "annotations": entries,
        }
        results.createIndex()
        return results

    def _entry(self, record: Mapping[str, Any], kind: str) -> dict[str, Any]:
        entry = {key: record[key] for key in ("image_id", "category_id", "score")} | {"iscrowd": 0}
        box, rle = record.get("bbox"), record.get("segmentation")
        if kind == "box":
            entry["score"] = record.get("box_score", record["score"])
            entry["bbox"] = rle_tools.toBbox(rle) if box is None else box
        else:
            entry["segmentation"] = rle
        by_mask = box is None or (kind != "box" and self.detection_area == "mask")
        entry["area"] = rle_tools.area(rle) if by_mask else box[2] * box[3]
        return entry

    def _summary(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        # precision (thresholds, recall steps, classes, areas, max detections), recall the same without steps
        summary = {f"AP{suffix}": _mean(precision[:, :, :, area, -1]) for suffix, area in _AREAS.items()}
        summary["AP50"] = _mean(precision[_AP50, :, :, 0, -1])
        summary["AP75"] = _mean(precision[_AP75, :, :, 0, -1])
        for index, number in enumerate(self.max_detections):
            summary[f"AR{number}"] = _mean(recall[:, :, 0, index])
        for suffix in ("s", "m", "l"):
            summary[f"AR{suffix}"] = _mean(recall[:, :, _AREAS[suffix], -1])
        order = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{n}" for n in self.max_detections)]
        return {name: summary[name] for name in [*order, "ARs", "ARm", "ARl"]}

    def _count_instances(self) -> list[int]:
        counts = dict.fromkeys(sorted(self.truth.cats), 0)
        for image_id in self._found:
            for annotation in self.truth.imgToAnns.get(image_id, ()):
                counts[annotation["category_id"]] += not annotation["iscrowd"]
        return list(counts.values())


class _BoundaryEval(COCOeval):
    """COCOeval of masks with min(mask IoU, boundary IoU) as the overlap of a detection and an object."""

    def __init__(self, truth: COCO, results: COCO, dilation_ratio: float) -> None:
        super().__init__(truth, results, "segm")
        self.dilation_ratio = dilation_ratio

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 - names of pycocotools
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


def _compact(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what scoring reads, in plain numbers so that no tensor or array is kept alive."""
    kept: dict[str, Any] = {
        "image_id": int(record["image_id"]),
        "category_id": int(record["category_id"]),
        "score": float(record["score"]),
    }
    if "box_score" in record:
        kept["box_score"] = float(record["box_score"])
    if record.get("bbox") is not None:
        kept["bbox"] = [float(number) for number in record["bbox"]]
    if record.get("segmentation") is not None:
        rle = record["segmentation"]
        counts = rle["counts"].encode("ascii") if isinstance(rle["counts"], str) else rle["counts"]
        kept["segmentation"] = {"size": [int(number) for number in rle["size"]], "counts": counts}
    return kept


def _class_scores(kind: str, precision: np.ndarray) -> dict[str, float]:
    scores = {f"{kind}/AP": _mean(precision)}
    if kind == "mask":
        scores["mask/AP50"] = _mean(precision[_AP50])
        scores["mask/AP75"] = _mean(precision[_AP75])
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean over what has ground truth: COCOeval marks the rest with -1; NaN where nothing has."""
    valid = values[values > -1]
    return float(np.mean(valid)) if len(valid) else float("nan")
