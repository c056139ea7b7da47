"""From detections to COCO's results format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from b2inst.ops.masks import masks_to_rle
from b2inst.structures import Detections


def to_records(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO results of one image.

    Args:
        detections: with boxes in pixels of the original image (see `Detections.resized`).
        image_id: of the annotation file.
        category_ids: id of the annotation file by label.

    Returns:
        One record a detection: `image_id`, `category_id`, `bbox` (XYWH), `segmentation` (RLE), `score` (mask score)
        and `box_score` (class score, which ranks the boxes).
    """
    height, width = detections.size
    return make_records(
        image_id,
        [category_ids[label] for label in detections.labels.tolist()],
        detections.boxes.double().cpu().tolist(),
        masks_to_rle(detections.mask_logits.float().sigmoid(), detections.boxes, height, width),
        detections.scores.tolist(),
        detections.box_scores.tolist(),
    )


def make_records(
    image_id: int,
    category_ids: Iterable[int],
    boxes: Iterable[Sequence[float]],
    masks: Iterable[dict[str, Any]],
    scores: Iterable[float],
    box_scores: Iterable[float],
) -> list[dict[str, Any]]:
    """Put the values of the detections of one image into records, see `to_records`; `boxes` are XYXY."""
    rows = zip(category_ids, boxes, masks, scores, box_scores, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": dict(mask),
            "score": score,
            "box_score": box_score,
        }
        for category_id, (x0, y0, x1, y1), mask, score, box_score in rows
    ]
