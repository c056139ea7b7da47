"""What every configurable loss term has in common."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Reduction = Literal["mean", "none"]


class Term(nn.Module):
    """A loss term that a config file adds to the training.

    `forward(logits, target, weight, reduction)` takes maps of shape (B, H, W): images of the batch for the global
    boundary, RoIs for the per-instance one. `weight` is a per-pixel weight (0 = ignored). `reduction="none"` returns
    one value a map, (B,); `"mean"` one scalar.

    Attributes:
        supervises: `"boundary"`: the term sees the boundary basis; `"mask"`: it sees the mask logits of the positives.

    Args:
        weight: factor of the term in the total loss, in the first epoch.
        weight_step: what is added to the factor in each later epoch, 0 or more.
        weight_max: upper limit of the factor, not below `weight`.

    Raises:
        ValueError: a factor that would fall, or starts above its limit.
    """

    supervises: Literal["boundary", "mask"] = "boundary"

    def __init__(self, weight: float = 1.0, weight_step: float = 0.0, weight_max: float = float("inf")) -> None:
        super().__init__()
        if weight_step < 0:
            raise ValueError(f"weight_step={weight_step}: the factor of a term does not fall; give 0 or more")
        if weight_max < weight:
            raise ValueError(f"weight_max={weight_max} is below weight={weight}, where the factor starts; give at "
                             "least that, or a smaller weight")  # fmt: skip
        self.weight = weight
        self.weight_step = weight_step
        self.weight_max = weight_max

    def weight_at(self, epoch: int) -> float:
        """Factor of the term in `epoch`, counted from 0."""
        return min(self.weight + self.weight_step * epoch, self.weight_max)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Compute the term; each loss defines it."""
        raise TypeError(f"{type(self).__name__} has to define forward()")
