"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from b2inst.data.coco import Sample
from b2inst.data.damaged import Damaged, split_damaged
from b2inst.structures import Batch, ImageBatch, Targets

SIZE_DIVISOR = 32  # the coarsest feature map that is up-sampled and added to a finer one (P5)
LARGEST_DIVISOR = 1024  # more would be a mistake, and make inputs of any size


def collate(samples: Sequence[Sample | Damaged], divisor: int = SIZE_DIVISOR) -> Batch:
    """Put samples of different sizes on one canvas, at its upper left; the rest is 0.

    Images are not normalized here: that happens on the device, which also sets the padding to 0 after it.

    Args:
        samples: N of them, N >= 1; they may all be without instances. Damaged ones are left out.
        divisor: height and width of the canvas are multiples of it.

    Returns:
        the batch, with `targets` of I >= 0 instances and no boundary yet.

    Raises:
        DataError: all samples are damaged.
    """
    samples, damaged = split_damaged(samples)
    sizes = torch.tensor([s.image.shape[1:] for s in samples])  # (N, 2)
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.amax(dim=0))
    counts = torch.tensor([len(s.labels) for s in samples])
    images = ImageBatch(
        pixels=pad([s.image for s in samples], height, width),
        sizes=sizes,
        original_sizes=torch.tensor([s.original_size for s in samples]),
        image_ids=torch.tensor([s.image_id for s in samples]),
        file_names=tuple(s.file_name for s in samples),
    )
    masks = torch.zeros((int(counts.sum()), height, width), dtype=torch.bool)
    for part, sample in zip(masks.split(counts.tolist()), samples, strict=True):
        part[:, : sample.masks.shape[1], : sample.masks.shape[2]] = sample.masks
    targets = Targets(
        boxes=torch.cat([s.boxes for s in samples]),
        labels=torch.cat([s.labels for s in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        masks=masks,
        crowd=pad([s.crowd for s in samples], height, width),
    )
    return Batch(images, targets, damaged)


def pad(tensors: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Stack (..., H, W) tensors into (N, ..., height, width), each at the upper left; the rest is 0."""
    canvas = tensors[0].new_zeros((len(tensors), *tensors[0].shape[:-2], height, width))
    for part, tensor in zip(canvas, tensors, strict=True):
        part[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return canvas
