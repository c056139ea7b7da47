"""The boundary of all objects of an image in one map: what the holistic boundary basis learns.

B2Inst applies a Laplacian operator to the ground-truth masks, thresholds it, and supervises one map for the whole
image. How instances are merged, at which resolution, and what happens at the frame of the image was not recovered
from the paper; the defaults here are our choices and each alternative is a value of the constructor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from b2inst.ops.laplacian import any_boundary, boundary
from b2inst.structures import Batch

Merge = Literal["per_instance_max", "union"]
Resolution = Literal["stride", "full_maxpool", "detail"]
Padding = Literal["replicate", "zeros"]

# STDC's detail target: boundaries seen at these strides of the grid, and the weights that fuse them
DETAIL_WEIGHTS = {1: 0.6, 2: 0.3, 4: 0.1}


class BoundaryTarget:
    """Adds `boundary` and `boundary_weight` to the targets of a batch, on the device of the batch, in float32.

    The frame of an image is the border of its valid area and not of the padded canvas: a mask is 0 in the padding,
    and taken from there, an object cut by the frame would have a boundary that no picture shows.

    Args:
        stride: pixels of the network input per cell of the grid of the bases.
        merge: "per_instance_max" takes the boundary of each instance and then the maximum, which keeps the border
            between two objects that touch; "union" unites the masks first, which erases it.
        resolution: "stride" samples the masks at the center of the cells (`[2::4, 2::4]`) and then takes the
            boundary, one cell wide; "full_maxpool" takes it at full resolution and then the maximum of each cell,
            which keeps objects thinner than a cell; "detail" follows STDC: boundaries of the sampled masks at
            strides 1, 2 and 4 of the grid, enlarged, fused with weights 0.6, 0.3, 0.1. Its coarse levels are
            sampled at the upper left of their cells as in STDC, so that, unlike the others, it is not symmetric
            under a flip.
        padding: "replicate" makes no boundary where an object is cut by the frame of the image, "zeros" does.
        threshold: of the Laplacian response, and of the fused map of "detail". What exceeds it is boundary; with
            0.1 a cell that only the coarsest level of "detail" marks is none.
        soft: do not threshold: the response of each instance divided by its maximum. With "detail" only the fused
            map is left as it is, with values from 0 to 1.
        chunk: instances handled at once, a bound on memory.
        classes: make the boundary of each class as well, with the same merge; their maximum is the boundary of all,
            except under "union" where objects of different classes touch.

    Raises:
        ValueError: a value is not one of the above.
    """

    def __init__(
        self,
        stride: int = 4,
        merge: Merge = "per_instance_max",
        resolution: Resolution = "stride",
        padding: Padding = "replicate",
        threshold: float = 0.1,
        soft: bool = False,
        chunk: int = 64,
        classes: bool = False,
    ) -> None:
        for name, value, allowed in (
            ("merge", merge, get_args(Merge)),
            ("resolution", resolution, get_args(Resolution)),
            ("padding", padding, get_args(Padding)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} of the boundary ground truth: choose one of {allowed}")
        if stride < 1 or chunk < 1:
            raise ValueError(f"stride={stride}, chunk={chunk} of the boundary ground truth: both have to be at least 1")
        self.stride = stride
        self.merge = merge
        self.resolution = resolution
        self.padding = padding
        self.threshold = threshold
        self.soft = soft
        self.chunk = chunk
        self.classes = classes

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Make the boundary target.

        Args:
            batch: with targets; images without instances are welcome.

        Returns:
            a copy whose targets have `boundary` and `boundary_weight`, both (N, H // stride, W // stride) float32, and
            with `classes` also `class_boundary` and `class_boundary_index`.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("the batch has no targets: boundary ground truth is made of ground-truth masks")
        valid = batch.images.valid_area(self.stride)  # (N, h, w)
        target = torch.zeros(valid.shape, device=valid.device)
        by_class: list[Tensor] = []
        index: list[tuple[int, int]] = []
        with torch.autocast(valid.device.type, enabled=False):
            for image, masks, boxes, labels, size in _by_image(batch):
                maps = self._classes(masks[:, : size[0], : size[1]], boxes, labels) if self.classes else {}
                if maps and self.merge == "per_instance_max":
                    edges = torch.stack([*maps.values()]).amax(dim=0)
                else:
                    edges = self._image(masks[:, : size[0], : size[1]], boxes)
                rows, columns = (_cells(side, self.stride) for side in size)  # the valid cells
                target[image, :rows, :columns] = edges[:rows, :columns]
                for label, own in maps.items():
                    by_class.append(torch.zeros_like(target[image]))
                    by_class[-1][:rows, :columns] = own[:rows, :columns]
                    index.append((image, label))
        crowd = _sample(batch.targets.crowd, self.stride)
        made = {"boundary": target, "boundary_weight": (valid & ~crowd).float()}
        if self.classes:
            made["class_boundary"] = torch.stack(by_class) if by_class else target[:0]
            made["class_boundary_index"] = torch.tensor(index, device=valid.device).reshape(-1, 2).long()
        return replace(batch, targets=replace(batch.targets, **made))

    def _classes(self, masks: Tensor, boxes: Tensor, labels: Tensor) -> dict[int, Tensor]:
        """The map of each class of one image, by label; arguments as in `_image`."""
        present = labels.unique().tolist()
        return {label: self._image(masks[labels == label], boxes[labels == label]) for label in present}

    def _image(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """The map of one image, from (I, H, W) bool masks of its valid area, I >= 1; at least its valid cells."""
        cells = masks if self.resolution == "full_maxpool" else _sample(masks, self.stride)
        pixels = 1 if self.resolution == "full_maxpool" else self.stride
        bounds = torch.cat([boxes[:, :2].floor().long() // pixels, boxes[:, 2:].ceil().long() // pixels + 1], dim=1)
        if self.merge == "union":
            cells, bounds = cells.any(dim=0, keepdim=True), None
        if cells.device.type == "cpu" and self.resolution != "detail" and not self.soft and self.threshold < 1:
            return self._pool(any_boundary(cells, self.padding, bounds)[None])[0]
        maps = (self._edges(chunk).amax(dim=0) for chunk in cells.split(self.chunk))
        total = next(maps)
        for edges in maps:
            total = torch.maximum(total, edges)
        return total

    def _edges(self, cells: Tensor) -> Tensor:
        """(I, H, W) bool masks, or their samples, -> (I, h, w) boundaries on the grid."""
        if self.resolution == "detail":  # the levels are binary; `soft` is about their sum
            return self._detail(boundary(cells, threshold=0.5, padding=self.padding))
        return self._pool(self._boundary(cells))

    def _pool(self, edges: Tensor) -> Tensor:
        """Bring (I, H, W) boundaries onto the grid, where they are not there yet."""
        if self.resolution != "full_maxpool":
            return edges
        return F.max_pool2d(edges[:, None], self.stride, ceil_mode=True)[:, 0]

    def _boundary(self, masks: Tensor) -> Tensor:
        return boundary(masks, threshold=self.threshold, padding=self.padding, soft=self.soft)

    def _detail(self, edges: Tensor) -> Tensor:
        """Fuse (I, h, w) boundaries with what a Laplacian of stride 2 and of stride 4 sees of them."""
        height, width = edges.shape[1:]
        fused = torch.zeros_like(edges)
        for stride, weight in DETAIL_WEIGHTS.items():
            level = edges[:, ::stride, ::stride]  # a strided filter is the filter, strided
            enlarged = level.repeat_interleave(stride, dim=1).repeat_interleave(stride, dim=2)
            fused += weight * enlarged[:, :height, :width]
        # 0.1 of the coarsest level alone is not more than 0.1, whichever way float32 rounds
        return fused if self.soft else (fused > self.threshold + 1e-6).float()


def _by_image(batch: Batch) -> Iterator[tuple[int, Tensor, Tensor, Tensor, tuple[int, int]]]:
    """Yield index, masks, boxes, labels and (height, width) of the images with instances and at least one pixel."""
    targets = batch.targets
    counts = torch.bincount(targets.image_index, minlength=len(batch)).tolist()
    parts = (part.split(counts) for part in (targets.masks, targets.boxes, targets.labels))  # they are sorted by image
    for image, (masks, boxes, labels, size) in enumerate(zip(*parts, batch.images.sizes.tolist(), strict=True)):
        if len(masks):
            yield image, masks, boxes, labels, (size[0], size[1])


def _sample(masks: Tensor, stride: int) -> Tensor:
    """The value at the center of each cell: (B, H, W) -> (B, h, w)."""
    return masks[:, stride // 2 :: stride, stride // 2 :: stride]


def _cells(pixels: int, stride: int) -> int:
    """How many cells have their center inside `pixels`."""
    return len(range(stride // 2, pixels, stride))
