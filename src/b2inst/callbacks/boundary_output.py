"""The boundary basis as an output of its own, scored with the boundary F-measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from b2inst.metrics.boundary_f import BoundaryF
from b2inst.metrics.boundary_truth import crowd_area, true_boundaries
from b2inst.metrics.ground_truth import GroundTruth
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.ops.upsample import onto_image
from b2inst.structures import ImageBatch


class BoundaryOutput(BoundaryF):
    """Scores what the boundary basis says about the images of a batch, at the size of their files.

    Args:
        model: with a boundary basis that is supervised with the boundary of the whole image.
        truth: annotations of the images.
        category_ids: id of the annotation file by label.

    Raises:
        ValueError: the model has no such basis.
    """

    def __init__(self, model: Segmenter, truth: GroundTruth, category_ids: Sequence[int]) -> None:
        if not model.has_image_boundary:
            raise ValueError(
                "boundary_f=true: the model has no boundary basis that is supervised with the boundary of the whole "
                "image; train with boundary@model.boundary=global, or set boundary_f=false"
            )
        self.model = model
        self.truth = truth
        self.category_ids = tuple(category_ids) if model.boundary.classes else ()
        names = truth.class_names()
        super().__init__(tuple(names[category] for category in self.category_ids))
        truth.rasterize()

    @torch.no_grad()
    def add(self, outputs: Outputs, images: ImageBatch) -> None:
        """Add the images of a batch with what the model made of them."""
        own = self.model.split(outputs.bases.float())[1]
        logits, by_class = self.model.boundary.logits(own), self.model.boundary.class_logits(own)
        maps = logits.unsqueeze(1) if by_class is None else torch.cat([logits.unsqueeze(1), by_class], dim=1)
        canvas = tuple(images.pixels.shape[-2:])
        sizes, ids = images.sizes.tolist(), images.image_ids.tolist()
        for probs, size, image_id in zip(maps.sigmoid(), sizes, ids, strict=True):
            whole = self.truth.image_size(image_id)
            shown = (onto_image(own[None], canvas, tuple(size), whole)[0] for own in probs)  # one full map at a time
            truth = (true.to(probs.device) for true in true_boundaries(self.truth, image_id, self.category_ids))
            self.update(image_id, shown, truth, crowd_area(self.truth, image_id).to(probs.device))
