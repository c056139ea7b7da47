"""The best checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, with a score that always belongs to a file.

    A checkpoint that could not be written counts for nothing, so that the next one better than the file is written;
    and the best score outlives a move of the folder.
    """

    _told = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write if it is the best; forget about it if it could not be written.

        The objective is undefined where the validation images have nothing that it counts: no checkpoint is the best.
        """
        if self.monitor not in trainer.callback_metrics:
            if not self._told:
                log.warning("%s is undefined on these validation images, so there is no best checkpoint; give others, "
                            "or another objective", self.monitor)  # fmt: skip
            self._told = True
            return
        with self._forgetting(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, where validations are counted in epochs."""
        if self.monitor not in trainer.callback_metrics:
            return
        with self._forgetting(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, also from a folder that had another name then."""
        here = Path(self.dirpath)
        moved = {name: str(here / Path(name).name) for name in state_dict["best_k_models"]}
        if state_dict["dirpath"] != self.dirpath and moved and all(Path(name).is_file() for name in moved.values()):
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": {moved[name]: score for name, score in state_dict["best_k_models"].items()},
                "best_model_path": moved.get(state_dict["best_model_path"], ""),
                "kth_best_model_path": moved.get(state_dict["kth_best_model_path"], ""),
            }
        super().load_state_dict(state_dict)

    @contextmanager
    def _forgetting(self, trainer: pl.Trainer) -> Iterator[None]:
        """Take back the bookkeeping of a write that fails."""
        before = copy.deepcopy(self.state_dict())
        checkpoint_io = trainer.strategy.checkpoint_io
        checkpoint_io.failed = False  # known to the first process, which writes
        yield
        if trainer.strategy.broadcast(checkpoint_io.failed):
            super().load_state_dict(before)
