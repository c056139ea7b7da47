"""Thin boundary maps to their ridges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from b2inst.ops.precision import without_autocast


@torch.no_grad()
def thinned(probs: Tensor) -> Tensor:
    """Keep boundary probabilities where they are largest across the boundary, with 0 elsewhere.

    Across is along the row or along the column, whichever the map, smoothed by a Gaussian of 2 pixels, is more curved
    along; a pixel is kept if neither of its two neighbors there has a larger value. So a line keeps one pixel of each
    row, or of each column, as thin lines and the contours of masks have it. Neighbors along the very normal would keep
    two on slopes, where both are nearer to the ridge than half a pixel. Of equal ones, as on a plateau or on a ridge
    that runs between two pixels, the one counts whose smoothed value is larger, and then the lower right one.

    Args:
        probs: (B, H, W) in [0, 1].

    Returns:
        (B, H, W) float32.

    Source: non-maximum suppression of Canny (PAMI 1986), with the two axes alone as directions.

    Example:
        >>> probs = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.1]).repeat(1, 5, 1)
        >>> thinned(probs)[0, 2]
        tensor([0.0000, 0.0000, 0.9000, 0.0000, 0.0000])
    """
    with without_autocast(probs):
        maps = probs.float().unsqueeze(1)
        smoothed = _smoothed(maps)
        heights = maps + 1e-3 * smoothed + _ramp(maps)
        beside, above = _neighbors(heights)
        across = torch.where(_curved_more_in_rows(smoothed), torch.maximum(*beside), torch.maximum(*above))
        return torch.where(heights >= across, maps, 0)[:, 0]


def _ramp(maps: Tensor) -> Tensor:
    """(H, W) what decides between neighbors that are equal in all else, and nothing else."""
    height, width = maps.shape[2:]
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)[:, None]
    return 1e-6 * (torch.arange(width, device=maps.device, dtype=maps.dtype) + y)


def _smoothed(maps: Tensor, sigma: float = 2.0, radius: int = 6) -> Tensor:
    """(B, 1, H, W) Gaussian, continued by the border."""
    x = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])


def _neighbors(maps: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Left and right, and upper and lower neighbors, each (B, 1, H, W); the border continues."""
    p = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return (p[..., 1:-1, :-2], p[..., 1:-1, 2:]), (p[..., :-2, 1:-1], p[..., 2:, 1:-1])


def _curved_more_in_rows(maps: Tensor) -> Tensor:
    """(B, 1, H, W) bool, where the second derivative along the row is larger than along the column, of whatever sign.

    At the border, beyond which there is nothing, it is that of the pixel before: with the border continued, a slanted
    line would seem to bend there, and keep several pixels of the last row.
    """
    (left, right), (upper, lower) = _neighbors(maps)
    rows, columns = (
        torch.arange(size, device=maps.device).clamp(min=1).clamp(max=max(size - 2, 0)) for size in maps.shape[2:]
    )
    in_rows = (left + right - 2 * maps).abs()[..., columns]
    return in_rows > (upper + lower - 2 * maps).abs()[..., rows, :]
