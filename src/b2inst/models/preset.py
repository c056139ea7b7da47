"""What an image has to look like for a backbone: channel order, mean and deviation, bound to the stride placement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from b2inst.structures import ImageBatch


@dataclass(frozen=True)
class Preset:
    """The conventions that a set of backbone weights was trained with; they only make sense together.

    Attributes:
        channels: `"RGB"` or `"BGR"`, the order the first convolution expects.
        mean: per channel, in that order, in 0..255.
        std: per channel, in that order, in 0..255.
        stride_in_1x1: whether the first 1x1 convolution of a bottleneck carries its stride (else the 3x3 one).
    """

    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride_in_1x1: bool


PRESETS = {
    "torchvision": Preset("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), stride_in_1x1=False),
    "msra": Preset("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), stride_in_1x1=True),
    # The first one, rounded otherwise: for YOLACT's own weights to see what they were trained with.
    "yolact": Preset("RGB", (123.68, 116.78, 103.94), (58.40, 57.12, 57.38), stride_in_1x1=False),
}


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        ValueError: if there is none of that name; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]


class Normalize(nn.Module):
    """Turns a uint8 batch into the network's input; the padding stays exactly 0 after normalization."""

    mean: Tensor
    std: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.flip_channels = preset.channels == "BGR"
        self.register_buffer("mean", torch.tensor(preset.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std).view(3, 1, 1), persistent=False)

    def forward(self, images: ImageBatch) -> Tensor:
        """Normalize.

        Returns:
            (N, 3, H, W) float32.
        """
        pixels = images.pixels.to(self.mean.dtype)
        if self.flip_channels:
            pixels = pixels.flip(1)
        normalized = (pixels - self.mean) / self.std
        return normalized * images.valid_area()[:, None]
