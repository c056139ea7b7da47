"""YOLACT's protonet: the prototypes of the whole image, from P3 alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.models.basis import NORMS


class YolactProtonet(nn.Module):
    """Convolutions at stride 8, up-sampling to stride 4, one more, 1x1 to the prototypes.

    The ReLU behind the prototypes is in the assembly `linear`, so that a boundary basis can be supervised in front of
    it. At stride 8 nothing is up-sampled; at stride 2 the prototypes are, once more.

    Args:
        in_channels: channels of the FPN.
        num_bases: outputs: K prototypes and, after them, the boundary basis if there is one.
        stride: of the prototypes: 8, 4 or 2.
        channels: of the hidden layers.
        num_convs: 3x3 convolutions at stride 8 before the last one.
        norm: `none` (as published: convolutions with a bias), `bn`, `syncbn`, `gn` or `frozen_bn`.

    Raises:
        ValueError: for another stride or norm.

    Source: YOLACT (arXiv 1904.02689), section 3.1 and figure 3.
    """

    def __init__(
        self, in_channels: int, num_bases: int, stride: int = 4, *, channels: int = 256, num_convs: int = 3,
        norm: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        if stride not in (8, 4, 2):
            raise ValueError(f"bases of stride {stride}; allowed: 8, 4, 2 (basis_stride of the assembly)")
        if norm not in ("none", *NORMS):
            raise ValueError(f"unknown norm {norm!r} of the protonet; allowed: none, {', '.join(NORMS)}")
        self.num_bases = num_bases
        self.stride = stride
        given = [in_channels, *[channels] * num_convs]
        self.tower = nn.Sequential(*(_layer(count, channels, norm) for count in given[:-1]))
        self.upsampled = _layer(given[-1], channels, norm)
        self.bases = nn.Conv2d(channels, num_bases, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute the prototypes.

        Args:
            features: P3, and more levels, which are not used.

        Returns:
            (N, num_bases, H / stride, W / stride) raw values.
        """
        x = self.tower(features[0])
        if self.stride < 8:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.bases(self.upsampled(x))
        return x if self.stride > 2 else F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _layer(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm == "none")
    return nn.Sequential(conv, *([] if norm == "none" else [NORMS[norm](out_channels)]), nn.ReLU())
