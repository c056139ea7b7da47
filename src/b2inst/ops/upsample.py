"""Enlarging maps: as CondInst does, and from the grid of the bases onto an image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Enlarge maps by a whole number: output index i stands for input index (i - factor // 2) / factor.

    Bilinear sampling with aligned corners, moved by half a factor; outside, a map is continued by its border.

    Args:
        maps: (N, C, h, w).
        factor: 1 for the maps as they are.

    Returns:
        (N, C, factor * h, factor * w).

    Source: CondInst (arXiv 2003.05664), AdelaiDet's behavior.

    Example:
        >>> import torch
        >>> aligned_bilinear(torch.tensor([[[[0.0, 4.0]]]]), 2)[0, 0, 0].tolist()
        [0.0, 0.0, 2.0, 4.0]
    """
    if factor == 1:
        return maps
    height, width = maps.shape[-2:]
    maps = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    maps = F.interpolate(maps, (factor * height + 1, factor * width + 1), mode="bilinear", align_corners=True)
    maps = F.pad(maps, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return maps[..., : factor * height, : factor * width]


def onto_image(maps: Tensor, canvas: tuple[int, int], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Bring maps on a grid of the network input into the pixels of an image.

    Args:
        maps: (B, h, w) on a grid that covers the input with its padding.
        canvas: (height, width) of that input.
        size: (height, width) of the image in it, at the upper left.
        original: (height, width) of the image itself.

    Returns:
        (B, *original), by bilinear interpolation.
    """
    full = F.interpolate(maps.unsqueeze(0), canvas, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    if size != original:
        full = F.interpolate(full, original, mode="bilinear", align_corners=False)
    return full[0]
