"""What a scoring head learns from: which positives, masks in which boxes, and their true qualities."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from b2inst.models.detector_base import Locations
from b2inst.models.scoring_base import MaskScoring, PredictedMasks
from b2inst.ops.ranks import drawn_of_groups
from b2inst.ops.rois import clip_boxes, crop_masks
from b2inst.structures import Batch, Targets


def score_losses(
    scoring: MaskScoring,
    features: list[Tensor],
    batch: Batch,
    positives: Locations,
    masks: Tensor,
    true_masks: Tensor,
    assemble: Callable[[Locations, Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of the scores of positives that are drawn among the P of a batch.

    Args:
        scoring: the head.
        features: levels of the pyramid.
        batch: with targets, I instances.
        positives: P places with an instance each.
        masks: (P, R, R) their mask logits, in the true boxes of their instances.
        true_masks: (I, R, R) in the same frames.
        assemble: makes the mask logits of places in other boxes (P, 4).

    Returns:
        Unweighted scalars by name, `score_` in front of the quality, and what is logged of them.
    """
    targets, sizes = batch.targets, batch.images.sizes
    shares = _shares_of_images(true_masks, targets.boxes, sizes[targets.image_index])
    large = scoring.learned(shares)[positives.instance].nonzero(as_tuple=True)[0]
    kept = large[drawn_of_groups(positives.image[large], scoring.max_positives, fixed=not scoring.training)]
    positives, masks = positives.take(kept), masks[kept]
    if scoring.boxes == "pred_box":
        boxes = clip_boxes(positives.boxes, sizes[positives.image])
        masks = assemble(positives, boxes)
        wanted, outside = crops_of_predicted_boxes(targets, positives.instance, boxes, masks.shape[-1])
    else:
        boxes = targets.boxes[positives.instance]
        wanted, outside = true_masks[positives.instance], None
    if scoring.detach_masks:
        masks = masks.detach()
    predicted = scoring(features, PredictedMasks(masks, boxes, positives.image, positives.labels, sizes))
    wanted_scores = scoring.targets(masks, wanted, outside)
    losses = {f"score_{name}": value for name, value in scoring.losses(predicted, wanted_scores).items()}
    stats = {}
    for name, value in wanted_scores.items():
        if len(value):
            stats[f"score_{name}_target"] = value.mean()
            stats[f"score_{name}_target_below_0.2"] = (value < 0.2).float().mean()
            stats[f"score_{name}_error"] = (predicted[name].detach() - value).abs().mean()
    return losses, stats


def _shares_of_images(masks: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """(I,) area of masks (I, R, R) in the frames of boxes, as shares of images of (height, width) (I, 2)."""
    return masks.flatten(1).mean(1) * (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / sizes.prod(dim=1)


def crops_of_predicted_boxes(targets: Targets, instance: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """True masks (P, R, R) in the frames of other boxes, and their area (P,) outside of these, in cells."""
    masks = targets.masks[instance]
    crops = crop_masks(masks, boxes, size)
    cell = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=1) / size).prod(dim=1)  # pixels per cell
    outside = masks.flatten(1).sum(1) / cell - crops.flatten(1).sum(1)
    return crops, outside.clamp(min=0)
