"""Instances for the tests of the assemblies, and samples of maps by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.models.assembly.base import Instances


def wanted(boxes: Tensor, image: Tensor, params: Tensor, roi: Tensor | None = None) -> Instances:
    """Instances whose places do not matter."""
    return Instances(boxes, image, params, params.new_zeros(len(params), 2), params.new_ones(len(params)), roi)


def bilinear(grid, y, x):
    """Value of a list of rows at continuous indices, the borders continued."""
    height, width = len(grid), len(grid[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    top = grid[y0][x0] * (1 - fx) + grid[y0][x1] * fx
    return top * (1 - fy) + (grid[y1][x0] * (1 - fx) + grid[y1][x1] * fx) * fy


def convolution(maps: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Plain loops over the cells of the result, (C, h, w); a ReLU behind it."""
    size = weight.shape[-1]
    around = maps.new_zeros(maps.shape[0], maps.shape[1] + 2 * padding, maps.shape[2] + 2 * padding)
    around[:, padding : padding + maps.shape[1], padding : padding + maps.shape[2]] = maps
    side = (around.shape[-1] - size) // stride + 1
    result = maps.new_zeros(weight.shape[0], side, side)
    for y in range(side):
        for x in range(side):
            seen = around[:, y * stride : y * stride + size, x * stride : x * stride + size]
            result[:, y, x] = (weight * seen).sum(dim=(1, 2, 3)) + bias
    return result.clamp(min=0)


def in_box(grid: Tensor, box: Tensor, size: int, stride: int) -> Tensor:
    """(size, size) samples of an (h, w) map in a box given in pixels."""
    x0, y0, x1, y1 = (v / stride for v in box.tolist())
    rows = [y0 + (i + 0.5) * (y1 - y0) / size - 0.5 for i in range(size)]
    columns = [x0 + (j + 0.5) * (x1 - x0) / size - 0.5 for j in range(size)]
    return torch.tensor([[bilinear(grid.tolist(), y, x) for x in columns] for y in rows])


def maps_and_boxes(num_bases: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bases of two images, (2, K, 16, 20), and the boxes and images of three instances."""
    bases = torch.randn(2, num_bases, 16, 20, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[9.0, 6.5, 40.0, 50.0], [20.0, 20.0, 31.0, 27.0], [3.0, 8.0, 30.0, 29.0]])
    return bases, boxes, torch.tensor([0, 1, 1])


def numbers(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
