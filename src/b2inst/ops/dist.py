"""Sums and means over all processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def reduce_mean(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, float32 or float64; the value itself where there is only one."""
    if processes() == 1:
        return value
    value = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
    dist.all_reduce(value)
    return value / processes()


def normalizer(value: Tensor, least: float) -> Tensor:
    """What each process divides its sum by, for the mean over all processes to be that of the combined batch.

    DDP averages gradients, so a sum over W processes is divided by W times this. Every process has to call it equally
    often, also one without instances.

    Args:
        value: of this process, a scalar: a count, or a sum of weights.
        least: lower limit of the sum over all processes; the limit of each would divide one positive in all by W.

    Returns:
        max(sum over the W processes, least) / W.
    """
    return reduce_mean(value).clamp(min=least / processes())
