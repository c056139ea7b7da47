"""Exact Euclidean distances up to a radius, in plain tensor operations on any device.

A loss that looks only at the surroundings of a contour does not need the whole distance transform: clipping at a
radius makes it separable into one pass along the rows and `radius` shifts of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def clipped_distance(mask: Tensor, radius: int) -> Tensor:
    """Distance of each pixel to the nearest True pixel of its map, or `radius` where that is nearer.

    Maps are independent of each other and the work space is about six float maps, so callers may go through a large
    batch in chunks.

    Args:
        mask: (B, H, W) bool.
        radius: largest distance of interest, in pixels, >= 1.

    Returns:
        (B, H, W) float32 in [0, radius]; `radius` everywhere in a map without a True pixel. No gradient.

    Raises:
        ValueError: `mask` is not (B, H, W) bool, or the radius is below 1.

    Example:
        >>> clipped_distance(torch.tensor([[[True, False, False, False, False]]]), radius=3)
        tensor([[[0., 1., 2., 3., 3.]]])
    """
    _check(mask, radius)
    height = mask.shape[1]
    squared = _distance_along_rows(mask, radius).square_()
    nearest = squared.clone()
    # A row `radius` away cannot bring the distance below `radius`: range() ends one before it.
    for dy in range(1, min(radius, height)):
        shifted = squared + dy * dy
        torch.minimum(nearest[:, dy:], shifted[:, :-dy], out=nearest[:, dy:])
        torch.minimum(nearest[:, :-dy], shifted[:, dy:], out=nearest[:, :-dy])
    return nearest.sqrt_()


@torch.no_grad()
def signed_distance(mask: Tensor, radius: int) -> Tensor:
    """Distance to the mask outside of it, minus (distance to the background - 1) inside: the phi of Kervadec et al.

    A pixel of the mask's own contour has 0, its neighbor outside 1: without the - 1 phi would jump by 2 there.

    Args:
        mask: (B, H, W) bool.
        radius: distances are clipped to [-radius, radius], in pixels, >= 1.

    Returns:
        (B, H, W) float32. Zero in a map without a True pixel (the reference implementation's rule), `-radius` in a map
        without a False one. No gradient.

    Raises:
        ValueError: see `clipped_distance`.

    Example:
        >>> signed_distance(torch.tensor([[[False, False, True, True, True, False]]]), radius=9)
        tensor([[[ 2.,  1.,  0., -1.,  0.,  1.]]])
    """
    outside = clipped_distance(mask, radius)
    inside = 1 - clipped_distance(~mask, radius + 1)
    present = mask.any(dim=2, keepdim=True).any(dim=1, keepdim=True)  # (B, 1, 1)
    return torch.where(mask, inside, outside) * present


def _check(mask: Tensor, radius: int) -> None:
    if mask.ndim != 3 or mask.dtype != torch.bool:
        given = f"{tuple(mask.shape)} {mask.dtype}"
        raise ValueError(f"mask is {given}, but (B, H, W) torch.bool is needed; threshold it, e.g. target > 0")
    if radius < 1:
        raise ValueError(f"radius={radius}: the distance has to be clipped at 1 pixel or more")


def _distance_along_rows(mask: Tensor, radius: int) -> Tensor:
    """(B, H, W): distance in pixels to the nearest True pixel of the same row, at most `radius`."""
    width = mask.shape[2]
    column = torch.arange(width, device=mask.device, dtype=torch.float32)
    left = torch.where(mask, column, -radius).cummax(dim=2).values  # nearest True column to the left, itself included
    right = torch.where(mask, column, width + radius).flip(2).cummin(dim=2).values.flip(2)
    return torch.minimum(column - left, right - column).clamp_(max=radius)
