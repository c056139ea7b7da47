"""Feature pyramid network, P2 or P3 to P7."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

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


def top_block(top: str, channels: int, levels: int) -> ExtraFPNBlock | None:
    """What makes the levels above the last one, None if there are none; see `FPN`.

    Raises:
        ValueError: for an unknown kind, or several levels of `pool`.
    """
    if top not in ("conv", "pool"):
        raise ValueError(f"unknown top {top!r} of the FPN; allowed: conv, pool")
    if not levels:
        return None
    if top == "conv":
        return _TopBlock(channels, levels)
    if levels > 1:
        raise ValueError(f"top_levels={levels}: top=pool makes one level; give 1 or 0, or top=conv")
    return LastLevelMaxPool()


class FPN(nn.Module):
    """torchvision's FPN on C3 to C5 or C2 to C5 (nearest up-sampling, sum), with further levels from P5.

    Args:
        in_channels: channels of the feature maps of the backbone, that of C5 last.
        channels: channels of every level.
        top_levels: levels above P5, 2 for P3 to P7.
        norm: `none` (as published), `gn` or `bn` after each convolution; helps when training from scratch.
        lowest: 3 to begin with P3, which basis-based models want, or 2 with P2.
        top: what makes the levels above P5: `conv`, or `pool` for every other cell of P5, one level (Mask R-CNN).

    Raises:
        ValueError: for an unknown norm or top, or a lowest level or number of levels that cannot be.
    """

    def __init__(
        self,
        in_channels: list[int],
        channels: int = 256,
        top_levels: int = 2,
        norm: str = "none",
        lowest: int = 3,
        top: str = "conv",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the FPN; allowed: {', '.join(NORMS)}")
        if lowest not in (2, 3):
            raise ValueError(f"lowest={lowest}: the FPN begins with P2 or P3; give 2 or 3")
        self.channels = channels
        self.top_levels = top_levels
        self.strides = [2 ** (lowest + i) for i in range(6 - lowest + top_levels)]
        self.maps = 6 - lowest  # of the backbone, the last ones
        self.pyramid = FeaturePyramidNetwork(
            in_channels[-self.maps :], channels, extra_blocks=top_block(top, channels, top_levels),
            norm_layer=NORMS[norm],
        )  # fmt: skip

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Build the pyramid.

        Args:
            features: of the backbone, C5 last.

        Returns:
            P3, P4, ... or P2, P3, ...: (N, channels, H / s, W / s) for the strides s, rounded up.
        """
        named = OrderedDict((str(i), f) for i, f in enumerate(features[-self.maps :]))
        return list(self.pyramid(named).values())
