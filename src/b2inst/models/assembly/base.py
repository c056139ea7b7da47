"""What all assemblies have in common: the frame of their masks, pooling in it, and the usual loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from b2inst.ops import dist
from b2inst.ops.precision import without_autocast
from b2inst.ops.rois import with_image_index


@dataclass(frozen=True)
class Instances:
    """P masks that are wanted, in B boxes.

    Attributes:
        boxes: (B, 4) XYXY in pixels of the network input, the frames of the masks.
        image: (B,) int64, the image of each box.
        params: (P, num_params) that the detector predicts at the places that stand for the instances.
        points: (P, 2) these places, (x, y) in pixels of the network input.
        reach: (P,) pixels, the largest objects that the level of a place is for.
        roi: (P,) int64, the box of each row of `params`; None: one row per box, in order.
    """

    boxes: Tensor
    image: Tensor
    params: Tensor
    points: Tensor
    reach: Tensor
    roi: Tensor | None = None

    def per_mask(self, of_boxes: Tensor) -> Tensor:
        """(P, ...) for each mask what belongs to its box, from (B, ...)."""
        return of_boxes if self.roi is None else of_boxes[self.roi]


class Assembly(nn.Module):
    """Puts masks together from bases and the parameters of each instance.

    An assembly says how many bases it usually has (`usual_bases`), at which stride (`basis_stride`) and how many
    parameters it wants per location (`num_params`), and gives mask logits in the frame of the boxes (`forward`);
    everything behind it, from scoring to the export, sees these alone. `loss` may be another, and `learn` where it is
    about more than the inside of the boxes.

    Args:
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign.
        basis_stride: pixels of the network input per cell of the bases, 8, 4 or 2.

    Attributes:
        usual_bases: K where the configuration names no number.
        has_attention: whether `blend` shows what a mask is made of, as in `AttentionBlend`.
    """

    usual_bases = 4
    has_attention = False

    def __init__(self, mask_size: int = 56, sampling_ratio: int = 1, basis_stride: int = 4) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.sampling_ratio = sampling_ratio
        self.basis_stride = basis_stride

    def num_params(self, num_bases: int) -> int:
        """How many numbers per location the detector has to predict for that many bases."""
        raise TypeError(f"{type(self).__name__} has to define num_params()")

    def rows_without_boundary(self, num_bases: int) -> Tensor:
        """Which of the parameters for `num_bases` + 1 bases are those for `num_bases`, in their order."""
        return torch.arange(self.num_params(num_bases))

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """Put masks together.

        Args:
            bases: (N, K, h, w), or K + 1 with the boundary basis last.
            instances: P of them.

        Returns:
            (P, R, R) mask logits in the frame of the boxes.
        """
        raise TypeError(f"{type(self).__name__} has to define forward()")

    def init_boundary(self, bias: Tensor, index: int, attention_bias: float) -> None:
        """Start the parameters of the boundary basis; those of most assemblies start near 0, as the others do.

        Args:
            bias: (num_params,) of the layer that predicts them, changed in place.
            index: of the boundary basis, K.
            attention_bias: start of its attention logits.

        Raises:
            ValueError: for a start that this assembly cannot have.
        """
        if attention_bias:
            raise ValueError(
                f"boundary attention_bias={attention_bias}: {type(self).__name__} has no attention; set "
                "model.boundary.attention_bias=0"
            )

    def pool(self, maps: Tensor, boxes: Tensor, image_index: Tensor, stride: int | None = None) -> Tensor:
        """Crop maps by boxes.

        Args:
            maps: (N, K, h, w).
            boxes: (B, 4) XYXY in pixels of the network input.
            image_index: (B,).
            stride: of the maps in pixels; None for that of the bases.

        Returns:
            (B, K, R, R).
        """
        rois = with_image_index(boxes.to(maps.dtype), image_index)
        scale = 1 / (self.basis_stride if stride is None else stride)
        return roi_align(maps, rois, self.mask_size, scale, self.sampling_ratio, aligned=True)

    def learn(
        self, bases: Tensor, instances: Instances, target: Tensor, truth: Tensor, weight: Tensor, normalizer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks of positives, and their loss.

        Args:
            bases: as in `forward`.
            instances: P positives in the true boxes of I instances.
            target: (P, R, R), the true masks in the frames of the boxes.
            truth: (I, H, W) bool, the true masks in the network input.
            weight: (P,) centerness target.
            normalizer: see `loss`.

        Returns:
            (P, R, R) logits, as `forward` has them, and an unweighted scalar.
        """
        logits = self(bases, instances)
        return logits, self.loss(logits, target, weight, normalizer)

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the pixels of a mask, weighted per positive.

        Args:
            logits: (P, R, R).
            target: (P, R, R) in [0, 1].
            weight: (P,) centerness target.
            normalizer: scalar, the sum of the weights over all devices divided by their number.
        """
        return (mask_bce(logits, target) * weight).sum() / normalizer


def mask_bce(logits: Tensor, target: Tensor) -> Tensor:
    """(P,) binary cross-entropy, mean over the pixels of each mask."""
    with without_autocast(logits):
        return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").flatten(1).mean(1)


def mean_over_positives(values: Tensor) -> Tensor:
    """Mean of (P,) over the positives of all processes; a zero attached to the graph where there are none."""
    return values.sum() / dist.normalizer(values.new_tensor(float(len(values))), 1)


def signed_sum(coefficients: Tensor, pooled: Tensor) -> Tensor:
    """(P, h, w) sum over the bases of (P, K) coefficients times (P, K, h, w) maps, in full precision."""
    with without_autocast(pooled):
        return torch.einsum("pk,pkij->pij", coefficients.float(), pooled.float())
