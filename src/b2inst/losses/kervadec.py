"""Boundary (surface) loss of Kervadec et al. (MIDL 2019) on maps."""

from __future__ import annotations

from torch import Tensor

from b2inst.losses.reduction import mean_over_pixels, prepare
from b2inst.losses.term import Reduction, Term
from b2inst.ops.distance import signed_distance
from b2inst.ops.precision import without_autocast


def kervadec_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    radius: int = 20,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Mean of the probability times the signed distance to the target.

    .. math:: L = \sum_i w_i\,p_i\,\phi_i / r \Big/ \sum_i w_i, \quad p = \sigma(x)

    phi is the distance to the target outside of it and minus (distance - 1) inside, zero where the map has no
    positive target. Clipping phi at r pixels and dividing by r is our choice: un-normalized distances make the loss
    dominate the others, as users of the reference implementation report.

    The loss can be negative, that is fine. It only pushes probability away from far pixels: on a target that is one
    pixel wide phi >= 0 everywhere, p = 0 is a minimum, so never use it as the only term.

    Args:
        logits: (B, H, W), before the sigmoid.
        target: (B, H, W) in [0, 1]; every pixel > 0 belongs to the target.
        weight: (B, H, W), 0 = ignored; None for ones.
        radius: r, pixels of the map, >= 1.
        reduction: `"mean"`: one mean over the pixels of all maps; `"none"`: one mean a map.

    Returns:
        A scalar or (B,), float32, in [-1, 1]; a zero attached to the graph where no pixel has weight.

    Raises:
        ValueError: shapes that differ, a radius below 1, or an unknown reduction.

    Example:
        >>> import torch
        >>> logits = torch.full((1, 1, 5), 50.0)
        >>> kervadec_loss(logits, torch.tensor([[[1.0, 0.0, 0.0, 0.0, 0.0]]]), radius=2)  # (0 + .5 + 1 + 1 + 1) / 5
        tensor(0.7000)
    """
    with without_autocast(logits):
        logits, target, weight = prepare(logits, target, weight)
        phi = signed_distance(target > 0, radius).to(logits.dtype) / radius
        return mean_over_pixels(logits.sigmoid() * phi, weight, reduction)


class Kervadec(Term):
    """`kervadec_loss` as a configurable term; its factor starts small and rises.

    Args:
        radius: distance at which phi is clipped, pixels of the map.
        weight: factor of the term in the first epoch.
        weight_step: added to the factor in each later epoch.
        weight_max: upper limit of the factor; at 1 users of the reference implementation lost 3 to 4 points, 0.1 was
            fine.
    """

    def __init__(
        self, radius: int = 20, *, weight: float = 0.01, weight_step: float = 0.01, weight_max: float = 0.1
    ) -> None:
        super().__init__(weight, weight_step, weight_max)
        if radius < 1:
            raise ValueError(f"radius={radius}: the distance has to be clipped at 1 pixel or more")
        self.radius = radius

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """See `kervadec_loss`."""
        return kervadec_loss(logits, target, weight, radius=self.radius, reduction=reduction)
