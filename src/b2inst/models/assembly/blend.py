"""Attention blending (BlendMask): bases pooled in the box, mixed by per-instance attention maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from b2inst.ops.rois import with_image_index


@dataclass(frozen=True)
class Blend:
    """What masks are made of, in the frame of their boxes.

    Attributes:
        attention: (..., K, R, R) weights in [0, 1] that sum to 1 over the bases.
        bases: (..., K, R, R) the bases, cropped by the boxes.
    """

    attention: Tensor
    bases: Tensor

    @property
    def products(self) -> Tensor:
        """(..., K, R, R) what each basis contributes to the mask."""
        return self.bases * self.attention

    @property
    def logits(self) -> Tensor:
        """(..., R, R) mask logits: the sum of the products."""
        return self.products.sum(dim=-3)


class AttentionBlend(nn.Module):
    """Masks in the frame of the boxes, from softmax attention over the bases.

    Every assembly offers this interface: `num_params`, `rows_of_basis`, `mask_size`, `blend`, `forward` and `loss`.

    Args:
        attention_size: side A of an attention map.
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign.
        basis_stride: of the bases.

    Source: BlendMask (arXiv 2001.00309), section 3; AdelaiDet's behavior.
    """

    def __init__(
        self, attention_size: int = 14, mask_size: int = 56, sampling_ratio: int = 1, basis_stride: int = 4
    ) -> None:
        super().__init__()
        self.attention_size = attention_size
        self.mask_size = mask_size
        self.sampling_ratio = sampling_ratio
        self.basis_stride = basis_stride

    def num_params(self, num_bases: int) -> int:
        """How many numbers per location the detector has to predict for that many bases."""
        return num_bases * self.attention_size**2

    def rows_of_basis(self, index: int) -> slice:
        """Which of these numbers belong to basis `index`."""
        length = self.attention_size**2
        return slice(index * length, (index + 1) * length)

    def pool(self, maps: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crop maps on the grid of the bases by boxes.

        Args:
            maps: (N, K, h, w).
            boxes: (B, 4) XYXY in pixels of the network input.
            image_index: (B,).

        Returns:
            (B, K, R, R).
        """
        rois = with_image_index(boxes.to(maps.dtype), image_index)
        return roi_align(maps, rois, self.mask_size, 1 / self.basis_stride, self.sampling_ratio, aligned=True)

    def attention(self, params: Tensor) -> Tensor:
        """(P, K, R, R) weights that sum to 1 over the bases, from (P, K * A * A)."""
        maps = params.float().unflatten(1, (-1, self.attention_size, self.attention_size))  # [P, K, A, A]
        maps = F.interpolate(maps, (self.mask_size, self.mask_size), mode="bilinear", align_corners=False)
        return maps.softmax(dim=1)

    def blend(
        self, bases: Tensor, boxes: Tensor, image_index: Tensor, params: Tensor, roi: Tensor | None = None
    ) -> Blend:
        """Put together what masks are made of.

        Args:
            bases: (N, K, h, w).
            boxes: (B, 4) XYXY in pixels of the network input.
            image_index: (B,) image of each box.
            params: (P, num_params).
            roi: (P,) which box each row of `params` belongs to; None: one row per box, in order.

        Returns:
            attention and cropped bases of P masks.
        """
        pooled = self.pool(bases.float(), boxes, image_index)  # once per box, however many locations share it
        return Blend(self.attention(params), pooled if roi is None else pooled[roi])

    def forward(
        self, bases: Tensor, boxes: Tensor, image_index: Tensor, params: Tensor, roi: Tensor | None = None
    ) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes; arguments as in `blend`."""
        return self.blend(bases, boxes, image_index, params, roi).logits

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the pixels of a mask, weighted per positive.

        Args:
            logits: (P, R, R).
            target: (P, R, R) in [0, 1].
            weight: (P,) centerness target.
            normalizer: scalar, the sum of the weights over all devices divided by their number.
        """
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").flatten(1).mean(1)
        return (loss * weight).sum() / normalizer
