"""Settings that are new in a run which goes on from a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)


class Resumed(pl.Callback):
    """Makes a run that goes on do what its own settings say, where Lightning takes those of the checkpoint.

    Lightning stores the learning rate, its schedule's rate and all numbers of the optimizer with its state, and loads
    them back over the ones that were given. Here the given ones win: the rate is that of the given schedule at the
    step. With the same settings that changes no bit.

    A run with `callbacks=ema` stores the average as its weights, and those that are trained apart. Without
    `callbacks=ema` the run goes on with the trained ones: the state of the optimizer belongs to them, and the average
    would be a jump to other weights.
    """

    def __init__(self) -> None:
        self._given: list[dict[str, Any]] = []

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the trained weights where nothing asks for the average."""
        averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            pl_module.load_state_dict(checkpoint["current_model_state"])
            log.warning(
                "the checkpoint is of a run with callbacks=ema, this one is without: it goes on with the weights that "
                "were trained, and their average ends here; add callbacks=ema to go on with both"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the numbers of the new optimizers, before those of the checkpoint are loaded."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._given = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back, and set the learning rate of the step."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, given in zip(groups, self._given, strict=True):
            before = {key: group.get(key) for key in given}
            group.update(given)
            changed = [f"{key} {before[key]} -> {value}" for key, value in given.items() if before[key] != value]
            if changed:
                log.info("new settings of the optimizer: %s", ", ".join(changed))
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for scheduler in (s for s in schedulers if isinstance(s, LambdaLR)):
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates
