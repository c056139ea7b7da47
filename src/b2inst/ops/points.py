"""Locations of a feature map, and a convolution evaluated at some of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def locations(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Image positions that the cells of a feature map stand for: `index * stride + stride // 2`.

    Returns:
        (height * width, 2) float32, (x, y) in pixels of the network input, row by row.

    Example:
        >>> locations(1, 2, 8).tolist()
        [[4.0, 4.0], [12.0, 4.0]]
    """
    y, x = torch.meshgrid(
        torch.arange(height, device=device) * stride + stride // 2,
        torch.arange(width, device=device) * stride + stride // 2,
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()


def conv3x3_at(conv: nn.Conv2d, features: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """A 3x3 convolution (stride 1, padding 1) at given cells only: the same values as running it everywhere.

    The layer that predicts per-instance parameters has many output channels and is read at few locations; on patches
    it costs a small part of the dense convolution.

    Args:
        conv: the layer.
        features: (N, C, h, w).
        image, y, x: (P,) int64, which image and cell.

    Returns:
        (P, out_channels).
    """
    padded = F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # [N, h + 2, w + 2, C]
    offsets = torch.arange(3, device=features.device)
    rows = (y[:, None, None] + offsets[:, None]).expand(-1, 3, 3)
    columns = (x[:, None, None] + offsets[None, :]).expand(-1, 3, 3)
    patches = padded[image[:, None, None], rows, columns]  # [P, 3, 3, C]
    weight = conv.weight.permute(0, 2, 3, 1)  # [out, 3, 3, C]
    return F.linear(patches.flatten(1), weight.flatten(1), conv.bias)
