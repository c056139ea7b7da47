"""Numbers about the inside of a model that explain its scores: attention, score targets, boundary target.

Everything is measured on validation images with the ground truth: one place per instance, the positive that the
detector weighs most (FCOS: the one nearest to its center), in the frame of the true box.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst.models.scoring import dice_score
from b2inst.models.scoring_base import PredictedMasks, iou_score
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.ops.laplacian import any_boundary, boundary
from b2inst.ops.ranks import best_of_groups
from b2inst.ops.rois import crop_masks
from b2inst.structures import Batch, Targets


class Shares:
    """What part each basis has in the masks, everywhere and near their boundaries.

    Args:
        band: cells from the true boundary that are near.
    """

    def __init__(self, band: int = 2) -> None:
        self.band = band
        self.sums: dict[str, Tensor] = {}

    def update(self, weights: Tensor, true_masks: Tensor) -> None:
        """Add masks.

        Args:
            weights: (P, K, R, R), the size of them counts.
            true_masks: (P, R, R), 0 or 1.
        """
        edges = boundary(true_masks, padding="zeros")  # an instance reaches the frame of its box, and ends there
        near = F.max_pool2d(edges[:, None], 2 * self.band + 1, stride=1, padding=self.band)  # [P, 1, R, R]
        sizes = weights.abs().double()
        for name, part in (("overall", sizes), ("near_boundary", sizes * near)):
            total = part.sum(dim=(0, 2, 3)).cpu()
            self.sums[name] = self.sums.get(name, torch.zeros_like(total)) + total

    def result(self) -> dict[str, list[float]]:
        """Shares of the K bases, which sum to 1, by place; empty before any mask."""
        return {name: (total / total.sum()).tolist() for name, total in self.sums.items() if total.sum() > 0}


class Histogram:
    """Counts of values in [0, 1].

    Args:
        bins: how many, of equal width; the last one holds 1 too.
    """

    def __init__(self, bins: int = 20) -> None:
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.total = 0.0

    def update(self, values: Tensor) -> None:
        """Add (P,) values."""
        self.counts += torch.histc(values.double().cpu(), bins=len(self.counts), min=0.0, max=1.0)
        self.total += float(values.double().sum())

    def result(self) -> dict[str, Any]:
        """Edges, counts, and the mean, None before any value."""
        count = int(self.counts.sum())
        edges = torch.linspace(0, 1, len(self.counts) + 1, dtype=torch.float64).tolist()
        mean = self.total / count if count else None
        return {"edges": edges, "counts": self.counts.int().tolist(), "mean": mean}


class TargetWidth:
    """How wide the boundary target is, in pixels of the network input, and how much of the image it takes.

    Args:
        stride: pixels per cell of the grid.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.marked = self.weight = self.contour = 0.0
        self.sides: list[Tensor] = []

    def update(self, targets: Targets, sizes: Tensor) -> None:
        """Add a batch with its boundary target; `sizes` are (N, 2), height and width of the images."""
        self.marked += float((targets.boundary * targets.boundary_weight).double().sum())
        self.weight += float(targets.boundary_weight.double().sum())
        self.sides.append(targets.masks.flatten(1).sum(1).double().sqrt().cpu())
        for n, (height, width) in enumerate(sizes.tolist()):
            masks = targets.masks[targets.image_index == n][:, :height, :width]
            self.contour += float(any_boundary(masks.cpu()).sum())

    def result(self) -> dict[str, float | None]:
        """Share of the cells, width, median side of an instance (root of its area), and the width in these."""
        sides = torch.cat(self.sides) if self.sides else torch.zeros(0)
        side = float(sides.median()) if len(sides) else None
        width = self.marked * self.stride**2 / self.contour if self.contour else None
        share = self.marked / self.weight if self.weight else None
        return {
            "share": share,
            "width_px": width,
            "instance_px": side,
            "width_of_instance": width / side if side and width else None,
        }


class Inspector:
    """Collects all of it over batches.

    Args:
        model: whose outputs are shown.
    """

    def __init__(self, model: Segmenter) -> None:
        self.model = model
        self.attention, self.contribution = Shares(), Shares()
        self.targets = {"iou": Histogram(), "boundary": Histogram()}
        self.width = TargetWidth(model.assembly.basis_stride)
        self.errors: dict[str, list[Tensor]] = {}
        self.basis_dice: list[Tensor] = []
        self.instances = 0

    @torch.no_grad()
    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch.

        Args:
            outputs: of the model for its images.
            batch: with targets, the boundary among them.

        Raises:
            ValueError: it has none.
        """
        targets = batch.targets
        if targets is None or targets.boundary is None:
            raise ValueError("an inspection needs ground truth with the boundary target, and this batch has none")
        self.width.update(targets, batch.images.sizes)
        logits = self.model.boundary.logits(self.model.split(outputs.bases)[1])
        if logits is not None:
            found = logits.float().sigmoid() * targets.boundary_weight
            wanted = targets.boundary * targets.boundary_weight
            present = wanted.flatten(1).any(dim=1)  # without a boundary there is nothing to overlap with
            self.basis_dice.append(dice_score(found[present], wanted[present]).cpu())
        self._masks(outputs, targets, batch.images.sizes)  # without instances too, for all processes count together

    def _masks(self, outputs: Outputs, targets: Targets, sizes: Tensor) -> None:
        model = self.model
        _, positives, _ = model.detector.losses(outputs.detector, targets)
        places = positives.take(best_of_groups(positives.scores, positives.instance, 1))
        if not len(places):
            return
        boxes = targets.boxes[places.instance]
        true_masks = targets.roi_masks
        if true_masks is None:
            true_masks = crop_masks(targets.masks, targets.boxes, model.assembly.mask_size)
        true_masks = true_masks[places.instance]
        self.instances += len(places)
        if model.has_attention:
            blend = model.blend_at(outputs, places, boxes)
            self.attention.update(blend.attention, true_masks)
            self.contribution.update(blend.products, true_masks)
            logits = blend.logits
        else:
            logits = model.masks_at(outputs, places, boxes)
        hard = (logits >= 0).float()
        for name, values in (
            ("iou", iou_score(hard, true_masks)), ("boundary", dice_score(boundary(hard), boundary(true_masks))),
        ):  # fmt: skip
            self.targets[name].update(values)
        if model.scoring.qualities:
            scored = PredictedMasks(logits, boxes, places.image, places.labels, sizes)
            predicted, wanted = model.scoring(outputs.features, scored), model.scoring.targets(logits, true_masks)
            for name, values in predicted.items():
                self.errors.setdefault(name, []).append((values - wanted[name]).abs().cpu())

    def result(self) -> dict[str, Any]:
        """Plain values; `boundary_basis` says whether the last basis of the shares is the boundary basis."""
        return {
            "instances": self.instances,
            "boundary_basis": self.model.boundary.use_prediction,
            "attention": self.attention.result(),
            "contribution": self.contribution.result(),
            "score_targets": {name: histogram.result() for name, histogram in self.targets.items()},
            "score_errors": {name: _mean(values) for name, values in self.errors.items()},
            "boundary_target": self.width.result(),
            "boundary_basis_dice": _mean(self.basis_dice),
        }


def _mean(values: list[Tensor]) -> float | None:
    """Of all numbers in them, None without any."""
    return float(torch.cat(values).mean()) if sum(map(len, values)) else None
