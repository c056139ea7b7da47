"""Results and annotations as columns: what scoring reads, in few bytes and ready for NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from b2inst.metrics.ground_truth import GroundTruth


@dataclass(frozen=True)
class ImageResults:
    """What was found in one image.

    Attributes:
        category_ids: (D,) int64.
        scores: (D,) float64, rank the masks.
        box_scores: (D,) float64, rank the boxes; NaN where a record has none.
        boxes: (D, 4) float64, XYWH in pixels; NaN where a record has none.
        counts: D compressed run lengths, or None where a record has no mask.
    """

    category_ids: np.ndarray
    scores: np.ndarray
    box_scores: np.ndarray
    boxes: np.ndarray
    counts: list[bytes | None]

    def __len__(self) -> int:
        return len(self.counts)


_NO_BOX = (np.nan,) * 4


def from_records(records: Sequence[Mapping[str, Any]]) -> ImageResults:
    """Turn checked records of one image into columns; no tensor or array of them is kept alive."""
    boxes = [record.get("bbox") for record in records]
    return ImageResults(
        np.array([record["category_id"] for record in records], np.int64),
        np.array([record["score"] for record in records], np.float64),
        np.array([record.get("box_score", np.nan) for record in records], np.float64),
        np.array([_NO_BOX if box is None else box for box in boxes], np.float64).reshape(-1, 4),
        [_counts(record.get("segmentation")) for record in records],
    )


def to_records(image_id: int, results: ImageResults, truth: GroundTruth) -> list[dict[str, Any]]:
    """Turn the columns of one image back into records, with `counts` as bytes."""
    records = []
    for index, counts in enumerate(results.counts):
        record: dict[str, Any] = {"image_id": image_id, "category_id": int(results.category_ids[index])}
        if not np.isnan(results.boxes[index, 0]):
            record["bbox"] = results.boxes[index].tolist()
        if counts is not None:
            record["segmentation"] = {"size": list(truth.image_size(image_id)), "counts": counts}
        record["score"] = float(results.scores[index])
        if not np.isnan(results.box_scores[index]):
            record["box_score"] = float(results.box_scores[index])
        records.append(record)
    return records


def _counts(rle: Mapping[str, Any] | None) -> bytes | None:
    if rle is None:
        return None
    counts = rle["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)


@dataclass(frozen=True)
class Objects:
    """Objects of some images, those of one image and class together: detections best first, or ground truth.

    Attributes:
        groups: (n,) int64 ascending, `image position * number of classes + class position`.
        ranks: (n,) int64, place within the group from 0 on.
        classes: (n,) int64, position of the class in the ascending category ids.
        scores: (n,) float64; of ground truth 0.
        areas: (n,) float64, decides on small, medium or large.
        crowd: (n,) bool.
        shapes: what overlaps are computed of: (n, 4) boxes XYWH, or n RLEs.
    """

    groups: np.ndarray
    ranks: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    shapes: Any

    def __len__(self) -> int:
        return len(self.groups)


def detected_objects(
    found: Mapping[int, ImageResults], truth: GroundTruth, kind: str, by_mask: bool, limit: int
) -> Objects:
    """Detections of `kind` in the order of pycocotools: image, class, falling score, order of arrival.

    Args:
        found: results by image id.
        truth: the annotations.
        kind: `box` or `mask`; boundaries need what masks need.
        by_mask: whether the area of a mask is its own also where there is a box.
        limit: number of detections kept in a group.
    """
    ids = sorted(found)
    images = [found[image_id] for image_id in ids]
    position = np.repeat(np.arange(len(ids)), [len(image) for image in images])
    classes = np.searchsorted(sorted(truth.cats), _join([image.category_ids for image in images], np.int64))
    scores, boxes = _join([image.scores for image in images]), _join([image.boxes for image in images]).reshape(-1, 4)
    if kind == "box":
        own = _join([image.box_scores for image in images])
        scores = np.where(np.isnan(own), scores, own)
    groups = position * len(truth.cats) + classes
    order = np.lexsort((-scores, groups))
    ranks = _ranks(groups[order])
    order, ranks = order[ranks < limit], ranks[ranks < limit]
    boxes, position = boxes[order], position[order]
    missing = np.isnan(boxes[:, 0])
    areas = boxes[:, 2] * boxes[:, 3]
    # boxes need masks only where there is no box
    rows = np.flatnonzero(missing) if kind == "box" else np.arange(len(order))
    counts = [text for image in images for text in image.counts]
    sizes = [list(truth.image_size(image_id)) if len(rows) else None for image_id in ids]
    rles = [{"size": sizes[position[row]], "counts": counts[order[row]]} for row in rows]
    of_mask = np.full(len(rows), True) if by_mask else missing[rows]
    _fill(areas, rows[of_mask], [rles[index] for index in np.flatnonzero(of_mask)], rle_tools.area)
    if kind == "box":
        _fill(boxes, rows, rles, rle_tools.toBbox)
    shapes = boxes if kind == "box" else rles
    return Objects(groups[order], ranks, classes[order], scores[order], areas, np.zeros(len(order), bool), shapes)


def true_objects(image_ids: Sequence[int], truth: GroundTruth, kind: str) -> Objects:
    """Ground truth of some images (ascending ids), in the order of the annotations within image and class."""
    rank = {category_id: index for index, category_id in enumerate(sorted(truth.cats))}
    rows = [
        (position * len(rank) + rank[annotation["category_id"]], annotation)
        for position, image_id in enumerate(image_ids)
        for annotation in truth.imgToAnns.get(image_id, ())
    ]
    rows.sort(key=lambda row: row[0])
    groups = np.array([group for group, _ in rows], np.int64)
    annotations = [annotation for _, annotation in rows]
    shapes: Any = [annotation["bbox" if kind == "box" else "segmentation"] for annotation in annotations]
    if kind == "box":
        shapes = np.array(shapes, np.float64).reshape(-1, 4)
    return Objects(
        groups, _ranks(groups), groups % max(1, len(rank)), np.zeros(len(rows)),
        np.array([annotation["area"] for annotation in annotations], np.float64),
        np.array([annotation["iscrowd"] for annotation in annotations], bool), shapes,
    )  # fmt: skip


def _join(parts: Sequence[np.ndarray], dtype: Any = np.float64) -> np.ndarray:
    return np.concatenate([np.zeros((0, *parts[0].shape[1:]), dtype), *parts]) if parts else np.zeros(0, dtype)


def _ranks(groups: np.ndarray) -> np.ndarray:
    """Place of each entry within its run of equal groups."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def _fill(values: np.ndarray, rows: np.ndarray, rles: Sequence[Any], measure: Any) -> None:
    for start in range(0, len(rows), 250):  # pycocotools 2.0.11 fails from 256 masks on
        values[rows[start : start + 250]] = measure(rles[start : start + 250])
