"""Attention blending (BlendMask): bases pooled in the box, mixed by per-instance attention maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.models.assembly.base import Assembly, Instances
from b2inst.models.checks import whole_numbers


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


class AttentionBlend(Assembly):
    """Masks in the frame of the boxes, from softmax attention over the bases.

    Args:
        attention_size: side A of an attention map.
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign.
        basis_stride: of the bases.

    Raises:
        ValueError: an attention map without a cell.

    Source: BlendMask (arXiv 2001.00309), section 3; AdelaiDet's behavior.
    """

    usual_bases = 4
    has_attention = True

    def __init__(
        self, attention_size: int = 14, mask_size: int = 56, sampling_ratio: int = 1, basis_stride: int = 4
    ) -> None:
        super().__init__(mask_size, sampling_ratio, basis_stride)
        whole_numbers(attention_size=attention_size)
        self.attention_size = attention_size

    def num_params(self, num_bases: int) -> int:
        """An attention map for each basis."""
        return num_bases * self.attention_size**2

    def rows_of_basis(self, index: int) -> slice:
        """Which of the parameters belong to basis `index`."""
        length = self.attention_size**2
        return slice(index * length, (index + 1) * length)

    def init_boundary(self, bias: Tensor, index: int, attention_bias: float) -> None:
        """Let the attention of the boundary basis start as low as is wanted."""
        nn.init.constant_(bias[self.rows_of_basis(index)], attention_bias)

    def attention(self, params: Tensor) -> Tensor:
        """(P, K, R, R) weights that sum to 1 over the bases, from (P, K * A * A)."""
        maps = params.float().unflatten(1, (-1, self.attention_size, self.attention_size))  # [P, K, A, A]
        maps = F.interpolate(maps, (self.mask_size, self.mask_size), mode="bilinear", align_corners=False)
        return maps.softmax(dim=1)

    def blend(self, bases: Tensor, instances: Instances) -> Blend:
        """Attention and cropped bases of P masks; arguments as in `forward`."""
        pooled = self.pool(bases.float(), instances.boxes, instances.image)  # once per box, with all its locations
        return Blend(self.attention(instances.params), instances.per_mask(pooled))

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes, see `Assembly.forward`."""
        return self.blend(bases, instances).logits
