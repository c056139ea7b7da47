"""The boundary basis: what it is supervised with, and whether its prediction takes part in the masks.

Four variants with one interface. The boundary basis is the last channel of the basis head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from b2inst.losses.term import Term
from b2inst.models.assembly.base import Assembly
from b2inst.ops.laplacian import boundary
from b2inst.structures import Targets

INPUTS = ("logit", "sigmoid", "detached")


class NoBoundary(nn.Module):
    """K mask bases and nothing else: the plain basis-based segmenter."""

    num_bases = 0
    use_prediction = False
    attention_bias = 0.0

    def blended(self, bases: Tensor) -> Tensor:
        """(N, K, h, w) bases that the assembly combines, out of (N, K + num_bases, h, w) of the basis head."""
        return bases

    def logits(self, bases: Tensor) -> Tensor | None:
        """(N, h, w) logits of the boundary basis, None without one."""
        return None

    def losses(self, terms: dict[str, Term], bases: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
        """Unweighted scalar of each term that supervises the boundary."""
        return {}


class InstanceRois:
    """What the per-instance variant needs about the instances of a batch.

    Args:
        assembly: pools the boundary basis in the frame of the masks.
        masks: (I, R, R) ground truth in the frame of the boxes.
        weight: (I,) sum of the weights of an instance's positives.
        normalizer: scalar, sum of all weights.
    """

    def __init__(self, assembly: Assembly, masks: Tensor, weight: Tensor, normalizer: Tensor) -> None:
        self.assembly = assembly
        self.masks = masks
        self.weight = weight
        self.normalizer = normalizer


class UnsupervisedBoundary(NoBoundary):
    """One basis more, without a loss: the control for the capacity that the boundary basis adds.

    Args:
        use_prediction: whether the assembly combines the additional basis.
        input: how it enters: raw `logit`, `sigmoid` of it, or `detached` (logit without a gradient from the masks).
        attention_bias: start of its attention logits; 0 from ImageNet weights, about -4 when fine-tuning BlendMask; 0
            for an assembly without attention.

    Raises:
        ValueError: for an unknown input.
    """

    num_bases = 1

    def __init__(self, use_prediction: bool = True, input: str = "logit", attention_bias: float = 0.0) -> None:
        super().__init__()
        if input not in INPUTS:
            raise ValueError(f"boundary input {input!r}; allowed: {', '.join(INPUTS)}")
        self.use_prediction = use_prediction
        self.input = input
        self.attention_bias = attention_bias

    def blended(self, bases: Tensor) -> Tensor:
        """As in `NoBoundary`; the boundary basis is dropped or enters as `input` says."""
        masks, extra = bases[:, :-1], bases[:, -1:]
        if not self.use_prediction:
            return masks
        if self.input == "logit":
            return bases
        return torch.cat([masks, extra.sigmoid() if self.input == "sigmoid" else extra.detach()], dim=1)

    def logits(self, bases: Tensor) -> Tensor | None:
        """(N, h, w) logits of the boundary basis."""
        return bases[:, -1]


class GlobalBoundary(UnsupervisedBoundary):
    """B2Inst's holistic boundary basis: supervised with the boundary of all instances of the image."""

    def losses(self, terms: dict[str, Term], bases: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
        """Terms over the image-level map, crowds and padding ignored.

        Raises:
            ValueError: if the batch carries no boundary ground truth.
        """
        if targets.boundary is None or targets.boundary_weight is None:
            raise ValueError(
                "the batch has no boundary ground truth: give the DataModule a boundary_target (config group gt)"
            )
        logits = bases[:, -1]
        return {name: term(logits, targets.boundary, targets.boundary_weight) for name, term in terms.items()}


class InstanceBoundary(UnsupervisedBoundary):
    """The same basis supervised per instance: pooled in the box, against the boundary of the cropped mask.

    Args:
        use_prediction, input, attention_bias: as in `UnsupervisedBoundary`.
        threshold: on the Laplacian of the cropped mask.
        padding: of the Laplacian, `replicate` or `zeros`.
    """

    def __init__(
        self,
        use_prediction: bool = True,
        input: str = "logit",
        attention_bias: float = 0.0,
        threshold: float = 0.1,
        padding: str = "replicate",
    ) -> None:
        super().__init__(use_prediction, input, attention_bias)
        self.threshold = threshold
        self.padding = padding

    def losses(self, terms: dict[str, Term], bases: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
        """Terms over the RoIs, weighted by centerness as the mask loss is.

        All positives of an instance share its box, so a map is pooled once and weighted by their sum.
        """
        pooled = rois.assembly.pool(bases[:, -1:].float(), targets.boxes, targets.image_index)[:, 0]
        target = boundary(rois.masks, self.threshold, self.padding)
        weight = torch.ones_like(target)
        values = {name: term(pooled, target, weight, reduction="none") for name, term in terms.items()}
        return {name: (value * rois.weight).sum() / rois.normalizer for name, value in values.items()}
