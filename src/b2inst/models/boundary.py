"""The boundary basis: what it is supervised with, and whether its prediction takes part in the masks.

Four variants with one interface. A variant has the channels of the basis head after the K mask bases, `own` below:
none, one, or one per class. What the assembly blends is one basis in any case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from b2inst.losses.term import Term
from b2inst.models.assembly.base import Assembly
from b2inst.ops.laplacian import boundary, check_options
from b2inst.structures import Targets

# Where losses teach the basis the boundary, it starts at their prior: a few percent of the cells.
BOUNDARY_PRIOR = -4.0

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "detached": torch.detach,
    "negative": torch.neg,
}


class NoBoundary(nn.Module):
    """K mask bases and nothing else: the plain basis-based segmenter.

    Attributes:
        num_bases: how many bases the assembly may have more than K: 0 or 1.
        use_prediction: whether it has.
        attention_bias: start of the attention logits of that basis.
        basis_bias: start of that basis, a logit, where it joins the weights of a trained model that has none.
        image_level: whether the boundary basis is supervised with the boundary of the whole image, and so is an output
            of its own.
        classes: whether it has a channel per class.
    """

    num_bases = 0
    use_prediction = False
    attention_bias = 0.0
    basis_bias = 0.0
    image_level = False
    classes = False

    def num_channels(self, num_classes: int) -> int:
        """How many channels of the basis head it wants for C classes."""
        return self.num_bases

    def blended(self, masks: Tensor, own: Tensor) -> Tensor:
        """Bases that the assembly combines.

        Args:
            masks: (N, K, h, w) mask bases.
            own: (N, num_channels, h, w).

        Returns:
            (N, K, h, w), or (N, K + 1, h, w) with the boundary basis last.
        """
        return masks

    def logits(self, own: Tensor) -> Tensor | None:
        """(N, h, w) logits of the boundary of whatever class, None without a boundary basis."""
        return None

    def class_logits(self, own: Tensor) -> Tensor | None:
        """(N, C, h, w) logits of the boundary of each class, None where the classes share a channel."""
        return None

    def losses(self, terms: dict[str, Term], own: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
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
        input: how it enters: raw `logit`, `sigmoid` of it, `detached` (logit without a gradient from the masks) or
            `negative` (minus the logit).
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

    @property
    def basis_bias(self) -> float:  # type: ignore[override]
        """As in `NoBoundary`; such that it enters above 0."""
        # Nothing but the masks teaches it, and through the ReLU of some assemblies nothing reaches a basis below 0.
        return -1.0 if self.input == "negative" else 1.0

    def blended(self, masks: Tensor, own: Tensor) -> Tensor:
        """As in `NoBoundary`; the boundary basis is dropped or enters as `input` says."""
        if not self.use_prediction:
            return masks
        return torch.cat([masks, INPUTS[self.input](self.logits(own)).unsqueeze(1)], dim=1)

    def logits(self, own: Tensor) -> Tensor:
        """(N, h, w) logits of the boundary basis."""
        return own[:, 0]


class GlobalBoundary(UnsupervisedBoundary):
    """B2Inst's holistic boundary basis: supervised with the boundary of all instances of the image.

    With `classes` it is category-aware: a channel per class, each supervised with the boundary of the instances of its
    class, so that a pixel may be boundary of several. The boundary of whatever class, which the assembly blends and
    which pictures show, is then the maximum over the classes: above a threshold where one class is, as its target is
    the maximum of theirs.

    Args:
        use_prediction, input, attention_bias: as in `UnsupervisedBoundary`.
        classes: a channel per class.

    Source: of `classes`, CASENet (arXiv 1705.09759), semantic edges with several labels per pixel, and InstanceCut
    (arXiv 1611.08272), boundaries of instances per class. Their networks and losses are others.
    """

    image_level = True
    basis_bias = BOUNDARY_PRIOR  # type: ignore[assignment]

    def __init__(
        self, use_prediction: bool = True, input: str = "logit", attention_bias: float = 0.0, classes: bool = False
    ) -> None:
        super().__init__(use_prediction, input, attention_bias)
        self.classes = classes

    def num_channels(self, num_classes: int) -> int:
        """As in `NoBoundary`."""
        return num_classes if self.classes else 1

    def logits(self, own: Tensor) -> Tensor:
        """(N, h, w) logits of the boundary of whatever class."""
        return own.amax(dim=1)

    def class_logits(self, own: Tensor) -> Tensor | None:
        """As in `NoBoundary`."""
        return own if self.classes else None

    def losses(self, terms: dict[str, Term], own: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
        """Terms over the image-level maps, crowds and padding ignored.

        With `classes` each class of an image is a map of its own, also those that the image does not have.

        Raises:
            ValueError: if the batch carries no boundary ground truth, or none by class where that is needed.
        """
        if targets.boundary is None or targets.boundary_weight is None:
            raise ValueError(
                "the batch has no boundary ground truth: give the DataModule a boundary_target (config group gt)"
            )
        target, weight = self._target(own, targets), targets.boundary_weight.unsqueeze(1).expand_as(own)
        maps = [value.flatten(0, 1) for value in (own, target, weight)]  # (N, C, h, w) -> (N * C, h, w)
        return {name: term(*maps) for name, term in terms.items()}

    def _target(self, own: Tensor, targets: Targets) -> Tensor:
        """Like `own`."""
        if not self.classes:
            return targets.boundary.unsqueeze(1)
        if targets.class_boundary is None:
            raise ValueError("the boundary ground truth of the batch is not made by class: set gt.classes=true")
        target = targets.boundary.new_zeros(own.shape)
        image, label = targets.class_boundary_index.unbind(dim=1)
        target[image, label] = targets.class_boundary
        return target


class InstanceBoundary(UnsupervisedBoundary):
    """The same basis supervised per instance: pooled in the box, against the boundary of the cropped mask.

    Args:
        use_prediction, input, attention_bias: as in `UnsupervisedBoundary`.
        threshold: on the Laplacian of the cropped mask.
        padding: of the Laplacian, `replicate` or `zeros`.

    Raises:
        ValueError: as in `UnsupervisedBoundary`; for an unknown padding, or a threshold that no response exceeds.
    """

    basis_bias = BOUNDARY_PRIOR  # type: ignore[assignment]

    def __init__(
        self,
        use_prediction: bool = True,
        input: str = "logit",
        attention_bias: float = 0.0,
        threshold: float = 0.1,
        padding: str = "replicate",
    ) -> None:
        super().__init__(use_prediction, input, attention_bias)
        check_options(threshold, padding)
        self.threshold = threshold
        self.padding = padding

    def losses(self, terms: dict[str, Term], own: Tensor, targets: Targets, rois: InstanceRois) -> dict[str, Tensor]:
        """Terms over the RoIs, weighted by centerness as the mask loss is.

        All positives of an instance share its box, so a map is pooled once and weighted by their sum.
        """
        pooled = rois.assembly.pool(own.float(), targets.boxes, targets.image_index)[:, 0]
        target = boundary(rois.masks, self.threshold, self.padding)
        weight = torch.ones_like(target)
        values = {name: term(pooled, target, weight, reduction="none") for name, term in terms.items()}
        return {name: (value * rois.weight).sum() / rois.normalizer for name, value in values.items()}
