"""What `Segmenter` knows of its smaller parts; the larger ones say that in `*_base.py` and `assembly/base.py`.

A class fits by having these attributes and methods, without deriving from anything here.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from b2inst.structures import ImageBatch, Targets


class Compilable(Protocol):
    """A module, as far as its speed is concerned."""

    def compile(self) -> None:
        """See `nn.Module.compile`."""


class Pyramid(Compilable, Protocol):
    """A module of the group `fpn`.

    Attributes:
        channels: of every level.
        strides: of the levels, 8 first.
    """

    channels: int
    strides: list[int]

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        """P3, P4, ...: (N, channels, H / s, W / s) for the strides s, rounded up, from C3, C4, C5 of the backbone."""


class BasisNet(Compilable, Protocol):
    """A module of the group `basis`.

    Attributes:
        bases: its last convolution, whose output channels are the B bases.
    """

    bases: nn.Conv2d

    def __call__(self, features: list[Tensor]) -> Tensor:
        """(N, B, H / stride, W / stride) raw values from the levels of the pyramid."""


class AuxiliaryHead(Protocol):
    """A module of the group `semantic`, which is there for its loss in training alone."""

    def loss(self, features: list[Tensor], images: ImageBatch, targets: Targets) -> Tensor:
        """Unweighted scalar, attached to the graph, from the levels of the pyramid and the truth of the images."""
