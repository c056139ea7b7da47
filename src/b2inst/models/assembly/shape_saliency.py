"""Shape times saliency (CenterMask of Wang et al.): a coarse mask per instance, a fine one of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst.models.assembly.base import Assembly, Instances, signed_sum
from b2inst.models.checks import whole_numbers


class ShapeSaliency(Assembly):
    """Masks whose probability is that of a local shape times that of a global saliency.

    The local shape tells instances apart, and the saliency map, one for all classes, gives the fine contour. Further
    bases than the first, the boundary basis among them, are added to the saliency in the box, with one coefficient
    each that every instance predicts. The parameters are the S x S logits of the shape, and these coefficients.

    Args:
        shape_size: side S of a local shape.
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign.
        basis_stride: of the saliency map.

    Raises:
        ValueError: a shape without a cell.

    Source: CenterMask, point representation (arXiv 2004.04446), section 3.
    """

    usual_bases = 1

    def __init__(
        self, shape_size: int = 32, mask_size: int = 56, sampling_ratio: int = 1, basis_stride: int = 4
    ) -> None:
        super().__init__(mask_size, sampling_ratio, basis_stride)
        whole_numbers(shape_size=shape_size)
        self.shape_size = shape_size

    def num_params(self, num_bases: int) -> int:
        """A local shape, and a coefficient for each basis but the first."""
        return self.shape_size**2 + num_bases - 1

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes, see `Assembly.forward`."""
        size, cells = self.shape_size, self.shape_size**2
        params = instances.params.float()
        shapes = params[:, None, :cells].unflatten(2, (size, size))  # [P, 1, S, S]
        shapes = F.interpolate(shapes, (self.mask_size, self.mask_size), mode="bilinear", align_corners=False)[:, 0]
        pooled = instances.per_mask(self.pool(bases.float(), instances.boxes, instances.image))  # [P, K, R, R]
        saliency = pooled[:, 0] + signed_sum(params[:, cells:], pooled[:, 1:])
        return logit_of_product(shapes, saliency)


def logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    r"""The logit of sigmoid(a) * sigmoid(b), which has a gradient everywhere.

    .. math:: \log\frac{pq}{1 - pq} = -\log(e^{-a} + e^{-b} + e^{-a - b}), \quad p = \sigma(a), q = \sigma(b)

    Example:
        >>> logit_of_product(torch.tensor(0.0), torch.tensor(0.0)).sigmoid()
        tensor(0.2500)
    """
    least = torch.minimum(torch.minimum(a, b), a + b)  # its factor keeps the sum of the powers between 1 and 3
    return least - ((least - a).exp() + (least - b).exp() + (least - a - b).exp()).log()
