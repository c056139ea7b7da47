"""YOLACT's detector: anchors, a softmax with the background, boxes as offsets, and the coefficients of each mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.models.detector_base import Detector, Locations, flatten
from b2inst.models.yolact_targets import anchor_shapes, decode, encode, hard_negatives, match
from b2inst.ops.dist import normalizer
from b2inst.ops.fast_nms import fast_nms
from b2inst.ops.points import locations
from b2inst.structures import Targets

NORMS = ("none", "gn")


@dataclass(frozen=True)
class YolactOutputs:
    """Raw outputs, one tensor a level; channels go anchor by anchor.

    Attributes:
        cls_logits: (N, A * (C + 1), h, w), background first.
        offsets: (N, A * 4, h, w) of the boxes, see `b2inst.models.yolact_targets.encode`.
        tower: (N, F, h, w) features; the mask parameters are read from them where needed.
    """

    cls_logits: list[Tensor]
    offsets: list[Tensor]
    tower: list[Tensor]


class Yolact(Detector[YolactOutputs]):
    """YOLACT's prediction head, shared over the levels.

    Args:
        in_channels: channels of the FPN.
        num_classes: C.
        num_params: outputs per anchor that describe its mask (0: none).
        strides: of the levels.
        sizes_of_interest: upper ends in pixels of the sizes of the objects that each level but the last is for.
        anchor_share: of these the side of the anchor of ratio 1; 3/8 of 64 to 1024 are the published 24 to 384.
        ratios: width by height of the anchors of a cell.
        square_anchors: anchors that are as high as wide, as published.
        num_convs: convolutions in front of the three outputs.
        norm: behind each of these, `none` (as published) or `gn`, which helps when training from scratch.
        positive_iou: overlap from which an anchor stands for an instance.
        negative_iou: overlap below which it stands for the background.
        crowd_share: share in crowds above which it stands for nothing.
        negative_ratio: background anchors per positive in the class loss, the most difficult ones.
        score_threshold: smallest class probability of an anchor that is looked at.
        threshold_all: whether its other classes are held to that as well; not so in the published model, which fills up
            to `detections_per_image` with what is less probable.
        nms_topk: boxes of each class that the suppression looks at.
        nms_threshold: IoU of the suppression within each class, see `b2inst.ops.fast_nms`.
        detections_per_image: kept after it.

    Raises:
        ValueError: for an unknown norm, or a number of sizes that does not fit the levels.

    Source: YOLACT (arXiv 1904.02689), sections 3 and 4, and the behavior of its public code.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_params: int,
        strides: list[int],
        *,
        sizes_of_interest: Sequence[float] = (64, 128, 256, 512),
        anchor_share: float = 0.375,
        ratios: Sequence[float] = (1.0, 0.5, 2.0),
        square_anchors: bool = True,
        num_convs: int = 1,
        norm: str = "none",
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        crowd_share: float = 0.7,
        negative_ratio: float = 3.0,
        score_threshold: float = 0.05,
        threshold_all: bool = False,
        nms_topk: int = 200,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(num_classes, strides, sizes_of_interest, len(ratios))
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the detector; allowed: {', '.join(NORMS)}")
        self.shapes = [anchor_shapes(anchor_share * reach, ratios, square_anchors) for reach in self.reaches]
        self.positive_iou, self.negative_iou = positive_iou, negative_iou
        self.crowd_share = crowd_share
        self.negative_ratio = negative_ratio
        self.score_threshold = score_threshold
        self.threshold_all = threshold_all
        self.nms_topk = nms_topk
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        self.tower = _tower(in_channels, num_convs, norm)
        self.cls_logits = nn.Conv2d(in_channels, self.num_anchors * (num_classes + 1), 3, padding=1)
        self.box_pred = nn.Conv2d(in_channels, self.num_anchors * 4, 3, padding=1)
        self.params = nn.Conv2d(in_channels, self.num_anchors * num_params, 3, padding=1) if num_params else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> YolactOutputs:
        """Run the head on every level, (N, in_channels, h, w) each."""
        towers = [self.tower(feature) for feature in features]
        return YolactOutputs([self.cls_logits(t) for t in towers], [self.box_pred(t) for t in towers], towers)

    def anchors(self, outputs: YolactOutputs) -> Tensor:
        """(L * A, 4) XYXY in pixels of the network input: level by level, row by row, anchor by anchor."""
        levels = []
        for tower, stride, shapes in zip(outputs.tower, self.strides, self.shapes, strict=True):
            height, width = tower.shape[-2:]
            center = locations(height, width, stride, tower.device)[:, None]  # [h * w, 1, 2]
            half = torch.tensor(shapes, device=tower.device) / 2  # [A, 2]
            levels.append(torch.cat([center - half, center + half], dim=2).flatten(0, 1))
        return torch.cat(levels)

    def _places(self, outputs: YolactOutputs, index: Tensor) -> dict[str, Tensor]:
        """Level, row, column and anchor of anchors that are counted as in `anchors`."""
        cell, anchor = index // self.num_anchors, index % self.num_anchors
        shapes = torch.tensor([tower.shape[-2:] for tower in outputs.tower], device=index.device)
        ends = shapes.prod(dim=1).cumsum(dim=0)
        level = torch.searchsorted(ends, cell, right=True)
        inside = cell - (ends - shapes.prod(dim=1))[level]
        width = shapes[level, 1]
        return {"level": level, "y": inside // width, "x": inside % width, "anchor": anchor}

    def _by_anchor(self, levels: list[Tensor]) -> Tensor:
        """(N, L * A, values) float32 from (N, A * values, h, w) of every level."""
        return flatten(levels).float().unflatten(2, (self.num_anchors, -1)).flatten(1, 2)

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, outputs: YolactOutputs, targets: Targets) -> tuple[dict[str, Tensor], Locations, Tensor]:
        """Cross-entropy of positives and of hard negatives, smooth L1 of the offsets; both by positives.

        Returns:
            Unweighted scalars `cls` and `box`; the positives, all of weight 1; and their number (mean over processes).
        """
        anchors, num_images = self.anchors(outputs), outputs.tower[0].shape[0]
        instance = match(anchors, targets, num_images, self.positive_iou, self.negative_iou, self.crowd_share)
        log_probs = self._by_anchor(outputs.cls_logits).log_softmax(dim=2)
        learned = (instance >= 0) | hard_negatives(-log_probs[..., 0], instance, self.negative_ratio)
        image, index = (instance >= 0).nonzero(as_tuple=True)
        of = instance[image, index]
        wanted = torch.zeros_like(instance)
        wanted[image, index] = targets.labels[of] + 1
        entropy = -log_probs.gather(2, wanted[..., None])[..., 0]
        count = normalizer(entropy.new_tensor(float(len(of))), 1)

        offsets = self._by_anchor(outputs.offsets)[image, index]
        box = F.smooth_l1_loss(offsets, encode(targets.boxes[of], anchors[index]), reduction="sum")
        losses = {"cls": (entropy * learned).sum() / count, "box": box / count}
        positives = Locations(
            image=image, boxes=decode(offsets.detach(), anchors[index]), labels=targets.labels[of],
            scores=torch.ones_like(offsets[:, 0]), instance=of, **self._places(outputs, index),
        )  # fmt: skip
        return losses, positives, count

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, outputs: YolactOutputs) -> Locations:
        """Threshold, suppress within each class, keep the best of each image.

        Returns:
            The detections of all images, image by image, best first; the score is the probability of the class.
        """
        anchors, offsets = self.anchors(outputs), self._by_anchor(outputs.offsets)
        probs = self._by_anchor(outputs.cls_logits).softmax(dim=2)[..., 1:]
        parts = [self._select_image(anchors, offsets[n], probs[n]) for n in range(len(probs))]
        index, boxes, labels, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        counts = torch.tensor([len(part[0]) for part in parts], device=index.device)
        image = torch.arange(len(parts), device=index.device).repeat_interleave(counts)
        return Locations(image=image, boxes=boxes, labels=labels, scores=scores, **self._places(outputs, index))

    def _select_image(self, anchors: Tensor, offsets: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors, boxes, labels and scores of an image, from (L * A, ...) each."""
        candidates = (probs.amax(dim=1) > self.score_threshold).nonzero(as_tuple=True)[0]
        scores, order = probs[candidates].T.sort(dim=1, descending=True, stable=True)  # [C, candidates]
        scores, index = scores[:, : self.nms_topk], candidates[order[:, : self.nms_topk]]
        boxes = decode(offsets[index.flatten()], anchors[index.flatten()]).unflatten(0, index.shape)
        kept = fast_nms(boxes, self.nms_threshold)
        if self.threshold_all:
            kept &= scores > self.score_threshold
        label, rank = kept.nonzero(as_tuple=True)
        best = scores[label, rank].argsort(descending=True, stable=True)[: self.detections_per_image]
        label, rank = label[best], rank[best]
        return index[label, rank], boxes[label, rank], label, scores[label, rank]


def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        layers += [nn.GroupNorm(32, channels)] if norm == "gn" else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
