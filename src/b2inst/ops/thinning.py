"""Thin boundary maps to their ridges."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst.ops.precision import without_autocast


@torch.no_grad()
def thinned(probs: Tensor) -> Tensor:
    """Keep boundary probabilities where they are largest across the boundary, with 0 elsewhere.

    The direction across is the one of the strongest curvature of the map, smoothed by a Gaussian of 2 pixels; a pixel
    is kept if neither neighbor at 1 pixel along it has a larger value. Of equal ones, as on a plateau or on a ridge
    that runs between two pixels, the one counts whose smoothed value is larger, and then the lower right one.

    Args:
        probs: (B, H, W) in [0, 1].

    Returns:
        (B, H, W) float32.

    Example:
        >>> probs = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.1]).repeat(1, 5, 1)
        >>> thinned(probs)[0, 2]
        tensor([0.0000, 0.0000, 0.9000, 0.0000, 0.0000])
    """
    with without_autocast(probs):
        maps = probs.float().unsqueeze(1)
        smoothed = _smoothed(maps)
        xx, xy, yy = _curvature(smoothed)
        # the axis of the larger eigenvalue; on a ridge that of the other one, which is negative, is the stronger
        angle = 0.5 * torch.atan2(2 * xy, xx - yy) + math.pi / 2 * (xx + yy < 0)
        across = torch.stack([angle.cos(), angle.sin()], dim=-1)  # [B, H, W, 2], (x, y) in pixels
        heights = maps + 1e-3 * smoothed + _ramp(maps)
        largest = torch.maximum(_moved(heights, across), _moved(heights, -across))
        return torch.where(heights >= largest, maps, 0)[:, 0]


def _ramp(maps: Tensor) -> Tensor:
    """(H, W) what decides between neighbors that are equal in all else, and nothing else."""
    height, width = maps.shape[2:]
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)[:, None]
    return 1e-6 * (torch.arange(width, device=maps.device, dtype=maps.dtype) + 1.6 * y)


def _smoothed(maps: Tensor, sigma: float = 2.0, radius: int = 6) -> Tensor:
    """(B, 1, H, W) Gaussian, continued by the border."""
    x = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])


def _curvature(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second derivatives xx, xy, yy, each (B, H, W)."""
    p = F.pad(maps, (1, 1, 1, 1), mode="replicate")[:, 0]
    center = p[:, 1:-1, 1:-1]
    xx = p[:, 1:-1, 2:] - 2 * center + p[:, 1:-1, :-2]
    yy = p[:, 2:, 1:-1] - 2 * center + p[:, :-2, 1:-1]
    xy = (p[:, 2:, 2:] - p[:, 2:, :-2] - p[:, :-2, 2:] + p[:, :-2, :-2]) / 4
    return xx, xy, yy


def _moved(maps: Tensor, offset: Tensor) -> Tensor:
    """(B, 1, H, W) values at an offset (B, H, W, 2), (x, y) in pixels, from each pixel."""
    height, width = maps.shape[2:]
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)[:, None]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    # pixel i has its center at (2 i + 1) / size - 1 in the frame of grid_sample
    grid = torch.stack([(2 * (x + offset[..., 0]) + 1) / width, (2 * (y + offset[..., 1]) + 1) / height], dim=-1) - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
