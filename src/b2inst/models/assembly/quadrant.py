"""Quadrants (SipMask): the box is cut in four, and each part has coefficients of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.models.assembly.base import Assembly, Instances
from b2inst.ops.precision import without_autocast


class QuadrantCombination(Assembly):
    """Masks as in YOLACT, with one set of coefficients for each quadrant of the box.

    So an object and its neighbor in the same box may have different coefficients, where one set could not part them.
    Bases are not negative (ReLU), coefficients are not limited. The parameters are those of the upper left, upper
    right, lower left and lower right quadrant. The boundary basis has four coefficients like the others.

    Args:
        mask_size: side R of a mask, an even number.
        sampling_ratio: of RoIAlign.
        basis_stride: of the bases.

    Raises:
        ValueError: a mask that cannot be halved.

    Source: SipMask (arXiv 2007.14772), section 3.
    """

    usual_bases = 32

    def __init__(self, mask_size: int = 56, sampling_ratio: int = 1, basis_stride: int = 2) -> None:
        super().__init__(mask_size, sampling_ratio, basis_stride)
        if mask_size % 2:
            raise ValueError(f"mask_size={mask_size}: quadrants need an even number")

    def num_params(self, num_bases: int) -> int:
        """A coefficient for each basis in each quadrant."""
        return 4 * num_bases

    def rows_without_boundary(self, num_bases: int) -> Tensor:
        """All but the last of each quadrant, see `Assembly.rows_without_boundary`."""
        return torch.arange(self.num_params(num_bases + 1)).unflatten(0, (4, -1))[:, :-1].flatten()

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes, see `Assembly.forward`."""
        pooled = instances.per_mask(self.pool(bases.float().relu(), instances.boxes, instances.image))
        half = self.mask_size // 2
        parts = pooled.unflatten(3, (2, half)).unflatten(2, (2, half))  # [P, K, 2, R / 2, 2, R / 2]
        coefficients = instances.params.float().unflatten(1, (2, 2, -1))  # [P, 2, 2, K]
        with without_autocast(pooled):
            return torch.einsum("pvhk,pkvihj->pvihj", coefficients, parts).flatten(3, 4).flatten(1, 2)
