"""From detections to COCO's results format."""

from __future__ import annotations

from collections.abc import Sequence
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
    rles = masks_to_rle(detections.mask_logits.float().sigmoid(), detections.boxes, height, width)
    boxes = detections.boxes.double().cpu().tolist()
    rows = zip(
        boxes, detections.labels.tolist(), detections.scores.tolist(), detections.box_scores.tolist(), rles, strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": rle,
            "score": score,
            "box_score": box_score,
        }
        for (x0, y0, x1, y1), label, score, box_score, rle in rows
    ]
