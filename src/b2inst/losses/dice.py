"""Dice loss on maps."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.losses.reduction import mean_over_maps, prepare
from b2inst.losses.term import Reduction, Term
from b2inst.ops.precision import without_autocast


def dice_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    squared: bool = True,
    smooth: float = 0.0,
    eps: float = 1e-5,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the Dice coefficient of each map.

    .. math:: L = 1 - \frac{2 \sum_i w_i p_i g_i + s}{\sum_i w_i p_i^2 + \sum_i w_i g_i^2 + s + \epsilon},
        \quad p = \sigma(x)

    B2Inst names the term. Squared denominators are our choice: its boundary score has them, and CondInst too. BMask
    R-CNN's form is `squared=False, smooth=1.0, eps=0.0`.

    A map without a positive target (of positive weight) is left out: its loss would be 1 whatever is predicted, and
    the mean would depend on how many empty images a batch holds. With `reduction="none"` it gives 0.

    Args:
        logits: (B, H, W), before the sigmoid.
        target: (B, H, W) in [0, 1].
        weight: (B, H, W), 0 = ignored; None for ones.
        squared: square p and g in the denominator.
        smooth: s, added to numerator and denominator.
        eps: added to the denominator, against division by zero.
        reduction: `"mean"`: mean over the maps that count; `"none"`: one value a map.

    Returns:
        A scalar or (B,), float32; a zero attached to the graph where there is no positive target.

    Raises:
        ValueError: shapes that differ, or an unknown reduction.

    Example:
        >>> logits = torch.tensor([[[50.0, 50.0, -50.0, -50.0]]])
        >>> dice_loss(logits, torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]))  # 1 - 2 * 1 / (2 + 2)
        tensor(0.5000)
    """
    with without_autocast(logits):
        logits, target, weight = prepare(logits, target, weight)
        probs = logits.sigmoid()
        overlap = (weight * probs * target).sum((1, 2))  # (B,)
        total = weight * (probs.square() + target.square() if squared else probs + target)
        tiny = torch.finfo(logits.dtype).tiny  # eps may be 0, and then an empty map must not give 0 / 0
        values = 1 - (2 * overlap + smooth) / (total.sum((1, 2)) + smooth + eps).clamp(min=tiny)
        counted = ((target > 0) & (weight > 0)).flatten(1).any(dim=1)  # (B, H, W) -> (B, H * W) -> (B,)
        return mean_over_maps(values, counted, reduction)


class Dice(Term):
    """`dice_loss` as a configurable term.

    Args:
        squared: square p and g in the denominator.
        smooth: added to numerator and denominator.
        eps: added to the denominator.
        weight: factor of the term in the first epoch.
        weight_step: added to the factor in each later epoch.
        weight_max: upper limit of the factor.
    """

    def __init__(
        self,
        squared: bool = True,
        smooth: float = 0.0,
        eps: float = 1e-5,
        *,
        weight: float = 1.0,
        weight_step: float = 0.0,
        weight_max: float = float("inf"),
    ) -> None:
        super().__init__(weight, weight_step, weight_max)
        self.squared = squared
        self.smooth = smooth
        self.eps = eps

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """See `dice_loss`."""
        return dice_loss(
            logits, target, weight, squared=self.squared, smooth=self.smooth, eps=self.eps, reduction=reduction
        )
