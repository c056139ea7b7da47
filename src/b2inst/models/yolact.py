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

    def _by_anchor(self, levels: list[Tensor]) -> Tensor:
        """(N, L * A, values) float32 from (N, A * values, h, w) of every level."""
        return flatten(levels).float().unflatten(2, (self.num_anchors, -1)).flatten(1, 2)

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, outputs: YolactOutputs, targets: Targets) -> tuple[dict[str, Tensor], Locations, Tensor]:
        """Cross-entropy of positives and of hard negatives, smooth L1 of the offsets; both by positives.

        Returns:
            Unweighted scalars `cls` and `box`; the positives, all of weight 1; and their number (mean over processes).
        """
        grid, num_images = _Grid.of(outputs, self.strides, self.shapes), outputs.tower[0].shape[0]
        instance = match(grid.anchors, targets, num_images, self.positive_iou, self.negative_iou, self.crowd_share)
        log_probs = self._by_anchor(outputs.cls_logits).log_softmax(dim=2)
        learned = (instance >= 0) | hard_negatives(-log_probs[..., 0], instance, self.negative_ratio)
        image, index = (instance >= 0).nonzero(as_tuple=True)
        of = instance[image, index]
        wanted = torch.zeros_like(instance)
        wanted[image, index] = targets.labels[of] + 1
        entropy = -log_probs.gather(2, wanted[..., None])[..., 0]
        count = normalizer(entropy.new_tensor(float(len(of))), 1)

        offsets = self._by_anchor(outputs.offsets)[image, index]
        box = F.smooth_l1_loss(offsets, encode(targets.boxes[of], grid.anchors[index]), reduction="sum")
        losses = {"cls": (entropy * learned).sum() / count, "box": box / count}
        positives = Locations(
            image=image, boxes=decode(offsets.detach(), grid.anchors[index]), labels=targets.labels[of],
            scores=torch.ones_like(offsets[:, 0]), instance=of, **grid.places(index),
        )  # fmt: skip
        return losses, positives, count

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, outputs: YolactOutputs) -> Locations:
        """Threshold, suppress within each class, keep the best of each image.

        Returns:
            The detections of all images, image by image, best first; the score is the probability of the class.
        """
        return self._select(outputs, at_once=1)  # pairs of boxes of a class of an image, and not of a batch, in memory

    @torch.no_grad()
    def select_in_graph(self, outputs: YolactOutputs) -> Locations:
        """As `select`, for all images at once."""
        return self._select(outputs, at_once=None)

    def threshold_for(self, score: float) -> float:
        """As in `Detector`: the score itself, and a little less, for it has to be exceeded."""
        return 0.999999 * score

    def candidate_scores(self, outputs: YolactOutputs) -> Tensor:
        """As in `Detector`: of each anchor the most probable class, or with `threshold_all` each class."""
        probs = self._by_anchor(outputs.cls_logits)[0].softmax(dim=1)[:, 1:]
        return probs.flatten() if self.threshold_all else probs.amax(dim=1)

    def start_for_timing(self) -> None:
        """As in `Detector`: the boxes are the anchors."""
        nn.init.zeros_(self.box_pred.weight)

    def _select(self, outputs: YolactOutputs, at_once: int | None) -> Locations:
        grid = _Grid.of(outputs, self.strides, self.shapes)
        probs = self._by_anchor(outputs.cls_logits).softmax(dim=2)[..., 1:]
        boxes = decode(self._by_anchor(outputs.offsets), grid.anchors)
        parts = [(probs, boxes)] if at_once is None else zip(probs.split(at_once), boxes.split(at_once), strict=True)
        found = [self._best(*part) for part in parts]
        scores, index, labels, boxes = (torch.cat(values) for values in zip(*found, strict=True))
        image, column = (scores >= 0).nonzero(as_tuple=True)
        return Locations(image=image, boxes=boxes[image, column], labels=labels[image, column],
                         scores=scores[image, column], **grid.places(index[image, column]))  # fmt: skip

    def _best(self, probs: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, anchors, labels and boxes of the best of each image, (N, detections_per_image) each.

        From (N, L * A, C) probabilities and (N, L * A, 4) boxes; scores are -1 where there are less.
        """
        k = self.nms_topk
        likely = (probs if self.threshold_all else probs.amax(dim=2, keepdim=True)) > self.score_threshold
        scores = torch.where(likely, probs, -1.0).transpose(1, 2)  # [N, C, L * A]
        scores, index = F.pad(scores, (0, k), value=-1.0).topk(k)  # [N, C, k]; padded: there may be less than k
        index = torch.where(scores >= 0, index, 0).flatten(1)  # [N, C * k]
        boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
        kept = fast_nms(boxes.unflatten(1, (-1, k)), self.nms_threshold) & (scores >= 0)
        scores = torch.where(kept, scores, -1.0).flatten(1)
        scores, best = F.pad(scores, (0, self.detections_per_image), value=-1.0).topk(self.detections_per_image)
        best = torch.where(scores >= 0, best, 0)
        return scores, index.gather(1, best), best // k, boxes.gather(1, best[:, :, None].expand(-1, -1, 4))


@dataclass(frozen=True)
class _Grid:
    """The L cells of all levels in one list, and their L * A anchors: level by level, row by row, anchor by anchor."""

    level: Tensor  # (L,)
    y: Tensor  # (L,)
    x: Tensor  # (L,)
    anchors: Tensor  # (L * A, 4) XYXY in pixels of the network input
    num_anchors: int

    @classmethod
    def of(cls, outputs: YolactOutputs, strides: list[int], shapes: list[list[tuple[float, float]]]) -> _Grid:
        """The grid of the levels of `outputs`, of these strides and (width, height) of the anchors of a cell."""
        levels, rows, columns, anchors = [], [], [], []
        for level, (tower, stride) in enumerate(zip(outputs.tower, strides, strict=True)):
            height, width = tower.shape[-2:]
            cell = torch.arange(height * width, device=tower.device)
            y = cell // width
            x = cell - y * width  # ONNX's exporter knows no remainder by a size that varies
            center = (torch.stack([x, y], dim=1) * stride + stride // 2)[:, None]  # [h * w, 1, 2]
            half = torch.tensor(shapes[level], device=tower.device) / 2  # [A, 2]
            anchors.append(torch.cat([center - half, center + half], dim=2).flatten(0, 1))
            levels.append(torch.full_like(y, level))
            rows.append(y)
            columns.append(x)
        return cls(torch.cat(levels), torch.cat(rows), torch.cat(columns), torch.cat(anchors), len(shapes[0]))

    def places(self, index: Tensor) -> dict[str, Tensor]:
        """Level, row, column and anchor of anchors (P,)."""
        cell = index // self.num_anchors
        anchor = index - cell * self.num_anchors
        return {"level": self.level[cell], "y": self.y[cell], "x": self.x[cell], "anchor": anchor}


def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        layers += [nn.GroupNorm(32, channels)] if norm == "gn" else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
