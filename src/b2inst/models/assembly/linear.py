"""Linear combination (YOLACT): prototypes of the whole image, added up with one coefficient each."""

from __future__ import annotations

from torch import Tensor

from b2inst.models.assembly.base import Assembly, Instances, mask_bce, mean_over_positives, signed_sum


class LinearCombination(Assembly):
    """Masks as the sum of prototypes times coefficients, cropped by the box.

    Prototypes are not negative (ReLU), coefficients are in (-1, 1) (tanh). Cropping first and adding up then is the
    same as the other way round, and costs R x R sums per mask instead of h x w. The ReLU is behind what the losses of
    the boundary basis see: its prototype, one more than K, enters rectified, and is supervised as a logit.

    Args:
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign.
        basis_stride: of the prototypes.

    Source: YOLACT (arXiv 1904.02689), sections 3.1 to 3.3.
    """

    usual_bases = 32

    def num_params(self, num_bases: int) -> int:
        """A coefficient for each prototype."""
        return num_bases

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes, see `Assembly.forward`."""
        prototypes = self.pool(bases.float().relu(), instances.boxes, instances.image)  # [B, K, R, R]
        return signed_sum(instances.params.float().tanh(), instances.per_mask(prototypes))

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the area of the box and over the positives, all of the same weight."""
        return mean_over_positives(mask_bce(logits, target))
