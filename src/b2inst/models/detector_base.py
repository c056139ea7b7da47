"""What all detectors have in common: the places that they find, and what the segmenter asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from b2inst.ops.points import conv3x3_at
from b2inst.structures import Targets


@dataclass(frozen=True)
class Locations:
    """P places on the pyramid that stand for an instance: positives in training, kept detections at test time.

    Attributes:
        level, image, y, x: (P,) int64, the cell.
        boxes: (P, 4) predicted XYXY in pixels of the network input, not clipped.
        labels: (P,) int64 class, true in training, predicted at test time.
        scores: (P,) float32: class score at test time; weight of the location in training.
        instance: (P,) int64 index into the instances of the batch; None at test time.
        anchor: (P,) int64, which anchor of the cell; None for a detector with one place per cell.
    """

    level: Tensor
    image: Tensor
    y: Tensor
    x: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    instance: Tensor | None = None
    anchor: Tensor | None = None

    def __len__(self) -> int:
        return len(self.level)

    def take(self, index: Tensor) -> Locations:
        """The locations at `index`, in that order."""
        return Locations(**{k: None if v is None else v[index] for k, v in vars(self).items()})


class DetectorOutputs(Protocol):
    """What a detector keeps of a pass; a detector adds what it predicts.

    Attributes:
        tower: of each level (N, F, h, w) features; the mask parameters are read from them where needed.
    """

    @property
    def tower(self) -> list[Tensor]: ...  # noqa: D102


O = TypeVar("O", bound=DetectorOutputs)  # noqa: E741


class Detector(nn.Module, Generic[O]):
    """One-stage detector, shared over the levels of a pyramid, that predicts the parameters of each mask as well.

    A detector gives its raw outputs (`forward`), its losses and positives (`losses`) and what it finds (`select`);
    where it can be exported, it also selects without Python's loops over images (`select_in_graph`). Mask parameters
    are one 3x3 convolution on the tower, evaluated at chosen places alone.

    Args:
        num_classes: C.
        strides: of the levels, in pixels.
        sizes_of_interest: upper ends in pixels of the sizes of the objects that each level but the last is for.
        num_anchors: places per cell.

    Attributes:
        params: the layer that predicts the mask parameters, anchor by anchor; None without any. The detector makes it.
        score_threshold: smallest class probability that `select` looks at; users change it.
        detections_per_image: most that `select` keeps.

    Raises:
        ValueError: for a number of sizes that does not fit the levels.
    """

    params: nn.Conv2d | None
    score_threshold: float
    detections_per_image: int

    def __init__(
        self, num_classes: int, strides: list[int], sizes_of_interest: Sequence[float], num_anchors: int = 1
    ) -> None:
        super().__init__()
        if len(sizes_of_interest) != len(strides) - 1:
            raise ValueError(
                f"sizes_of_interest={list(sizes_of_interest)}: {len(strides)} levels need {len(strides) - 1} borders"
            )
        self.num_classes = num_classes
        self.strides = strides
        self.num_anchors = num_anchors
        borders = [-1.0, *map(float, sizes_of_interest)]
        self.reaches = [*borders[1:], 2 * borders[-1]]

    def forward(self, features: list[Tensor]) -> O:
        """Run the head on every level, (N, in_channels, h, w) each."""
        raise TypeError(f"{type(self).__name__} has to define forward()")

    def losses(self, outputs: O, targets: Targets) -> tuple[dict[str, Tensor], Locations, Tensor]:
        """Losses of classes and boxes.

        Returns:
            Unweighted scalars by name, of `cls`, `box` and `quality`; the positives, with their weight in the losses
            of the masks as score; and the sum of these weights (mean over processes), by which per-positive losses are
            divided.
        """
        raise TypeError(f"{type(self).__name__} has to define losses()")

    def select(self, outputs: O) -> Locations:
        """The detections of all images, image by image, best first."""
        raise TypeError(f"{type(self).__name__} has to define select()")

    def select_in_graph(self, outputs: O) -> Locations:
        """As `select`, from operations that a graph can hold; detections of different images may be mixed."""
        raise TypeError(f"{type(self).__name__} has no select_in_graph(), so it cannot be exported")

    def threshold_for(self, score: float) -> float:
        """The `score_threshold` with which no detection of at least this score is lost."""
        raise TypeError(f"{type(self).__name__} has to define threshold_for()")

    def candidate_scores(self, outputs: O) -> Tensor:
        """(S,) of the first image all that is compared with `score_threshold`."""
        raise TypeError(f"{type(self).__name__} has to define candidate_scores()")

    def start_for_timing(self) -> None:
        """Give random weights boxes of sizes like those of a trained model."""
        raise TypeError(f"{type(self).__name__} has to define start_for_timing()")

    def params_at(self, outputs: O, places: Locations) -> Tensor:
        """Mask parameters at given places, (P, num_params); the layer is not evaluated elsewhere."""
        if self.params is None:
            return places.boxes.new_zeros(len(places), 0)
        values, order = [], []
        for level, tower in enumerate(outputs.tower):
            index = (places.level == level).nonzero(as_tuple=True)[0]
            values.append(conv3x3_at(self.params, tower, places.image[index], places.y[index], places.x[index]))
            order.append(index)
        found = torch.cat(values)
        # As many rows as places: a sum of counts per level would be another number to the exporter.
        found = found.new_zeros(places.level.shape[0], found.shape[1]).index_copy(0, torch.cat(order), found)
        if places.anchor is None:
            return found
        found = found.unflatten(1, (self.num_anchors, -1))  # [P, A, num_params]
        return found.gather(1, places.anchor[:, None, None].expand(-1, 1, found.shape[2]))[:, 0]

    def param_biases(self) -> list[Tensor]:
        """Of each anchor of a cell the bias (num_params,) of its mask parameters: views, to set their start."""
        return [] if self.params is None else list(self.params.bias.detach().chunk(self.num_anchors))

    def origins(self, places: Locations) -> tuple[Tensor, Tensor]:
        """Where places are, and the objects that they are for.

        Returns:
            (P, 2) their locations, (x, y) in pixels of the network input; and (P,) the upper end in pixels of the
            sizes of interest of their level, for the last one, which has none, twice the lower end.
        """
        device = places.level.device
        stride = torch.tensor(self.strides, device=device)[places.level]
        reach = torch.tensor(self.reaches, device=device)[places.level]
        cells = torch.stack([places.x, places.y], dim=1)
        return (cells * stride[:, None] + stride[:, None] // 2).float(), reach


def flatten(levels: list[Tensor]) -> Tensor:
    """(N, L, C) from (N, C, h, w) of every level: place by place, in the order of `b2inst.ops.points.locations`."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)
