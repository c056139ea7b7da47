"""The basis head: global mask bases of the whole image, and the auxiliary semantic head beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from b2inst.ops.dist import normalizer
from b2inst.ops.upsample import aligned_bilinear
from b2inst.structures import ImageBatch, Targets

log = logging.getLogger(__name__)

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "syncbn": nn.SyncBatchNorm,
    "gn": partial(nn.GroupNorm, 32),
    "frozen_bn": FrozenBatchNorm2d,
}
IGNORE = 255


def conv_norm_relu(in_channels: int, out_channels: int, norm: str, part: str) -> nn.Sequential:
    """3x3 convolution without bias, norm, ReLU.

    Args:
        in_channels, out_channels: of the convolution.
        norm: one of `NORMS`.
        part: whose layers these are, for the error.

    Raises:
        ValueError: for an unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r} of the {part}; allowed: {', '.join(NORMS)}")
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, NORMS[norm](out_channels), nn.ReLU())


class BasisHead(nn.Module):
    """ProtoNet of BlendMask: P3 to P5 summed at stride 8, convolutions, up-sampling to stride 4, 1x1 to the bases.

    At stride 8 nothing is up-sampled, which makes it the mask branch of CondInst; at stride 2 the bases are, once more.

    Args:
        in_channels: channels of the FPN.
        num_bases: outputs: K mask bases and, after them, the boundary basis if there is one.
        stride: of the bases: 8, 4 or 2.
        channels: of the hidden layers.
        num_convs: 3x3 convolutions at stride 8 (3; 2 in the real-time models) before the last one.
        norm: `bn`, `syncbn`, `gn` or `frozen_bn`; batch norm wants at least 4 images per device.
        aligned: enlarge P4 and P5 as CondInst does, see `aligned_bilinear`; False for bilinear sampling.

    Raises:
        ValueError: for another stride, or an unknown norm.

    Source: BlendMask (arXiv 2001.00309), AdelaiDet's behavior; no activation behind the last layer.
    """

    def __init__(
        self,
        in_channels: int,
        num_bases: int,
        stride: int = 4,
        *,
        channels: int = 128,
        num_convs: int = 3,
        norm: str = "bn",
        aligned: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (8, 4, 2):
            raise ValueError(f"bases of stride {stride}; allowed: 8, 4, 2 (basis_stride of the assembly)")
        self.num_bases = num_bases
        self.stride = stride
        self.aligned = aligned
        layer = partial(conv_norm_relu, out_channels=channels, norm=norm, part="basis head (model.basis.norm)")
        self.refine = nn.ModuleList(layer(in_channels) for _ in range(3))
        self.tower = nn.Sequential(*(layer(channels) for _ in range(num_convs)))
        self.upsampled = layer(channels)
        self.bases = nn.Conv2d(channels, num_bases, 1)
        nn.init.kaiming_uniform_(self.bases.weight, a=1)
        nn.init.zeros_(self.bases.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute the bases.

        Args:
            features: P3, P4, P5 and maybe more levels, which are not used.

        Returns:
            (N, num_bases, H / stride, W / stride) raw values.
        """
        x = self.refine[0](features[0])
        for refine, feature, factor in zip(self.refine[1:], features[1:3], (2, 4), strict=True):
            if self.aligned:
                x = x + aligned_bilinear(refine(feature), factor)[..., : x.shape[-2], : x.shape[-1]]
            else:
                x = x + F.interpolate(refine(feature), x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.tower(x)
        if self.stride < 8:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.bases(self.upsampled(x))
        return x if self.stride > 2 else F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def no_semantic(in_channels: int, num_classes: int) -> None:
    """Build no semantic head: the config's `semantic=none`."""
    return None


class SemanticHead(nn.Module):
    """Auxiliary per-pixel classification on P3, in training only.

    Args:
        in_channels: channels of the FPN.
        num_classes: C; background is one more.
        channels: of the hidden layers.
        norm: as in `BasisHead`.
        overlap: who owns a pixel of several instances: `smallest_area_wins` or `last_wins`.
        offset: which pixel of each stride-8 cell is sampled for the target; 4 is the center, 0 the published choice.

    Raises:
        ValueError: for an unknown overlap rule or norm.

    Source: BlendMask; the targets are derived from the instance masks, so no files beside the annotations are needed.
    """

    stride = 8

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 128,
        norm: str = "bn",
        overlap: str = "smallest_area_wins",
        offset: int = 4,
    ) -> None:
        super().__init__()
        if overlap not in ("smallest_area_wins", "last_wins"):
            raise ValueError(f"overlap={overlap!r}; allowed: smallest_area_wins, last_wins")
        self.overlap = overlap
        self.offset = offset
        part = "semantic head (model.semantic.norm, which follows model.basis.norm)"
        self.layers = nn.Sequential(
            conv_norm_relu(in_channels, channels, norm, part),
            conv_norm_relu(channels, channels, norm, part),
            nn.Conv2d(channels, num_classes + 1, 1),
        )
        nn.init.kaiming_uniform_(self.layers[-1].weight, a=1)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(N, C + 1, H / 8, W / 8) logits from P3."""
        return self.layers(features[0])

    @torch.no_grad()
    def target(self, images: ImageBatch, targets: Targets) -> Tensor:
        """Label map on the grid of P3.

        Returns:
            (N, H / 8, W / 8) int64: class + 1, 0 for background, 255 in crowds and padding.
        """
        cells = slice(self.offset, None, self.stride)
        masks = targets.masks[:, cells, cells]
        labels = torch.zeros_like(targets.crowd[:, cells, cells], dtype=torch.int64)
        order = range(len(targets))
        if self.overlap == "smallest_area_wins":
            order = masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist()
        for i in order:
            labels[int(targets.image_index[i])].masked_fill_(masks[i], int(targets.labels[i]) + 1)
        ignored = (targets.crowd[:, cells, cells] & (labels == 0)) | ~images.valid_area(self.stride)
        return labels.masked_fill(ignored, IGNORE)

    def loss(self, features: list[Tensor], images: ImageBatch, targets: Targets) -> Tensor:
        """Mean softmax cross-entropy over the pixels that are not ignored; 0 attached to the graph if all are."""
        logits = self(features).float()
        labels = self.target(images, targets)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / normalizer((labels != IGNORE).sum(), 1)
