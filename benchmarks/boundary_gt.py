"""Boundary ground truth of one image with 20 instances on a CPU, against the dense Laplacian convolution."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Result, compare, main  # isort: skip - sets the number of threads
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from b2inst.data.boundary_target import BoundaryTarget
from b2inst.data.coco import Sample
from b2inst.data.collate import collate
from b2inst.ops.rasterize import assemble, rasterize_window
from b2inst.structures import Batch

INSTANCES, HEIGHT, WIDTH, STRIDE = 20, 800, 1333, 4


def benchmarks() -> Iterator[Result]:
    """Masks sampled at stride 4, and masks at full resolution whose boundaries are pooled."""
    batch = _batch()
    for resolution, route in (("stride", _sampled), ("full_maxpool", _pooled)):
        for padding in ("replicate", "zeros"):
            target = BoundaryTarget(resolution=resolution, padding=padding)
            yield compare(
                f"boundary, {resolution}, {padding}", lambda t=target: t(batch).targets.boundary,
                "Laplacian convolution", lambda r=route, p=padding: r(batch, p), torch.equal,
            )  # fmt: skip


def _batch(seed: int = 0) -> Batch:
    """Blobs of 12 to 200 pixels' radius, some of them cut by the frame."""
    rng = np.random.default_rng(seed)
    blobs = {}
    for k in range(INSTANCES):
        angle, radius = np.sort(rng.random(27)) * 2 * np.pi, np.exp(rng.uniform(np.log(12), np.log(200)))
        reach = radius * rng.uniform(0.7, 1.3, 27)
        circle = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
        blobs[k] = rasterize_window([circle + rng.uniform(0.05, 0.95, 2) * (WIDTH, HEIGHT)], HEIGHT, WIDTH)
    masks, boxes, kept = (torch.from_numpy(part) for part in assemble(blobs, HEIGHT, WIDTH))
    pixels, crowd = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    return collate([Sample(pixels, masks, boxes, torch.zeros_like(kept), crowd, 1, (HEIGHT, WIDTH), "")])


def _boundary(masks: Tensor, padding: str) -> Tensor:
    kernel = -torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 8
    padded = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode={"zeros": "constant"}.get(padding, padding))
    return (F.conv2d(padded, kernel).clamp(min=0) > 0.1).float().amax(dim=0)  # (1, H, W)


def _on_grid(edges: Tensor, batch: Batch) -> Tensor:
    """Put a map onto the cells of the padded canvas whose centers are in the image."""
    valid = batch.images.valid_area(STRIDE)
    grid = torch.zeros(valid.shape)
    rows, columns = int(valid[0, :, 0].sum()), int(valid[0, 0].sum())
    grid[:, :rows, :columns] = edges[:, :rows, :columns]
    return grid


def _sampled(batch: Batch, padding: str) -> Tensor:
    masks = batch.targets.masks[:, :HEIGHT, :WIDTH]
    return _on_grid(_boundary(masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE], padding), batch)


def _pooled(batch: Batch, padding: str) -> Tensor:
    edges = _boundary(batch.targets.masks[:, :HEIGHT, :WIDTH], padding)
    return _on_grid(F.max_pool2d(edges[None], STRIDE, ceil_mode=True)[0], batch)


if __name__ == "__main__":
    main(benchmarks)
