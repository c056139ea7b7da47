"""Backbones: torchvision's ResNets and MobileNetV2, cut to the four feature maps that an FPN may read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from b2inst.models.preset import Preset, get_preset
from b2inst.models.weights import load_backbone_weights, read_state_dict

log = logging.getLogger(__name__)

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "gn": partial(nn.GroupNorm, 32),
}
RESNET_DEPTHS = (18, 34, 50, 101)


class Backbone(nn.Module):
    """C2 to C5 (strides 4, 8, 16, 32): the last four stages of a classification network.

    Args:
        stages: stem and stages in order; `freeze_at` counts them.
        out_channels: channels of C2 to C5.
        preset: the conventions of the input.
        freeze_at: how many stages are fixed.

    Raises:
        ValueError: if there are fewer stages than are to be frozen.
    """

    def __init__(self, stages: list[nn.Module], out_channels: list[int], preset: Preset, freeze_at: int) -> None:
        super().__init__()
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(f"freeze_at={freeze_at}: must be between 0 (train all) and {len(stages)} (freeze all)")
        self.stages = nn.ModuleList(stages)
        self.out_channels = out_channels
        self.preset = preset
        self.freeze_at = freeze_at
        for stage in stages[:freeze_at]:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but frozen stages keep their batch norm statistics."""
        super().train(mode)
        for stage in self.stages[: self.freeze_at]:
            stage.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features.

        Args:
            x: (N, 3, H, W) normalized images, H and W multiples of 32.

        Returns:
            C2 to C5: (N, C, H / s, W / s) for s = 4, 8, 16, 32.
        """
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-4:]


def _norm(name: str) -> Callable[[int], nn.Module]:
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r} of a backbone; allowed: {', '.join(NORMS)}")
    return NORMS[name]


def _load(body: nn.Module, weights: str | None, allow_missing: bool, imagenet: Callable[[], dict[str, Tensor]]) -> None:
    """Fill a body from ImageNet weights, a file, or not at all; a random start is never silent."""
    remedy = (
        "Choose one of: model.backbone.weights=imagenet (downloads torchvision's weights once), "
        "model.backbone.weights=/path/to/file.pth (a local state dict with torchvision's names), "
        "model.backbone.weights=null (an explicit random start)."
    )
    if weights is None:
        log.info("backbone starts at random (model.backbone.weights=null)")
        return
    if weights == "imagenet":
        try:
            state = imagenet()
        except Exception as error:  # the hub raises anything from URLError to RuntimeError
            raise RuntimeError(f"ImageNet weights could not be had: {error}. {remedy}") from error
        source = "torchvision (ImageNet)"
    else:
        try:
            state = read_state_dict(weights)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. {remedy}") from error
        source = weights
    load_backbone_weights(body, state, source, allow_missing)


class ResNet(Backbone):
    """torchvision's ResNet without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        norm: `frozen_bn` (statistics and affine fixed), `bn`, or `gn` (32 groups; for training from scratch).
        freeze_at: how many of stem, layer1 ... layer4 are fixed; 2 is the usual choice with ImageNet weights.
        preset: `torchvision`, `msra` or `yolact`: channel order, mean/std and stride placement as one.
        weights: `imagenet`, the path of a state dict with torchvision's names, or None for a random start.
        allow_missing: accept a file that lacks some layers; they start at random.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: for unknown options or weights that cannot be had.
    """

    def __init__(
        self,
        depth: int = 50,
        norm: str = "frozen_bn",
        freeze_at: int = 2,
        preset: str = "torchvision",
        weights: str | None = "imagenet",
        allow_missing: bool = False,
    ) -> None:
        if depth not in RESNET_DEPTHS:
            raise ValueError(f"depth={depth}: torchvision ResNets here are {RESNET_DEPTHS}")
        conventions = get_preset(preset)
        body = getattr(torchvision.models, f"resnet{depth}")(weights=None, norm_layer=_norm(norm))
        del body.fc
        if conventions.stride_in_1x1 and depth >= 50:
            for layer in (body.layer2, body.layer3, body.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        weights_enum = getattr(torchvision.models, f"ResNet{depth}_Weights").IMAGENET1K_V1
        _load(body, weights, allow_missing, lambda: weights_enum.get_state_dict(progress=True, check_hash=True))
        stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        width = 64 if depth < 50 else 256
        stages = [stem, body.layer1, body.layer2, body.layer3, body.layer4]
        super().__init__(stages, [width * 2**i for i in range(4)], conventions, freeze_at)


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2 (width 1.0) without its last 1x1 convolution and classifier: the light backbone.

    Args:
        norm: as in `ResNet`; `gn` is not offered, its channel counts do not divide by 32.
        freeze_at: how many of the five stages (strides 2, 4, 8, 16, 32) are fixed.
        preset: `torchvision` only; there are no other weights.
        weights: as in `ResNet`.
        allow_missing: as in `ResNet`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: for unknown options or weights that cannot be had.
    """

    # Where a stage ends in torchvision's list of blocks: the last block before the next stride.
    ENDS = (2, 4, 7, 14, 18)

    def __init__(
        self,
        norm: str = "frozen_bn",
        freeze_at: int = 2,
        preset: str = "torchvision",
        weights: str | None = "imagenet",
        allow_missing: bool = False,
    ) -> None:
        if norm == "gn" or preset != "torchvision":
            raise ValueError("MobileNetV2 has norm=frozen_bn|bn and preset=torchvision only")
        body = torchvision.models.mobilenet_v2(weights=None, norm_layer=_norm(norm))
        weights_enum = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
        del body.classifier
        _load(body, weights, allow_missing, lambda: weights_enum.get_state_dict(progress=True, check_hash=True))
        starts = (0, *self.ENDS[:-1])
        stages = [body.features[a:b] for a, b in zip(starts, self.ENDS, strict=True)]
        super().__init__(stages, [24, 32, 96, 320], get_preset(preset), freeze_at)
