"""Regression of mask quality, for the scoring head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

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
    _check(pred, target)
    with without_autocast(pred):
        pred = full_precision(pred)
        target = target.detach().to(pred.dtype)
        counted = target > 0
        return (0.5 * (pred - target).square() * counted).sum() / normalizer(counted.sum(), 1)


def smooth_quality_regression(pred: Tensor, target: Tensor) -> Tensor:
    r"""Smooth L1, averaged over all instances of all processes, those with a quality of 0 as well.

    .. math:: L = \frac{1}{P} \sum_i \begin{cases} \tfrac{1}{2} d_i^2 & |d_i| < 1 \\ |d_i| - \tfrac{1}{2} &
        \text{else} \end{cases}, \quad d_i = q_i - t_i

    YOLACT++'s behavior, but for what it divides by: its positives, whether or not they are learned from.

    Args:
        pred: (P,) predicted quality, not clamped.
        target: (P,) true quality in [0, 1]; no gradient flows into it.

    Returns:
        A float32 scalar; a zero attached to the graph without instances.

    Raises:
        ValueError: shapes that differ, or are not (P,).

    Example:
        >>> import torch
        >>> smooth_quality_regression(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0]))  # (0.125 + 1.5) / 2
        tensor(0.8125)
    """
    _check(pred, target)
    with without_autocast(pred):
        pred = full_precision(pred)
        target = target.detach().to(pred.dtype)
        count = pred.new_tensor(float(len(pred)))
        return F.smooth_l1_loss(pred, target, reduction="sum") / normalizer(count, 1)


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.ndim != 1 or pred.shape != target.shape:
        given = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred and target have shapes {given}, but both have to be the same (P,)")
