"""Boundary F1 loss of Bokhovkin and Burnaev (arXiv 1905.07852) on maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from b2inst.losses.reduction import mean_over_maps, prepare
from b2inst.losses.term import Reduction, Term
from b2inst.ops.precision import without_autocast


def bf1_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    extract: bool = False,
    th0: int = 3,
    th: int = 5,
    eps: float = 1e-7,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the F1 score of two boundaries that may be a few pixels apart.

    .. math::
        b(y) = \mathrm{maxpool}_{\theta_0}(1 - y) - (1 - y), \quad e(y) = \mathrm{maxpool}_{\theta}(b(y)) \\
        P = \frac{\sum b(p)\,e(g)}{\sum b(p)}, \quad R = \frac{\sum b(g)\,e(p)}{\sum b(g)}, \quad
        L = 1 - \frac{2 P R}{P + R}, \quad p = \sigma(x)

    B2Inst names a "boundary loss" beside cross-entropy and Dice; that it is this one is our reading. Where the
    supervised map already is a boundary, b(y) = y: extracting would score the boundary of a boundary.

    A map without a boundary in its target (at positive weight) is left out, as in `dice_loss`: its loss would be 1
    whatever is predicted. With `reduction="none"` it gives 0.

    Args:
        logits: (B, H, W), before the sigmoid.
        target: (B, H, W) in [0, 1].
        weight: (B, H, W), 0 = ignored: such pixels count neither in b(p) nor in b(g). Not a factor otherwise.
        extract: the maps are masks, extract their boundaries; False: they are boundaries.
        th0: side of the window that extracts a boundary, pixels, odd.
        th: side of the window that extends it, pixels, odd: boundaries (th - 1) / 2 apart still match.
        eps: added to each denominator.
        reduction: `"mean"`: mean over the maps that count; `"none"`: one value a map.

    Returns:
        A scalar or (B,), float32, in [0, 1]; a zero attached to the graph where there is no boundary in the target.

    Raises:
        ValueError: shapes that differ, a window that is not odd, or an unknown reduction.

    Example:
        >>> import torch
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]])
        >>> near = torch.tensor([[[-50.0, -50.0, -50.0, -50.0, 50.0, -50.0]]])  # 2 pixels off: within the window
        >>> bf1_loss(near, target).item() < 1e-6, bf1_loss(near, target, th=3).item()
        (True, 1.0)
    """
    _check_windows(th0=th0, th=th)
    with without_autocast(logits):
        logits, target, weight = prepare(logits, target, weight)
        valid = (weight > 0).to(logits.dtype)
        predicted, true = logits.sigmoid(), target
        if extract:
            predicted, true = _inner_boundary(predicted, th0), _inner_boundary(true, th0)
        predicted, true = predicted * valid, true * valid
        true_size = true.sum((1, 2))  # (B,)
        precision = (predicted * _max_pool(true, th)).sum((1, 2)) / (predicted.sum((1, 2)) + eps)
        recall = (true * _max_pool(predicted, th)).sum((1, 2)) / (true_size + eps)
        values = 1 - 2 * precision * recall / (precision + recall + eps)
        return mean_over_maps(values, true_size > 0, reduction)


class BF1(Term):
    """`bf1_loss` as a configurable term.

    Args:
        extract: the maps are masks, extract their boundaries; False: they are boundaries.
        th0: side of the window that extracts a boundary, pixels, odd.
        th: side of the window that extends it, pixels, odd.
        eps: added to each denominator.
        weight: factor of the term in the first epoch.
        weight_step: added to the factor in each later epoch.
        weight_max: upper limit of the factor.
    """

    def __init__(
        self,
        extract: bool = False,
        th0: int = 3,
        th: int = 5,
        eps: float = 1e-7,
        *,
        weight: float = 1.0,
        weight_step: float = 0.0,
        weight_max: float = float("inf"),
    ) -> None:
        super().__init__(weight, weight_step, weight_max)
        _check_windows(th0=th0, th=th)
        self.extract = extract
        self.th0 = th0
        self.th = th
        self.eps = eps

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """See `bf1_loss`."""
        return bf1_loss(
            logits,
            target,
            weight,
            extract=self.extract,
            th0=self.th0,
            th=self.th,
            eps=self.eps,
            reduction=reduction,
        )


def _check_windows(**sides: int) -> None:
    for name, side in sides.items():
        if side < 1 or side % 2 == 0:
            raise ValueError(f"{name}={side}: the side of a window centered on a pixel has to be odd, e.g. 3 or 5")


def _max_pool(maps: Tensor, side: int) -> Tensor:
    # (B, H, W) -> (B, 1, H, W): the batch may be empty, channels may not
    return F.max_pool2d(maps.unsqueeze(1), kernel_size=side, stride=1, padding=side // 2)[:, 0]


def _inner_boundary(maps: Tensor, side: int) -> Tensor:
    return _max_pool(1 - maps, side) - (1 - maps)
