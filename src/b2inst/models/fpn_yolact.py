"""YOLACT's feature pyramid network, P3 to P7."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.models.fpn import NORMS, PaddedConv


class YolactFPN(nn.Module):
    """Bilinear up-sampling and sum, a ReLU behind each level, further levels from P5 without one between them.

    Args:
        in_channels: channels of the feature maps of the backbone, those of C3, C4 and C5 last.
        channels: channels of every level.
        top_levels: levels above P5, 2 for P3 to P7.
        norm: `none` (as published), `gn` or `bn` in front of each ReLU; helps when training from scratch.

    Raises:
        ValueError: for an unknown norm.

    Source: the behavior of YOLACT's public code.
    """

    def __init__(self, in_channels: list[int], channels: int = 256, top_levels: int = 2, norm: str = "none") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the FPN; allowed: {', '.join(NORMS)}")
        self.channels = channels
        self.strides = [8 * 2**i for i in range(3 + top_levels)]
        self.lateral = nn.ModuleList(nn.Conv2d(given, channels, 1) for given in in_channels[-3:])
        self.outputs = nn.ModuleList(_output(channels, norm) for _ in range(3))
        self.top = nn.ModuleList(PaddedConv(channels, channels, 3, stride=2, padding=1) for _ in range(top_levels))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Build the pyramid.

        Args:
            features: of the backbone, C3, C4 and C5 last.

        Returns:
            P3, P4, ...: (N, channels, H / s, W / s) for the strides s, rounded up.
        """
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features[-3:], strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            larger = F.interpolate(merged[i + 1], merged[i].shape[-2:], mode="bilinear", align_corners=False)
            merged[i] = merged[i] + larger
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        for conv in self.top:
            levels.append(conv(levels[-1]))
        return levels


def _output(channels: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1)]
    make = NORMS[norm]
    if make is not None:
        layers.append(make(channels))
    return nn.Sequential(*layers, nn.ReLU())
