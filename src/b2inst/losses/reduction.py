"""Checks and averages that all losses on maps share."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.losses.term import Reduction
from b2inst.ops.dist import normalizer
from b2inst.ops.precision import full_precision


def prepare(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check the maps of a loss and bring them to one floating point type.

    Args:
        logits: (B, H, W) of any floating point type.
        target: (B, H, W) of any type.
        weight: (B, H, W) of any type, or None for ones.

    Returns:
        The three maps as float32, or float64 if the logits are.

    Raises:
        ValueError: the shapes differ, or are not (B, H, W). Broadcasting would hide a wrong axis.
    """
    shapes = [tuple(given.shape) for given in (logits, target, weight) if given is not None]
    if logits.ndim != 3 or len(set(shapes)) != 1:
        raise ValueError(f"logits, target and weight have shapes {shapes}, but all have to be the same (B, H, W)")
    logits = full_precision(logits)
    weight = torch.ones_like(logits) if weight is None else weight.to(logits.dtype)
    return logits, target.to(logits.dtype), weight


def mean_over_pixels(values: Tensor, weight: Tensor, reduction: Reduction) -> Tensor:
    """Weighted mean of per-pixel values, over each map or over all maps together.

    Args:
        values: (B, H, W) finite values, attached to the graph.
        weight: (B, H, W), 0 = ignored.
        reduction: `"mean"` for one scalar, sum(w * v) / sum(w), where the weights are those of all processes;
            `"none"` for one such mean a map, (B,).

    Returns:
        The mean; a zero attached to the graph where no pixel has weight.
    """
    dims, tiny = _dims(reduction), torch.finfo(weight.dtype).tiny
    total = weight.sum(dims)
    return (values * weight).sum(dims) / (normalizer(total, tiny) if reduction == "mean" else total.clamp(min=tiny))


def mean_over_maps(values: Tensor, counted: Tensor, reduction: Reduction) -> Tensor:
    """Mean of per-map values over the maps that count.

    Args:
        values: (B,) finite values, attached to the graph.
        counted: (B,) bool, whether a map counts.
        reduction: `"mean"` for one scalar, over the maps of all processes; `"none"` for the values themselves, 0 where
            a map does not count.

    Returns:
        The mean; a zero attached to the graph if no map counts.
    """
    values = values * counted
    return values.sum() / normalizer(counted.sum(), 1) if _dims(reduction) == (0, 1, 2) else values


def _dims(reduction: Reduction) -> tuple[int, ...]:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r} is unknown; choose 'mean' (a scalar) or 'none' (one value a map)")
    return (0, 1, 2) if reduction == "mean" else (1, 2)
