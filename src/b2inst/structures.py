"""The few types that travel through the package.

Shape legend of the whole project:
    N images of a batch, I ground-truth instances of the batch, P positive (or detected) locations,
    D detections of one image, C classes, K mask bases (K+1 with the boundary basis),
    A side of an attention map, R side of a RoI mask, H x W network input, h x w the grid of the bases.
Boxes are XYXY in pixels of the network input unless a docstring says otherwise; pixel (0, 0) covers [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="_Travels")


class _Travels:
    """Moves and pins every tensor of a dataclass; Lightning and DataLoader look for these two methods."""

    def _apply(self: T, fn: Any) -> T:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | _Travels):
                changed[field.name] = fn(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """Return a copy with every tensor moved as by `Tensor.to`."""
        return self._apply(lambda value: value.to(*args, **kwargs))

    def pin_memory(self: T) -> T:
        """Return a copy with every tensor in pinned memory."""
        return self._apply(lambda value: value.pin_memory())


@dataclass(frozen=True)
class ImageBatch(_Travels):
    """Images as they leave the loader: unnormalised, padded to the right and below.

    Attributes:
        pixels: (N, 3, H, W) uint8, RGB; H and W are multiples of 32, the padding is 0.
        sizes: (N, 2) int64, (height, width) of the valid area of each image.
        original_sizes: (N, 2) int64, (height, width) of the files, before any augmentation.
        image_ids: (N,) int64, ids of the annotation file.
        file_names: N paths, for messages and pictures.
    """

    pixels: Tensor
    sizes: Tensor
    original_sizes: Tensor
    image_ids: Tensor
    file_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def valid_area(self, stride: int = 1) -> Tensor:
        """Where an image is, and not padding, on the grid of cells of `stride` pixels.

        Returns:
            (N, H // stride, W // stride) bool; a cell counts when its sample point `stride // 2` is inside.
        """
        n, _, height, width = self.pixels.shape
        y = torch.arange(height // stride, device=self.sizes.device) * stride + stride // 2
        x = torch.arange(width // stride, device=self.sizes.device) * stride + stride // 2
        inside_y = y[None, :] < self.sizes[:, :1]  # (N, h)
        inside_x = x[None, :] < self.sizes[:, 1:]  # (N, w)
        return inside_y[:, :, None] & inside_x[:, None, :]


@dataclass(frozen=True)
class Targets(_Travels):
    """Ground truth of a batch, the instances of all images in one list.

    Attributes:
        boxes: (I, 4) float32, XYXY in pixels of the network input; masks are empty outside of them.
        labels: (I,) int64 in [0, C).
        image_index: (I,) int64 in [0, N), ascending: which image of the batch.
        masks: (I, H, W) bool, at the size of the padded network input.
        crowd: (N, H, W) bool, ignored areas (crowd annotations).
        boundary: (N, h, w) float32 in [0, 1], the image-level boundary on the grid of the bases, or None
            before the DataModule has made it on the device.
        boundary_weight: (N, h, w) float32, 0 in crowds and padding, else 1; None as `boundary`.
        class_boundary: (M, h, w) float32 in [0, 1], the boundary of each class that an image has; None where it was not
            asked for.
        class_boundary_index: (M, 2) int64, image and label of each of these maps.
        roi_masks: (I, R, R) float32, 0 or 1, the masks in the frames of `boxes`, from a source that knows them better
            than `masks` do (polygons); None: they are cropped from `masks`.
    """

    boxes: Tensor
    labels: Tensor
    image_index: Tensor
    masks: Tensor
    crowd: Tensor
    boundary: Tensor | None = None
    boundary_weight: Tensor | None = None
    class_boundary: Tensor | None = None
    class_boundary_index: Tensor | None = None
    roi_masks: Tensor | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class Batch(_Travels):
    """What the loader yields.

    Attributes:
        images: N of them.
        targets: ground truth, where there is some.
        damaged: of each image that belongs here and was left out, what is wrong with its file.
    """

    images: ImageBatch
    targets: Targets | None = None
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Detections(_Travels):
    """Instances found in one image, best first.

    Attributes:
        boxes: (D, 4) float32, XYXY in pixels of the frame `size`.
        labels: (D,) int64 in [0, C).
        scores: (D,) float32, the mask score: class score times mask quality.
        box_scores: (D,) float32, the class score alone; ranks the boxes.
        mask_logits: (D, R, R) float32 in the frame of the boxes.
        size: (height, width) of the image that the boxes refer to.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    box_scores: Tensor
    mask_logits: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Detections:
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "size"}
        return replace(self, **picked)

    def resized(self, size: tuple[int, int]) -> Detections:
        """The same detections with boxes in pixels of an image of another `size` (height, width)."""
        scale = self.boxes.new_tensor([size[1] / self.size[1], size[0] / self.size[0]]).repeat(2)
        return replace(self, boxes=self.boxes * scale, size=size)
