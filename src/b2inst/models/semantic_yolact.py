"""YOLACT's auxiliary semantic head: one sigmoid a class on P3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.ops.dist import normalizer
from b2inst.structures import ImageBatch, Targets


class YolactSemanticHead(nn.Module):
    """Which classes are at a cell, in training only; several may be.

    Args:
        in_channels: channels of the FPN.
        num_classes: C; background is none of them.

    Source: YOLACT (arXiv 1904.02689), section 5.
    """

    stride = 8

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(in_channels, num_classes, 1)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(N, C, H / 8, W / 8) logits from P3."""
        return self.conv(features[0])

    @torch.no_grad()
    def target(self, images: ImageBatch, targets: Targets) -> tuple[Tensor, Tensor]:
        """Classes on the grid of P3.

        A cell belongs to an instance that has more than half of the four pixels around its center, which is bilinear
        sampling and a threshold of 0.5, as published.

        Returns:
            (N, C, H / 8, W / 8) bool; and (N, H / 8, W / 8) bool, whether a cell counts: not in padding, nor in crowds
            where there is no instance.
        """
        first, second = self.stride // 2 - 1, self.stride // 2
        around = [
            targets.masks[:, y :: self.stride, x :: self.stride] for y in (first, second) for x in (first, second)
        ]
        inside = torch.stack(around).sum(dim=0) > 2  # [I, h, w]
        classes = torch.zeros(
            len(images) * self.num_classes, *inside.shape[1:], dtype=torch.int32, device=inside.device
        )  # fmt: skip
        classes.index_add_(0, targets.image_index * self.num_classes + targets.labels, inside.int())
        classes = classes.unflatten(0, (len(images), self.num_classes)) > 0
        in_crowd = targets.crowd[:, second :: self.stride, second :: self.stride] & ~classes.any(dim=1)
        return classes, images.valid_area(self.stride) & ~in_crowd

    def loss(self, features: list[Tensor], images: ImageBatch, targets: Targets) -> Tensor:
        """Binary cross-entropy, sum over the classes, mean over the cells that count; 0 on the graph if none does."""
        classes, counts = self.target(images, targets)
        logits = self(features).float()
        entropy = F.binary_cross_entropy_with_logits(logits, classes.float(), reduction="none").sum(dim=1)
        return (entropy * counts).sum() / normalizer(counts.sum(), 1)
