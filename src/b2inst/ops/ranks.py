"""The best of each group, or some of each, without a loop over the groups."""

from __future__ import annotations

import torch
from torch import Tensor


def best_of_groups(scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Find the highest scores of each group.

    Args:
        scores: (P,).
        groups: (P,) int64.
        limit: how many of a group are kept at most.

    Returns:
        Their indices, group by group in ascending order, best first; of equal scores the one that comes first.

    Example:
        >>> best_of_groups(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([1, 0, 1, 1]), limit=2).tolist()
        [1, 3, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    grouped = groups[order]
    first = torch.searchsorted(grouped, grouped)  # where the group of an entry begins
    rank = torch.arange(len(order), device=order.device) - first
    return order[rank < limit]


def drawn_of_groups(groups: Tensor, limit: int, fixed: bool = False) -> Tensor:
    """Draw entries of each group, without replacement.

    Args:
        groups: (P,) int64.
        limit: how many of a group are kept at most.
        fixed: draw the same each time, and no number of the device's generator. A validation does: a resumed run may
            pass it again.

    Returns:
        Their indices, group by group in ascending order.
    """
    generator = torch.Generator(groups.device).manual_seed(0) if fixed else None
    return best_of_groups(torch.rand(len(groups), device=groups.device, generator=generator), groups, limit)
