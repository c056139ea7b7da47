"""Settings that are new in a run which goes on from a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging

log = logging.getLogger(__name__)


class Resumed(pl.Callback):
    """Makes a run that goes on do what its own settings say, where Lightning takes those of the checkpoint.

    A run with `callbacks=ema` stores the average as its weights, and those that are trained apart. Without
    `callbacks=ema` the run goes on with the trained ones: the state of the optimizer belongs to them, and the average
    would be a jump to other weights.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the trained weights where nothing asks for the average."""
        averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            pl_module.load_state_dict(checkpoint["current_model_state"])
            log.warning("the checkpoint is of a run with callbacks=ema, this one is without: it goes on with the weights "
                        "that were trained, and their average ends here; add callbacks=ema to go on with both")  # fmt: skip
