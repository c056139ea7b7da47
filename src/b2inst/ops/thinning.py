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
        x, y = angle.cos(), angle.sin()
        heights = (maps + 1e-3 * smoothed + _ramp(maps))[:, 0]
        largest = torch.maximum(_moved(heights, x, y), _moved(heights, -x, -y))
        return torch.where(heights >= largest, maps[:, 0], 0)


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


def _moved(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, H, W) values at offsets x, y (B, H, W) in [-1, 1] pixels from each pixel, bilinear; the border continues.

    Not grid_sample, whose coordinates are shares of the size: in large maps they miss by more than neighbors differ.
    """
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    right, down = x >= 0, y >= 0
    along_x, along_y = x.abs(), y.abs()

    def at(dy: Tensor | int, dx: Tensor | int) -> Tensor:
        """The value dy and dx in {-1, 0, 1} pixels away."""
        rows = torch.arange(1, maps.shape[1] + 1, device=maps.device)[:, None] + dy
        columns = torch.arange(1, maps.shape[2] + 1, device=maps.device) + dx
        place = (rows * padded.shape[2] + columns).expand_as(maps)
        return padded.flatten(1).gather(1, place.flatten(1)).view_as(maps)

    step_x, step_y = torch.where(right, 1, -1), torch.where(down, 1, -1)
    near = at(0, 0) + along_x * (at(0, step_x) - at(0, 0))
    far = at(step_y, 0) + along_x * (at(step_y, step_x) - at(step_y, 0))
    return near + along_y * (far - near)
