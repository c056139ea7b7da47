"""What a whole model is to all that trains, evaluates, shows and times it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from b2inst.models.assembly.blend import Blend
from b2inst.models.backbone import Backbone
from b2inst.models.preset import Normalize
from b2inst.structures import Batch, Detections, ImageBatch


class Found(Protocol):
    """What is found in the images of a batch."""

    def detections(self) -> list[Detections]:
        """Of each image, best mask score first; no box is empty."""


@dataclass(frozen=True)
class Bases:
    """What the masks of one image are made of, on the CPU.

    Attributes:
        masks: (K, h, w) float32 mask bases, of the network input with its padding.
        boundary: (h, w) float32 logits of the boundary basis, of whatever class; None without one.
        class_boundary: (C, h, w) float32 logits of the boundary of each class; None where they are not told apart.
    """

    masks: Tensor
    boundary: Tensor | None
    class_boundary: Tensor | None


class Model(nn.Module, ABC):
    """A whole model: from images to losses, and to detections with masks in the frames of their boxes.

    What only some models have is asked for: a model without bases says so in `has_bases`, and gives None for them.

    Attributes:
        loss_names: keys of `loss_weights`.
        has_bases: whether masks are made of bases, which `bases` gives.
        has_boundary: whether one of these is a boundary basis.
        has_image_boundary: whether that one is learned from the boundary of the whole image.
        has_attention: whether they are mixed by attention, which `blends` gives.
        mask_size: side R of a mask, in its box.
        score_threshold: smallest class score of a candidate, a probability.
        detections_per_image: kept of each image at most.
    """

    loss_names: ClassVar[tuple[str, ...]]
    has_bases: bool = False
    has_boundary: bool = False
    has_image_boundary: bool = False
    has_attention: bool = False
    mask_size: int
    score_threshold: float
    detections_per_image: int

    def __init__(self, backbone: Backbone, loss_weights: Mapping[str, float]) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.preset)
        self.backbone = backbone
        self.loss_weights = dict(loss_weights)

    @abstractmethod
    def forward(self, images: ImageBatch) -> Any:
        """Run everything that looks at the whole image; the result is for the other methods."""

    @abstractmethod
    def losses(self, outputs: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All losses of a batch with targets, in training and in evaluation mode.

        Returns:
            Unweighted scalars by name, each attached to the graph; and statistics for the log, not to be optimized.

        Raises:
            ValueError: if the batch has no targets.
        """

    @abstractmethod
    def weights(self, epoch: int = 0) -> dict[str, float]:
        """Factor of every loss in the total, by the names that `losses` uses."""

    def total_loss(self, losses: Mapping[str, Tensor], epoch: int = 0) -> Tensor:
        """Weighted sum of the losses: the one place where weights are applied."""
        factors = self.weights(epoch)
        return torch.stack([factors[name] * value.float() for name, value in losses.items()]).sum()

    @abstractmethod
    def find(self, outputs: Any, images: ImageBatch) -> Found:
        """What is found in all images, in evaluation mode."""

    def detect(self, outputs: Any, images: ImageBatch) -> list[Detections]:
        """Instances of each image, in pixels of the network input, best mask score first; no box is empty."""
        return self.find(outputs, images).detections()

    @abstractmethod
    def threshold_for(self, score: float) -> float:
        """The `score_threshold` with which no detection of at least this score is lost."""

    # ---- what is shown ----------------------------------------------------------------------------------------------

    def bases(self, outputs: Any, index: int) -> Bases | None:
        """What the masks of one image of a batch are made of; None without bases."""
        return None

    def blends(self, outputs: Any, found: Any, instance: int = 0) -> list[Blend | None]:
        """How the mask of one instance of each image is put together; None without attention."""
        return [None] * len(found.detections())

    def export_problem(self) -> str | None:
        """Why `export_model.trace` cannot write this model down, and what to do; None where it can."""
        return f"a {type(self).__name__} cannot be exported; use it with b2inst.predict, or export a basis-based model"

    # ---- what is timed ----------------------------------------------------------------------------------------------

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The parts by name, in the order in which they run."""

    @abstractmethod
    def compile_parts(self) -> None:
        """Compile what looks at the whole image; the shapes of the rest change with every image."""

    @abstractmethod
    def candidate_scores(self, outputs: Any, images: ImageBatch) -> Tensor:
        """(S,) all the class scores of the first image, of which those above `score_threshold` are candidates."""

    def start_for_timing(self) -> None:
        """Give random weights boxes and masks of sizes like those of a trained model."""
