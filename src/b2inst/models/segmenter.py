"""The basis-based model: the only place that knows all the boxes of the method's figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from b2inst.losses.term import Term
from b2inst.models.assembly.base import Assembly, Instances
from b2inst.models.assembly.blend import Blend
from b2inst.models.backbone import Backbone
from b2inst.models.base import Bases, Model
from b2inst.models.boundary import InstanceRois, NoBoundary
from b2inst.models.detector_base import Detector, DetectorOutputs, Locations
from b2inst.models.parts import AuxiliaryHead, BasisNet, Pyramid
from b2inst.models.scoring_base import MaskScoring, PredictedMasks
from b2inst.models.scoring_learn import score_losses
from b2inst.ops import dist
from b2inst.ops.ranks import drawn_of_groups
from b2inst.ops.rois import clip_boxes, crop_masks
from b2inst.structures import Batch, Detections, ImageBatch


@dataclass(frozen=True)
class Outputs:
    """Raw outputs of one pass.

    Attributes:
        features: P3, P4, ...: (N, F, h, w).
        detector: per level, see the detector.
        bases: (N, K + B, h, w) on the grid of the assembly's `basis_stride`; after the K mask bases the B channels of
            the boundary basis: 0, 1, or one per class.
    """

    features: list[Tensor]
    detector: DetectorOutputs
    bases: Tensor


@dataclass(frozen=True)
class Found:
    """What is found in the images of a batch, in one list.

    Attributes:
        places: the P places on the pyramid that stand for it.
        boxes: (P, 4) XYXY in pixels of the network input, cut at the image.
        masks: (P, R, R) logits in the frame of the boxes.
        scores: (P,) mask scores.
        sizes: (height, width) of each image in the network input.
        order: of each image the indices of its places, best mask score first.
    """

    places: Locations
    boxes: Tensor
    masks: Tensor
    scores: Tensor
    sizes: list[tuple[int, int]]
    order: list[Tensor]

    def detections(self) -> list[Detections]:
        """Part it by image, best first."""
        return [
            Detections(self.boxes[index], self.places.labels[index], self.scores[index], self.places.scores[index],
                       self.masks[index], size)
            for size, index in zip(self.sizes, self.order, strict=True)
        ]  # fmt: skip


class Segmenter(Model):
    """B2Inst, or the basis-based segmenter that it extends, put together from its parts.

    The parts that depend on the sizes of others are given as functions of these sizes.

    Args:
        num_classes: C.
        num_bases: K mask bases, None for as many as the assembly usually has; the boundary variant may add one.
        backbone: C3, C4, C5 from normalized images.
        fpn: called with `in_channels`.
        detector: called with `in_channels`, `num_classes`, `num_params`, `strides`.
        basis: called with `in_channels`, `num_bases`, `stride`.
        assembly: combines bases and per-instance parameters to masks.
        boundary: variant of the boundary basis.
        scoring: called with `in_channels`, `num_classes`, `strides`.
        losses: named loss terms of the boundary basis and of the masks.
        semantic: called with `in_channels`, `num_classes`; returns None for no auxiliary semantic loss.
        loss_weights: factors of `cls`, `box`, `quality`, `mask`, `semantic`, `score_iou`, `score_boundary` and of
            `boundary`, which multiplies the weight of every boundary term.
        clip_before_pool: cut detected boxes at the image before masks are pooled in them; the published BlendMask
            does not, and squeezes the masks of boxes that leave the image.
        mask_positives: positives of an image that masks are learned from at most, drawn anew at each step; None for
            all. The memory of a step with crowded images grows with them.

    Raises:
        ValueError: if the FPN does not begin with P3, or no positive is to be learned from.
    """

    loss_names = ("cls", "box", "quality", "mask", "semantic", "boundary", "score_iou", "score_boundary")
    has_bases = True

    def __init__(
        self,
        *,
        num_classes: int,
        num_bases: int | None = None,
        backbone: Backbone,
        fpn: Callable[..., Pyramid],
        detector: Callable[..., Detector],
        basis: Callable[..., BasisNet],
        assembly: Assembly,
        boundary: NoBoundary,
        scoring: Callable[..., MaskScoring],
        losses: Mapping[str, Term],
        semantic: Callable[..., AuxiliaryHead | None],
        loss_weights: Mapping[str, float],
        clip_before_pool: bool = True,
        mask_positives: int | None = None,
    ) -> None:
        super().__init__(backbone, loss_weights)
        if mask_positives is not None and mask_positives < 1:
            raise ValueError(f"mask_positives={mask_positives}: give at least 1, or null for all")
        num_bases = assembly.usual_bases if num_bases is None else num_bases
        blended = num_bases + boundary.use_prediction
        self.fpn = fpn(in_channels=backbone.out_channels)
        channels, strides = self.fpn.channels, self.fpn.strides
        if strides[0] != 8:
            raise ValueError(f"the FPN begins at stride {strides[0]}, but bases are made of P3; set model.fpn.lowest=3")
        self.detector = detector(
            in_channels=channels, num_classes=num_classes, num_params=assembly.num_params(blended), strides=strides
        )
        outputs = num_bases + boundary.num_channels(num_classes)
        self.basis = basis(in_channels=channels, num_bases=outputs, stride=assembly.basis_stride)
        self.assembly = assembly
        self.boundary = boundary
        self.scoring = scoring(in_channels=channels, num_classes=num_classes, strides=strides)
        self.semantic = semantic(in_channels=channels, num_classes=num_classes)
        self.terms = nn.ModuleDict(losses)
        self.num_bases = num_bases
        self.clip_before_pool = clip_before_pool
        self.mask_positives = mask_positives
        if boundary.use_prediction:
            for bias in self.detector.param_biases():
                assembly.init_boundary(bias, num_bases, boundary.attention_bias)

    def forward(self, images: ImageBatch) -> Outputs:
        """Run everything that looks at the whole image."""
        features = self.fpn(self.backbone(self.normalize(images)))
        return Outputs(features, self.detector(features), self.basis(features))

    def split(self, bases: Tensor) -> tuple[Tensor, Tensor]:
        """Mask bases (N, K, h, w), and what is the boundary variant's (N, B, h, w)."""
        return bases[:, : self.num_bases], bases[:, self.num_bases :]

    def compile_parts(self) -> None:
        """See `Model.compile_parts`."""
        for part in (self.backbone, self.fpn, self.detector, self.basis):
            part.compile()

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `Model.losses`."""
        if batch.targets is None:
            raise ValueError("losses() needs targets, and this batch has none")
        targets = batch.targets
        losses, positives, normalizer = self.detector.losses(outputs.detector, targets)
        stats = {"positives": torch.tensor(float(len(positives)))}
        if self.mask_positives is not None:
            positives = positives.take(drawn_of_groups(positives.image, self.mask_positives, fixed=not self.training))
            normalizer = dist.normalizer(positives.scores.sum(), 1e-6)
        true_masks = targets.roi_masks  # [I, R, R]
        if true_masks is None:
            true_masks = crop_masks(targets.masks, targets.boxes, self.assembly.mask_size)
        asked = self._to_assemble(outputs, positives, targets.boxes, targets.image_index, positives.instance)
        wanted = true_masks[positives.instance]
        masks, losses["mask"] = self.assembly.learn(*asked, wanted, targets.masks, positives.scores, normalizer)
        for name, term in self._terms("mask").items():
            values = term(masks, wanted, torch.ones_like(wanted), reduction="none")
            losses[name] = (values * positives.scores).sum() / normalizer

        weight = positives.scores.new_zeros(len(targets)).index_add(0, positives.instance, positives.scores)
        rois = InstanceRois(self.assembly, true_masks, weight, normalizer)
        boundary = self.boundary.losses(self._terms("boundary"), self.split(outputs.bases)[1], targets, rois)
        losses.update({f"boundary_{name}": value for name, value in boundary.items()})
        if self.semantic is not None:
            losses["semantic"] = self.semantic.loss(outputs.features, batch.images, targets)
        if self.scoring.qualities:
            scores, score_stats = score_losses(
                self.scoring, outputs.features, batch, positives, masks, true_masks, partial(self.masks_at, outputs)
            )
            losses.update(scores)
            stats.update(score_stats)
        return losses, stats

    def weights(self, epoch: int = 0) -> dict[str, float]:
        """See `Model.weights`."""
        factors = {name: self.loss_weights[name] for name in self.loss_names if name != "boundary"}
        for name, term in self.terms.items():
            scale = self.loss_weights["boundary"] if term.supervises == "boundary" else 1.0
            prefix = "boundary_" if term.supervises == "boundary" else ""
            factors[prefix + name] = scale * term.weight_at(epoch)
        return factors

    def _terms(self, supervises: str) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if term.supervises == supervises}

    def _to_assemble(
        self, outputs: Outputs, places: Locations, boxes: Tensor, image_index: Tensor, roi: Tensor | None = None
    ) -> tuple[Tensor, Instances]:
        params = self.detector.params_at(outputs.detector, places)
        points, reach = self.detector.origins(places)
        bases = self.boundary.blended(*self.split(outputs.bases))
        return bases, Instances(boxes, image_index, params, points, reach, roi)

    # ---- inference ------------------------------------------------------------------------------------------------

    @property
    def has_boundary(self) -> bool:  # type: ignore[override]
        """See `Model`."""
        return self.boundary.num_bases > 0

    @property
    def has_image_boundary(self) -> bool:  # type: ignore[override]
        """See `Model`."""
        return self.boundary.image_level

    @property
    def has_attention(self) -> bool:  # type: ignore[override]
        """See `Model`."""
        return self.assembly.has_attention

    @property
    def mask_size(self) -> int:  # type: ignore[override]
        """See `Model`."""
        return self.assembly.mask_size

    @property
    def score_threshold(self) -> float:  # type: ignore[override]
        """See `Model`."""
        return self.detector.score_threshold

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        self.detector.score_threshold = value

    @property
    def detections_per_image(self) -> int:  # type: ignore[override]
        """See `Model`."""
        return self.detector.detections_per_image

    @detections_per_image.setter
    def detections_per_image(self, value: int) -> None:
        self.detector.detections_per_image = value

    def threshold_for(self, score: float) -> float:
        """See `Model.threshold_for`; as the detector says."""
        return self.detector.threshold_for(score)

    def export_problem(self) -> str | None:
        """See `Model.export_problem`; the detector may have no selection as a graph."""
        detector = type(self.detector)
        if detector.select_in_graph is not Detector.select_in_graph:
            return None
        return (f"its detector {detector.__name__} cannot be exported, for it has no selection as a graph "
                "(select_in_graph); give a model with detector@model.detector=fcos or yolact")  # fmt: skip

    def bases(self, outputs: Outputs, index: int) -> Bases:
        """See `Model.bases`."""
        bases = outputs.bases[index].float().cpu()
        masks, own = self.split(bases[None])
        logits, by_class = self.boundary.logits(own), self.boundary.class_logits(own)
        return Bases(masks[0], None if logits is None else logits[0], None if by_class is None else by_class[0])

    @torch.no_grad()
    def blends(self, outputs: Outputs, found: Found, instance: int = 0) -> list[Blend | None]:
        """How the mask of one instance of each image is put together.

        Args:
            outputs: of the pass.
            found: in these outputs.
            instance: which of each image, 0 for the one with the best mask score.

        Returns:
            attention and cropped bases, (K, R, R) or, where the boundary basis takes part, (K + 1, R, R) with it last;
            None for an image with fewer instances, and for an assembly without attention.
        """
        if not self.assembly.has_attention:
            return [None] * len(found.order)
        chosen = [index[instance : instance + 1] for index in found.order]
        places = found.places.take(torch.cat(chosen))
        blend = self.blend_at(outputs, places, places.boxes)
        counts = [len(index) for index in chosen]
        parts = zip(blend.attention.split(counts), blend.bases.split(counts), strict=True)
        return [Blend(attention[0], bases[0]) if len(attention) else None for attention, bases in parts]

    def blend_at(self, outputs: Outputs, places: Locations, boxes: Tensor) -> Blend:
        """How the masks of P places are put together in boxes (P, 4); for an assembly with attention."""
        return self.assembly.blend(*self._to_assemble(outputs, places, boxes, places.image))

    def masks_at(self, outputs: Outputs, places: Locations, boxes: Tensor) -> Tensor:
        """(P, R, R) mask logits of P places in boxes (P, 4)."""
        return self.assembly(*self._to_assemble(outputs, places, boxes, places.image))

    @torch.no_grad()
    def find(self, outputs: Outputs, images: ImageBatch) -> Found:
        """See `Model.find`."""
        places, boxes, masks, scores = self.assess(outputs, images, self.detector.select(outputs.detector))
        sizes = [(height, width) for height, width in images.sizes.tolist()]
        return Found(places, boxes, masks, scores, sizes, _best_first(places.image, scores, len(images)))

    def assess(
        self, outputs: Outputs, images: ImageBatch, places: Locations
    ) -> tuple[Locations, Tensor, Tensor, Tensor]:
        """Masks at places that the detector selected, and how good they are.

        Returns:
            The P places that are left, those with a box inside of their image; its part in the image (P, 4), mask
            logits (P, R, R) and mask scores (P,).
        """
        boxes = clip_boxes(places.boxes, images.sizes[places.image])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # places in the padding may find boxes there
        places, boxes = places.take(inside), boxes[inside]
        if self.clip_before_pool:
            places = replace(places, boxes=boxes)
        masks = self.masks_at(outputs, places, places.boxes)
        qualities: dict[str, Tensor] = {}
        if self.scoring.qualities:
            scored = PredictedMasks(masks, places.boxes, places.image, places.labels, images.sizes)
            qualities = self.scoring(outputs.features, scored)
        return places, boxes, masks, self.scoring.combine(places.scores, qualities)

    # ---- what is timed ----------------------------------------------------------------------------------------------

    def stages(self) -> dict[str, nn.Module]:
        """See `Model.stages`."""
        return {
            "normalize": self.normalize, "backbone": self.backbone, "fpn": self.fpn, "detector": self.detector,
            "basis": self.basis, "assembly": self.assembly, "scoring": self.scoring,
        }  # fmt: skip

    def candidate_scores(self, outputs: Outputs, images: ImageBatch) -> Tensor:
        """See `Model.candidate_scores`."""
        return self.detector.candidate_scores(outputs.detector)

    def start_for_timing(self) -> None:
        """See `Model.start_for_timing`."""
        self.detector.start_for_timing()
        nn.init.normal_(self.basis.bases.weight, std=0.3)  # masks that are not empty


def _best_first(image: Tensor, scores: Tensor, count: int) -> list[Tensor]:
    """Of each image the indices of its places, in the order of their scores."""
    places = [(image == n).nonzero(as_tuple=True)[0] for n in range(count)]
    return [index[scores[index].argsort(descending=True, stable=True)] for index in places]
