"""What FCOS selects, as a graph of tensors: for all images at once, without Python's loops and stable sorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from b2inst.models.detector_base import Locations

if TYPE_CHECKING:
    from b2inst.models.fcos import FCOS, FCOSOutputs


def select(detector: FCOS, outputs: FCOSOutputs) -> Locations:
    """As `FCOS.select`, for all images at once; detections of different images are mixed, best first."""
    levels = [_best_of_level(detector, outputs, level) for level in range(len(outputs.cls_logits))]
    names = ("level", "y", "x", "boxes", "labels", "scores")
    every = {name: torch.cat([level[name] for level in levels], dim=1) for name in names}
    image, column = (every["scores"] >= 0).nonzero(as_tuple=True)
    places = Locations(image=image, **{name: values[image, column] for name, values in every.items()})
    kept = places.take(_suppress(places, detector.nms_threshold))
    same = kept.image[:, None] == torch.arange(outputs.cls_logits[0].shape[0], device=image.device)  # [P, N]
    rank = same.long().cumsum(dim=0).gather(1, kept.image[:, None])[:, 0]
    return kept.take(rank <= detector.detections_per_image)


def _best_of_level(detector: FCOS, outputs: FCOSOutputs, level: int) -> dict[str, Tensor]:
    """The `pre_nms_topk` best pairs of place and class, (N, pre_nms_topk) each; scores are -1 where there are less."""
    stride, k = detector.strides[level], detector.pre_nms_topk
    width = outputs.cls_logits[level].shape[-1]
    cls_probs = outputs.cls_logits[level].float().sigmoid().flatten(2).transpose(1, 2)  # [N, L, C]
    joint = cls_probs * outputs.quality_logits[level].float().sigmoid().flatten(2).transpose(1, 2)
    candidate = (joint if detector.threshold_with_quality else cls_probs) > detector.score_threshold
    scores = torch.where(candidate, joint, -1.0).flatten(1)
    scores, index = F.pad(scores, (0, k), value=-1.0).topk(k)  # padded: a level may have less than k
    index = torch.where(scores >= 0, index, 0)
    cell, labels = index // detector.num_classes, index % detector.num_classes
    y = cell // width
    x = cell - y * width  # ONNX's exporter knows no remainder by a size that varies
    ltrb = outputs.ltrb[level].float().flatten(2).transpose(1, 2) * stride
    ltrb = ltrb.gather(1, cell[:, :, None].expand(-1, -1, 4))
    points = torch.stack([x, y], dim=2) * stride + stride // 2
    boxes = torch.cat([points - ltrb[:, :, :2], points + ltrb[:, :, 2:]], dim=2)
    scores = torch.where(scores >= 0, scores.clamp(min=0).sqrt(), -1.0)
    return {"level": torch.full_like(x, level), "y": y, "x": x, "boxes": boxes, "labels": labels, "scores": scores}


def _suppress(places: Locations, threshold: float) -> Tensor:
    """Indices of the places that are left by a non-maximum suppression within each class of each image, best first."""
    # Two empty boxes more, which are kept and come last: torchvision tells the exporter that at least two are kept.
    boxes = F.pad(places.boxes, (0, 0, 0, 2))
    scores = F.pad(places.scores, (0, 2), value=-1.0)
    groups = F.pad(torch.stack([places.labels, places.image], dim=1), (0, 0, 0, 2))
    # Classes are moved to the right and images below, so that boxes of different ones cannot meet.
    span = boxes.max() - boxes.min() + 1
    return nms(boxes + (groups * span).repeat(1, 2), scores, threshold)[:-2]
