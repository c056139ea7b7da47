"""Normalizers that are shared by all processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def reduce_mean(value: Tensor) -> Tensor:
    """Mean of a scalar over all processes; the value itself where there is only one.

    Losses are divided by the mean count over the processes, so that gradient averaging in DDP gives the loss of the
    combined batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    value = value.clone().float()
    dist.all_reduce(value)
    return value / dist.get_world_size()
