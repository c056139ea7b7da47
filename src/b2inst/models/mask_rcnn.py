"""Mask R-CNN, the two-stage baseline: torchvision's parts on the batches, losses and detections of this package.

The weights of torchvision's `maskrcnn_resnet50_fpn` fit, see `b2inst.interop.torchvision`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from b2inst.losses.term import Term
from b2inst.models.backbone import Backbone
from b2inst.models.base import Model
from b2inst.models.fpn import FPN
from b2inst.models.mask_head import Features, MaskHead, Rois, of_class
from b2inst.ops.dist import normalizer
from b2inst.ops.rois import crop_masks
from b2inst.structures import Batch, Detections, ImageBatch, Targets

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors


@dataclass(frozen=True)
class RoiDetections:
    """`Detections` of each image."""

    images: list[Detections]

    def detections(self) -> list[Detections]:
        """See `base.Found`."""
        return self.images


class MaskRCNN(Model):
    """Region proposals, then classes, boxes and masks of what is pooled in them.

    Args:
        num_classes: C, without the background.
        backbone: C2 to C5 from normalized images.
        fpn: called with `in_channels`; all its levels have anchors, and those up to P5 are pooled from.
        loss_weights: factors of `loss_names`.
        losses: named loss terms of the masks of the positives, and of their boundaries, if `mask_head` has these.
        mask_head: called with `in_channels`, `num_classes`, `levels`, the number of those that are pooled from.
        anchor_sizes: px, root of the area of the anchors of each level.
        anchors_per_image: sampled for the losses of the proposals, half of them positive where there are as many.
        pre_nms_topk, post_nms_topk: proposals kept before (per level) and after suppression, of each image:
            `{"training": 2000, "testing": 1000}`.
        rois_per_image: proposals sampled for the losses of the second stage, a quarter of them positive at most.
        fc_channels: of the two hidden layers of classes and boxes.
        score_threshold: smallest class score kept, a probability.
        nms_threshold: IoU of the class-wise suppression of detections.
        detections_per_image: kept after it.

    Raises:
        ValueError: for another number of anchor sizes than levels; for loss terms of the boundary without a head that
            learns it, and for such a head without these.

    Source: Mask R-CNN (arXiv 1703.06870), torchvision's sizes and behavior. Masks are learned as those of the other
    models are: from `crop_masks`, binary, and over the positives of all processes.
    """

    loss_names = ("rpn_cls", "rpn_box", "cls", "box", "mask", "boundary")

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Backbone,
        fpn: Callable[..., FPN],
        loss_weights: Mapping[str, float],
        losses: Mapping[str, Term],
        mask_head: Callable[..., MaskHead],
        anchor_sizes: tuple[int, ...] | list[int] = (32, 64, 128, 256, 512),
        anchors_per_image: int = 256,
        pre_nms_topk: Mapping[str, int] | None = None,
        post_nms_topk: Mapping[str, int] | None = None,
        rois_per_image: int = 512,
        fc_channels: int = 1024,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(backbone, loss_weights)
        self.fpn = fpn(in_channels=backbone.out_channels)
        channels, levels = self.fpn.channels, len(self.fpn.strides)
        if len(anchor_sizes) != levels:
            raise ValueError(f"anchor_sizes={list(anchor_sizes)}: {levels} levels need {levels} sizes")
        usual = {"training": 2000, "testing": 1000}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(tuple((size,) for size in anchor_sizes), (RATIOS,) * levels),
            _RPNHead(channels, len(RATIOS)),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=anchors_per_image, positive_fraction=0.5,
            pre_nms_top_n=dict(pre_nms_topk or usual), post_nms_top_n=dict(post_nms_topk or usual), nms_thresh=0.7,
        )  # fmt: skip
        pooled = [str(i) for i in range(levels - self.fpn.top_levels)]
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(pooled, output_size=7, sampling_ratio=2),
            TwoMLPHead(channels * 7**2, fc_channels),
            FastRCNNPredictor(fc_channels, num_classes + 1),
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=rois_per_image, positive_fraction=0.25,
            bbox_reg_weights=None, score_thresh=score_threshold, nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )  # fmt: skip
        self.mask_head = mask_head(in_channels=channels, num_classes=num_classes, levels=len(pooled))
        self.mask_size = self.mask_head.size
        self.terms = nn.ModuleDict(losses)
        if bool(self._terms("boundary")) != self.mask_head.learns_boundary:
            does = "learns" if self.mask_head.learns_boundary else "does not learn"
            raise ValueError(f"losses: {', '.join(losses) or 'none'}, but {type(self.mask_head).__name__} {does} the "
                             "boundary; choose them to fit, as in 'loss@model.losses=[bce,dice]' or []")  # fmt: skip

    def forward(self, images: ImageBatch) -> Features:
        """Run backbone and FPN."""
        canvas = self.normalize(images)
        # In full precision, for the anchors take their type from it, and half a box coordinate is none.
        levels = {str(i): level.float() for i, level in enumerate(self.fpn(self.backbone(canvas)))}
        return Features(levels, canvas, [(height, width) for height, width in images.sizes.tolist()])

    def compile_parts(self) -> None:
        """See `Model.compile_parts`."""
        for part in (self.backbone, self.fpn):
            part.compile()

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, outputs: Features, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `Model.losses`."""
        if batch.targets is None:
            raise ValueError("losses() needs targets, and this batch has none")
        targets = batch.targets
        wanted = _of_each_image(targets, len(batch))
        with _training(self.rpn), _draws(outputs.canvas.device, fixed=not self.training):
            proposals, rpn = self.rpn(ImageList(outputs.canvas, outputs.sizes), outputs.levels, wanted)
            proposals, matched, labels, deltas = self.roi_heads.select_training_samples(proposals, wanted)
        losses = {"rpn_cls": rpn["loss_objectness"], "rpn_box": rpn["loss_rpn_box_reg"]}
        losses |= self._box_losses(outputs, proposals, torch.cat(labels), torch.cat(deltas))
        rois = _positives(proposals, matched, labels, targets)
        masks = crop_masks(targets.masks[rois.instance], torch.cat(rois.boxes), self.mask_size)
        losses |= self.mask_head.losses(outputs, rois, masks, self.terms)
        return losses, {"positives": torch.tensor(float(len(rois.labels)))}

    def weights(self, epoch: int = 0) -> dict[str, float]:
        """See `Model.weights`."""
        factors = {name: self.loss_weights[name] for name in self.loss_names if name != "boundary"}
        factors |= {name: term.weight_at(epoch) for name, term in self._terms("mask").items()}
        scale, terms = self.loss_weights["boundary"], self._terms("boundary")
        return factors | {f"boundary_{name}": scale * term.weight_at(epoch) for name, term in terms.items()}

    def _terms(self, supervises: str) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if term.supervises == supervises}

    def _box_losses(
        self, outputs: Features, proposals: list[Tensor], labels: Tensor, deltas: Tensor
    ) -> dict[str, Tensor]:
        """Of S sampled proposals, with labels (S,), 0 for the background, and (S, 4) where their instances are."""
        cls_logits, boxes = self._classify(outputs, proposals)
        count = normalizer(cls_logits.new_tensor(float(len(labels))), 1)
        positive = (labels > 0).nonzero(as_tuple=True)[0]
        found = boxes.unflatten(1, (-1, 4))[positive, labels[positive]]  # [S, 4 (C + 1)] -> [P, 4]
        return {
            "cls": F.cross_entropy(cls_logits, labels, reduction="sum") / count,
            "box": F.smooth_l1_loss(found, deltas[positive], beta=1 / 9, reduction="sum") / count,
        }

    # ---- both stages ------------------------------------------------------------------------------------------------

    def _classify(self, outputs: Features, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (S, C + 1) and box deltas (S, 4 (C + 1)) of S boxes, image by image."""
        heads = self.roi_heads
        pooled = heads.box_roi_pool(outputs.levels, boxes, outputs.canvas_sizes)
        cls_logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return cls_logits.float(), deltas.float()

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def find(self, outputs: Features, images: ImageBatch) -> RoiDetections:
        """See `Model.find`; the mask score is the class score."""
        proposals, _ = self.rpn(ImageList(outputs.canvas, outputs.sizes), outputs.levels)
        cls_logits, deltas = self._classify(outputs, proposals)
        boxes, scores, labels = self.roi_heads.postprocess_detections(cls_logits, deltas, proposals, outputs.sizes)
        masks = of_class(self.mask_head(outputs, boxes), torch.cat(labels)).split([len(b) for b in boxes])
        return RoiDetections([
            Detections(box, label - 1, score, score, mask, size)
            for box, label, score, mask, size in zip(boxes, labels, scores, masks, outputs.sizes, strict=True)
        ])  # fmt: skip

    def threshold_for(self, score: float) -> float:
        """The score itself, and a little less, for it has to be exceeded."""
        return 0.999999 * score

    @property
    def score_threshold(self) -> float:  # type: ignore[override]
        """See `Model`."""
        return self.roi_heads.score_thresh

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        self.roi_heads.score_thresh = value

    @property
    def detections_per_image(self) -> int:  # type: ignore[override]
        """See `Model`."""
        return self.roi_heads.detections_per_img

    @detections_per_image.setter
    def detections_per_image(self, value: int) -> None:
        self.roi_heads.detections_per_img = value

    # ---- what is timed ----------------------------------------------------------------------------------------------

    def stages(self) -> dict[str, nn.Module]:
        """See `Model.stages`."""
        return {
            "normalize": self.normalize, "backbone": self.backbone, "fpn": self.fpn, "rpn": self.rpn,
            "box head": self.roi_heads.box_head, "mask head": self.mask_head,
        }  # fmt: skip

    def candidate_scores(self, outputs: Features, images: ImageBatch) -> Tensor:
        """See `Model.candidate_scores`."""
        proposals, _ = self.rpn(ImageList(outputs.canvas, outputs.sizes), outputs.levels)
        cls_logits, _ = self._classify(outputs, proposals)
        return cls_logits[: len(proposals[0])].softmax(dim=1)[:, 1:].flatten()


class _RPNHead(RPNHead):
    """torchvision's, with outputs in full precision inside an autocast region too."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """Let a module of torchvision, and not what is in it, compute its losses in evaluation mode too."""
    usual = module.training
    module.training = True
    try:
        yield
    finally:
        module.training = usual


@contextmanager
def _draws(device: torch.device, fixed: bool) -> Iterator[None]:
    """Let torchvision draw its samples; if fixed, the same each time and no number of the training's generators."""
    if not fixed:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _of_each_image(targets: Targets, count: int) -> list[dict[str, Tensor]]:
    """The ground truth as torchvision wants it, with class 0 for the background."""
    counts = targets.image_index.bincount(minlength=count).tolist()
    parts = zip(targets.boxes.split(counts), targets.labels.split(counts), targets.masks.split(counts), strict=True)
    return [{"boxes": boxes, "labels": labels + 1, "masks": masks} for boxes, labels, masks in parts]


def _positives(proposals: list[Tensor], matched: list[Tensor], labels: list[Tensor], targets: Targets) -> Rois:
    """The sampled proposals with a class, from their instances as numbers within an image."""
    counts = targets.image_index.bincount(minlength=len(proposals))
    first = counts.cumsum(0) - counts
    kept = [(label > 0).nonzero(as_tuple=True)[0] for label in labels]
    instance = [start + index[k] for start, index, k in zip(first, matched, kept, strict=True)]
    boxes = [box[k] for box, k in zip(proposals, kept, strict=True)]
    return Rois(boxes, torch.cat([label[k] for label, k in zip(labels, kept, strict=True)]), torch.cat(instance))
