"""Feature pyramid network, P3 to P7."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

NORMS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "gn": partial(nn.GroupNorm, 32),
    "bn": nn.BatchNorm2d,
}


class PaddedConv(nn.Conv2d):
    """A convolution whose padding is written out.

    PyTorch 2.14 on a CPU leaves parts of the weight gradient unset where a bfloat16 3x3 convolution of stride 2 pads a
    map of one cell itself: P6 of an image of at most 64 pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pad with 0 and convolve."""
        vertical, horizontal = self.padding
        return F.conv2d(F.pad(x, (horizontal, horizontal, vertical, vertical)), self.weight, self.bias, self.stride)


class _TopBlock(ExtraFPNBlock):
    """P6 and P7 from P5: 3x3 convolutions of stride 2, with a ReLU in front of P7's only."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(PaddedConv(channels, channels, 3, stride=2, padding=1) for _ in range(levels))
        for conv in self.convs:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        top = results[-1]
        for i, conv in enumerate(self.convs):
            top = conv(F.relu(top) if i else top)
            results.append(top)
            names.append(f"p{6 + i}")
        return results, names


class FPN(nn.Module):
    """torchvision's FPN on C3 to C5 (nearest up-sampling, sum), with further levels from P5.

    Args:
        in_channels: channels of C3, C4 and C5.
        channels: channels of every level.
        top_levels: levels above P5, 2 for P3 to P7.
        norm: `none` (as published), `gn` or `bn` after each convolution; helps when training from scratch.

    Raises:
        ValueError: for an unknown norm.
    """

    def __init__(self, in_channels: list[int], channels: int = 256, top_levels: int = 2, norm: str = "none") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the FPN; allowed: {', '.join(NORMS)}")
        self.channels = channels
        self.strides = [8 * 2**i for i in range(3 + top_levels)]
        self.top_levels = top_levels
        top = _TopBlock(channels, top_levels) if top_levels else None
        self.pyramid = FeaturePyramidNetwork(in_channels, channels, extra_blocks=top, norm_layer=NORMS[norm])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Build the pyramid.

        Args:
            features: C3, C4, C5.

        Returns:
            P3, P4, ...: (N, channels, H / s, W / s) for the strides s, rounded up.
        """
        named = OrderedDict((f"p{3 + i}", f) for i, f in enumerate(features))
        return list(self.pyramid(named).values())
