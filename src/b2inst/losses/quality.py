"""Regression of mask quality, for the scoring head."""

from __future__ import annotations

from torch import Tensor

from b2inst.ops.dist import normalizer
from b2inst.ops.precision import full_precision, without_autocast


def quality_regression(pred: Tensor, target: Tensor) -> Tensor:
    r"""Half the squared error, averaged over the instances of all processes with a quality above zero.

    .. math:: L = \sum_{t_i > 0} \tfrac{1}{2} (q_i - t_i)^2 \Big/ |\{i: t_i > 0\}|

    Mask Scoring R-CNN's behavior. That both scores of B2Inst (mask IoU and boundary Dice) are trained with it is our
    choice.

    Args:
        pred: (P,) predicted quality, not clamped.
        target: (P,) true quality in [0, 1]; no gradient flows into it.

    Returns:
        A float32 scalar; a zero attached to the graph if no instance counts.

    Raises:
        ValueError: shapes that differ, or are not (P,).

    Example:
        >>> import torch
        >>> quality_regression(torch.tensor([0.5, 0.9]), torch.tensor([1.0, 0.0]))  # 0.5 * 0.25, the second is out
        tensor(0.1250)
    """
    if pred.ndim != 1 or pred.shape != target.shape:
        given = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred and target have shapes {given}, but both have to be the same (P,)")
    with without_autocast(pred):
        pred = full_precision(pred)
        target = target.detach().to(pred.dtype)
        counted = target > 0
        return (0.5 * (pred - target).square() * counted).sum() / normalizer(counted.sum(), 1)
