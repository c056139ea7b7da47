"""Binary cross-entropy on maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from b2inst.losses.reduction import mean_over_pixels, prepare
from b2inst.losses.term import Reduction, Term
from b2inst.ops.precision import without_autocast


def binary_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Binary cross-entropy with logits, averaged over the pixels that count, without class balancing.

    .. math:: L = \sum_i w_i\,[-g_i \log p_i - (1 - g_i) \log(1 - p_i)] \Big/ \sum_i w_i, \quad p = \sigma(x)

    B2Inst names the term; the plain mean is our choice, it is what BMask R-CNN does.

    Args:
        logits: (B, H, W), before the sigmoid.
        target: (B, H, W) in [0, 1].
        weight: (B, H, W), 0 = ignored; None for ones.
        reduction: `"mean"`: one mean over the pixels of all maps; `"none"`: one mean a map.

    Returns:
        A scalar or (B,), float32; a zero attached to the graph where no pixel has weight.

    Raises:
        ValueError: shapes that differ, or an unknown reduction.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.0, 100.0]]])
        >>> binary_cross_entropy(logits, torch.tensor([[[1.0, 1.0]]]))  # (log 2 + 0) / 2
        tensor(0.3466)
    """
    with without_autocast(logits):
        logits, target, weight = prepare(logits, target, weight)
        values = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return mean_over_pixels(values, weight, reduction)


class BinaryCrossEntropy(Term):
    """`binary_cross_entropy` as a configurable term.

    Args:
        weight: factor of the term in the first epoch.
        weight_step: added to the factor in each later epoch.
        weight_max: upper limit of the factor.
    """

    def __init__(self, *, weight: float = 1.0, weight_step: float = 0.0, weight_max: float = float("inf")) -> None:
        super().__init__(weight, weight_step, weight_max)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """See `binary_cross_entropy`."""
        return binary_cross_entropy(logits, target, weight, reduction=reduction)
