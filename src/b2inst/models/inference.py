"""Switches that make a trained model faster without changing what it finds."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from b2inst.models.base import Model

PRECISIONS = ("32", "bf16")


@dataclass(frozen=True)
class Switches:
    """How a model runs at test time. The defaults were chosen by measurement on a CPU, see docs/performance.md.

    Args:
        fold_batch_norm: multiply fixed batch norms into the convolutions in front of them.
        channels_last: memory format of the convolutions.
        precision: `32`, or `bf16` for autocast to bfloat16, which moves scores and masks a little.
        compile: compile backbone, FPN and heads with `torch.compile`; takes a minute at the first image of each size.

    Raises:
        ValueError: for an unknown precision.
    """

    fold_batch_norm: bool = True
    channels_last: bool = True
    precision: str = "32"
    compile: bool = False

    def __post_init__(self) -> None:
        if str(self.precision) not in PRECISIONS:
            raise ValueError(f"precision={self.precision}: give one of {', '.join(PRECISIONS)}")

    def prepare(self, model: Model) -> Model:
        """A copy of the model in evaluation mode, with the switches set."""
        model = copy.deepcopy(model).eval()
        if self.fold_batch_norm:
            fold_batch_norm(model)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.compile:
            model.compile_parts()
        return model

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context to run the model in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=str(self.precision) == "bf16")


def fold_batch_norm(model: nn.Module) -> None:
    """Multiply batch norms with fixed statistics into the convolutions that stand right before them, in place.

    A norm belongs to a convolution if it is the next child of the same module, as in all models here; a layer with
    another order of children than of calls must not be given.

    Args:
        model: in evaluation mode.
    """
    for parent in model.modules():
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(before, nn.Conv2d) and isinstance(
                child, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
            ):
                before.weight, before.bias = fuse_conv_bn_weights(
                    before.weight, before.bias, child.running_mean, child.running_var, child.eps, child.weight,
                    child.bias,
                )  # fmt: skip
                setattr(parent, name, nn.Identity())
            before = child
