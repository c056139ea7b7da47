"""The models that are measured, each behind the same two calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from b2inst.bench import peers
from b2inst.bench.setting import CLASSES, Setting, Spec, labelled, noise
from b2inst.config import CHECKPOINT_TARGETS, build
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.lit import LitSegmenter
from b2inst.models.base import Found, Model
from b2inst.ops.masks import masks_to_rle


class Subject(Protocol):
    """Something to be timed.

    Attributes:
        model: for the number of parameters.
        stages: its parts by name, in the order in which they run.
    """

    model: nn.Module
    stages: dict[str, nn.Module]

    def network(self) -> Any:
        """Run the model: to detections and mask logits, or to a loss."""

    def finish(self, found: Any) -> int:
        """Masks in image pixels, or the backward pass and the step; returns the number of detections, or 0."""


def make(spec: Spec) -> Subject:
    """Build a subject, the same from the same spec."""
    torch.manual_seed(spec.setting.seed)
    if spec.model is None and spec.ckpt is None:
        model = peers.build(spec.name, spec.setting)
        return TorchvisionTraining(model, spec.setting) if spec.train else TorchvisionDetection(model, spec.setting)
    if spec.train:
        model = build({**spec.model, "num_classes": CLASSES}, CHECKPOINT_TARGETS, at="model")
        return OurTraining(model, build(spec.optim, CHECKPOINT_TARGETS), spec.setting)
    if spec.ckpt is not None:
        return OurDetection(LitSegmenter.from_checkpoint(spec.ckpt).model, spec.setting, calibrate=False)
    return OurDetection(build({**spec.model, "num_classes": CLASSES}, CHECKPOINT_TARGETS, at="model"), spec.setting)


class _Stage(nn.Module):
    """A function as a stage that can be timed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class OurDetection:
    """One of our models from uint8 pixels to RLEs, as `B2Inst` runs it.

    Args:
        model: as it was built.
        setting: the work.
        calibrate: give random weights boxes and scores like those of a trained model.
    """

    def __init__(self, model: Model, setting: Setting, calibrate: bool = True) -> None:
        if calibrate:
            model.start_for_timing()
        self.switches = setting.switches
        self.device = torch.device(setting.device)
        self.model = self.switches.prepare(model).to(self.device)
        self.model.detections_per_image = setting.detections
        self.images = noise(setting)
        self.stages = self.model.stages()
        if calibrate:
            self._calibrate(setting.candidates)

    @torch.inference_mode()
    def _calibrate(self, candidates: int) -> None:
        scores = self.model.candidate_scores(self.model(self.images), self.images)
        self.model.score_threshold = peers.kth_largest(scores, candidates)

    @torch.inference_mode()
    def network(self) -> Found:
        """Find the instances."""
        with self.switches.autocast(self.device):
            return self.model.find(self.model(self.images), self.images)

    @torch.inference_mode()
    def finish(self, found: Found) -> int:
        """Masks to RLE at the size of the image."""
        count = 0
        for detections in found.detections():
            detections = detections.to("cpu")
            probs = detections.mask_logits.float().sigmoid()
            count += len(list(masks_to_rle(probs, detections.boxes, *detections.size)))
        return count


class TorchvisionDetection:
    """A detector of torchvision from pixels to boolean masks of the size of the image; RLEs are not made of them."""

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.model = model.eval().to(setting.device)
        pixels = noise(setting).pixels[:, :, : setting.height, : setting.width]
        self.images = [image.float() / 255 for image in pixels]
        self.stages = peers.stages(model)
        peers.calibrate(model, lambda: model(self.images[:1]), setting.candidates)

    @torch.inference_mode()
    def network(self) -> list[dict[str, Tensor]]:
        """Find the instances; masks are pasted in here."""
        return self.model(self.images)

    def finish(self, found: list[dict[str, Tensor]]) -> int:
        """Binarize the masks, as every user has to."""
        for result in found:
            if "masks" in result:
                result["masks"] = result["masks"] > 0.5
        return sum(len(result["boxes"]) for result in found)


class OurTraining:
    """A training step of one of our models, the boundary target included.

    Args:
        model: as it was built.
        optimizer: called with the model and the images of a step.
        setting: the work.
    """

    def __init__(
        self, model: Model, optimizer: Callable[[nn.Module, int], torch.optim.Optimizer], setting: Setting
    ) -> None:
        switches = setting.switches
        self.model = model.train().to(setting.device)
        if switches.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if switches.compile:
            self.model.compile_parts()
        self.batch = labelled(setting)
        self.target, self.losses = _Stage(BoundaryTarget()), _Stage(self.model.losses)
        self.stages = {"boundary target": self.target, **self.model.stages(), "losses": self.losses}
        self.optimizer = optimizer(self.model, setting.batch_size)
        self.autocast = partial(switches.autocast, torch.device(setting.device))

    def network(self) -> Tensor:
        """Boundary target, forward pass, losses."""
        batch = self.target(self.batch)
        with self.autocast():
            losses, _ = self.losses(self.model(batch.images), batch)
        return self.model.total_loss(losses)

    def finish(self, loss: Tensor) -> int:
        """Backward pass and step."""
        return _step(loss, self.optimizer)


class TorchvisionTraining:
    """A training step of a detector of torchvision, with the same objects and SGD."""

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.model = model.train().to(setting.device)
        batch = labelled(setting)
        valid = (slice(None), slice(setting.height), slice(setting.width))
        self.images = [image[valid].float() / 255 for image in batch.images.pixels]
        targets = batch.targets
        self.targets = [
            {
                "boxes": targets.boxes[targets.image_index == n],
                "labels": targets.labels[targets.image_index == n] + 1,
                "masks": targets.masks[targets.image_index == n][valid].to(torch.uint8),
            }
            for n in range(setting.batch_size)
        ]
        self.stages = peers.stages(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.autocast = partial(setting.switches.autocast, torch.device(setting.device))

    def network(self) -> Tensor:
        """Forward pass and losses."""
        with self.autocast():
            return torch.stack(list(self.model(self.images, self.targets).values())).sum()

    def finish(self, loss: Tensor) -> int:
        """Backward pass and step."""
        return _step(loss, self.optimizer)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer) -> int:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return 0
