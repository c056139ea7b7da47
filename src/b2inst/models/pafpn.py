"""Path aggregation: an FPN with a second way, from its lowest level up."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from b2inst.models.fpn import FPN, NORMS, PaddedConv, top_block


class PAFPN(FPN):
    """PANet's pyramid: what the lowest level shows reaches the higher ones in a few convolutions.

    The lowest level N is P itself. Each further one is a 3x3 convolution over the sum of its P and of a 3x3
    convolution of stride 2 over the N below; all of these are followed by a ReLU. The levels above the fifth are made
    of N5.

    Args:
        in_channels, channels, top_levels, norm, lowest, top: as in `FPN`; the norm is behind the new convolutions too.

    Raises:
        ValueError: as in `FPN`.

    Source: PANet (arXiv 1803.01534), section 3.1.
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
        super().__init__(in_channels, channels, 0, norm, lowest)
        self.top_levels = top_levels
        self.strides = [self.strides[0] * 2**i for i in range(self.maps + top_levels)]
        self.down = nn.ModuleList(_conv(channels, 2, norm) for _ in range(self.maps - 1))
        self.out = nn.ModuleList(_conv(channels, 1, norm) for _ in range(self.maps - 1))
        self.top = top_block(top, channels, top_levels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Build the pyramid; see `FPN.forward`."""
        lowest, *others = super().forward(features)
        levels = [lowest]
        for level, down, out in zip(others, self.down, self.out, strict=True):
            levels.append(F.relu(out(level + F.relu(down(levels[-1])))))
        if self.top is not None:
            levels, _ = self.top(levels, features, [""] * len(levels))
        return levels


def _conv(channels: int, stride: int, norm: str) -> nn.Sequential:
    """A 3x3 convolution, starting as those of torchvision's FPN do, and its norm, if there is one."""
    layer = NORMS[norm]
    conv = PaddedConv(channels, channels, 3, stride, padding=1, bias=layer is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, *([] if layer is None else [layer(channels)]))
