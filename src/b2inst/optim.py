"""The optimizer with its parameter groups, and the learning rate over the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class OptimizerFactory:
    """Builds the optimizer of a module.

    Args:
        optimizer: called with parameter groups and `lr`.
        lr: learning rate for `reference_batch` images a step.
        reference_batch: images a step that `lr` is meant for.
        norm_weight_decay: weight decay of the norm layers' parameters.
    """

    def __init__(
        self, optimizer: Callable[..., Optimizer], lr: float, reference_batch: int, norm_weight_decay: float = 0.0
    ) -> None:
        self.optimizer = optimizer
        self.lr = lr
        self.reference_batch = reference_batch
        self.norm_weight_decay = norm_weight_decay

    def __call__(self, module: nn.Module, effective_batch: int) -> Optimizer:
        """Build it, with the learning rate scaled linearly to the images of one optimizer step."""
        lr = self.lr * effective_batch / self.reference_batch
        log.info("learning rate %.6g = %.6g * %d / %d (effective batch / reference batch)",
                 lr, self.lr, effective_batch, self.reference_batch)  # fmt: skip
        norms = {id(p) for layer in module.modules() if isinstance(layer, NORM_LAYERS) for p in layer.parameters()}
        trained = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in norms]},
            {"params": [p for p in trained if id(p) in norms], "weight_decay": self.norm_weight_decay},
        ]
        return self.optimizer([group for group in groups if group["params"]], lr=lr)


class Schedule:
    """Linear warm-up, then steps or a cosine; everything counted in optimizer steps.

    Args:
        steps: of the whole run.
        milestones: steps after which the rate is multiplied by `gamma` (decay `step`).
        gamma: that factor.
        decay: `step` or `cosine` (to 0 at the end of the run).
        warmup_steps: length of the warm-up.
        warmup_factor: share of the learning rate at step 0.

    Raises:
        ValueError: for an unknown decay, or milestones that are out of order or behind the end.
    """

    def __init__(
        self,
        steps: int,
        milestones: list[int],
        gamma: float = 0.1,
        decay: str = "step",
        warmup_steps: int = 1000,
        warmup_factor: float = 0.001,
    ) -> None:
        if decay not in ("step", "cosine"):
            raise ValueError(f"schedule.decay={decay!r}; allowed: step, cosine")
        if list(milestones) != sorted(milestones) or any(m >= steps for m in milestones):
            raise ValueError(f"schedule.milestones={list(milestones)}: must ascend and lie before steps={steps}")
        self.steps = steps
        self.milestones = list(milestones)
        self.gamma = gamma
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    def factor(self, step: int) -> float:
        """Factor of the learning rate at an optimizer step, counted from 0."""
        if self.decay == "cosine":
            progress = max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            value = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        else:
            value = self.gamma ** sum(step >= m for m in self.milestones)
        if step >= self.warmup_steps:
            return value
        start = self.warmup_factor
        return value * (start + (1 - start) * step / self.warmup_steps)

    def __call__(self, optimizer: Optimizer) -> LambdaLR:
        """The scheduler, to be stepped once per optimizer step."""
        return LambdaLR(optimizer, self.factor)
